//! What a cube has found, on its way to memory.

use cubecl::prelude::*;

use super::super::plan::Work;
use super::softmax::{Softmax, row_of};
use crate::math::{LOG2_E, narrow};
use crate::unit::{MatrixUnit, Rows, Tiles, place};

/// Stores output and LSE, or of a chunk of keys partial results: `[partial_rows, vo]` normalised, then `[partial_rows, 2]`
/// of largest logits and sums of weights, whose logarithm would be rounded where logits are large.
#[allow(clippy::too_many_arguments, reason = "the state of the kernel")]
#[cube]
pub(in super::super) fn store_rows<U: MatrixUnit, E: Float>(
    output: &mut [Vector<E, U::Run>],
    lse: &mut ComptimeOption<Box<[f32]>>,
    workspace: &mut ComptimeOption<Box<[Vector<f32, Const<2>>]>>,
    work: &Work,
    owned: &Rows,
    kv_head: usize,
    softmax: &Softmax,
    sums: &Array<Vector<f32, U::Acc>>,
    factor: f32,
    q_heads: usize,
    partial_rows: usize,
    lane: usize,
    plane: usize,
    #[comptime] tiles: Tiles,
) {
    let rows = comptime!(tiles.rows(U::ROWS));
    let lane_rows = comptime!(tiles.row_tiles * U::LANE_ROWS);
    let first_row = plane % tiles.row_planes * comptime!(tiles.row_tiles * U::ROWS);
    if plane < tiles.row_planes {
        #[unroll]
        for r in 0..lane_rows {
            let row = first_row + row_of::<U>(lane, r);
            let (token, head, valid) = place(owned, row);
            if valid {
                // Nothing visible, or nothing but -inf: the sums are 0 and stay 0.
                let total = softmax.totals[r];
                let norm = 1.0f32 / select(total == 0.0f32, 1.0f32, total);
                let to = token * q_heads + head;
                #[comptime]
                match workspace {
                    ComptimeOption::Some(workspace) => {
                        if work.partial < 0 {
                            store_row::<U, E>(output, to, sums, norm, lane, r, tiles);
                        } else {
                            // Heads of a chunk, then the rows of the work.
                            let stored = min(comptime!(rows * tiles.cluster), owned.end - work.first_row);
                            let before = usize::cast_from(work.partial) + kv_head * stored;
                            let to = before + owned.first - work.first_row + row;
                            let partial = workspace.with_vector_size_mut::<U::Run>();
                            store_row::<U, f32>(partial, to, sums, norm, lane, r, tiles);
                            if U::column(lane) == 0 {
                                let mut of_row = Vector::<f32, Const<2>>::empty();
                                of_row.insert(0usize, softmax.maxima[r]);
                                of_row.insert(1usize, total);
                                workspace[partial_rows * comptime!(tiles.dims.vo / 2) + to] = of_row;
                            }
                        }
                    }
                    ComptimeOption::None => {
                        store_row::<U, E>(output, to, sums, norm, lane, r, tiles);
                    }
                }
                #[comptime]
                match lse {
                    ComptimeOption::Some(lse) => {
                        if work.partial < 0 && U::column(lane) == 0 {
                            let value = softmax.maxima[r] * factor + total.ln() * LOG2_E;
                            lse[to] = select(total == 0.0f32, f32::NEG_INFINITY, value);
                        }
                    }
                    ComptimeOption::None => {}
                }
            }
        }
    }
}

/// Stores the lane's row `r`, normalised, as row `to`.
#[cube]
fn store_row<U: MatrixUnit, O: Float>(
    rows: &mut [Vector<O, U::Run>],
    to: usize,
    sums: &Array<Vector<f32, U::Acc>>,
    norm: f32,
    lane: usize,
    #[comptime] r: usize,
    #[comptime] tiles: Tiles,
) {
    let elements = comptime!(tiles.dims.vo.div_ceil(U::COLUMNS));
    #[unroll]
    for i in 0..elements {
        let tile = sums[comptime!(r / U::LANE_ROWS * elements + i)];
        #[unroll]
        for e in 0..comptime!(U::ACC) {
            if comptime!(U::lane_row(e) == r % U::LANE_ROWS && U::step(0, e) % U::RUN == 0) {
                let mut run = Vector::<f32, U::Run>::empty();
                #[unroll]
                for o in 0..comptime!(U::RUN) {
                    run.insert(o, tile.extract(comptime!(e + o)) * norm);
                }
                let element = U::column(lane) + comptime!(U::step(i, e));
                if comptime!(tiles.dims.vo.is_multiple_of(U::COLUMNS)) || element < tiles.dims.vo {
                    rows[(to * tiles.dims.vo + element) / comptime!(U::RUN)] = narrow::<O, U::Run>(run);
                }
            }
        }
    }
}
