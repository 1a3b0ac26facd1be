//! Plain multiplications, in f32: a lane has a row of 4 columns in each tile.

use cubecl::prelude::*;

use super::super::scalar::{Lanes, RUN, Scalar, floats, four_values, turned};
use super::super::{Layout, MatrixUnit};
use super::{ProductTiles, ProductUnit, Quad, clear_absent, w_copy, x_copy};

#[cube]
impl<P: Lanes> ProductUnit for Scalar<P> {
    fn land(
        shared: &mut [Quad],
        stage: usize,
        unit: usize,
        staged: &mut Array<Quad>,
        left: usize,
        #[comptime] tiles: ProductTiles,
    ) {
        clear_absent::<Self>(staged, unit, left, tiles);
        // Every plane has read the last stage.
        sync_cube();
        let quads = comptime!(tiles.depth_quads());
        let copies = comptime!(tiles.x_copies::<Self>());
        #[unroll]
        for i in 0..copies {
            let (row, quad) = x_copy::<Self>(unit, i, tiles);
            if comptime!(tiles.x_even::<Self>()) || row < comptime!(tiles.rows::<Self>()) {
                shared[stage + row * quads + turned(quad, row, quads)] = staged[i];
            }
        }
        let w = stage + comptime!(tiles.x_quads::<Self>());
        let quads = comptime!(tiles.w_row_quads::<Self>());
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<Self>()) {
            let (row, quad) = w_copy::<Self>(unit, i, tiles);
            let spot = if comptime!(tiles.by_input) { quad } else { turned(quad, row / RUN, quads) };
            if comptime!(tiles.w_even::<Self>()) || row < comptime!(tiles.w_rows::<Self>()) {
                shared[w + row * quads + spot] = staged[comptime!(copies + i)];
            }
        }
        sync_cube();
    }

    fn multiply<E: Float>(
        shared: &[Quad],
        stage: usize,
        lane: usize,
        plane: usize,
        sums: &mut Array<Vector<f32, Const<4>>>,
        #[comptime] tiles: ProductTiles,
    ) {
        let per_quad = comptime!(tiles.per_quad());
        let quads = comptime!(tiles.depth_quads());
        let w_quads = comptime!(tiles.w_row_quads::<Self>());
        let w = stage + comptime!(tiles.x_quads::<Self>());
        let first_row =
            plane % tiles.row_planes * comptime!(tiles.row_tiles * Self::ROWS) + Self::row(lane, 0usize);
        let first_column =
            plane / tiles.row_planes * comptime!(tiles.column_tiles * Self::COLUMNS) + Self::column(lane);
        for quad in 0..quads {
            let mut rows = Array::<Vector<f32, Const<8>>>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                let row = first_row + comptime!(m * Self::ROWS);
                rows[m] = floats::<E>(shared[stage + row * quads + turned(quad, row, quads)], per_quad);
            }
            #[unroll]
            for n in 0..tiles.column_tiles {
                let column = first_column + comptime!(n * Self::COLUMNS);
                let mut outputs = Array::<Vector<f32, Const<8>>>::new(RUN);
                if comptime!(!tiles.by_input) {
                    #[unroll]
                    for j in 0..RUN {
                        let at = w + (column + j) * quads + turned(quad, column / RUN, quads);
                        outputs[j] = floats::<E>(shared[at], per_quad);
                    }
                }
                #[unroll]
                for x in 0..per_quad {
                    let four = if comptime!(tiles.by_input) {
                        four_values::<E>(shared, w, quad * per_quad + x, column, w_quads, per_quad)
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
