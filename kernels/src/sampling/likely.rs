//! The most likely tokens of each row: their probabilities made a distribution, or the logits of all others masked.
//!
//! What counts reaches a threshold, the smallest number above which there is less than a limit: fewer than `top_k` tokens,
//! or less than `top_p` probability. Numbers are compared as integers in the same order. After a first pass over the row,
//! which finds their range, each pass tries eight of them between the highest that is known to be too low and the lowest
//! that is known not to be, and it narrows these two to what there is in the row: the search ends when that is one number.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::mass::{Place, fold, helpers, limit_of, mass, sum_at};
use crate::math::{narrow, widen};
use crate::team::{Team, meet};
use crate::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};

const KERNEL: &str = "keep_likely";
/// Thresholds that a pass tries.
const PIVOTS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Blueprint {
    team: Team,
    lanes: usize,
    /// Units that add up one sum.
    helpers: usize,
    /// Whether the limit is one of tokens, not of probability.
    by_count: bool,
    output: Output,
}

/// What becomes of the numbers of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Probabilities, divided by their sum; of the others 0.
    Renormalised,
    /// Logits; of the others `-inf`.
    Masked,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn keep_likely<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    top_k: &ComptimeOption<Box<[i32]>>,
    top_p: &ComptimeOption<Box<[f32]>>,
    y: &mut Tensor<Vector<F, N>>,
    #[comptime] blueprint: Blueprint,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, units) = comptime!((blueprint.team.rows, blueprint.team.units));
    let (helpers, lanes, by_count) = comptime!((blueprint.helpers, blueprint.lanes, blueprint.by_count));
    let unit = UNIT_POS as usize % units;
    let part = UNIT_POS as usize / units;
    let row = CUBE_POS * rows + part;
    if row >= x.shape(0) {
        terminate!();
    }
    let vectors = x.shape(1) / lanes;
    let start = row * x.stride(0) / lanes;

    let mut limit = u64::MAX.runtime();
    #[comptime]
    match top_k {
        ComptimeOption::Some(top_k) => {
            limit = u64::cast_from(max(top_k[row], 1i32));
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match top_p {
        ComptimeOption::Some(top_p) => {
            limit = limit_of(top_p[row]);
        }
        ComptimeOption::None => {}
    }

    let mut parts = Shared::<[u64]>::new_slice(rows * PIVOTS * units);
    let mut sums = Shared::<[u64]>::new_slice(rows * PIVOTS * helpers);
    let mut lows = Shared::<[u32]>::new_slice(rows * units);
    let mut highs = Shared::<[u32]>::new_slice(rows * units);
    let place = Place { parts: part * PIVOTS * units, sums: part * PIVOTS * helpers };
    let own = part * units + unit;

    let mut weights = Array::<u64>::new(PIVOTS);
    weights[0] = 0u64;
    let mut lowest = u32::MAX.runtime();
    let mut highest = 0u32;
    let mut i = unit;
    while i < vectors {
        let vector = widen::<F, N>(x[start + i]);
        #[unroll]
        for lane in 0..lanes {
            let value = vector.extract(lane);
            let key = key_of(value);
            weights[0] += select(key > 0u32, weight_of(value, by_count), 0u64);
            lowest = select(key > 0u32, min(lowest, key), lowest);
            highest = max(highest, key);
        }
        i += units;
    }
    parts[place.parts + unit] = weights[0];
    lows[own] = lowest;
    highs[own] = highest;
    fold(&parts, &mut sums, &place, unit, units, helpers, 1usize);
    let (lowest, highest) = range_of(&lows, &highs, part * units, units);
    // How much is above `low`, which is too low; nothing is above `high`.
    let mut above = sum_at(&sums, &place, 0usize, helpers);
    let keeps_all = above < limit;
    let mut low = select(keeps_all, 0u32, lowest - 1u32);
    let mut high = select(keeps_all, 0u32, highest);
    meet(units);

    while high > low + 1u32 {
        let step = max((high - low) / (PIVOTS as u32 + 1u32), 1u32);
        #[unroll]
        for j in 0..PIVOTS {
            weights[j] = 0u64;
        }
        let mut lowest = u32::MAX.runtime();
        let mut highest = 0u32;
        let mut i = unit;
        while i < vectors {
            let vector = widen::<F, N>(x[start + i]);
            #[unroll]
            for lane in 0..lanes {
                let value = vector.extract(lane);
                let key = key_of(value);
                let weight = weight_of(value, by_count);
                let is_inside = key > low && key <= high;
                lowest = select(is_inside, min(lowest, key), lowest);
                highest = select(is_inside, max(highest, key), highest);
                #[unroll]
                for j in 0..PIVOTS {
                    weights[j] += select(key > pivot_of(low, high, step, j), weight, 0u64);
                }
            }
            i += units;
        }
        #[unroll]
        for j in 0..PIVOTS {
            parts[place.parts + j * units + unit] = weights[j];
        }
        lows[own] = lowest;
        highs[own] = highest;
        fold(&parts, &mut sums, &place, unit, units, helpers, PIVOTS);
        let (lowest, highest) = range_of(&lows, &highs, part * units, units);

        let mut next_low = low;
        let mut next_high = high;
        for j in 0..PIVOTS {
            let pivot = pivot_of(low, high, step, j);
            let weight = sum_at(&sums, &place, j, helpers);
            let is_low = weight >= limit;
            // Pivots rise: the last that is too low counts, and the first that is not.
            next_low = select(is_low, pivot, next_low);
            above = select(is_low, weight, above);
            next_high = select(is_low, next_high, min(next_high, pivot));
        }
        low = max(next_low, lowest - 1u32);
        high = min(next_high, highest);
        meet(units);
    }

    if comptime!(blueprint.output == Output::Renormalised && by_count) {
        // So far tokens were counted.
        let mut mass_kept = 0u64;
        let mut i = unit;
        while i < vectors {
            let vector = widen::<F, N>(x[start + i]);
            #[unroll]
            for lane in 0..lanes {
                let value = vector.extract(lane);
                mass_kept += select(key_of(value) >= high, mass(value), 0u64);
            }
            i += units;
        }
        parts[place.parts + unit] = mass_kept;
        fold(&parts, &mut sums, &place, unit, units, helpers, 1usize);
        above = sum_at(&sums, &place, 0usize, helpers);
    }

    // 2^-40
    let sum = f32::cast_from(above) * 9.094_947e-13_f32;
    let mut i = unit;
    while i < vectors {
        let vector = widen::<F, N>(x[start + i]);
        let mut kept = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for lane in 0..lanes {
            let value = vector.extract(lane);
            let counts = key_of(value) >= high;
            let output = if comptime!(blueprint.output == Output::Masked) {
                select(counts, value, f32::NEG_INFINITY)
            } else {
                select(counts && value > 0.0f32, value / sum, 0.0f32)
            };
            let output = select(value.is_nan(), value, output);
            kept.insert(lane, output);
        }
        y[row * vectors + i] = narrow::<F, N>(kept);
        i += units;
    }
}

/// Threshold `j` of those that a pass tries.
#[cube]
fn pivot_of(low: u32, high: u32, step: u32, j: usize) -> u32 {
    min(low + step * (u32::cast_from(j) + 1u32), high)
}

/// The range of the numbers that the units of a row have found.
#[cube]
fn range_of(lows: &[u32], highs: &[u32], first: usize, #[comptime] units: usize) -> (u32, u32) {
    let mut lowest = u32::MAX.runtime();
    let mut highest = 0u32;
    for u in 0..units {
        lowest = min(lowest, lows[first + u]);
        highest = max(highest, highs[first + u]);
    }
    (lowest, highest)
}

/// What a number adds to what is above a threshold.
#[cube]
fn weight_of(value: f32, #[comptime] by_count: bool) -> u64 {
    if comptime!(by_count) { 1u64.runtime() } else { mass(value) }
}

/// An integer for each number, in the same order: 0 for NaN.
#[cube]
fn key_of(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let sign = 0x8000_0000u32;
    let key = select(bits >= sign, !bits, bits | sign);
    // One for both zeros.
    let key = select(x == 0.0f32, sign, key);
    select(x.is_nan(), 0u32, key)
}

/// Rows, how much of them counts, and where they go.
pub struct KeepLikely {
    /// `[rows, vocab]`.
    pub x: TensorBinding,
    /// What counts.
    pub by: Limit,
    /// As `x`, contiguous.
    pub y: TensorBinding,
    /// What becomes of it.
    pub output: Output,
}

/// How much of each row counts.
pub enum Limit {
    /// `[rows]` of i32: the tokens than which fewer than these are more likely. Below 1 it counts as 1.
    TopK(TensorBinding),
    /// `[rows]` of f32: the tokens than which the more likely ones have less probability; from 1 on, all.
    TopP(TensorBinding),
}

/// Keeps what counts of each row.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, keep: KeepLikely, dtype: ElemType) -> Result<()> {
    let KeepLikely { x, by, y, output } = keep;
    rows(KERNEL, "x", &x, 2)?;
    let [row_count, vocab] = [x.shape[0], x.shape[1]];
    let (by_count, argument, limit) = match by {
        Limit::TopK(limit) => (true, "top_k", limit),
        Limit::TopP(limit) => (false, "top_p", limit),
    };
    contiguous(KERNEL, argument, &limit, &[row_count])?;
    contiguous(KERNEL, "y", &y, &[row_count, vocab])?;
    if vocab == 0 {
        return Err(shape(KERNEL, "x", &x, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }

    let lanes = vector(client, dtype, &[vocab], alignment(&x));
    let (team, cubes, dim) = Team::of(KERNEL, client, row_count, vocab / lanes, 256)?;
    let address = addresses(&[(&x, dtype.size()), (&y, dtype.size())]);
    let blueprint = Blueprint { team, lanes, helpers: helpers(team.units, PIVOTS), by_count, output };
    let limit = limit.into_buffer_arg();
    let (top_k, top_p) = if by_count { (Some(limit), None) } else { (None, Some(limit)) };
    // SAFETY: a unit beyond the last row stops; a vector is below those of a row, which x and y share, as limits are one
    // for each row. What is in shared memory has a place for each unit, or helper, of each row of the cube.
    unsafe {
        keep_likely::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            x.into_tensor_arg(),
            top_k.into(),
            top_p.into(),
            y.into_tensor_arg(),
            blueprint,
            dtype,
        );
    }
    Ok(())
}
