//! The online softmax of the rows of a plane, on the registers that hold the scores.

use cubecl::prelude::*;

use crate::math::LOG2_E;
use crate::unit::{MatrixUnit, Tiles};

/// What a lane knows of its rows.
#[derive(CubeType)]
pub(super) struct Softmax {
    /// Largest score so far, before scaling.
    pub maxima: Array<f32>,
    /// Sum of the lane's own weights.
    pub totals: Array<f32>,
    /// What the last tile did to the weights before it.
    pub rescales: Array<f32>,
}

/// Nothing seen.
#[cube]
pub(super) fn new_softmax(#[comptime] rows: usize) -> Softmax {
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
pub(super) fn row_of<U: MatrixUnit>(lane: usize, #[comptime] r: usize) -> usize {
    U::row(lane, comptime!(r % U::LANE_ROWS)) + comptime!(r / U::LANE_ROWS * U::ROWS)
}

/// `cap * tanh(scale * score / cap)` of all scores.
#[cube]
pub(super) fn soft_cap<U: MatrixUnit>(
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
pub(super) fn mask<U: MatrixUnit>(
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

/// Turns scores into weights `exp2(factor * (score - maximum))`, and says by how much older weights are too large.
#[cube]
pub(super) fn weights<U: MatrixUnit>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    softmax: &mut Softmax,
    factor: f32,
    #[comptime] tiles: Tiles,
) {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    let lane_rows = comptime!(tiles.row_tiles * U::LANE_ROWS);
    let mut bases = Array::<f32>::new(lane_rows);
    #[unroll]
    for r in 0..lane_rows {
        let mut highest = softmax.maxima[r];
        #[unroll]
        for n in 0..columns {
            let tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
            #[unroll]
            for e in 0..comptime!(U::ACC) {
                if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                    highest = max(highest, tile.extract(e));
                }
            }
        }
        let highest = U::row_max(highest);
        // While every score is -inf, subtract 0 instead: (-inf) - (-inf) would be NaN.
        let base = select(highest == f32::NEG_INFINITY, 0.0f32, highest);
        bases[r] = base;
        let rescale = U::exp2((softmax.maxima[r] - base) * factor);
        softmax.rescales[r] = rescale;
        softmax.totals[r] *= rescale;
        softmax.maxima[r] = highest;
    }
    #[unroll]
    for i in 0..comptime!(tiles.row_tiles * columns) {
        let mut tile = scores[i];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            let r = comptime!(i / columns * U::LANE_ROWS + U::lane_row(e));
            // Scaled after the maximum is subtracted: `factor * maximum`, rounded, is off by a percent of a weight where
            // logits are 1e5. It takes an instruction more than a fused multiply-add.
            let weight = U::exp2((tile.extract(e) - bases[r]) * factor);
            softmax.totals[r] += weight;
            tile.insert(e, weight);
        }
        scores[i] = tile;
    }
}
