//! The least number of a row that counts: the smallest above which there are fewer than `most` numbers, and less than
//! `limit` mass.
//!
//! Numbers are compared as integers in the same order, their keys. A row goes through
//!
//! | pass | finds |
//! |---|---|
//! | tally | how many numbers there are in each bucket of keys, and so bounds of the masses above each |
//! | collect | the mass above the buckets in which the least one must be, and what is in these: the candidates |
//!
//! and the candidates, few enough for shared memory, through a bisection. Only if they are not are they tallied again, in
//! buckets as much smaller as they are fewer. Sums are of integers: what comes out does not depend on their order.

mod buckets;
mod candidates;
mod memory;

use cubecl::prelude::*;

use super::mass::{ZERO, key_of};
use super::top_k::MOST_TOP_K;
use crate::DeviceProfile;
use crate::team::Team;
use buckets::{Bracket, Range, bracket_of, tally};
use candidates::{KEY_BITS, add_candidates, bisect, collect};
use memory::NANS;
pub(crate) use memory::{COLLECTED, Memory, MemoryExpand};

/// Parts of a row whose masses are known, so that a token is looked for in one of them and not in all.
pub(crate) const SEGMENTS: usize = 8;
/// Loads that a unit has under way.
pub(crate) const IN_FLIGHT: usize = 4;

/// What is searched for, known when the kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    pub team: Team,
    /// Elements of a vector.
    pub lanes: usize,
    /// What is less than the numbers above: their count, their mass.
    pub by_count: bool,
    pub by_mass: bool,
    /// Whether nothing counts that is less than a part of the largest number.
    pub has_floor: bool,
    /// Whether numbers are probabilities, of which positive ones count, or logits.
    pub of_probs: bool,
    /// Whether the mass of what counts is wanted.
    pub sums: bool,
    /// Buckets of a tally, and candidates there is room for: a power of 2.
    pub size: usize,
}

impl Search {
    /// A search without limits, in rows of `vocab` numbers.
    pub(crate) fn new(device: &DeviceProfile, team: Team, lanes: usize, vocab: usize) -> Self {
        // 32 KiB at most, beside 4 KiB of sums.
        let most = if device.shared_memory >= 40 << 10 { 4096 } else { MOST_TOP_K };
        let size = vocab.next_power_of_two().clamp(64, most);
        Self {
            team,
            lanes,
            by_count: false,
            by_mass: false,
            has_floor: false,
            of_probs: true,
            sums: true,
            size,
        }
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
        if self.of_probs { ZERO + 1 } else { 1 }
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
    /// How many a segment has.
    pub segment: usize,
}

#[cube]
impl Row {
    pub(crate) fn new(start: usize, vectors: usize) -> Row {
        Row { start, vectors, segment: vectors.div_ceil(SEGMENTS) }
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
    pub least: u32,
    /// Whether there is a NaN.
    pub has_nan: bool,
}

/// The key of a number that may count, or 0.
#[cube]
pub(crate) fn countable(x: f32, #[comptime] search: Search) -> u32 {
    if comptime!(search.of_probs) { select(x > 0.0f32, u32::reinterpret(x) | ZERO, 0u32) } else { key_of(x) }
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
    let mut low = comptime!(search.least()).runtime();
    let mut high = comptime!(search.least()).runtime();
    let mut floor = 0u32;
    if comptime!(search.is_limited() || search.has_floor) {
        let (base, shift) = comptime!(search.first_buckets());
        let range = Range { low, base: base.runtime(), top: u32::MAX.runtime(), shift: shift.runtime() };
        let largest = tally::<F, N>(x, row, &range, memory, true, search);
        if comptime!(search.is_limited()) {
            let first = bracket_of(&range, limits, memory, true, search);
            low = first.low;
            high = first.high;
            let mut count = first.count;
            while !is_narrow(low, high, count, search) {
                let range = Range::within(max(low, comptime!(search.least())), high, search);
                tally::<F, N>(x, row, &range, memory, false, search);
                let next = bracket_of(&range, limits, memory, false, search);
                low = next.low;
                high = next.high;
                count = next.count;
            }
            // Of two keys it is the lower.
            high = select(high - low == 1u32, low, high);
        }
        if comptime!(search.has_floor) {
            let largest = f32::reinterpret(max(largest, ZERO) - ZERO);
            let least = limits.floor * largest;
            // NaN is no floor.
            floor = countable(select(least > largest, largest, least), search);
            let is_above = floor >= high;
            low = select(is_above, floor, low);
            high = select(is_above, floor, high);
        }
    }
    let bracket = Bracket { low, high, count: 0u32.runtime() };
    collect::<F, N>(x, row, &bracket, memory, search);
    // Not `low`, which is the bracket's.
    let mut kept = low;
    if comptime!(search.is_limited()) {
        let is_open = low < high;
        if is_open {
            kept = max(bisect(&bracket, limits, memory, search), floor);
            if comptime!(search.sums) {
                add_candidates(&bracket, kept, memory, search);
            }
        }
    }
    let has_nan = if comptime!(search.sums) { memory.total(NANS, search) > 0u64 } else { false.runtime() };
    Kept { least: max(kept, comptime!(search.least())), has_nan }
}

/// Whether what is in a bracket can be collected.
#[cube]
fn is_narrow(low: u32, high: u32, count: u32, #[comptime] search: Search) -> bool {
    let width = high - low;
    width == 1u32 || (count <= comptime!(search.candidates() as u32) && width <= comptime!(1u32 << KEY_BITS))
}
