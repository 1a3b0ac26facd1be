//! The candidates: the values of a bracket, few enough for shared memory, in which the threshold is bisected.

use cubecl::prelude::*;

use super::histogram::Bracket;
use super::memory::{COLLECTED, COUNT, HIGH, LOW, MASS_WITHIN, Memory, MemoryExpand, NANS};
use super::row::{IN_FLIGHT, Limits, Row, SelectConfig, countable, fits, load};
use crate::math::{sync_row, widen};
use crate::rows::row_group::shuffle_sum;
use crate::sampling::fixed_point::{ZERO_KEY, fixed_point_of_key, fixed_point_where, from_radix_key};

/// Bits that a candidate's key takes, as a difference; the others are its segment.
pub(super) const KEY_BITS: u32 = 29;

/// Sums the values above the bracket, by segment, and stores those in the bracket as candidates.
#[cube]
pub(super) fn collect<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    bracket: &Bracket,
    memory: &mut Memory,
    #[comptime] config: SelectConfig,
) {
    let (units, row_group, candidates) =
        comptime!((config.row_group.units, config.row_group, config.candidates()));
    let unit = memory.unit;
    if unit == 0 {
        memory.set_found(COLLECTED, 0u32);
    }
    sync_row(units);
    let low = max(bracket.low, comptime!(config.least()));
    // Values above 0 compare as their keys do, and a NaN compares false.
    let (least, least_above) = (from_radix_key(low), from_radix_key(bracket.high));
    let mut count = 0u32;
    let mut has_nan = false.runtime();
    let segments = comptime!(config.segments);
    for segment in 0..comptime!(segments.max(1)) {
        let start = segment * row.segment(config);
        let end = min(start + row.segment(config), row.vectors);
        let mut sum = 0u64;
        let mut first = start + unit;
        while first < end {
            let read = load(x, row, first, units);
            #[unroll]
            for f in 0..IN_FLIGHT {
                if first + comptime!(f * units) < end {
                    let vector = widen::<F, N>(read[f]);
                    #[unroll]
                    for lane in 0..config.lanes {
                        let value = vector.extract(lane);
                        let (_, key) = countable(value, config);
                        let of_probs = comptime!(config.of_probs);
                        let counts = if of_probs { value >= least_above } else { key >= bracket.high };
                        let is_low = if of_probs { value >= least } else { key >= low };
                        if comptime!(segments > 0) {
                            sum += fixed_point_where(counts, value);
                            has_nan = has_nan || value.is_nan();
                        }
                        if comptime!(config.by_count) {
                            count += select(counts, 1u32, 0u32);
                        }
                        if comptime!(config.is_limited()) {
                            let is_candidate = is_low && !counts;
                            if is_candidate {
                                let at = memory.collected();
                                // There is room for all of them.
                                if at < comptime!(candidates as u32) {
                                    let at = memory.row * candidates + usize::cast_from(at);
                                    let candidate = (key - bracket.low) | u32::cast_from(segment) << KEY_BITS;
                                    memory.candidates[at] = candidate;
                                }
                            }
                        }
                    }
                }
            }
            first += comptime!(IN_FLIGHT * units);
        }
        if comptime!(segments > 0) {
            memory.put(segment, shuffle_sum(sum, row_group), config);
        }
    }
    if comptime!(config.by_count) {
        memory.put(COUNT, shuffle_sum(u64::cast_from(count), row_group), config);
    }
    if comptime!(segments > 0) {
        memory.put(NANS, shuffle_sum(u64::cast_from(u32::cast_from(has_nan)), row_group), config);
    }
    sync_row(units);
}

/// The count of the values above the bracket, and their mass, if it matters.
#[cube]
fn above(memory: &mut Memory, #[comptime] config: SelectConfig) -> (u64, u64) {
    let mut count = 0u64;
    let mut mass = 0u64;
    if comptime!(config.by_count) {
        count = memory.total(COUNT, config);
    }
    if comptime!(config.by_mass) {
        for segment in 0..comptime!(config.segments) {
            mass += memory.total(segment, config);
        }
    }
    (count, mass)
}

/// True if the threshold is in a bracket that was a guess, or not above it and below `floor`.
#[cube]
pub(super) fn holds(
    bracket: &Bracket,
    floor: u32,
    limits: &Limits,
    memory: &mut Memory,
    #[comptime] config: SelectConfig,
) -> bool {
    let (units, row_group, candidates) =
        comptime!((config.row_group.units, config.row_group, config.candidates()));
    let all = usize::cast_from(memory.found(COLLECTED));
    let mut mass = 0u64;
    let mut i = memory.unit;
    while i < min(all, candidates.runtime()) {
        if comptime!(config.by_mass) {
            mass += fixed_point_of_key(memory.candidate(bracket, i, config));
        }
        i += units;
    }
    memory.put(MASS_WITHIN, shuffle_sum(mass, row_group), config);
    sync_row(units);
    let (count_above, mass_above) = above(memory, config);
    let mass_from_low = mass_above + memory.total(MASS_WITHIN, config);
    let is_low = bracket.low <= max(floor, comptime!(config.least() - 1))
        || !fits(count_above + u64::cast_from(all), mass_from_low, limits, config);
    is_low && all <= candidates && fits(count_above, mass_above, limits, config)
}

#[cube]
impl Memory {
    /// The key of a candidate.
    fn candidate(&self, bracket: &Bracket, at: usize, #[comptime] config: SelectConfig) -> u32 {
        let candidate = self.candidates[self.row * comptime!(config.candidates()) + at];
        bracket.low + (candidate & comptime!((1u32 << KEY_BITS) - 1))
    }
}

/// The threshold's key, given the candidates in the bracket. Each shuffle group sums the mass above one cut of it.
#[cube]
pub(super) fn bisect(
    bracket: &Bracket,
    limits: &Limits,
    memory: &mut Memory,
    #[comptime] config: SelectConfig,
) -> u32 {
    let (units, row_group, candidates) =
        comptime!((config.row_group.units, config.row_group, config.candidates()));
    let all = min(usize::cast_from(memory.found(COLLECTED)), candidates.runtime());
    let (count_above, mass_above) = above(memory, config);
    if memory.unit == 0 {
        memory.set_found(LOW, bracket.low);
        memory.set_found(HIGH, bracket.high);
    }
    let group = memory.unit / comptime!(row_group.shuffle_width);
    let of_unit = memory.unit % comptime!(row_group.shuffle_width);
    let mut low = bracket.low;
    let mut high = bracket.high;
    while high - low > 1u32 {
        let part = (high - low).div_ceil(comptime!(row_group.shuffle_groups() as u32 + 1));
        let cut = min(low + part * (u32::cast_from(group) + 1u32), high);
        let mut sum = 0u64;
        let mut count = 0u32;
        let mut i = of_unit;
        while i < all {
            let key = memory.candidate(bracket, i, config);
            let is_above = key >= cut;
            if comptime!(config.by_mass) {
                sum += fixed_point_where(is_above, f32::reinterpret(key - ZERO_KEY));
            }
            count += select(is_above, 1u32, 0u32);
            i += comptime!(row_group.shuffle_width);
        }
        if comptime!(config.by_mass) {
            sum = shuffle_sum(sum, row_group);
        }
        let count = if comptime!(config.by_count) {
            shuffle_sum(u64::cast_from(count), row_group)
        } else {
            0u64.runtime()
        };
        // All know where the bracket ended before.
        sync_row(units);
        if of_unit == 0 {
            if fits(count_above + count, mass_above + sum, limits, config) {
                memory.at_most(HIGH, cut);
            } else {
                memory.at_least(LOW, cut);
            }
        }
        sync_row(units);
        low = memory.found(LOW);
        high = memory.found(HIGH);
    }
    low
}

/// Adds the masses of the candidates from `least` on to those of their segments.
#[cube]
pub(super) fn add_candidates(
    bracket: &Bracket,
    least: u32,
    memory: &mut Memory,
    #[comptime] config: SelectConfig,
) {
    let (units, row_group, candidates) =
        comptime!((config.row_group.units, config.row_group, config.candidates()));
    let all = min(usize::cast_from(memory.found(COLLECTED)), candidates.runtime());
    // Their sums are read no more.
    sync_row(units);
    for segment in 0..comptime!(config.segments) {
        let mut sum = 0u64;
        let mut i = memory.unit;
        while i < all {
            let candidate = memory.candidates[memory.row * candidates + i];
            let key = bracket.low + (candidate & comptime!((1u32 << KEY_BITS) - 1));
            let counts = key >= least && candidate >> KEY_BITS == u32::cast_from(segment);
            sum += select(counts, fixed_point_of_key(key), 0u64);
            i += units;
        }
        memory.add(segment, shuffle_sum(sum, row_group), config);
    }
    sync_row(units);
}
