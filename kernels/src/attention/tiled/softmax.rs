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
    /// What weights are relative to: the maxima, or 0 while they are -inf, for (-inf) - (-inf) would be NaN.
    pub bases: Array<f32>,
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
    Softmax { maxima, totals, bases: Array::<f32>::new(rows), rescales: Array::<f32>::new(rows) }
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
    let steep = scale / cap * (2.0f32 * LOG2_E);
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

/// Raises the maxima to those of the scores, says by how much older weights are too large, and reduces their sums by it.
#[cube]
pub(in super::super) fn raise_maxima<U: MatrixUnit>(
    scores: &Array<Vector<f32, U::Acc>>,
    softmax: &mut Softmax,
    factor: f32,
    #[comptime] tiles: Tiles,
) {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    // Element by element first: one chain for each row would be its whole length of latencies, with nothing beside it.
    let mut highests = Array::<Vector<f32, U::Acc>>::new(tiles.row_tiles);
    #[unroll]
    for m in 0..tiles.row_tiles {
        highests[m] = scores[comptime!(m * columns)];
        #[unroll]
        for n in 1..columns {
            highests[m] = max(highests[m], scores[comptime!(m * columns + n)]);
        }
    }
    #[unroll]
    for r in 0..comptime!(tiles.row_tiles * U::LANE_ROWS) {
        let of_row = highests[comptime!(r / U::LANE_ROWS)];
        let mut highest = f32::NEG_INFINITY.runtime();
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                highest = max(highest, of_row.extract(e));
            }
        }
        let before = softmax.maxima[r];
        let highest = max(before, U::row_max(highest));
        let base = select(highest == f32::NEG_INFINITY, 0.0f32, highest);
        softmax.maxima[r] = highest;
        softmax.bases[r] = base;
        let rescale = U::exp2((before - base) * factor);
        softmax.rescales[r] = rescale;
        softmax.totals[r] *= rescale;
    }
}

/// Logits to base 2 up to which rounding one more leaves the largest weight within 2^-17 of 1, which f16 and bf16 round to 1.
const EXACT: f32 = 128.0;

/// f32 does not.
const NEVER: f32 = -1.0;

/// Turns scores into weights `exp2(factor * (score - base))`, and adds them up.
///
/// By one fused multiply-add, relative to `factor * base` rounded: that is off by the same for every weight of the row, which
/// its sum takes out again. But the largest weight shall be 1, and not a number that is rounded once more as operand of the
/// next product. So where logits are large, or elements f32, bases are subtracted first.
#[cube]
pub(in super::super) fn weights<U: MatrixUnit>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    softmax: &mut Softmax,
    factor: f32,
    #[comptime] tiles: Tiles,
) {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    let rows = comptime!(tiles.row_tiles * U::LANE_ROWS);
    let mut offsets = Array::<f32>::new(rows);
    let mut largest = 0.0f32.runtime();
    let mut exact = EXACT.runtime();
    if comptime!(tiles.dtype.size() > 2) {
        exact = NEVER.runtime();
    }
    #[unroll]
    for r in 0..rows {
        offsets[r] = softmax.bases[r] * factor;
        largest = max(largest, offsets[r].abs());
    }
    if largest > exact {
        // Of the rows of the lane that need it: no row depends on others.
        let mut first = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            let large = offsets[r].abs() > exact;
            first[r] = select(large, softmax.bases[r], 0.0f32);
            offsets[r] = select(large, 0.0f32, offsets[r]);
        }
        #[unroll]
        for i in 0..comptime!(tiles.row_tiles * columns) {
            let mut tile = scores[i];
            #[unroll]
            for e in 0..comptime!(U::ACC) {
                let r = comptime!(i / columns * U::LANE_ROWS + U::lane_row(e));
                tile.insert(e, tile.extract(e) - first[r]);
            }
            scores[i] = tile;
        }
    }
    #[unroll]
    for m in 0..tiles.row_tiles {
        let mut totals = Vector::<f32, U::Acc>::new(0.0f32);
        #[unroll]
        for n in 0..columns {
            let i = comptime!(m * columns + n);
            let mut tile = scores[i];
            #[unroll]
            for e in 0..comptime!(U::ACC) {
                let r = comptime!(m * U::LANE_ROWS + U::lane_row(e));
                tile.insert(e, U::exp2(fma(tile.extract(e), factor, -offsets[r])));
            }
            totals += tile;
            scores[i] = tile;
        }
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            softmax.totals[comptime!(m * U::LANE_ROWS + U::lane_row(e))] += totals.extract(e);
        }
    }
}
