use cubecl::{ir::ElemType, prelude::*};

use super::super::epilogue::EpilogueArgs;
use super::super::raster::raster;
use super::ring::StageRing;
use super::split::{add_parts, store_part};
use super::store::{TilePlace, store};
use super::tiles::{CONSUMERS, PRODUCERS, ROW_BYTES, ROWS, STAGE_INPUTS, WarpgroupTiles};
use crate::isa::nvidia::{
    DEPTH, Operand, Product, TensorMap, barrier_arrive, barrier_expect, copy_matrix_box, form_clusters,
    named_barrier, prefetch_map, set_registers, shared_address, sync_cluster, wgmma_shared, wgmma_wait,
};
use crate::mma::{Fragment, MmaSync};
use crate::staging::Vec16;

/// `x`: `[rows, d_in]`, `weight`: `[d_out, d_in]`, `y`: `[rows, d_out]`. A cube takes tiles in turn, `group` rows of them
/// side by side; a cluster takes one.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn warp_specialized<E: Float>(
    x: &TensorMap,
    weight: &TensorMap,
    y: &mut [Vec16],
    epilogue: &EpilogueArgs<E>,
    rows: usize,
    d_in: usize,
    group: usize,
    #[comptime] tiles: WarpgroupTiles,
    #[define(E)] _dtype: ElemType,
) {
    let vecs = comptime!(WarpgroupTiles::shared_vecs(tiles.outputs, tiles.stages));
    let mut shared = Shared::<[Vec16]>::new_aligned_slice(vecs, 1024usize);
    let mut ring = StageRing::new(shared_address::<Vec16>(&shared), tiles);
    let plane = UNIT_POS_Y as usize;
    if UNIT_POS == 0 {
        prefetch_map(x.address());
        prefetch_map(weight.address());
        ring.init();
    }
    if comptime!(tiles.cluster > 1) {
        form_clusters(tiles.cluster);
        sync_cluster();
    } else {
        sync_cube();
    }
    let rank = CUBE_POS % tiles.cluster;
    let clusters = CUBE_COUNT / tiles.cluster;
    let (row_tiles, column_tiles) = (rows.div_ceil(ROWS), epilogue.d_out.div_ceil(tiles.columns()));
    let total = row_tiles * column_tiles;
    // The cube's part of the inputs.
    let all_steps = d_in.div_ceil(STAGE_INPUTS);
    let steps = all_steps.div_ceil(tiles.cluster);
    let first = min(rank * steps, all_steps);
    let end = min(first + steps, all_steps);
    let mut tile = CUBE_POS / tiles.cluster;
    if plane < PRODUCERS {
        set_registers(24usize, false);
        if plane == 0 {
            let (x, weight) = (x.address(), weight.address());
            while tile < total {
                let (row_tile, column_tile) = raster(tile, row_tiles, group, column_tiles);
                let (row, output) = ((row_tile * ROWS) as u32, (column_tile * tiles.columns()) as u32);
                for step in first..end {
                    ring.wait_empty(ring.count);
                    let (stage, full) = (ring.stage(ring.count), ring.full(ring.count));
                    if UNIT_POS_X == 0 {
                        barrier_expect(full, comptime!(tiles.stage_bytes()));
                        barrier_arrive(full);
                    }
                    let input = (step * STAGE_INPUTS) as u32;
                    copy_matrix_box(stage, x, input, row, full);
                    #[unroll]
                    for half in 0..comptime!(tiles.steps.halves()) {
                        let to =
                            stage + comptime!((tiles.x_bytes() + half * tiles.columns() * ROW_BYTES) as u32);
                        let row = output + comptime!(half as u32) * epilogue.d_out as u32;
                        copy_matrix_box(to, weight, input, row, full);
                    }
                    ring.count += 1;
                }
                tile += clusters;
            }
        }
        if comptime!(tiles.cluster > 1) {
            sync_cluster();
        }
    } else {
        set_registers(240usize, true);
        let plane = plane - PRODUCERS;
        let mut acc = Fragment::<MmaSync>::new(1usize, comptime!(tiles.outputs / 8));
        while tile < total {
            acc.clear();
            if first < end {
                multiply(&mut acc, &ring, plane, tiles);
                ring.count += 1;
                for _ in first + 1..end {
                    multiply(&mut acc, &ring, plane, tiles);
                    // One product is in flight while the next one is issued.
                    wgmma_wait(&mut acc.tiles, tiles.outputs, 1usize);
                    ring.release(ring.count - 1);
                    ring.count += 1;
                }
                wgmma_wait(&mut acc.tiles, tiles.outputs, 0usize);
                ring.release(ring.count - 1);
            }
            let (row_tile, column_tile) = raster(tile, row_tiles, group, column_tiles);
            let (row, column) = (row_tile * ROWS, column_tile * tiles.columns());
            let place = TilePlace { row, column, rows };
            if comptime!(tiles.cluster > 1) {
                // Both warpgroups have multiplied all stages: the part takes their place.
                named_barrier(1u32.runtime(), comptime!(CONSUMERS * 32), true);
                store_part(&mut shared, &acc, plane, tiles);
                sync_cluster();
                add_parts(y, epilogue, &shared, plane, rank, &place, tiles);
            } else {
                store(y, epilogue, &acc, plane, &place, tiles);
            }
            tile += clusters;
        }
    }
    // A cube must not exit while a peer may still read its part.
    if comptime!(tiles.cluster > 1) {
        sync_cluster();
    }
}

/// Issues `acc += x · weightᵀ` over the current stage, once it has arrived.
#[cube]
fn multiply(acc: &mut Fragment<MmaSync>, ring: &StageRing, plane: usize, #[comptime] tiles: WarpgroupTiles) {
    ring.wait_full(ring.count);
    let stage = ring.stage(ring.count);
    wgmma_shared(
        &mut acc.tiles,
        stage + (plane / 4 * comptime!(64 * ROW_BYTES)) as u32,
        stage + comptime!(tiles.x_bytes() as u32),
        ROWS,
        comptime!(Product {
            bf16: tiles.bf16(),
            columns: tiles.outputs,
            steps: STAGE_INPUTS / DEPTH,
            fresh: false,
            b: Operand { rows: tiles.outputs, transposed: false },
        }),
    );
}
