//! Rows and matrices on their way into shared memory.

use cubecl::prelude::*;

use crate::unit::{ProductTiles, ProductUnit, Quad, w_copy, x_copy};

/// What a cube multiplies.
#[derive(CubeType)]
pub(super) struct Place {
    /// Its rows.
    pub first_row: usize,
    pub end_row: usize,
    /// Its first column.
    pub first_column: usize,
    /// Where its matrix begins, in elements.
    pub matrix: usize,
    pub d_in: usize,
    pub d_out: usize,
}

/// Begins to copy the stage of both factors that has the inputs from `first` on; beyond the last there are zeros, or what
/// [`ProductUnit::land`] makes zeros of. Rows and columns that are not there repeat the last ones; nobody stores them.
#[allow(clippy::too_many_arguments, reason = "two tensors and their places")]
#[cube]
pub(super) fn fetch<U: ProductUnit>(
    x: &Tensor<Quad>,
    weights: &Tensor<Quad>,
    place: &Place,
    first: usize,
    shared: &mut [Quad],
    stage: usize,
    unit: usize,
    staged: &mut Array<Quad>,
    #[comptime] tiles: ProductTiles,
) {
    if first < place.d_in {
        let per_quad = comptime!(tiles.per_quad());
        let last_quad = place.d_in / per_quad - 1;
        let copies = comptime!(tiles.x_copies::<U>());
        #[unroll]
        for i in 0..copies {
            let (row, quad) = x_copy::<U>(unit, i, tiles);
            let from = first / per_quad + quad;
            if comptime!(!U::ASYNC || tiles.x_even::<U>()) || row < comptime!(tiles.rows::<U>()) {
                let at = min(place.first_row + row, place.end_row - 1) * x.stride(0) / per_quad;
                U::copy(
                    x,
                    at + min(from, last_quad),
                    from <= last_quad,
                    shared,
                    stage,
                    row,
                    quad,
                    0usize,
                    comptime!(tiles.depth_quads()),
                    staged,
                    i,
                );
            }
        }
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<U>()) {
            let (row, quad) = w_copy::<U>(unit, i, tiles);
            if comptime!(!U::ASYNC || tiles.w_even::<U>()) || row < comptime!(tiles.w_rows::<U>()) {
                let (from_row, from_quad, valid) = if comptime!(tiles.by_input) {
                    let input = first + row;
                    let output = min(place.first_column / per_quad + quad, place.d_out / per_quad - 1);
                    (min(input, place.d_in - 1), output, input < place.d_in)
                } else {
                    let input = first / per_quad + quad;
                    let output = min(place.first_column + row, place.d_out - 1);
                    (output, min(input, last_quad), input <= last_quad)
                };
                U::copy(
                    weights,
                    (place.matrix + from_row * weights.stride(1)) / per_quad + from_quad,
                    valid,
                    shared,
                    stage,
                    row,
                    quad,
                    comptime!(tiles.x_quads::<U>()),
                    comptime!(tiles.w_row_quads::<U>()),
                    staged,
                    comptime!(copies + i),
                );
            }
        }
    }
    U::copied();
}
