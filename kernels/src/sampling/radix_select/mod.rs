//! Radix select: the threshold of top-k, top-p and min-p in a row, without sorting.
//!
//! `above(x)` means the count and the mass of the values greater than `x`. A value passes while `above(x)`
//! is below the limits; the threshold is the least value that passes. Values are compared as [radix
//! keys](super::fixed_point).
//!
//! | pass over the row | finds |
//! |---|---|
//! | histogram | the count of values in each bucket of keys, and about how much mass is above each bucket |
//! | collect | the mass above a bracket of keys, and the candidates: the values in the bracket |
//!
//! The candidates fit into shared memory, where the threshold is bisected. The first bracket is a guess,
//! since sums of probabilities are approximate there. If the collected values do not confirm it, bounds of
//! the sums give a sure bracket. While that has too many values, a histogram with smaller buckets narrows
//! it. Sums are of integers: their order changes no result.

mod candidates;
mod histogram;
mod memory;
mod row;

use cubecl::prelude::*;

use super::fixed_point::{ZERO_KEY, from_radix_key};
use candidates::{KEY_BITS, add_candidates, bisect, collect, holds};
use histogram::{Bracket, KeyRange, count_buckets, find_bracket};
use memory::NANS;
pub(crate) use memory::{COLLECTED, Memory, MemoryExpand};
pub use row::MAX_TOP_K;
use row::countable;
pub(crate) use row::{IN_FLIGHT, Limits, Row, SEGMENTS, SelectConfig, load};

/// The least value of a row that passes.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Threshold {
    /// Its radix key.
    pub key: u32,
    /// The value.
    pub value: f32,
    /// True if the row has a NaN.
    pub has_nan: bool,
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

/// True if the values in a bracket can be collected.
#[cube]
fn is_narrow(bracket: &Bracket, #[comptime] config: SelectConfig) -> bool {
    let width = bracket.high - bracket.low;
    width <= 1u32
        || (bracket.count <= comptime!(config.candidates() as u32) && width <= comptime!(1u32 << KEY_BITS))
}
