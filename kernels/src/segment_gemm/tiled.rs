//! A cube owns the rows of a work item and some columns, and walks over the inputs. Work items of one matrix
//! are adjacent in the list, and the columns of a work item run side by side. So a matrix is read from memory
//! once for all its work items.
//!
//! On `mma.sync` three stages are in flight while one is multiplied; elsewhere one, in registers.

use cubecl::{ir::ElemType, prelude::*};

use super::fetch::{Place, fetch};
use super::work::WORK_WORDS;
use crate::math::narrow;
use crate::mma::{Fragment, GemmMma, GemmTileShape, column_step, product_vecs, wait_gemm_stage};
use crate::staging::{Ring, Staging, Vec16, stages_ahead};

/// `x`: `[rows, d_in]`, `weights`: `[matrices, d_in, d_out]` or `[matrices, d_out, d_in]`, in vec16s but with
/// strides in elements; `y`: `[rows, d_out]`.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn segment_gemm<U: GemmMma, E: Float>(
    x: &Tensor<Vec16>,
    weights: &Tensor<Vec16>,
    y: &mut [Vector<E, U::Run>],
    work_items: &[i32],
    count: usize,
    d_in: usize,
    d_out: usize,
    #[comptime] tiles: GemmTileShape,
    #[define(E)] _dtype: ElemType,
) {
    let columns = comptime!(tiles.columns::<U>());
    let blocks = d_out.div_ceil(columns);
    let index = CUBE_POS / blocks;
    if index >= count {
        terminate!();
    }
    let work = index * WORK_WORDS;
    let place = Place {
        first_row: usize::cast_from(work_items[work]),
        end_row: usize::cast_from(work_items[work + 1]),
        first_column: CUBE_POS % blocks * columns,
        matrix: usize::cast_from(work_items[work + 2]) * weights.stride(0),
        d_in,
        d_out,
    };
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(product_vecs::<U>(tiles)), 128usize);
    let staged = comptime!(tiles.staged_vecs::<U>());
    let mut ring = Ring::new(shared, staged, comptime!(tiles.stage_vecs::<U>()), tiles.stages);
    let ahead = comptime!(stages_ahead(tiles.stages));
    #[unroll]
    for i in 0..ahead {
        fetch::<U>(&mut ring, x, weights, &place, comptime!(i * tiles.depth).runtime(), i, tiles);
    }
    let mut acc = Fragment::<U>::new(tiles.row_tiles, tiles.column_tiles);
    acc.clear();
    let mut at = 0usize;
    while at < d_in {
        wait_gemm_stage::<U>(&mut ring, d_in - at, tiles);
        fetch::<U>(&mut ring, x, weights, &place, at + comptime!(ahead * tiles.depth), ahead, tiles);
        U::multiply::<E>(&ring, &mut acc, tiles);
        ring.advance();
        at += tiles.depth;
    }
    U::Staging::wait(0usize);
    store::<U, E>(y, &place, &acc, tiles);
}

/// Stores the valid rows and columns.
#[cube]
fn store<U: GemmMma, E: Float>(
    y: &mut [Vector<E, U::Run>],
    place: &Place,
    acc: &Fragment<U>,
    #[comptime] tiles: GemmTileShape,
) {
    let plane = UNIT_POS_Y as usize;
    let first_row = place.first_row + plane % tiles.row_planes * comptime!(tiles.row_tiles * U::ROWS);
    let first_column = place.first_column
        + plane / tiles.row_planes * comptime!(tiles.column_tiles * U::COLUMNS)
        + U::column();
    #[unroll]
    for r in 0..acc.lane_rows() {
        let row = first_row + comptime!(r / U::LANE_ROWS * U::ROWS) + U::row(comptime!(r % U::LANE_ROWS));
        if row < place.end_row {
            #[unroll]
            for run in 0..acc.lane_runs() {
                let column = first_column + comptime!(column_step::<U>(run * U::RUN));
                if column < place.d_out {
                    y[(row * place.d_out + column) / comptime!(U::RUN)] =
                        narrow::<E, U::Run>(acc.run(r, run));
                }
            }
        }
    }
}
