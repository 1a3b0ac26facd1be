//! A tile of `y` by one cube, which walks over the inputs.

use cubecl::prelude::*;

use super::epilogue::{EpilogueArgs, Steps, store_at};
use super::stage::{Place, fetch_stage};
use crate::mma::{
    BLOCK, Fragment, Gated, GemmMma, GemmTileShape, Scales, column_step, product_vecs, wait_gemm_stage,
};
use crate::staging::{Ring, Staging, Vec16, stages_ahead};

/// Computes the rows and columns of a cube. `x`: `[rows, d_in]`, `weights`: `[matrices, d_in, d_out]` or
/// `[matrices, d_out, d_in]`, in vec16s but with strides in elements; `y`: `[rows, d_out]`.
#[cube]
pub(crate) fn gemm_tile<U: GemmMma, E: Float, Y: Float>(
    x: &Tensor<Vec16>,
    weights: &Tensor<Vec16>,
    y: &mut [Vector<Y, U::Run>],
    epilogue: &EpilogueArgs<E>,
    place: &Place,
    #[comptime] tiles: GemmTileShape,
    #[comptime] steps: Steps,
) {
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(product_vecs::<U>(tiles)), 128usize);
    let staged = comptime!(tiles.staged_vecs::<U>());
    let mut ring = Ring::new(shared, staged, comptime!(tiles.stage_vecs::<U>()), tiles.stages);
    let ahead = comptime!(stages_ahead(tiles.stages));
    #[unroll]
    for i in 0..ahead {
        fetch_stage::<U>(&mut ring, x, weights, place, comptime!(i * tiles.depth).runtime(), i, tiles);
    }
    let mut acc = Fragment::<U>::new(tiles.row_tiles, tiles.column_tiles);
    acc.clear();
    // From an output's gate to its up.
    let up = if comptime!(steps.halves() > 1) { epilogue.d_out } else { 0usize.runtime() };
    let mut at = 0usize;
    while at < place.d_in {
        wait_gemm_stage::<U>(&mut ring, place.d_in - at, tiles);
        // Before the copies: loads come back in order, and these two are needed first.
        let low = epilogue.of_block(place.first_column, at / BLOCK, steps);
        let high = epilogue.of_block(place.first_column + up, at / BLOCK, steps);
        fetch_stage::<U>(&mut ring, x, weights, place, at + comptime!(ahead * tiles.depth), ahead, tiles);
        if comptime!(steps.scales == Some(Scales::Block128)) {
            add_block::<U, E>(&mut acc, &ring, low, high, tiles);
        } else {
            U::multiply::<E>(&ring, &mut acc, tiles);
        }
        ring.advance();
        at += tiles.depth;
    }
    U::Staging::wait(0usize);
    store::<U, E, Y>(y, epilogue, place, &acc, tiles, steps);
}

/// Adds the products of the current stage, a block of inputs, times the scales of both halves of the cube's outputs.
#[cube]
fn add_block<U: GemmMma, E: Float>(
    acc: &mut Fragment<U>,
    ring: &Ring,
    low: f32,
    high: f32,
    #[comptime] tiles: GemmTileShape,
) {
    let mut part = Fragment::<U>::new(tiles.row_tiles, tiles.column_tiles);
    part.clear();
    U::multiply::<E>(ring, &mut part, tiles);
    let is_gated = comptime!(tiles.gated == Gated::Columns);
    #[unroll]
    for i in 0..comptime!(tiles.row_tiles * tiles.column_tiles) {
        let is_up = comptime!(is_gated && i % tiles.column_tiles >= tiles.column_tiles / 2);
        let scale = if comptime!(is_up) { high } else { low };
        acc.tiles[i] = fma(part.tiles[i], Vector::new(scale), acc.tiles[i]);
    }
}

/// Stores the valid rows and columns.
#[cube]
fn store<U: GemmMma, E: Float, Y: Float>(
    y: &mut [Vector<Y, U::Run>],
    epilogue: &EpilogueArgs<E>,
    place: &Place,
    acc: &Fragment<U>,
    #[comptime] tiles: GemmTileShape,
    #[comptime] steps: Steps,
) {
    let plane = UNIT_POS_Y as usize;
    let halves = comptime!(steps.halves());
    let first_row = place.first_row + plane % tiles.row_planes * comptime!(tiles.row_tiles * U::ROWS);
    let first_column = place.first_column
        + plane / tiles.row_planes * comptime!(tiles.column_tiles * U::COLUMNS / halves)
        + U::column();
    let runs = acc.lane_runs();
    let runs = comptime!(runs / halves);
    #[unroll]
    for r in 0..acc.lane_rows() {
        let row = first_row + comptime!(r / U::LANE_ROWS * U::ROWS) + U::row(comptime!(r % U::LANE_ROWS));
        if row < place.end_row {
            let of_row = epilogue.of_row(row);
            #[unroll]
            for run in 0..runs {
                let column = first_column + comptime!(column_step::<U>(run * U::RUN));
                if column < place.d_out {
                    let up = acc.run(r, comptime!(run + (halves - 1) * runs));
                    let sums = epilogue.finish_scaled::<U::Run>(acc.run(r, run), up, of_row, column, steps);
                    let at = (row * place.d_out + column) / comptime!(U::RUN);
                    store_at::<Y, U::Run>(y, at, sums, steps);
                }
            }
        }
    }
}
