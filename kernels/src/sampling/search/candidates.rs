//! The numbers among which the least one that counts must be, few enough for shared memory: collected, and bisected.

use cubecl::prelude::*;

use super::buckets::Bracket;
use super::memory::{COLLECTED, COUNT, Memory, NANS, TRIED};
use super::{IN_FLIGHT, Limits, Row, SEGMENTS, Search, countable, fits, load};
use crate::math::widen;
use crate::sampling::mass::{mass, mass_of_key};
use crate::team::{group_sum, meet};

/// Bits that a candidate's key takes, as a difference; the others are its segment.
pub(super) const KEY_BITS: u32 = 29;

/// Sums what is from the bracket's upper end on, by segment, and puts what is in the bracket among the candidates.
#[cube]
pub(super) fn collect<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    bracket: &Bracket,
    memory: &mut Memory,
    #[comptime] search: Search,
) {
    let (units, team, candidates) = comptime!((search.team.units, search.team, search.candidates()));
    let unit = memory.unit;
    if unit == 0 {
        memory.find(COLLECTED, 0u32);
    }
    meet(units);
    let low = max(bracket.low, comptime!(search.least()));
    let mut count = 0u32;
    let mut nans = 0u32;
    for segment in 0..SEGMENTS {
        let end = min((segment + 1) * row.segment, row.vectors);
        let mut sum = 0u64;
        let mut first = segment * row.segment;
        while first < end {
            let read = load(x, row, first + unit, units);
            #[unroll]
            for f in 0..IN_FLIGHT {
                if first + unit + comptime!(f * units) < end {
                    let vector = widen::<F, N>(read[f]);
                    #[unroll]
                    for lane in 0..search.lanes {
                        let value = vector.extract(lane);
                        let key = countable(value, search);
                        let counts = key >= bracket.high;
                        if comptime!(search.sums) {
                            sum += select(counts, mass(value), 0u64);
                            nans += select(value.is_nan(), 1u32, 0u32);
                        }
                        if comptime!(search.by_count) {
                            count += select(counts, 1u32, 0u32);
                        }
                        if comptime!(search.is_limited()) {
                            let candidate = (key - bracket.low) | u32::cast_from(segment) << KEY_BITS;
                            if key >= low && !counts {
                                let at = memory.collected();
                                // There is room for all of them.
                                if at < comptime!(candidates as u32) {
                                    let at = memory.row * candidates + usize::cast_from(at);
                                    memory.candidates[at] = candidate;
                                }
                            }
                        }
                    }
                }
            }
            first += comptime!(IN_FLIGHT * units);
        }
        if comptime!(search.sums) {
            memory.put(segment, group_sum(sum, team), search);
        }
    }
    if comptime!(search.by_count) {
        memory.put(COUNT, group_sum(u64::cast_from(count), team), search);
    }
    if comptime!(search.sums) {
        memory.put(NANS, group_sum(u64::cast_from(nans), team), search);
    }
    meet(units);
}

/// The least key that counts, given the candidates in the bracket.
#[cube]
pub(super) fn bisect(
    bracket: &Bracket,
    limits: &Limits,
    memory: &mut Memory,
    #[comptime] search: Search,
) -> u32 {
    let (units, team, candidates) = comptime!((search.team.units, search.team, search.candidates()));
    let all = min(usize::cast_from(memory.found(COLLECTED)), candidates.runtime());
    let mut mass_above = 0u64;
    let mut count_above = 0u64;
    if comptime!(search.by_mass) {
        for segment in 0..SEGMENTS {
            mass_above += memory.total(segment, search);
        }
    }
    if comptime!(search.by_count) {
        count_above = memory.total(COUNT, search);
    }
    let mut low = bracket.low;
    let mut high = bracket.high;
    let mut slot = TRIED.runtime();
    while high - low > 1u32 {
        let middle = low + (high - low) / 2u32;
        let mut sum = 0u64;
        let mut count = 0u64;
        let mut i = memory.unit;
        while i < all {
            let key = memory.candidates[memory.row * candidates + i] & comptime!((1u32 << KEY_BITS) - 1);
            let key = bracket.low + key;
            let is_above = key >= middle;
            if comptime!(search.by_mass) {
                sum += select(is_above, mass_of_key(key), 0u64);
            }
            count += select(is_above, 1u64, 0u64);
            i += units;
        }
        if comptime!(search.by_mass) {
            memory.put(slot, group_sum(sum, team), search);
        }
        if comptime!(search.by_count) {
            memory.put(slot + 1, group_sum(count, team), search);
        }
        meet(units);
        if comptime!(search.by_mass) {
            sum = memory.total(slot, search);
        }
        if comptime!(search.by_count) {
            count = memory.total(slot + 1, search);
        }
        let is_high = fits(count_above + count, mass_above + sum, limits, search);
        high = select(is_high, middle, high);
        low = select(is_high, low, middle);
        // What others may still read stays for a round.
        slot = comptime!(2 * TRIED + 2) - slot;
    }
    low
}

/// Adds the masses of the candidates from `least` on to those of their segments.
#[cube]
pub(super) fn add_candidates(bracket: &Bracket, least: u32, memory: &mut Memory, #[comptime] search: Search) {
    let (units, team, candidates) = comptime!((search.team.units, search.team, search.candidates()));
    let all = min(usize::cast_from(memory.found(COLLECTED)), candidates.runtime());
    // Their sums are read no more.
    meet(units);
    for segment in 0..SEGMENTS {
        let mut sum = 0u64;
        let mut i = memory.unit;
        while i < all {
            let candidate = memory.candidates[memory.row * candidates + i];
            let key = bracket.low + (candidate & comptime!((1u32 << KEY_BITS) - 1));
            let counts = key >= least && candidate >> KEY_BITS == u32::cast_from(segment);
            sum += select(counts, mass_of_key(key), 0u64);
            i += units;
        }
        memory.add(segment, group_sum(sum, team), search);
    }
    meet(units);
}
