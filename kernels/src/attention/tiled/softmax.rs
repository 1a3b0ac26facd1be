//! The online softmax of the rows of a plane, on the registers that hold the scores.

use cubecl::prelude::*;

use super::super::plan::WorkTile;
use super::super::state::finite;
use super::super::variant::Variant;
use super::bias::{LinearBias, linear_bias};
use super::lane_rows::row_of;
use crate::math::LOG2_E;
use crate::mma::{Fragment, Mma, TileShape, column_step};
use crate::request::{RequestShape, TileRows};

/// The online softmax of a lane's rows.
#[derive(CubeType)]
pub(in super::super) struct Softmax {
    /// Largest logit so far, before scaling: `m`.
    pub row_max: Array<f32>,
    /// The lane's part of the sum of probabilities: `l`.
    pub row_sum: Array<f32>,
    /// `exp(m_old - m)` of the last tile: the factor on everything before it.
    pub alpha: Array<f32>,
    /// Factor on logits, to base 2.
    pub scale_log2: f32,
    /// The linear bias of the logits.
    pub bias: LinearBias,
    /// [`Variant::negligible`], to base 2.
    pub negligible: ComptimeOption<f32>,
}

/// [`Variant::negligible`] in logits to base 2; none without a softmax.
#[cube]
fn negligible_log2<V: Variant>(args: &V::Args, request: &RequestShape) -> ComptimeOption<f32> {
    if comptime!(V::SOFTMAX) {
        #[comptime]
        match V::negligible(args, request) {
            ComptimeOption::Some(distance) => ComptimeOption::new_Some(distance * LOG2_E),
            ComptimeOption::None => ComptimeOption::new_None(),
        }
    } else {
        ComptimeOption::new_None()
    }
}

/// The score of a key that a row does not see.
#[cube]
pub(in super::super) fn masked<V: Variant>() -> f32 {
    comptime!(if V::SOFTMAX { f32::NEG_INFINITY } else { 0.0 }).runtime()
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
    let lane_rows = comptime!(tiles.q_tiles * M::LANE_ROWS);
    let mut row_max = Array::<f32>::new(lane_rows);
    let mut row_sum = Array::<f32>::new(lane_rows);
    let factor = comptime!((1u32 << tiles.p_log2()) as f32);
    #[unroll]
    for r in 0..lane_rows {
        let (m, l) = V::start(args, &rows.at(first_row + row_of::<M>(r)));
        row_max[r] = select(first, m, f32::NEG_INFINITY);
        row_sum[r] = select(first && M::column() == 0, l * factor, 0.0f32);
    }
    let alpha = Array::<f32>::new(lane_rows);
    let bias = linear_bias::<M, V>(args, rows, first_row, lane_rows);
    let scale_log2 = V::scale(args) * LOG2_E;
    let negligible = negligible_log2::<V>(args, &rows.request);
    Softmax { row_max, row_sum, alpha, scale_log2, bias, negligible }
}

/// Turns the products of all rows into logits: as the variant transforms and biases them, and masked where it
/// does not keep a key, if it is asked here. `key` is the lane's first. If the hooks do nothing, the compiler removes all of it.
///
/// The softmax adds the part of the bias that the keys of a lane have in common.
#[cube]
pub(in super::super) fn logits<M: Mma, V: Variant>(
    s: &mut Fragment<M>,
    softmax: &mut Softmax,
    args: &V::Args,
    rows: &TileRows,
    first_row: usize,
    key: u32,
    #[comptime] is_asked: bool,
) {
    #[unroll]
    for r in 0..s.lane_rows() {
        let row = rows.at(first_row + row_of::<M>(r));
        softmax.bias.begin(r, key);
        #[unroll]
        for c in 0..s.lane_columns() {
            let step = comptime!(column_step::<M>(c) as u32);
            let key = (key + step) as usize;
            let logit = V::logit::<M>(args, s.get(r, c), &row, key);
            let mut logit = softmax.bias.add(logit, r, step);
            if comptime!(!V::SOFTMAX) {
                logit = softmax.bias.shifted(logit, r);
            }
            if comptime!(is_asked) {
                logit = select(V::keep(args, &row, key), logit, masked::<V>());
            }
            s.set(r, c, logit);
        }
    }
}

/// The keys that every row of a tile sees: `start..end`.
#[derive(CubeType)]
pub(in super::super) struct UnmaskedKeys {
    pub start: usize,
    pub end: usize,
    /// True if the variant keeps all of them.
    #[cube(comptime)]
    pub are_kept: bool,
}

/// The keys of a work item that all of `count` rows from `first_row` on see.
#[cube]
pub(in super::super) fn unmasked_keys<V: Variant>(
    args: &V::Args,
    work: &WorkTile,
    first_row: usize,
    #[comptime] count: usize,
) -> UnmaskedKeys {
    let (rows, request) = (&work.rows, &work.rows.request);
    let (first, last) = (rows.at(first_row).query, rows.at(first_row + comptime!(count - 1)).query);
    #[comptime]
    match V::unmasked(args, request, first, last) {
        ComptimeOption::Some(keys) => {
            UnmaskedKeys { start: keys.start, end: min(keys.end, work.end), are_kept: true }
        }
        ComptimeOption::None => {
            let (_, end) = V::keys(args, request, first);
            let (start, _) = V::keys(args, request, last);
            UnmaskedKeys { start, end: min(end, work.end), are_kept: false }
        }
    }
}

#[cube]
impl UnmaskedKeys {
    /// True if a row does not see all of `count` keys from `key` on.
    pub fn ends_in(&self, key: usize, #[comptime] count: usize) -> bool {
        key < self.start || key + count > self.end
    }
}

/// Masks the scores of row `r` whose keys are not in `start..end`; `key` is the lane's first.
#[cube]
pub(in super::super) fn mask<M: Mma, V: Variant>(
    s: &mut Fragment<M>,
    #[comptime] r: usize,
    key: u32,
    start: u32,
    end: u32,
) {
    // The difference wraps to a large number for a key before `start`: one comparison serves both ends.
    let (first, count) = (key - start, max(end, start) - start);
    #[unroll]
    for c in 0..s.lane_columns() {
        let at = first + comptime!(column_step::<M>(c) as u32);
        s.set(r, c, select(at < count, s.get(r, c), masked::<V>()));
    }
}

/// Masks the scores whose keys the variant does not keep; `key` is the lane's first.
#[cube]
pub(in super::super) fn mask_kept<M: Mma, V: Variant>(
    s: &mut Fragment<M>,
    args: &V::Args,
    rows: &TileRows,
    first_row: usize,
    key: u32,
) {
    #[unroll]
    for r in 0..s.lane_rows() {
        let row = rows.at(first_row + row_of::<M>(r));
        #[unroll]
        for c in 0..s.lane_columns() {
            let key = (key + comptime!(column_step::<M>(c) as u32)) as usize;
            s.set(r, c, select(V::keep(args, &row, key), s.get(r, c), masked::<V>()));
        }
    }
}

/// Masks the scores whose keys a row does not see, or which are beyond the work item.
#[cube]
pub(super) fn mask_rows<M: Mma, V: Variant>(
    s: &mut Fragment<M>,
    args: &V::Args,
    work: &WorkTile,
    first_row: usize,
    key: u32,
) {
    #[unroll]
    for r in 0..s.lane_rows() {
        let query = work.rows.at(first_row + row_of::<M>(r)).query;
        let (start, end) = V::keys(args, &work.rows.request, query);
        mask::<M, V>(s, r, key, start as u32, min(end, work.end) as u32);
    }
}

/// Raises row_max, turns scores into probabilities `exp2(scale_log2 * (score - row_max))`, adds them to
/// row_sum, and stores alpha.
///
/// Row by row, so that one row_max is found during the exponentials of another row: 1,477,000 cycles for 8192
/// tokens, where every row_max first took 1,527,000 (H200).
///
/// Scores of a variant without softmax are weights already.
#[cube]
pub(in super::super) fn online_softmax<M: Mma, V: Variant>(
    s: &mut Fragment<M>,
    softmax: &mut Softmax,
    #[comptime] tiles: TileShape,
) {
    if comptime!(V::SOFTMAX) {
        #[unroll]
        for r in 0..s.lane_rows() {
            let before = softmax.row_max[r];
            let of_lane = row_max_of::<M>(&*s, r);
            let m_new = max(before, M::row_max(softmax.bias.shifted(of_lane, r)));
            let base = finite(m_new);
            let alpha = M::exp2((before - base) * softmax.scale_log2);
            let total = probabilities::<M>(s, r, base, &*softmax, tiles);
            softmax.row_max[r] = m_new;
            softmax.alpha[r] = alpha;
            softmax.row_sum[r] = softmax.row_sum[r] * alpha + total;
        }
    }
}

/// Multiplies the output so far by the factor of each row's last tile.
#[cube]
pub(in super::super) fn rescale<M: Mma, V: Variant>(o: &mut Fragment<M>, softmax: &Softmax) {
    if comptime!(V::SOFTMAX) {
        o.mul_rows(&softmax.alpha);
    }
}

/// Sums up the parts of row_sum in the lanes of each row.
#[cube]
pub(in super::super) fn sum_lanes<M: Mma, V: Variant>(softmax: &mut Softmax, #[comptime] tiles: TileShape) {
    if comptime!(V::SOFTMAX) {
        #[unroll]
        for r in 0..comptime!(tiles.q_tiles * M::LANE_ROWS) {
            softmax.row_sum[r] = M::row_sum(softmax.row_sum[r]);
        }
    }
}

/// Takes the factors of codes out of complete sums: that of probabilities, and of `o` that of values.
#[cube]
pub(super) fn without_factors<M: Mma>(
    softmax: &mut Softmax,
    o: &mut Fragment<M>,
    #[comptime] tiles: TileShape,
) {
    if comptime!(tiles.fp8_mma) {
        let of_p = comptime!(1.0 / (1u32 << tiles.p_log2()) as f32).runtime();
        #[unroll]
        for r in 0..o.lane_rows() {
            softmax.row_sum[r] *= of_p;
        }
        o.scale(&ComptimeOption::new_Some(of_p * comptime!(tiles.code_factor())));
    }
}

/// Parallel chains that reduce the elements of a row in turn: one chain would take the sum of all latencies.
const CHAINS: usize = 4;

/// The largest score of row `r` in this lane.
#[cube]
pub(super) fn row_max_of<M: Mma>(s: &Fragment<M>, #[comptime] r: usize) -> f32 {
    let mut m_new = Array::<f32>::new(CHAINS);
    #[unroll]
    for chain in 0..CHAINS {
        m_new[chain] = f32::NEG_INFINITY;
    }
    #[unroll]
    for c in 0..s.lane_columns() {
        let chain = comptime!(c % CHAINS);
        m_new[chain] = max(m_new[chain], s.get(r, c));
    }
    max(max(m_new[0], m_new[1]), max(m_new[2], m_new[3]))
}

/// Turns the scores of row `r` into probabilities; returns their sum in this lane.
///
/// `exp2(s*c - m*c)` by one fused multiply-add, with `c = scale_log2` and `m*c` rounded. The error is a
/// common factor of the row, which the division by row_sum takes out again. The largest probability is not 1 then, where
/// logits are in the thousands, but 1 to a rounding of 16 bits. For elements of f32 that is too much: `m` is subtracted first.
///
/// To subtract it first for 16 bits too where logits are large took a jump in the middle of the softmax, over which ptxas moves
/// nothing: 3% of prefill (H200).
#[cube]
fn probabilities<M: Mma>(
    s: &mut Fragment<M>,
    #[comptime] r: usize,
    base: f32,
    softmax: &Softmax,
    #[comptime] tiles: TileShape,
) -> f32 {
    let scale_log2 = softmax.scale_log2;
    let base = softmax.bias.unshifted(base, r);
    let mut offset = base * scale_log2;
    if comptime!(tiles.dtype.size() > 2) {
        #[unroll]
        for c in 0..s.lane_columns() {
            s.set(r, c, s.get(r, c) - base);
        }
        offset = 0.0f32;
    }
    if comptime!(tiles.fp8_mma) {
        offset -= comptime!(tiles.p_log2() as f32);
    }
    let mut totals = Array::<f32>::new(CHAINS);
    #[unroll]
    for chain in 0..CHAINS {
        totals[chain] = 0.0f32;
    }
    #[unroll]
    for c in 0..s.lane_columns() {
        let p = M::exp2(fma(s.get(r, c), scale_log2, -offset));
        totals[comptime!(c % CHAINS)] += p;
        s.set(r, c, p);
    }
    (totals[0] + totals[1]) + (totals[2] + totals[3])
}
