//! Probabilities as integers, and their sums over a row.

use cubecl::prelude::*;

use crate::team::meet;

/// Segments of a row whose sums are kept, so that a token is looked for in one of them and not in all.
pub(crate) const SEGMENTS: usize = 4;
/// Sums of a row for one pivot: the masses of its segments, then a count.
pub(crate) const SUMS: usize = SEGMENTS + 1;

/// A probability as a multiple of 2^-40, rounded down, but at least 1 if it is positive; 0 for NaN. Above 2 it counts as
/// 2, so that the sum of a row of 2^21 still fits.
#[cube]
pub(crate) fn mass(p: f32) -> u64 {
    let scaled = u64::cast_from(clamp(p, 0.0f32, 2.0f32) * 1_099_511_627_776.0f32);
    select(p > 0.0f32, max(scaled, 1u64), 0u64)
}

/// What the tokens that are more likely must have less of, for a token to be among the `top_p`.
///
/// Masses are rounded, so that they may add up to more than 1: from 1 on there is no limit, nor with NaN.
#[cube]
pub(crate) fn limit_of(top_p: f32) -> u64 {
    select(top_p < 1.0f32, max(mass(top_p), 1u64), u64::MAX)
}

/// A row of probabilities.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Row {
    /// Its first vector.
    pub start: usize,
    /// How many it has.
    pub vectors: usize,
    /// Vectors of a segment.
    pub segment: usize,
}

/// What a first pass over a row finds out besides masses.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Found {
    pub highest: f32,
    pub nans: u32,
}

/// Where a row has its part of the shared memory: it is one of several in a cube, or the only one.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Place {
    pub parts: usize,
    pub sums: usize,
}

/// What a pass over a row looks for besides the mass above a pivot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    /// The largest probability, and NaN.
    First,
    /// Nothing.
    Low,
    /// The mass above another pivot.
    Both,
    /// The mass above another pivot, and how many are above each.
    Counted,
}

/// Writes the masses of what is above each of two pivots, by segment, and how many these are: each unit its part.
/// `parts` is `[2, SUMS, units]` for each row; what the pass does not look for is written as 0.
#[allow(clippy::too_many_arguments, reason = "a row, two pivots, and the shared memory")]
#[cube]
pub(crate) fn sum_above<N: Size>(
    probs: &Tensor<Vector<f32, N>>,
    row: &Row,
    low: f32,
    high: f32,
    parts: &mut [u64],
    place: &Place,
    unit: usize,
    #[comptime] units: usize,
    #[comptime] lanes: usize,
    #[comptime] pass: Pass,
) -> Found {
    let mut highest = 0.0f32;
    let mut nans = 0u32;
    let mut low_count = 0u32;
    let mut high_count = 0u32;
    for s in 0..SEGMENTS {
        let end = min((s + 1) * row.segment, row.vectors);
        let mut low_mass = 0u64;
        let mut high_mass = 0u64;
        let mut i = s * row.segment + unit;
        while i < end {
            let vector = probs[row.start + i];
            #[unroll]
            for lane in 0..lanes {
                let p = vector.extract(lane);
                let m = mass(p);
                low_mass += select(p > low, m, 0u64);
                if comptime!(pass == Pass::First) {
                    highest = select(p > highest, p, highest);
                    nans += select(p.is_nan(), 1u32, 0u32);
                }
                if comptime!(pass == Pass::Both || pass == Pass::Counted) {
                    high_mass += select(p > high, m, 0u64);
                }
                if comptime!(pass == Pass::Counted) {
                    low_count += select(p > low, 1u32, 0u32);
                    high_count += select(p > high, 1u32, 0u32);
                }
            }
            i += units;
        }
        parts[place.parts + s * units + unit] = low_mass;
        parts[place.parts + (SUMS + s) * units + unit] = high_mass;
    }
    parts[place.parts + SEGMENTS * units + unit] = u64::cast_from(low_count);
    parts[place.parts + (SUMS + SEGMENTS) * units + unit] = u64::cast_from(high_count);
    Found { highest, nans }
}

/// How many units add up one of `count` sums in [`fold`].
pub(crate) fn helpers(units: usize, count: usize) -> usize {
    (units / count).max(1)
}

/// Adds the `parts` of all units, `[count, units]`, to `sums`, `[count, helpers]`.
#[cube]
pub(crate) fn fold(
    parts: &[u64],
    sums: &mut [u64],
    place: &Place,
    unit: usize,
    #[comptime] units: usize,
    #[comptime] helpers: usize,
    #[comptime] count: usize,
) {
    meet(units);
    let helper = unit % helpers;
    let mut at = unit / helpers;
    while at < count {
        let mut sum = 0u64;
        let mut u = helper;
        while u < units {
            sum += parts[place.parts + at * units + u];
            u += helpers;
        }
        sums[place.sums + at * helpers + helper] = sum;
        at += units / helpers;
    }
    meet(units);
}

/// Sum `at` of a row.
#[cube]
pub(crate) fn sum_at(sums: &[u64], place: &Place, at: usize, #[comptime] helpers: usize) -> u64 {
    let mut sum = 0u64;
    for helper in 0..helpers {
        sum += sums[place.sums + at * helpers + helper];
    }
    sum
}

/// Sum `at` of pivot `pivot`.
#[cube]
pub(crate) fn sum_of(
    sums: &[u64],
    place: &Place,
    pivot: usize,
    at: usize,
    #[comptime] helpers: usize,
) -> u64 {
    sum_at(sums, place, pivot * SUMS + at, helpers)
}

/// The mass of all segments of pivot `pivot`.
#[cube]
pub(crate) fn mass_of(sums: &[u64], place: &Place, pivot: usize, #[comptime] helpers: usize) -> u64 {
    let mut sum = 0u64;
    for s in 0..SEGMENTS {
        sum += sum_of(sums, place, pivot, s, helpers);
    }
    sum
}

/// A token and its probability.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Token {
    pub id: u32,
    pub p: f32,
}

/// The first token of the row at which the masses of those above `low`, added up, exceed `target`, which is below their
/// sum. Their segments' sums are those of pivot `pivot`. All units find the same.
#[allow(clippy::too_many_arguments, reason = "a row, a target, and the shared memory")]
#[cube]
pub(crate) fn find<N: Size>(
    probs: &Tensor<Vector<f32, N>>,
    row: &Row,
    low: f32,
    target: u64,
    sums: &[u64],
    place: &Place,
    pivot: usize,
    runs: &mut [u64],
    unit: usize,
    #[comptime] units: usize,
    #[comptime] helpers: usize,
    #[comptime] lanes: usize,
) -> Token {
    let mut rest = target;
    let mut segment = 0usize;
    let mut in_segment = sum_of(sums, place, pivot, 0usize, helpers);
    while rest >= in_segment && segment + 1 < SEGMENTS {
        rest -= in_segment;
        segment += 1;
        in_segment = sum_of(sums, place, pivot, segment, helpers);
    }

    // A run of the segment for each unit.
    let first = segment * row.segment;
    let end = min(first + row.segment, row.vectors);
    let run = (end - first).div_ceil(units);
    let mut owner = 0usize;
    if comptime!(units > 1) {
        let mut sum = 0u64;
        let mut i = first + unit * run;
        let last = min(i + run, end);
        while i < last {
            let vector = probs[row.start + i];
            #[unroll]
            for lane in 0..lanes {
                let p = vector.extract(lane);
                sum += select(p > low, mass(p), 0u64);
            }
            i += 1;
        }
        runs[unit] = sum;
        sync_cube();
        while rest >= runs[owner] && owner + 1 < units {
            rest -= runs[owner];
            owner += 1;
        }
    }

    let mut id = 0u32;
    let mut found = 0.0f32;
    let mut is_found = false.runtime();
    let mut i = first + owner * run;
    let last = min(i + run, end);
    while i < last && !is_found {
        let vector = probs[row.start + i];
        #[unroll]
        for lane in 0..lanes {
            let p = vector.extract(lane);
            let m = select(p > low, mass(p), 0u64);
            let is_here = !is_found && rest < m;
            id = select(is_here, u32::cast_from(i * lanes + lane), id);
            found = select(is_here, p, found);
            rest = select(is_found || is_here, rest, rest - m);
            is_found = is_found || is_here;
        }
        i += 1;
    }
    Token { id, p: found }
}
