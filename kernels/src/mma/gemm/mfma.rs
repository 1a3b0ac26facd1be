//! MFMA: the product is transposed, `yᵀ = wᵀ xᵀ`. Rows of outputs are operands without a change; rows of
//! inputs are transposed during the copy to shared memory. Either way a row of the stage is an output there.

use cubecl::prelude::*;

use super::super::fragment::Fragment;
use super::super::kind::E4M3;
use super::super::mfma::{Mfma, Side, column_of_four, groups, half, product, product_of_codes};
use super::super::operands::Operands;
use super::tiles::{GemmMma, GemmTileShape, column_plane, first_depth_vec, store_rows_of_w, w_copy};
use crate::staging::{Ring, Vec16};

/// Place of vec16 `vec` of column `column` of `w`, which begins at `first`, in rows of the depth.
#[cube]
fn column_at<S: Side>(first: usize, column: usize, vec: usize, #[comptime] tiles: GemmTileShape) -> usize {
    let vecs = comptime!(tiles.depth_vecs());
    if comptime!(tiles.by_input) {
        Mfma::<S>::value_at(first, column, vec, vecs)
    } else {
        Mfma::<S>::key_at(first, column, vec, vecs)
    }
}

#[cube]
impl<S: Side> GemmMma for Mfma<S> {
    fn store_w(ring: &mut Ring, #[comptime] tiles: GemmTileShape) {
        if comptime!(tiles.by_input) {
            let w = ring.stage + comptime!(tiles.x_vecs::<Self>());
            #[unroll]
            for i in 0..comptime!(tiles.w_copies::<Self>() / 4) {
                // Four inputs of a vec16 of outputs: half a vec16 of each output.
                let (input, vec) = w_copy::<Self>(comptime!(4 * i), tiles);
                #[unroll]
                for e in 0..8usize {
                    let four = column_of_four(&ring.staged, comptime!(tiles.x_copies::<Self>() + 4 * i), e);
                    if comptime!(tiles.w_even::<Self>()) || input < tiles.depth {
                        let at = column_at::<S>(w, vec * 8 + e, input / 8, tiles);
                        let halves = ring.shared.with_vector_size_mut::<Const<2>>();
                        halves[2 * at + input / 4 % 2] = four;
                    }
                }
            }
        } else {
            store_rows_of_w::<Self>(ring, tiles);
        }
    }

    fn multiply<E: Float>(ring: &Ring, acc: &mut Fragment<Self>, #[comptime] tiles: GemmTileShape) {
        let (lane, plane) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
        let vecs = comptime!(tiles.depth_vecs());
        let x_row = plane % tiles.row_planes * comptime!(tiles.row_tiles * S::SIDE) + lane % S::SIDE;
        let column = column_plane(tiles) * comptime!(tiles.column_tiles * S::SIDE) + lane % S::SIDE;
        let first = first_depth_vec(tiles);
        let w = ring.stage + comptime!(tiles.x_vecs::<Self>());
        #[unroll]
        for i in 0..comptime!(vecs / tiles.depth_planes / groups::<S>()) {
            let vec = first + lane / S::SIDE + comptime!(i * groups::<S>());
            let x_at = Self::query_at(ring.stage, x_row, vec, vecs);
            let mut rows = Array::<Vec16>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                rows[m] = ring.shared[x_at + comptime!(m * S::SIDE * vecs)];
            }
            #[unroll]
            for n in 0..tiles.column_tiles {
                let outputs = ring.shared[column_at::<S>(w, column + comptime!(n * S::SIDE), vec, tiles)];
                #[unroll]
                for m in 0..tiles.row_tiles {
                    let tile = comptime!(m * tiles.column_tiles + n);
                    acc.tiles[tile] = if comptime!(tiles.dtype == E4M3) {
                        product_of_codes::<S>(outputs, rows[m], acc.tiles[tile])
                    } else {
                        product::<E, S>(
                            outputs,
                            half::<E>(rows[m], 0usize),
                            half::<E>(rows[m], 1usize),
                            acc.tiles[tile],
                            comptime!(tiles.bf16()),
                        )
                    };
                }
            }
        }
    }
}
