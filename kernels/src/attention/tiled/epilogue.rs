//! Stores the results of a cube.

use cubecl::prelude::*;

use super::super::plan::WorkTile;
use super::super::request::{QueryRow, TileRows};
use super::super::variant::Variant;
use super::softmax::{Softmax, row_of};
use crate::math::{LOG2_E, narrow};
use crate::mma::{Mma, TileShape};

/// Stores output and LSE, or the partial results of a chunk: `[partial_rows, vo]` normalised, then
/// `[partial_rows, 2]` of row_max and row_sum. Their logarithm would be rounded where logits are large.
#[allow(clippy::too_many_arguments, reason = "the state of the kernel")]
#[cube]
pub(in super::super) fn store_rows<U: Mma, V: Variant, E: Float>(
    output: &mut [Vector<E, U::Run>],
    lse: &mut ComptimeOption<Box<[f32]>>,
    workspace: &mut ComptimeOption<Box<[Vector<f32, Const<2>>]>>,
    args: &V::Args,
    work: &WorkTile,
    owned: &TileRows,
    softmax: &Softmax,
    o: &Array<Vector<f32, U::Acc>>,
    scale_log2: f32,
    q_heads: usize,
    partial_rows: usize,
    lane: usize,
    plane: usize,
    #[comptime] tiles: TileShape,
) {
    let rows = comptime!(tiles.rows(U::ROWS));
    let lane_rows = comptime!(tiles.q_tiles * U::LANE_ROWS);
    let first_row = plane % tiles.q_planes * comptime!(tiles.q_tiles * U::ROWS);
    if plane < tiles.q_planes {
        #[unroll]
        for r in 0..lane_rows {
            let row = first_row + row_of::<U>(lane, r);
            let (token, head, valid) = owned.place(row);
            if valid {
                let of = owned.at(row);
                // Without a visible key, or with none but -inf, row_sum and output are 0 and stay 0.
                let total = softmax.row_sum[r];
                let norm = 1.0f32 / select(total == 0.0f32, 1.0f32, total);
                let to = token * q_heads + head;
                #[comptime]
                match workspace {
                    ComptimeOption::Some(workspace) => {
                        if work.partial < 0 {
                            store_row::<U, V, E>(output, to, args, &of, o, norm, r, true, tiles);
                        } else {
                            // The workspace has the heads of a chunk, then the rows of the work item.
                            let stored = min(comptime!(rows * tiles.cluster), owned.end - work.first_row);
                            let before = usize::cast_from(work.partial) + owned.kv_head * stored;
                            let to = before + owned.first - work.first_row + row;
                            let partial = workspace.with_vector_size_mut::<U::Run>();
                            store_row::<U, V, f32>(partial, to, args, &of, o, norm, r, false, tiles);
                            if U::column(lane) == 0 {
                                let mut of_row = Vector::<f32, Const<2>>::empty();
                                of_row.insert(0usize, softmax.row_max[r]);
                                of_row.insert(1usize, total);
                                workspace[partial_rows * comptime!(tiles.dims.vo / 2) + to] = of_row;
                            }
                        }
                    }
                    ComptimeOption::None => {
                        store_row::<U, V, E>(output, to, args, &of, o, norm, r, true, tiles);
                    }
                }
                #[comptime]
                match lse {
                    ComptimeOption::Some(lse) => {
                        if work.partial < 0 && U::column(lane) == 0 {
                            let value = softmax.row_max[r] * scale_log2 + total.ln() * LOG2_E;
                            lse[to] = select(total == 0.0f32, f32::NEG_INFINITY, value);
                        }
                    }
                    ComptimeOption::None => {}
                }
            }
        }
    }
}

/// Stores the lane's row `r`, normalised, as row `to`; `finished` unless it is a partial result.
#[allow(clippy::too_many_arguments, reason = "the state of the kernel")]
#[cube]
fn store_row<U: Mma, V: Variant, O: Float>(
    rows: &mut [Vector<O, U::Run>],
    to: usize,
    args: &V::Args,
    row: &QueryRow,
    o: &Array<Vector<f32, U::Acc>>,
    norm: f32,
    #[comptime] r: usize,
    #[comptime] finished: bool,
    #[comptime] tiles: TileShape,
) {
    let lane = UNIT_POS_X as usize;
    let elements = comptime!(tiles.dims.vo.div_ceil(U::COLUMNS));
    #[unroll]
    for i in 0..elements {
        let tile = o[comptime!(r / U::LANE_ROWS * elements + i)];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS && U::step(0, e) % U::RUN == 0) {
                let mut run = Vector::<f32, U::Run>::empty();
                #[unroll]
                for o in 0..comptime!(U::RUN) {
                    let mut element = tile.extract(comptime!(e + o)) * norm;
                    if comptime!(finished) {
                        element = V::finish(args, element, row);
                    }
                    run.insert(o, element);
                }
                let element = U::column(lane) + comptime!(U::step(i, e));
                if comptime!(tiles.dims.vo.is_multiple_of(U::COLUMNS)) || element < tiles.dims.vo {
                    rows[(to * tiles.dims.vo + element) / comptime!(U::RUN)] = narrow::<O, U::Run>(run);
                }
            }
        }
    }
}
