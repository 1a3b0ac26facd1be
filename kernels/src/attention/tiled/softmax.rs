//! The online softmax of the rows of a plane, on the registers that hold the scores.

use cubecl::prelude::*;

use super::super::request::TileRows;
use super::super::variant::Variant;
use crate::mma::{Mma, TileShape};

/// The online softmax of a lane's rows.
#[derive(CubeType)]
pub(in super::super) struct Softmax {
    /// Largest logit so far, before scaling: `m`.
    pub row_max: Array<f32>,
    /// The lane's part of the sum of probabilities: `l`.
    pub row_sum: Array<f32>,
    /// `exp(m_old - m)` of the last tile: the factor on everything before it.
    pub alpha: Array<f32>,
}

/// The state of the rows before their first key. `(m, l)` of the variant counts once: if `first`, and only in
/// the lane that has the first column of the row.
#[cube]
pub(in super::super) fn start_softmax<M: Mma, V: Variant>(
    args: &V::Args,
    rows: &TileRows,
    first_row: usize,
    first: bool,
    #[comptime] tiles: TileShape,
) -> Softmax {
    let lane = UNIT_POS_X as usize;
    let lane_rows = comptime!(tiles.q_tiles * M::LANE_ROWS);
    let mut row_max = Array::<f32>::new(lane_rows);
    let mut row_sum = Array::<f32>::new(lane_rows);
    #[unroll]
    for r in 0..lane_rows {
        let (m, l) = V::start(args, &rows.at(first_row + row_of::<M>(lane, r)));
        row_max[r] = select(first, m, f32::NEG_INFINITY);
        row_sum[r] = select(first && M::column(lane) == 0, l, 0.0f32);
    }
    Softmax { row_max, row_sum, alpha: Array::<f32>::new(lane_rows) }
}

/// Row `r` of the lane, within the rows of its plane.
#[cube]
pub(in super::super) fn row_of<U: Mma>(lane: usize, #[comptime] r: usize) -> usize {
    U::row(lane, comptime!(r % U::LANE_ROWS)) + comptime!(r / U::LANE_ROWS * U::ROWS)
}

/// Turns the products of all rows into logits: as the variant transforms them, and -inf where it does not
/// keep a key. `key` is the lane's first. If the hooks do nothing, the compiler removes all of it.
#[cube]
pub(in super::super) fn logits<M: Mma, V: Variant>(
    scores: &mut Array<Vector<f32, M::Acc>>,
    args: &V::Args,
    rows: &TileRows,
    first_row: usize,
    key: u32,
    #[comptime] tiles: TileShape,
) {
    let lane = UNIT_POS_X as usize;
    let columns = comptime!(tiles.keys / M::COLUMNS);
    #[unroll]
    for r in 0..comptime!(tiles.q_tiles * M::LANE_ROWS) {
        let row = rows.at(first_row + row_of::<M>(lane, r));
        #[unroll]
        for n in 0..columns {
            let mut tile = scores[comptime!(r / M::LANE_ROWS * columns + n)];
            #[unroll]
            for e in 0..comptime!(M::ACC) {
                if comptime!(M::lane_row(e) == r % M::LANE_ROWS) {
                    let key = (key + comptime!(M::step(n, e) as u32)) as usize;
                    let logit = V::logit::<M>(args, tile.extract(e), &row, key);
                    tile.insert(e, select(V::keep(args, &row, key), logit, f32::NEG_INFINITY));
                }
            }
            scores[comptime!(r / M::LANE_ROWS * columns + n)] = tile;
        }
    }
}

/// Sets the scores of row `r` to -inf whose keys are not in `start..end`; `key` is the lane's first.
#[cube]
pub(in super::super) fn mask<U: Mma>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    key: u32,
    start: u32,
    end: u32,
    #[comptime] tiles: TileShape,
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

/// Raises row_max, turns scores into probabilities `exp2(scale_log2 * (score - row_max))`, adds them to
/// row_sum, and stores alpha.
///
/// Row by row, so that one row_max is found during the exponentials of another row: 1,477,000 cycles for 8192
/// tokens, where every row_max first took 1,527,000 (H200).
#[cube]
pub(in super::super) fn online_softmax<U: Mma>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    softmax: &mut Softmax,
    scale_log2: f32,
    #[comptime] tiles: TileShape,
) {
    #[unroll]
    for r in 0..comptime!(tiles.q_tiles * U::LANE_ROWS) {
        let before = softmax.row_max[r];
        let m_new = max(before, U::row_max(row_max_of::<U>(&*scores, r, tiles)));
        // While no logit is finite, subtract 0 instead: (-inf) - (-inf) would be NaN.
        let base = select(m_new == f32::NEG_INFINITY, 0.0f32, m_new);
        let alpha = U::exp2((before - base) * scale_log2);
        let total = probabilities::<U>(scores, r, base, scale_log2, tiles);
        softmax.row_max[r] = m_new;
        softmax.alpha[r] = alpha;
        softmax.row_sum[r] = softmax.row_sum[r] * alpha + total;
    }
}

/// Parallel chains that reduce the elements of a row: one chain would take the sum of all latencies.
const CHAINS: usize = 4;

/// The chain of element `e` of tile `n`: the elements of a row take the chains in turn.
fn chain<U: Mma>(n: usize, e: usize) -> usize {
    let before = (0..e).filter(|&other| U::lane_row(other) == U::lane_row(e)).count();
    (n * (U::ACC / U::LANE_ROWS) + before) % CHAINS
}

/// The largest score of row `r` in this lane.
#[cube]
fn row_max_of<U: Mma>(
    scores: &Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    #[comptime] tiles: TileShape,
) -> f32 {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    let mut m_new = Array::<f32>::new(CHAINS);
    #[unroll]
    for c in 0..CHAINS {
        m_new[c] = f32::NEG_INFINITY;
    }
    #[unroll]
    for n in 0..columns {
        let tile = scores[comptime!(r / U::LANE_ROWS * columns + n)];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS) {
                let c = comptime!(chain::<U>(n, e));
                m_new[c] = max(m_new[c], tile.extract(e));
            }
        }
    }
    max(max(m_new[0], m_new[1]), max(m_new[2], m_new[3]))
}

/// Bound of `|m * c|` (logits to base 2) where `P_max = exp2(s*c - m*c)` is 1 +- 2^-17, which f16 and bf16
/// round to 1.
const EXACT_LOGIT_LIMIT: f32 = 128.0;

/// f32 does not round it, so its row_max is always subtracted first.
const ALWAYS_SUBTRACT: f32 = -1.0;

/// Turns the scores of row `r` into probabilities; returns their sum in this lane.
///
/// `exp2(s*c - m*c)` by one fused multiply-add, with `c = scale_log2` and `m*c` rounded. The error is a
/// common factor of the row, which the division by row_sum takes out again. But the largest probability must
/// be 1, without another rounding as operand of the next product. So `m` is subtracted first where logits are
/// large, or elements are f32.
#[cube]
fn probabilities<U: Mma>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    base: f32,
    scale_log2: f32,
    #[comptime] tiles: TileShape,
) -> f32 {
    let columns = comptime!(tiles.keys / U::COLUMNS);
    let mut offset = base * scale_log2;
    let mut exact = EXACT_LOGIT_LIMIT.runtime();
    if comptime!(tiles.dtype.size() > 2) {
        exact = ALWAYS_SUBTRACT.runtime();
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
                let weight = U::exp2(fma(tile.extract(e), scale_log2, -offset));
                let c = comptime!(chain::<U>(n, e));
                totals[c] += weight;
                tile.insert(e, weight);
            }
        }
        scores[comptime!(r / U::LANE_ROWS * columns + n)] = tile;
    }
    (totals[0] + totals[1]) + (totals[2] + totals[3])
}

/// Subtracts `base` from the scores of row `r`.
#[cube]
fn subtract<U: Mma>(
    scores: &mut Array<Vector<f32, U::Acc>>,
    #[comptime] r: usize,
    base: f32,
    #[comptime] tiles: TileShape,
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
