//! `mma.sync`: rows of inputs are transposed by the load, rows of outputs are operands without a change.

use cubecl::prelude::*;

use super::super::fragment::Fragment;
use super::super::mma_sync::{MmaSync, address, product};
use super::tiles::{GemmMma, GemmTileShape, column_plane, first_depth_vec};
use crate::isa::nvidia::{OperandType, ldmatrix, to_tf32};
use crate::staging::{Ring, Vec16};

#[cube]
impl GemmMma for MmaSync {
    fn store_w(_ring: &mut Ring, #[comptime] _tiles: GemmTileShape) {}

    fn multiply<E: Float>(ring: &Ring, acc: &mut Fragment<Self>, #[comptime] tiles: GemmTileShape) {
        let (lane, plane) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
        let x_row = plane % tiles.row_planes * comptime!(tiles.row_tiles * 16) + lane % 16;
        let columns = column_plane(tiles) * tiles.column_tiles;
        let first = first_depth_vec(tiles);
        let x_vecs = comptime!(tiles.depth_vecs());
        let w_vecs = comptime!(tiles.w_row_vecs::<MmaSync>());
        let w = ring.stage + comptime!(tiles.x_vecs::<MmaSync>());
        let ty = comptime!(OperandType::of(tiles.dtype));
        #[unroll]
        for k in 0..comptime!(x_vecs / tiles.depth_planes / 2) {
            let x_at = address(ring, ring.stage, x_row, first + lane / 16 + comptime!(2 * k), x_vecs);
            let mut rows = Array::<Vec16>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                rows[m] = rounded(ldmatrix(x_at, comptime!(16 * m * x_vecs * 16), false), ty);
            }
            #[unroll]
            for n in 0..comptime!(tiles.column_tiles / 2) {
                // Low and high half of the depth for 8 columns, then the next 8 columns.
                let pair = if comptime!(tiles.by_input) {
                    let first = first * comptime!(tiles.per_vec());
                    let at =
                        address(ring, w, first + lane % 16, columns + lane / 16 + comptime!(2 * n), w_vecs);
                    ldmatrix(at, comptime!(16 * k * w_vecs * 16), true)
                } else {
                    let row = columns * 8 + lane / 16 * 8 + lane % 8;
                    let at = address(ring, w, row, first + lane / 8 % 2 + comptime!(2 * k), w_vecs);
                    ldmatrix(at, comptime!(16 * n * w_vecs * 16), false)
                };
                let pair = rounded(pair, ty);
                #[unroll]
                for m in 0..tiles.row_tiles {
                    let tile = comptime!(m * tiles.column_tiles + 2 * n);
                    product(rows[m], pair, acc, tile, ty);
                }
            }
        }
    }
}

/// Operands as the instruction takes them: it would cut f32 off.
#[cube]
fn rounded(operands: Vec16, #[comptime] ty: OperandType) -> Vec16 {
    let mut operands = operands;
    if comptime!(ty == OperandType::Tf32) {
        #[unroll]
        for i in 0..4usize {
            operands.insert(i, to_tf32(operands.extract(i)));
        }
    }
    operands
}
