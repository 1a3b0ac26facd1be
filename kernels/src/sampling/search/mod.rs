//! The least number of a row that counts: the smallest above which there are fewer than `most` numbers, and less than
//! `limit` mass.
//!
//! Numbers are compared as integers in the same order, their keys. A row goes through
//!
//! | pass | finds |
//! |---|---|
//! | tally | how many numbers there are in each bucket of keys, and about how much mass is above each |
//! | collect | the mass above the buckets in which the least one seems to be, and what is in these: the candidates |
//!
//! and the candidates, few enough for shared memory, are cut in ever smaller parts. What was collected tells whether the
//! least one is among them. If not, bounds of the masses tell between which buckets it must be, and if there are too many
//! numbers in these they are tallied again, in buckets as much smaller as they are fewer. Sums are of integers: what comes
//! out does not depend on their order.

mod buckets;
mod candidates;
mod memory;

use cubecl::prelude::*;

use super::fixed_point::{ZERO_KEY, from_radix_key, radix_key};
use super::top_k::MOST_TOP_K;
use crate::DeviceProfile;
use crate::row_group::RowGroup;
use buckets::{Bracket, Range, bracket_of, tally};
use candidates::{KEY_BITS, add_candidates, bisect, collect, holds};
use memory::NANS;
pub(crate) use memory::{COLLECTED, Memory, MemoryExpand};

/// Parts of a row whose masses are known, so that a token is looked for in one of them and not in all.
pub(crate) const SEGMENTS: usize = 8;
/// Loads that a unit has under way.
pub(crate) const IN_FLIGHT: usize = 4;

/// What is searched for, known when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    pub row_group: RowGroup,
    /// Elements of a vector.
    pub lanes: usize,
    /// What is less than the numbers above: their count, their mass.
    pub by_count: bool,
    pub by_mass: bool,
    /// Whether nothing counts that is less than a part of the largest number.
    pub has_floor: bool,
    /// Whether numbers are probabilities, of which positive ones count, or logits.
    pub of_probs: bool,
    /// Parts of a row of which the mass of what counts is wanted.
    pub segments: usize,
    /// Buckets of a tally, and candidates there is room for: a power of 2.
    pub size: usize,
}

impl Search {
    /// A search without limits, in rows of `vocab` numbers.
    pub(crate) fn new(device: &DeviceProfile, row_group: RowGroup, lanes: usize, vocab: usize) -> Self {
        // 32 KiB at most, beside 4 KiB of sums. A bucket is as much work as several numbers.
        let most = if device.shared_memory >= 40 << 10 { 4096 } else { MOST_TOP_K };
        let size = vocab.div_ceil(8).next_power_of_two().clamp(64, most);
        Self {
            row_group,
            lanes,
            by_count: false,
            by_mass: false,
            has_floor: false,
            of_probs: true,
            segments: 0,
            size,
        }
    }

    /// How many units share each of `rows` rows of so many vectors. More of them share less of what there is to do but once,
    /// and so they are no more than keep the device busy; with fewer, more rows would be under way than its caches keep.
    pub(crate) fn units(device: &DeviceProfile, rows: usize, vectors: usize) -> u32 {
        let of_device = device.cores.unwrap_or(1) * 512;
        let busy = of_device.div_ceil(rows).next_power_of_two().min(vectors.div_ceil(IN_FLIGHT));
        busy.max(vectors.div_ceil(4 * IN_FLIGHT)).min(1024) as u32
    }

    fn buckets(self) -> usize {
        if self.is_limited() { self.size } else { 1 }
    }

    fn candidates(self) -> usize {
        self.buckets()
    }

    /// Whether there is a limit.
    fn is_limited(self) -> bool {
        self.by_count || self.by_mass
    }

    /// The least key that may count.
    pub(crate) fn least(self) -> u32 {
        if self.of_probs { ZERO_KEY + 1 } else { 1 }
    }

    /// Where the buckets of the first tally begin, and how many bits of a key a bucket covers: probabilities from 2^-31 to
    /// 2, or all logits.
    fn first_buckets(self) -> (u32, u32) {
        let (base, bits) = if self.of_probs { (0xb000_0000, 28) } else { (0, 32) };
        (base, bits - self.size.ilog2())
    }
}

/// Where a row has its vectors.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Row {
    /// The first.
    pub start: usize,
    /// How many it has.
    pub vectors: usize,
}

#[cube]
impl Row {
    pub(crate) fn new(start: usize, vectors: usize) -> Row {
        Row { start, vectors }
    }

    /// How many vectors a segment has.
    pub(crate) fn segment(&self, #[comptime] search: Search) -> usize {
        self.vectors.div_ceil(comptime!(search.segments.max(1)))
    }
}

/// What must be less above a number for it to count.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Limits {
    pub most: u64,
    pub limit: u64,
    /// Part of the largest number.
    pub floor: f32,
}

#[cube]
impl Limits {
    pub(crate) fn none() -> Limits {
        Limits { most: u64::MAX.runtime(), limit: u64::MAX.runtime(), floor: 0.0f32.runtime() }
    }
}

/// What counts of a row.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Kept {
    /// Whose key is at least this.
    pub key: u32,
    /// The number with this key.
    pub least: f32,
    /// Whether there is a NaN.
    pub has_nan: bool,
}

/// Whether a number may count, and its key if it may.
#[cube]
fn countable(x: f32, #[comptime] search: Search) -> (bool, u32) {
    if comptime!(search.of_probs) {
        (x > 0.0f32, u32::reinterpret(x) | ZERO_KEY)
    } else {
        (!x.is_nan(), radix_key(x))
    }
}

/// Every `stride`th vector of a row from `first` on, `IN_FLIGHT` of them: for those that are not there, its last.
#[cube]
pub(crate) fn load<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    first: usize,
    #[comptime] stride: usize,
) -> Array<Vector<F, N>> {
    let mut read = Array::<Vector<F, N>>::new(IN_FLIGHT);
    #[unroll]
    for f in 0..IN_FLIGHT {
        read[f] = x[row.start + min(first + comptime!(f * stride), row.vectors - 1)];
    }
    read
}

/// Whether less than the limits is above.
#[cube]
fn fits(count: u64, mass: u64, limits: &Limits, #[comptime] search: Search) -> bool {
    let is_few = if comptime!(search.by_count) { count < limits.most } else { true.runtime() };
    let is_light = if comptime!(search.by_mass) { mass < limits.limit } else { true.runtime() };
    is_few && is_light
}

/// What counts of a row. The masses of its segments are in the memory then, if the search sums them.
#[cube]
pub(crate) fn search_row<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    limits: &Limits,
    memory: &mut Memory,
    #[comptime] search: Search,
) -> Kept {
    let least = comptime!(search.least()).runtime();
    let (base, shift) = comptime!(search.first_buckets());
    let mut range =
        Range { low: least, base: base.runtime(), top: u32::MAX.runtime(), shift: shift.runtime() };
    let mut floor = 0u32;
    if comptime!(search.is_limited() || search.has_floor) {
        let largest = tally::<F, N>(x, row, &range, memory, true, search);
        if comptime!(search.has_floor) {
            let largest = f32::reinterpret(max(largest, ZERO_KEY) - ZERO_KEY);
            let least = limits.floor * largest;
            // NaN is no floor.
            let (is_one, key) = countable(select(least > largest, largest, least), search);
            floor = select(is_one, key, 0u32);
        }
    }

    let mut kept = max(floor, least);
    if comptime!(search.is_limited()) {
        let mut bracket = bracket_of(&range, limits, memory, false.runtime(), true, search);
        let mut is_guess = true.runtime();
        let mut is_found = false.runtime();
        while !is_found {
            if is_narrow(&bracket, search) {
                let above = raised(&bracket, floor);
                collect::<F, N>(x, row, &above, memory, search);
                is_found = !is_guess || holds(&above, floor, limits, memory, search);
                if is_found {
                    kept = above.low;
                    if above.low < above.high {
                        kept = max(bisect(&above, limits, memory, search), kept);
                        if comptime!(search.segments > 0) {
                            add_candidates(&above, kept, memory, search);
                        }
                    }
                }
            }
            if !is_found {
                is_guess = false;
                let mut is_again = false.runtime();
                let mut is_sure = false.runtime();
                while !is_sure {
                    bracket.set(&bracket_of(&range, limits, memory, is_again, false, search));
                    is_sure = is_narrow(&bracket, search);
                    if !is_sure {
                        range.set(&Range::within(max(bracket.low, least), bracket.high, search));
                        tally::<F, N>(x, row, &range, memory, false, search);
                        is_again = true;
                    }
                }
                // Of two keys it is the lower.
                bracket.high = select(bracket.high - bracket.low == 1u32, bracket.low, bracket.high);
            }
        }
    } else {
        collect::<F, N>(x, row, &Bracket { low: kept, high: kept, count: 0u32.runtime() }, memory, search);
    }
    let has_nan =
        if comptime!(search.segments > 0) { memory.total(NANS, search) > 0u64 } else { false.runtime() };
    let key = max(kept, least);
    Kept { key, least: from_radix_key(key), has_nan }
}

/// What is left of a bracket if nothing below a floor counts.
#[cube]
fn raised(bracket: &Bracket, floor: u32) -> Bracket {
    Bracket { low: max(bracket.low, floor), high: max(bracket.high, floor), count: bracket.count }
}

/// Whether what is in a bracket can be collected.
#[cube]
fn is_narrow(bracket: &Bracket, #[comptime] search: Search) -> bool {
    let width = bracket.high - bracket.low;
    width <= 1u32
        || (bracket.count <= comptime!(search.candidates() as u32) && width <= comptime!(1u32 << KEY_BITS))
}
