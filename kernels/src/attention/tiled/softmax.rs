//! The online softmax of the rows of a plane, on the registers that hold the scores.

use cubecl::prelude::*;

use crate::math::LOG2_E;
use crate::unit::{MatrixUnit, Tiles};

/// What a lane knows of its rows.
#[derive(CubeType)]
pub(in super::super) struct Softmax {
    /// Largest score so far, before scaling.
    pub maxima: Array<f32>,
    /// Sum of the lane's own weights.
    pub totals: Array<f32>,
    /// What the last tile did to the weights before it.
    pub rescales: Array<f32>,
}

/// Nothing seen.
#[cube]
pub(in super::super) fn new_softmax(#[comptime] rows: usize) -> Softmax {
    let mut maxima = Array::<f32>::new(rows);
    let mut totals = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        maxima[r] = f32::NEG_INFINITY;
        totals[r] = 0.0f32;
    }
    Softmax { maxima, totals, rescales: Array::<f32>::new(rows) }
}

/// Row `r` of the lane, within the rows of its plane.
#[cube]
pub(in super::super) fn row_of<U: MatrixUnit>(lane: usize, #[comptime] r: usize) -> usize {
    U::row(lane, comptime!(r % U::LANE_ROWS)) + comptime!(r / U::LANE_ROWS * U::ROWS)
}

/// `cap * tanh(scale * score / cap)` of all scores.
#[cube]
pub(in super::super) fn soft_cap<U: MatrixUnit>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    scale: f32,
    cap: f32,
    #[comptime] tiles: Tiles,
) {
    // Finite, for 0 times it is 0.
    let steep = max(min(scale / cap * (2.0f32 * LOG2_E), f32::MAX), f32::MIN);
    #[unroll]
    for i in 0..comptime!(tiles.row_tiles * (tiles.keys / U::COLUMNS)) {
        let mut tile = scores[i];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            // tanh x = 1 - 2 / (1 + e^2x), which ends at ±1 where the exponential ends.
            let power = U::exp2(tile.extract(e) * steep);
            tile.insert(e, cap - 2.0f32 * cap / (power + 1.0f32));
        }
        scores[i] = tile;
    }
}

/// -inf for the scores of row `r` whose keys are not in `start..end`; `key` is the lane's first.
#[cube]
pub(in super::super) fn mask<U: MatrixUnit>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    key: u32,
    start: u32,
    end: u32,
    #[comptime] tiles: Tiles,
) {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    #[unroll]
    for n in 0..columns {
        let mut tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                let key = key + comptime!(U::step(n, e) as u32);
                tile.insert(e, select(key >= start && key < end, tile.extract(e), f32::NEG_INFINITY));
            }
        }
        scores[comptime!(r / U::LANE_ROWS * columns + n)] = tile;
    }
}

/// Turns scores into weights `exp2(factor * (score - base))` and adds them up; raises the maxima to those of the scores
/// first, and says by how much older weights are too large.
///
/// Row by row, so that one's maximum is found while another's exponentials are on their way: 1,477,000 cycles for 8192
/// tokens where 1,527,000 it took with all maxima first (H200).
#[cube]
pub(in super::super) fn weights<U: MatrixUnit>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    softmax: &mut Softmax,
    factor: f32,
    #[comptime] tiles: Tiles,
) {
    #[unroll]
    for r in 0..comptime!(tiles.row_tiles * U::LANE_ROWS) {
        let before = softmax.maxima[r];
        let highest = max(before, U::row_max(highest_of::<U>(&*scores, r, tiles)));
        // What weights are relative to. While there is none it is 0, for (-inf) - (-inf) would be NaN.
        let base = select(highest == f32::NEG_INFINITY, 0.0f32, highest);
        let rescale = U::exp2((before - base) * factor);
        let total = weigh::<U>(scores, r, base, factor, tiles);
        softmax.maxima[r] = highest;
        softmax.rescales[r] = rescale;
        softmax.totals[r] = softmax.totals[r] * rescale + total;
    }
}

/// Chains side by side in which a row's elements are compared and added up: one would be all of its latencies.
const CHAINS: usize = 4;

/// The chain of element `e` of tile `n`, which goes through the elements of its row in turn.
fn chain<U: MatrixUnit>(n: usize, e: usize) -> usize {
    let before = (0..e).filter(|&other| U::lane_row(other) == U::lane_row(e)).count();
    (n * (U::ACC / U::LANE_ROWS) + before) % CHAINS
}

/// The largest score of row `r` in this lane.
#[cube]
fn highest_of<U: MatrixUnit>(
    scores: &Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    #[comptime] tiles: Tiles,
) -> f32 {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    let mut highest = Array::<f32>::new(CHAINS);
    #[unroll]
    for c in 0..CHAINS {
        highest[c] = f32::NEG_INFINITY;
    }
    #[unroll]
    for n in 0..columns {
        let tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                let c = comptime!(chain::<U>(n, e));
                highest[c] = max(highest[c], tile.extract(e));
            }
        }
    }
    max(max(highest[0], highest[1]), max(highest[2], highest[3]))
}

/// Logits to base 2 up to which rounding one more leaves the largest weight within 2^-17 of 1, which f16 and bf16 round to 1.
const EXACT: f32 = 128.0;

/// f32 does not.
const NEVER: f32 = -1.0;

/// Turns the scores of row `r` into weights; their sum in this lane.
///
/// By one fused multiply-add, relative to `factor * base` rounded: that is off by the same for every weight of the row, which
/// its sum takes out again. But the largest weight shall be 1, and not a number that is rounded once more as operand of the
/// next product. So where logits are large, or elements f32, bases are subtracted first.
#[cube]
fn weigh<U: MatrixUnit>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    base: f32,
    factor: f32,
    #[comptime] tiles: Tiles,
) -> f32 {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    let mut offset = base * factor;
    let mut exact = EXACT.runtime();
    if comptime!(tiles.dtype.size() > 2) {
        exact = NEVER.runtime();
    }
    if offset.abs() > exact {
        subtract::<U>(scores, r, base, tiles);
        offset = 0.0f32;
    }
    let mut totals = Array::<f32>::new(CHAINS);
    #[unroll]
    for c in 0..CHAINS {
        totals[c] = 0.0f32;
    }
    #[unroll]
    for n in 0..columns {
        let mut tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                let weight = U::exp2(fma(tile.extract(e), factor, -offset));
                let c = comptime!(chain::<U>(n, e));
                totals[c] += weight;
                tile.insert(e, weight);
            }
        }
        scores[comptime!(r / U::LANE_ROWS * columns + n)] = tile;
    }
    (totals[0] + totals[1]) + (totals[2] + totals[3])
}

/// Takes `base` off the scores of row `r`.
#[cube]
fn subtract<U: MatrixUnit>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    base: f32,
    #[comptime] tiles: Tiles,
) {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    #[unroll]
    for n in 0..columns {
        let mut tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                tile.insert(e, tile.extract(e) - base);
            }
        }
        scores[comptime!(r / U::LANE_ROWS * columns + n)] = tile;
    }
}
