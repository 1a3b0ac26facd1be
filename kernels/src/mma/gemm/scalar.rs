//! Plain multiplications, in f32: a lane has a row of 4 columns in each tile.

use cubecl::prelude::*;

use super::super::scalar::{Lanes, RUN, Scalar, floats, four_values, turned};
use super::super::{FragmentLayout, Mma};
use super::{GemmMma, GemmTileShape, Vec16, clear_absent, w_copy, x_copy};

#[cube]
impl<P: Lanes> GemmMma for Scalar<P> {
    fn land(
        shared: &mut [Vec16],
        stage: usize,
        unit: usize,
        staged: &mut Array<Vec16>,
        left: usize,
        #[comptime] tiles: GemmTileShape,
    ) {
        clear_absent::<Self>(staged, unit, left, tiles);
        // Every plane has read the last stage.
        sync_cube();
        let vecs = comptime!(tiles.depth_vecs());
        let copies = comptime!(tiles.x_copies::<Self>());
        #[unroll]
        for i in 0..copies {
            let (row, vec) = x_copy::<Self>(unit, i, tiles);
            if comptime!(tiles.x_even::<Self>()) || row < comptime!(tiles.rows::<Self>()) {
                shared[stage + row * vecs + turned(vec, row, vecs)] = staged[i];
            }
        }
        let w = stage + comptime!(tiles.x_vecs::<Self>());
        let vecs = comptime!(tiles.w_row_vecs::<Self>());
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<Self>()) {
            let (row, vec) = w_copy::<Self>(unit, i, tiles);
            let spot = if comptime!(tiles.by_input) { vec } else { turned(vec, row / RUN, vecs) };
            if comptime!(tiles.w_even::<Self>()) || row < comptime!(tiles.w_rows::<Self>()) {
                shared[w + row * vecs + spot] = staged[comptime!(copies + i)];
            }
        }
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
        let per_vec = comptime!(tiles.per_vec());
        let vecs = comptime!(tiles.depth_vecs());
        let w_vecs = comptime!(tiles.w_row_vecs::<Self>());
        let w = stage + comptime!(tiles.x_vecs::<Self>());
        let first_row =
            plane % tiles.row_planes * comptime!(tiles.row_tiles * Self::ROWS) + Self::row(lane, 0usize);
        let first_column =
            plane / tiles.row_planes * comptime!(tiles.column_tiles * Self::COLUMNS) + Self::column(lane);
        for vec in 0..vecs {
            let mut rows = Array::<Vector<f32, Const<8>>>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                let row = first_row + comptime!(m * Self::ROWS);
                rows[m] = floats::<E>(shared[stage + row * vecs + turned(vec, row, vecs)], per_vec);
            }
            #[unroll]
            for n in 0..tiles.column_tiles {
                let column = first_column + comptime!(n * Self::COLUMNS);
                let mut outputs = Array::<Vector<f32, Const<8>>>::new(RUN);
                if comptime!(!tiles.by_input) {
                    #[unroll]
                    for j in 0..RUN {
                        let at = w + (column + j) * vecs + turned(vec, column / RUN, vecs);
                        outputs[j] = floats::<E>(shared[at], per_vec);
                    }
                }
                #[unroll]
                for x in 0..per_vec {
                    let four = if comptime!(tiles.by_input) {
                        four_values::<E>(shared, w, vec * per_vec + x, column, w_vecs, per_vec)
                    } else {
                        let mut four = Vector::<f32, Const<4>>::empty();
                        #[unroll]
                        for j in 0..RUN {
                            four.insert(j, outputs[j].extract(x));
                        }
                        four
                    };
                    #[unroll]
                    for m in 0..tiles.row_tiles {
                        let tile = comptime!(m * tiles.column_tiles + n);
                        sums[tile] = fma(Vector::new(rows[m].extract(x)), four, sums[tile]);
                    }
                }
            }
        }
    }
}
