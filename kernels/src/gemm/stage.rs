//! Copies of rows and matrices into shared memory.

use cubecl::prelude::*;

use crate::mma::{FragmentLayout, Gated, GemmMma, GemmTileShape, w_at, w_copy, x_copy};
use crate::staging::{Ring, Staging, Vec16};

/// The rows, columns and matrix of a cube.
#[derive(CubeType)]
pub(crate) struct Place {
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

/// Begins to copy the stage of both factors, `ahead` of the current one, with the inputs from `first` on. Beyond the
/// last input there are zeros, or [`wait_gemm_stage`](crate::mma::wait_gemm_stage) writes them. Missing rows and
/// columns are zeros or repeat the last ones; no lane stores them. Zeros cost no read: where one row filled a tile of 16,
/// all cores read that row 16 times.
#[cube]
pub(super) fn fetch_stage<U: GemmMma>(
    ring: &mut Ring,
    x: &Tensor<Vec16>,
    weights: &Tensor<Vec16>,
    place: &Place,
    first: usize,
    #[comptime] ahead: usize,
    #[comptime] tiles: GemmTileShape,
) {
    if first < place.d_in {
        let stage = ring.after(ahead);
        let per_vec = comptime!(tiles.per_vec());
        let last_vec = place.d_in / per_vec - 1;
        let copies = comptime!(tiles.x_copies::<U>());
        #[unroll]
        for i in 0..copies {
            let (row, vec) = x_copy::<U>(i, tiles);
            let from = first / per_vec + vec;
            let (of_tile, half) = by_halves(row, comptime!(row_period::<U>(tiles)));
            if comptime!(!U::ASYNC || tiles.x_even::<U>()) || row < comptime!(tiles.rows::<U>()) {
                let from_row = place.first_row + of_tile;
                let at = (min(from_row, place.end_row - 1) + half * place.end_row) * x.stride(0) / per_vec;
                let to = U::query_at(stage, row, vec, comptime!(tiles.depth_vecs()));
                let valid = from <= last_vec && from_row < place.end_row;
                U::Staging::copy(ring, x, at + min(from, last_vec), valid, to, i);
            }
        }
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<U>()) {
            let (row, vec) = w_copy::<U>(i, tiles);
            if comptime!(!U::ASYNC || tiles.w_even::<U>()) || row < comptime!(tiles.w_rows::<U>()) {
                let (from_row, from_vec, valid) = if comptime!(tiles.by_input) {
                    let input = first + row;
                    let output = min(place.first_column / per_vec + vec, place.d_out / per_vec - 1);
                    (min(input, place.d_in - 1), output, input < place.d_in)
                } else {
                    let input = first / per_vec + vec;
                    let (of_tile, half) = by_halves(row, comptime!(column_period::<U>(tiles)));
                    let output = place.first_column + of_tile;
                    let valid = input <= last_vec && output < place.d_out;
                    (min(output, place.d_out - 1) + half * place.d_out, min(input, last_vec), valid)
                };
                let at = (place.matrix + from_row * weights.stride(1)) / per_vec + from_vec;
                let to = w_at::<U>(stage, row, vec, tiles);
                U::Staging::copy(ring, weights, at, valid, to, comptime!(copies + i));
            }
        }
    }
    U::Staging::commit();
}

/// Rows of a stage half of which are gates, then ups; 0 for none. All rows of a cube, since planes exchange their sums.
fn row_period<L: FragmentLayout>(tiles: GemmTileShape) -> usize {
    if tiles.gated == Gated::Rows { tiles.rows::<L>() } else { 0 }
}

/// [`row_period`] of columns: those of a plane, so that a lane has both sums of an output.
fn column_period<L: FragmentLayout>(tiles: GemmTileShape) -> usize {
    if tiles.gated == Gated::Columns { tiles.column_tiles * L::COLUMNS } else { 0 }
}

/// The output of a row of the stage, from the cube's first on, and its half of the weight's rows.
#[cube]
fn by_halves(row: usize, #[comptime] period: usize) -> (usize, usize) {
    if comptime!(period == 0) {
        (row, 0usize.runtime())
    } else {
        let half = comptime!(period / 2);
        (row / period * half + row % half, row % period / half)
    }
}
