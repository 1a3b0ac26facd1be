//! The sums of a tile whose inputs are split among the cubes of a cluster.

use cubecl::prelude::*;

use super::tiles::{CONSUMERS, ROWS, WarpgroupTiles};
use crate::isa::nvidia::{load_shared_at, pack, shared_address};
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

/// Adds up the parts in the order of their inputs and stores the results, 8 outputs at a time. Each cube of the cluster
/// has some rows.
#[cube]
pub(super) fn add_parts(
    y: &mut [Vec16],
    shared: &Shared<[Vec16]>,
    plane: usize,
    rank: usize,
    first_row: usize,
    first_column: usize,
    rows: usize,
    d_out: usize,
    #[comptime] tiles: WarpgroupTiles,
) {
    let eights = comptime!(tiles.outputs / 8);
    let units = comptime!(CONSUMERS * 32);
    let own_rows = comptime!(ROWS / tiles.cluster);
    let base = shared_address::<Vec16>(shared);
    let unit = plane * 32 + UNIT_POS_X as usize;
    // Whole planes go round together, as loads from peers want it.
    #[unroll]
    for i in 0..comptime!((own_rows * eights).div_ceil(units)) {
        let at = unit + comptime!(i * units);
        let own_row = min(at / eights, comptime!(own_rows - 1));
        let row = rank * own_rows + own_row;
        let from = base + ((row * comptime!(tiles.part_words()) + at % eights * 8) * 4) as u32;
        let mut low = Vector::<f32, Const<4>>::new(0.0f32);
        let mut high = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for peer in 0..tiles.cluster {
            let peer = comptime!(peer as u32).runtime();
            low += load_shared_at(from, peer);
            high += load_shared_at(from + 16u32, peer);
        }
        let mut eight = Vec16::empty();
        #[unroll]
        for e in 0..2usize {
            let (a, b) = (comptime!(2 * e), comptime!(2 * e + 1));
            eight.insert(e, pack(low.extract(a), low.extract(b), comptime!(tiles.bf16())));
            eight.insert(comptime!(2 + e), pack(high.extract(a), high.extract(b), comptime!(tiles.bf16())));
        }
        let (row, column) = (first_row + row, first_column + at % eights * 8);
        if at < comptime!(own_rows * eights) && row < rows && column < d_out {
            y[(row * d_out + column) / 8] = eight;
        }
    }
}
