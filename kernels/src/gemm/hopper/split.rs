//! The sums of a tile whose inputs are split among the cubes of a cluster.

use cubecl::prelude::*;

use super::super::epilogue::EpilogueArgs;
use super::store::{TilePlace, store_four};
use super::tiles::{CONSUMERS, ROWS, WarpgroupTiles};
use crate::isa::nvidia::{load_shared_at, shared_address};
use crate::mma::{Accumulator, Fragment, MmaSync, column_step};
use crate::staging::Vec16;

/// Writes the cube's part of the sums to shared memory, row by row.
#[cube]
pub(super) fn store_part(
    shared: &mut Shared<[Vec16]>,
    acc: &Fragment<MmaSync>,
    plane: usize,
    #[comptime] tiles: WarpgroupTiles,
) {
    let pairs = shared.with_vector_size_mut::<Const<2>>();
    #[unroll]
    for r in 0..2usize {
        let row = plane * 16 + MmaSync::row(r);
        let at = (row * comptime!(tiles.part_words()) + MmaSync::column()) / 2;
        #[unroll]
        for run in 0..acc.lane_runs() {
            pairs[at + comptime!(column_step::<MmaSync>(2 * run) / 2)] = Vector::reinterpret(acc.run(r, run));
        }
    }
}

/// Adds up the parts in the order of their inputs and stores the results, 4 outputs at a time. Each cube of the cluster
/// has some rows.
#[cube]
pub(super) fn add_parts<E: Float>(
    y: &mut [Vec16],
    epilogue: &EpilogueArgs<E>,
    shared: &Shared<[Vec16]>,
    plane: usize,
    rank: usize,
    place: &TilePlace,
    #[comptime] tiles: WarpgroupTiles,
) {
    let fours = comptime!(tiles.columns() / 4);
    let units = comptime!(CONSUMERS * 32);
    let own_rows = comptime!(ROWS / tiles.cluster);
    let base = shared_address::<Vec16>(shared);
    let unit = plane * 32 + UNIT_POS_X as usize;
    // Whole planes go round together, as loads from peers want it.
    #[unroll]
    for i in 0..comptime!((own_rows * fours).div_ceil(units)) {
        let at = unit + comptime!(i * units);
        let row = rank * own_rows + min(at / fours, comptime!(own_rows - 1));
        let from = base + ((row * comptime!(tiles.part_words()) + at % fours * 4) * 4) as u32;
        let sums = sum_parts(from, tiles);
        let up = if comptime!(tiles.steps.halves() > 1) {
            sum_parts(from + comptime!(tiles.columns() as u32 * 4), tiles)
        } else {
            sums
        };
        let (row, column) = (place.row + row, place.column + at % fours * 4);
        if at < comptime!(own_rows * fours) && row < place.end && column < epilogue.d_out {
            let four = epilogue.finish::<Const<4>>(sums, up, column, tiles.steps);
            let at = (row * epilogue.d_out + column) / 4;
            store_four::<E>(y, four, at, tiles);
        }
    }
}

/// Four adjacent sums at an address of each cube of the cluster.
#[cube]
fn sum_parts(from: u32, #[comptime] tiles: WarpgroupTiles) -> Vector<f32, Const<4>> {
    let mut sums = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for peer in 0..tiles.cluster {
        sums += load_shared_at(from, comptime!(peer as u32).runtime());
    }
    sums
}
