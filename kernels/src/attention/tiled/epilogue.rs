//! Stores the results of a cube.

use cubecl::prelude::*;

use super::super::buffers::Outputs;
use super::super::plan::WorkTile;
use super::super::state::{divisor, lse};
use super::super::variant::Variant;
use super::lane_rows::row_of;
use super::softmax::Softmax;
use crate::math::{LOG2_E, narrow};
use crate::mma::{Fragment, Mma, TileShape};

/// Normalises the rows of a plane, which begin with row `first_row` of the cube. Stores output and LSE, or the partial
/// results of a chunk.
#[cube]
pub(in super::super) fn store_rows<M: Mma, V: Variant, E: Float>(
    outputs: &mut Outputs<E>,
    args: &V::Args,
    work: &WorkTile,
    first_row: usize,
    softmax: &Softmax,
    o: &mut Fragment<M>,
    #[comptime] tiles: TileShape,
) {
    let mut norm = Array::<f32>::new(o.lane_rows());
    #[unroll]
    for r in 0..o.lane_rows() {
        norm[r] = if comptime!(V::SOFTMAX) { 1.0f32 / divisor(softmax.row_sum[r]) } else { V::scale(args) };
    }
    o.mul_rows(&norm);
    let mut partial = false;
    if comptime!(outputs.workspace.is_some()) {
        partial = work.partial >= 0;
    }
    #[unroll]
    for r in 0..o.lane_rows() {
        let row = first_row + row_of::<M>(r);
        if work.rows.has(row) {
            if partial {
                store_partial::<M, E>(outputs, work, row, softmax, &*o, r, tiles);
            } else {
                let of = work.rows.at(row);
                let to = work.rows.out_row(&of);
                #[unroll]
                for i in 0..o.lane_runs() {
                    let mut run = o.run(r, i);
                    #[unroll]
                    for e in 0..comptime!(M::RUN) {
                        run.insert(e, V::finish(args, run.extract(e), &of));
                    }
                    store_run::<M, E>(&mut outputs.output, to, run, i, tiles);
                }
                #[comptime]
                match &mut outputs.lse {
                    ComptimeOption::Some(of_rows) => {
                        if M::column() == 0 {
                            let m = softmax.row_max[r] * softmax.scale_log2;
                            of_rows[to] = lse(m, softmax.row_sum[r], softmax.row_sum[r].ln() * LOG2_E);
                        }
                    }
                    ComptimeOption::None => {}
                }
            }
        }
    }
}

/// Stores the lane's row `r`, which is row `row` of the cube, to the workspace. That has the heads of a chunk, then the
/// rows of the work item.
#[cube]
fn store_partial<M: Mma, E: Float>(
    outputs: &mut Outputs<E>,
    work: &WorkTile,
    row: usize,
    softmax: &Softmax,
    o: &Fragment<M>,
    #[comptime] r: usize,
    #[comptime] tiles: TileShape,
) {
    let of_head = min(comptime!(tiles.rows(M::ROWS) * tiles.cluster), work.rows.end - work.first_row);
    let first = usize::cast_from(work.partial) + work.rows.kv_head * of_head;
    let to = first + work.rows.first - work.first_row + row;
    #[comptime]
    match &mut outputs.workspace {
        ComptimeOption::Some(workspace) => {
            #[unroll]
            for i in 0..o.lane_runs() {
                store_run::<M, f32>(workspace, to, o.run(r, i), i, tiles);
            }
            if M::column() == 0 {
                let mut state = Vector::<f32, Const<2>>::empty();
                state.insert(0usize, softmax.row_max[r]);
                state.insert(1usize, softmax.row_sum[r]);
                workspace[outputs.partial_rows * comptime!(tiles.dims.vo / 2) + to] = state;
            }
        }
        ComptimeOption::None => {}
    }
}

/// Stores the lane's `i`-th run of row `to`.
#[cube]
fn store_run<M: Mma, O: Float>(
    rows: &mut [Vector<O, Const<2>>],
    to: usize,
    run: Vector<f32, M::Run>,
    #[comptime] i: usize,
    #[comptime] tiles: TileShape,
) {
    let runs = rows.with_vector_size_mut::<M::Run>();
    let element = M::output_element(i, tiles);
    if comptime!(tiles.dims.vo.is_multiple_of(M::COLUMNS)) || element < tiles.dims.vo {
        runs[(to * tiles.dims.vo + element) / comptime!(M::RUN)] = narrow::<O, M::Run>(run);
    }
}
