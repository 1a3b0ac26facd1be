//! `mma.sync`: rows of inputs are transposed by the load, rows of outputs are operands without a change.

use cubecl::prelude::*;

use super::super::mma_sync::{MmaSync, address};
use super::{GemmMma, GemmTileShape, Vec16};
use crate::isa::nvidia::{cp_async_wait, ldmatrix, mma, shared_address};

#[cube]
impl GemmMma for MmaSync {
    fn land(
        _shared: &mut [Vec16],
        _stage: usize,
        _unit: usize,
        _staged: &mut Array<Vec16>,
        _left: usize,
        #[comptime] tiles: GemmTileShape,
    ) {
        cp_async_wait(comptime!(tiles.stages - 2));
        sync_cube();
    }

    fn multiply<E: Float>(
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        sums: &mut Array<Vector<f32, Const<4>>>,
        #[comptime] tiles: GemmTileShape,
    ) {
        let base = shared_address(&shared[0..1]);
        let x_row = plane % tiles.row_planes * comptime!(tiles.row_tiles * 16) + lane % 16;
        let columns = plane / tiles.row_planes * tiles.column_tiles;
        let x_vecs = comptime!(tiles.depth_vecs());
        let w_vecs = comptime!(tiles.w_row_vecs::<MmaSync>());
        let w = stage + comptime!(tiles.x_vecs::<MmaSync>());
        #[unroll]
        for k in 0..comptime!(tiles.depth / 16) {
            let x_at = address(base, stage, x_row, lane / 16 + comptime!(2 * k), x_vecs);
            let mut rows = Array::<Vec16>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                rows[m] = ldmatrix(x_at, comptime!(16 * m * x_vecs * 16), false);
            }
            #[unroll]
            for n in 0..comptime!(tiles.column_tiles / 2) {
                // Low and high half of the depth for 8 columns, then the next 8 columns.
                let pair = if comptime!(tiles.by_input) {
                    let at = address(base, w, lane % 16, columns + lane / 16 + comptime!(2 * n), w_vecs);
                    ldmatrix(at, comptime!(16 * k * w_vecs * 16), true)
                } else {
                    let row = columns * 8 + lane / 16 * 8 + lane % 8;
                    let at = address(base, w, row, lane / 8 % 2 + comptime!(2 * k), w_vecs);
                    ldmatrix(at, comptime!(16 * n * w_vecs * 16), false)
                };
                #[unroll]
                for m in 0..tiles.row_tiles {
                    let low = comptime!(m * tiles.column_tiles + 2 * n);
                    let high = comptime!(m * tiles.column_tiles + 2 * n + 1);
                    let a = rows[m];
                    let bf16 = comptime!(tiles.bf16());
                    sums[low] = mma(a, pair.extract(0usize), pair.extract(1usize), sums[low], bf16);
                    sums[high] = mma(a, pair.extract(2usize), pair.extract(3usize), sums[high], bf16);
                }
            }
        }
    }
}
