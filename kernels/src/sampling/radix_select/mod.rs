//! Radix select: the threshold of top-k, top-p and min-p in a row, without sorting.
//!
//! `above(x)` means the count and the mass of the numbers greater than `x`. A number passes while `above(x)`
//! is below the limits; the threshold is the least number that passes. Numbers are compared as [radix
//! keys](super::fixed_point).
//!
//! | pass over the row | finds |
//! |---|---|
//! | histogram | the count of numbers in each bucket of keys, and about how much mass is above each bucket |
//! | collect | the mass above a bracket of keys, and the candidates: the numbers in the bracket |
//!
//! The candidates fit into shared memory, where the threshold is bisected. The first bracket is a guess,
//! since sums of probabilities are approximate there. If the collected numbers do not confirm it, bounds of
//! the sums give a sure bracket. While that has too many numbers, a histogram with smaller buckets narrows
//! it. Sums are of integers: their order changes no result.

mod candidates;
mod histogram;
mod memory;

use cubecl::prelude::*;

use super::fixed_point::{ZERO_KEY, from_radix_key, radix_key};
use super::top_k::MAX_TOP_K;
use crate::DeviceProfile;
use crate::row_group::RowGroup;
use candidates::{KEY_BITS, add_candidates, bisect, collect, holds};
use histogram::{Bracket, KeyRange, count_buckets, find_bracket};
use memory::NANS;
pub(crate) use memory::{COLLECTED, Memory, MemoryExpand};

/// Parts of a row whose masses are known, so that a token is looked for in one of them and not in all.
pub(crate) const SEGMENTS: usize = 8;
/// Loads that a unit has under way.
pub(crate) const IN_FLIGHT: usize = 4;

/// The limits that a kernel has, and the sizes of its tables. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SelectConfig {
    pub row_group: RowGroup,
    /// Elements of a vector.
    pub lanes: usize,
    /// Limits the count above.
    pub by_count: bool,
    /// Limits the mass above.
    pub by_mass: bool,
    /// Refuses numbers below a fraction of the largest one.
    pub has_floor: bool,
    /// Numbers are probabilities, of which positive ones count, and else logits.
    pub of_probs: bool,
    /// Parts of a row, each with a mass of the numbers that pass.
    pub segments: usize,
    /// Buckets of a histogram, and room for candidates: a power of 2.
    pub size: usize,
}

impl SelectConfig {
    /// No limits, in rows of `vocab` numbers.
    pub(crate) fn new(device: &DeviceProfile, row_group: RowGroup, lanes: usize, vocab: usize) -> Self {
        // 32 KiB at most, beside 4 KiB of sums. A bucket costs as much as several numbers.
        let most = if device.shared_memory >= 40 << 10 { 4096 } else { MAX_TOP_K };
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

    /// The units of each of `rows` rows of so many vectors. Serial parts gain nothing from more units, so
    /// they are no more than keep the device busy. With fewer units, more rows would be in flight than the
    /// caches hold.
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

    /// True if there is a limit.
    fn is_limited(self) -> bool {
        self.by_count || self.by_mass
    }

    /// The least key that may count.
    pub(crate) fn least(self) -> u32 {
        if self.of_probs { ZERO_KEY + 1 } else { 1 }
    }

    /// Begin of the first histogram's buckets, and the bits of a key in a bucket. They cover probabilities
    /// from 2^-31 to 2, or all logits.
    fn first_buckets(self) -> (u32, u32) {
        let (base, bits) = if self.of_probs { (0xb000_0000, 28) } else { (0, 32) };
        (base, bits - self.size.ilog2())
    }
}

/// The vectors of a row.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Row {
    /// The first.
    pub start: usize,
    /// The number of vectors.
    pub vectors: usize,
}

#[cube]
impl Row {
    pub(crate) fn new(start: usize, vectors: usize) -> Row {
        Row { start, vectors }
    }

    /// The number of vectors of a segment.
    pub(crate) fn segment(&self, #[comptime] config: SelectConfig) -> usize {
        self.vectors.div_ceil(comptime!(config.segments.max(1)))
    }
}

/// The bounds of `above(x)` for `x` to pass: it must be less.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Limits {
    pub count: u64,
    pub mass: u64,
    /// Part of the largest number.
    pub floor: f32,
}

#[cube]
impl Limits {
    pub(crate) fn none() -> Limits {
        Limits { count: u64::MAX.runtime(), mass: u64::MAX.runtime(), floor: 0.0f32.runtime() }
    }
}

/// The least number of a row that passes.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Threshold {
    /// Its radix key.
    pub key: u32,
    /// The number.
    pub value: f32,
    /// True if the row has a NaN.
    pub has_nan: bool,
}

/// True if a number may pass, and its key if it may.
#[cube]
fn countable(x: f32, #[comptime] config: SelectConfig) -> (bool, u32) {
    if comptime!(config.of_probs) {
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

/// True if a count and a mass above are less than the limits.
#[cube]
fn fits(count: u64, mass: u64, limits: &Limits, #[comptime] config: SelectConfig) -> bool {
    let is_few = if comptime!(config.by_count) { count < limits.count } else { true.runtime() };
    let is_light = if comptime!(config.by_mass) { mass < limits.mass } else { true.runtime() };
    is_few && is_light
}

/// The threshold of a row. The masses of its segments are in the memory then, if the configuration has segments.
#[cube]
pub(crate) fn select_row<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    limits: &Limits,
    memory: &mut Memory,
    #[comptime] config: SelectConfig,
) -> Threshold {
    let least = comptime!(config.least()).runtime();
    let (base, shift) = comptime!(config.first_buckets());
    let mut range =
        KeyRange { low: least, base: base.runtime(), top: u32::MAX.runtime(), shift: shift.runtime() };
    let mut floor = 0u32;
    if comptime!(config.is_limited() || config.has_floor) {
        let largest = count_buckets::<F, N>(x, row, &range, memory, true, config);
        if comptime!(config.has_floor) {
            let largest = f32::reinterpret(max(largest, ZERO_KEY) - ZERO_KEY);
            let least = limits.floor * largest;
            // NaN is no floor.
            let (is_one, key) = countable(select(least > largest, largest, least), config);
            floor = select(is_one, key, 0u32);
        }
    }

    let mut threshold = max(floor, least);
    if comptime!(config.is_limited()) {
        let mut bracket = find_bracket(&range, limits, memory, false.runtime(), true, config);
        let mut is_guess = true.runtime();
        let mut is_found = false.runtime();
        while !is_found {
            if is_narrow(&bracket, config) {
                let above = raised(&bracket, floor);
                collect::<F, N>(x, row, &above, memory, config);
                is_found = !is_guess || holds(&above, floor, limits, memory, config);
                if is_found {
                    threshold = above.low;
                    if above.low < above.high {
                        threshold = max(bisect(&above, limits, memory, config), threshold);
                        if comptime!(config.segments > 0) {
                            add_candidates(&above, threshold, memory, config);
                        }
                    }
                }
            }
            if !is_found {
                is_guess = false;
                let mut is_again = false.runtime();
                let mut is_sure = false.runtime();
                while !is_sure {
                    bracket.set(&find_bracket(&range, limits, memory, is_again, false, config));
                    is_sure = is_narrow(&bracket, config);
                    if !is_sure {
                        range.set(&KeyRange::within(max(bracket.low, least), bracket.high, config));
                        count_buckets::<F, N>(x, row, &range, memory, false, config);
                        is_again = true;
                    }
                }
                // The threshold is the lower key of two.
                bracket.high = select(bracket.high - bracket.low == 1u32, bracket.low, bracket.high);
            }
        }
    } else {
        collect::<F, N>(
            x,
            row,
            &Bracket { low: threshold, high: threshold, count: 0u32.runtime() },
            memory,
            config,
        );
    }
    let has_nan =
        if comptime!(config.segments > 0) { memory.total(NANS, config) > 0u64 } else { false.runtime() };
    let key = max(threshold, least);
    Threshold { key, value: from_radix_key(key), has_nan }
}

/// The bracket above a floor.
#[cube]
fn raised(bracket: &Bracket, floor: u32) -> Bracket {
    Bracket { low: max(bracket.low, floor), high: max(bracket.high, floor), count: bracket.count }
}

/// True if the numbers in a bracket can be collected.
#[cube]
fn is_narrow(bracket: &Bracket, #[comptime] config: SelectConfig) -> bool {
    let width = bracket.high - bracket.low;
    width <= 1u32
        || (bracket.count <= comptime!(config.candidates() as u32) && width <= comptime!(1u32 << KEY_BITS))
}
