//! MFMA: the product is transposed, `yᵀ = wᵀ xᵀ`. Rows of outputs are operands without a change; rows of
//! inputs are transposed during the copy to shared memory. Either way a row of the stage is an output there.

use cubecl::prelude::*;

use super::super::mfma::{Mfma, Side, groups, half, turn};
use super::super::swizzle;
use super::{GemmMma, GemmTileShape, Vec16, clear_absent, w_copy, x_copy};
use crate::isa::amd::mfma;

/// Position of vec16 `vec` of column `column` of `w`, in rows of the depth.
#[cube]
fn spot(column: usize, vec: usize, #[comptime] tiles: GemmTileShape) -> usize {
    let vecs = comptime!(tiles.depth_vecs());
    let turned = if comptime!(tiles.by_input) { turn(column, vecs) } else { swizzle(column, vecs) };
    column * vecs + (vec ^ turned)
}

#[cube]
impl<S: Side> GemmMma for Mfma<S> {
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
                shared[stage + row * vecs + (vec ^ swizzle(row, vecs))] = staged[i];
            }
        }
        let w = stage + comptime!(tiles.x_vecs::<Self>());
        let even = comptime!(tiles.w_even::<Self>());
        if comptime!(tiles.by_input) {
            let pairs = shared.with_vector_size_mut::<Const<2>>();
            #[unroll]
            for i in 0..comptime!(tiles.w_copies::<Self>() / 4) {
                // Four inputs of a vec16 of outputs: half a vec16 of each output.
                let (input, vec) = w_copy::<Self>(unit, comptime!(4 * i), tiles);
                #[unroll]
                for word in 0..4usize {
                    let a = staged[comptime!(copies + 4 * i)].extract(word);
                    let b = staged[comptime!(copies + 4 * i + 1)].extract(word);
                    let c = staged[comptime!(copies + 4 * i + 2)].extract(word);
                    let d = staged[comptime!(copies + 4 * i + 3)].extract(word);
                    #[unroll]
                    for high in 0..2usize {
                        let mut pair = Vector::<u32, Const<2>>::empty();
                        if comptime!(high == 0) {
                            pair.insert(0usize, (a & 0xffffu32) | (b << 16u32));
                            pair.insert(1usize, (c & 0xffffu32) | (d << 16u32));
                        } else {
                            pair.insert(0usize, (a >> 16u32) | (b & 0xffff_0000u32));
                            pair.insert(1usize, (c >> 16u32) | (d & 0xffff_0000u32));
                        }
                        let output = vec * 8 + comptime!(2 * word + high);
                        if comptime!(even) || input < tiles.depth {
                            pairs[2 * (w + spot(output, input / 8, tiles)) + input / 4 % 2] = pair;
                        }
                    }
                }
            }
        } else {
            #[unroll]
            for i in 0..comptime!(tiles.w_copies::<Self>()) {
                let (row, vec) = w_copy::<Self>(unit, i, tiles);
                if comptime!(even) || row < comptime!(tiles.columns::<Self>()) {
                    shared[w + spot(row, vec, tiles)] = staged[comptime!(copies + i)];
                }
            }
        }
        sync_cube();
    }

    fn multiply<E: Float>(
        shared: &[Vec16],
        stage: usize,
        lane: usize,
        plane: usize,
        sums: &mut Array<Vector<f32, S::Acc>>,
        #[comptime] tiles: GemmTileShape,
    ) {
        let vecs = comptime!(tiles.depth_vecs());
        let x_row = plane % tiles.row_planes * comptime!(tiles.row_tiles * S::SIDE) + lane % S::SIDE;
        let column = plane / tiles.row_planes * comptime!(tiles.column_tiles * S::SIDE) + lane % S::SIDE;
        let w = stage + comptime!(tiles.x_vecs::<Self>());
        #[unroll]
        for i in 0..comptime!(vecs / groups::<S>()) {
            let vec = lane / S::SIDE + comptime!(i * groups::<S>());
            let x_at = stage + x_row * vecs + (vec ^ swizzle(x_row, vecs));
            let mut rows = Array::<Vec16>::new(tiles.row_tiles);
            #[unroll]
            for m in 0..tiles.row_tiles {
                rows[m] = shared[x_at + comptime!(m * S::SIDE * vecs)];
            }
            #[unroll]
            for n in 0..tiles.column_tiles {
                let outputs = shared[w + spot(column + comptime!(n * S::SIDE), vec, tiles)];
                #[unroll]
                for m in 0..tiles.row_tiles {
                    let tile = comptime!(m * tiles.column_tiles + n);
                    let bf16 = comptime!(tiles.bf16());
                    let (low, high) = (half::<E>(outputs, 0usize), half::<E>(outputs, 1usize));
                    let sum = mfma::<E, S::Acc>(low, half::<E>(rows[m], 0usize), sums[tile], S::SIDE, bf16);
                    sums[tile] = mfma::<E, S::Acc>(high, half::<E>(rows[m], 1usize), sum, S::SIDE, bf16);
                }
            }
        }
    }
}
