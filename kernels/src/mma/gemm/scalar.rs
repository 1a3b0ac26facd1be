//! Plain multiplications, in f32: a lane has a row of 4 columns in each tile.

use cubecl::prelude::*;

use super::super::fragment::{Accumulator, Fragment, FragmentLayout};
use super::super::operands::Operands;
use super::super::scalar::{Lanes, RUN, Scalar, floats, four_values};
use super::tiles::{GemmMma, GemmTileShape, column_plane, first_depth_vec, store_rows_of_w};
use crate::staging::Ring;

#[cube]
impl<P: Lanes> GemmMma for Scalar<P> {
    fn store_w(ring: &mut Ring, #[comptime] tiles: GemmTileShape) {
        store_rows_of_w::<Self>(ring, tiles);
    }

    fn multiply<E: Float>(ring: &Ring, acc: &mut Fragment<Self>, #[comptime] tiles: GemmTileShape) {
        let plane = UNIT_POS_Y as usize;
        let per_vec = comptime!(tiles.per_vec());
        let vecs = comptime!(tiles.depth_vecs());
        let w_vecs = comptime!(tiles.w_row_vecs::<Self>());
        let w = ring.stage + comptime!(tiles.x_vecs::<Self>());
        let first_row =
            plane % tiles.row_planes * comptime!(tiles.row_tiles * Self::ROWS) + Self::row(0usize);
        let first_column =
            column_plane(tiles) * comptime!(tiles.column_tiles * Self::COLUMNS) + Self::column();
        let first_vec = first_depth_vec(tiles);
        for vec in first_vec..first_vec + comptime!(vecs / tiles.depth_planes) {
            let mut rows = Array::<Vector<f32, Const<8>>>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                let row = first_row + comptime!(m * Self::ROWS);
                rows[m] = floats::<E>(ring.shared[Self::query_at(ring.stage, row, vec, vecs)], per_vec);
            }
            #[unroll]
            for n in 0..tiles.column_tiles {
                let column = first_column + comptime!(n * Self::COLUMNS);
                let mut outputs = Array::<Vector<f32, Const<8>>>::new(RUN);
                if comptime!(!tiles.by_input) {
                    #[unroll]
                    for j in 0..RUN {
                        let at = Self::key_at(w, column + j, vec, vecs);
                        outputs[j] = floats::<E>(ring.shared[at], per_vec);
                    }
                }
                #[unroll]
                for x in 0..per_vec {
                    let four = if comptime!(tiles.by_input) {
                        four_values::<E>(&ring.shared, w, vec * per_vec + x, column, w_vecs, per_vec)
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
                        acc.tiles[tile] = fma(Vector::new(rows[m].extract(x)), four, acc.tiles[tile]);
                    }
                }
            }
        }
    }
}
