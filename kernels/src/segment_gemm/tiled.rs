//! A cube owns the rows of a work item and some columns, and walks over the inputs. Work items of one matrix
//! are adjacent in the list, and the columns of a work item run side by side. So a matrix is read from memory
//! once for all its work items.
//!
//! On `mma.sync` three stages are in flight while one is multiplied; elsewhere one, in registers.

use cubecl::{ir::ElemType, prelude::*};

use super::WORK_WORDS;
use super::fetch::{Place, fetch};
use crate::math::narrow;
use crate::mma::{GemmMma, GemmTileShape, Vec16, product_vecs};

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
    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let unit = UNIT_POS as usize;
    let stage_vecs = comptime!(tiles.stage_vecs::<U>());
    let mut shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(product_vecs::<U>(tiles)), 128usize);
    let mut staged = Array::<Vec16>::new(comptime!(tiles.staged_vecs::<U>()));
    let ahead = comptime!(if tiles.stages > 1 { tiles.stages - 1 } else { 1 });
    #[unroll]
    for i in 0..ahead {
        let first = comptime!(i * tiles.depth).runtime();
        let stage = comptime!(i * stage_vecs).runtime();
        fetch::<U>(x, weights, &place, first, &mut shared, stage, unit, &mut staged, tiles);
    }
    let mut sums = Array::<Vector<f32, U::Acc>>::new(comptime!(tiles.row_tiles * tiles.column_tiles));
    #[unroll]
    for i in 0..comptime!(tiles.row_tiles * tiles.column_tiles) {
        sums[i] = Vector::new(0.0f32);
    }
    let mut stage = 0usize;
    let mut at = 0usize;
    while at < d_in {
        U::land(&mut shared, stage, unit, &mut staged, d_in - at, tiles);
        let mut next = stage + comptime!(ahead * stage_vecs);
        if comptime!(tiles.stages == 1) {
            next = 0usize;
        } else if next >= comptime!(tiles.stages * stage_vecs) {
            next -= comptime!(tiles.stages * stage_vecs);
        }
        let first = at + comptime!(ahead * tiles.depth);
        fetch::<U>(x, weights, &place, first, &mut shared, next, unit, &mut staged, tiles);
        U::multiply::<E>(&shared, stage, lane, plane, &mut sums, tiles);
        stage += stage_vecs;
        if stage == comptime!(tiles.stages * stage_vecs) {
            stage = 0usize;
        }
        at += tiles.depth;
    }
    U::wait_all_stages();
    store::<U, E>(y, &place, &sums, lane, plane, tiles);
}

/// Stores the valid rows and columns.
#[cube]
fn store<U: GemmMma, E: Float>(
    y: &mut [Vector<E, U::Run>],
    place: &Place,
    sums: &Array<Vector<f32, U::Acc>>,
    lane: usize,
    plane: usize,
    #[comptime] tiles: GemmTileShape,
) {
    let first_row = place.first_row + plane % tiles.row_planes * comptime!(tiles.row_tiles * U::ROWS);
    let first_column = place.first_column
        + plane / tiles.row_planes * comptime!(tiles.column_tiles * U::COLUMNS)
        + U::column(lane);
    #[unroll]
    for r in 0..comptime!(tiles.row_tiles * U::LANE_ROWS) {
        let row =
            first_row + comptime!(r / U::LANE_ROWS * U::ROWS) + U::row(lane, comptime!(r % U::LANE_ROWS));
        if row < place.end_row {
            #[unroll]
            for n in 0..tiles.column_tiles {
                let tile = sums[comptime!(r / U::LANE_ROWS * tiles.column_tiles + n)];
                #[unroll]
                for e in 0..comptime!(U::ACC) {
                    if comptime!(U::lane_row(e) == r % U::LANE_ROWS && U::step(0, e) % U::RUN == 0) {
                        let mut run = Vector::<f32, U::Run>::empty();
                        #[unroll]
                        for o in 0..comptime!(U::RUN) {
                            run.insert(o, tile.extract(comptime!(e + o)));
                        }
                        let column = first_column + comptime!(U::step(n, e));
                        if column < place.d_out {
                            y[(row * place.d_out + column) / comptime!(U::RUN)] = narrow::<E, U::Run>(run);
                        }
                    }
                }
            }
        }
    }
}
