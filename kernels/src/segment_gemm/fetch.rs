//! Copies of rows and matrices into shared memory.

use cubecl::prelude::*;

use crate::mma::{GemmMma, GemmTileShape, Vec16, w_copy, x_copy};

/// The rows, columns and matrix of a cube.
#[derive(CubeType)]
pub(super) struct Place {
    /// First row, and end of the rows.
    pub first_row: usize,
    pub end_row: usize,
    /// First column.
    pub first_column: usize,
    /// Offset of the matrix, in elements.
    pub matrix: usize,
    pub d_in: usize,
    pub d_out: usize,
}

/// Begins to copy the stage of both factors with the inputs from `first` on. Beyond the last input there are
/// zeros, or [`GemmMma::land`] writes them. Missing rows and columns repeat the last ones; no lane stores
/// them.
#[allow(clippy::too_many_arguments, reason = "two tensors and their places")]
#[cube]
pub(super) fn fetch<U: GemmMma>(
    x: &Tensor<Vec16>,
    weights: &Tensor<Vec16>,
    place: &Place,
    first: usize,
    shared: &mut [Vec16],
    stage: usize,
    unit: usize,
    staged: &mut Array<Vec16>,
    #[comptime] tiles: GemmTileShape,
) {
    if first < place.d_in {
        let per_vec = comptime!(tiles.per_vec());
        let last_vec = place.d_in / per_vec - 1;
        let copies = comptime!(tiles.x_copies::<U>());
        #[unroll]
        for i in 0..copies {
            let (row, vec) = x_copy::<U>(unit, i, tiles);
            let from = first / per_vec + vec;
            if comptime!(!U::ASYNC || tiles.x_even::<U>()) || row < comptime!(tiles.rows::<U>()) {
                let at = min(place.first_row + row, place.end_row - 1) * x.stride(0) / per_vec;
                U::copy(
                    x,
                    at + min(from, last_vec),
                    from <= last_vec,
                    shared,
                    stage,
                    row,
                    vec,
                    0usize,
                    comptime!(tiles.depth_vecs()),
                    staged,
                    i,
                );
            }
        }
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<U>()) {
            let (row, vec) = w_copy::<U>(unit, i, tiles);
            if comptime!(!U::ASYNC || tiles.w_even::<U>()) || row < comptime!(tiles.w_rows::<U>()) {
                let (from_row, from_vec, valid) = if comptime!(tiles.by_input) {
                    let input = first + row;
                    let output = min(place.first_column / per_vec + vec, place.d_out / per_vec - 1);
                    (min(input, place.d_in - 1), output, input < place.d_in)
                } else {
                    let input = first / per_vec + vec;
                    let output = min(place.first_column + row, place.d_out - 1);
                    (output, min(input, last_vec), input <= last_vec)
                };
                U::copy(
                    weights,
                    (place.matrix + from_row * weights.stride(1)) / per_vec + from_vec,
                    valid,
                    shared,
                    stage,
                    row,
                    vec,
                    comptime!(tiles.x_vecs::<U>()),
                    comptime!(tiles.w_row_vecs::<U>()),
                    staged,
                    comptime!(copies + i),
                );
            }
        }
    }
    U::commit_stage();
}
