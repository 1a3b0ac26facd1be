use cubecl::{ir::ElemType, prelude::*};

use super::super::epilogue::EpilogueArgs;
use super::super::raster::raster;
use super::ring::StageRing;
use super::row_tiles::RowTiles;
use super::split::{add_parts, store_part};
use super::store::store;
use super::tiles::{CONSUMERS, PRODUCERS, ROW_BYTES, ROWS, WarpgroupTiles};
use crate::isa::nvidia::{
    Product, TensorMap, barrier_arrive, barrier_expect, copy_matrix_box, form_clusters, named_barrier,
    prefetch_map, set_registers, shared_address, sync_cluster, wgmma_shared, wgmma_wait,
};
use crate::mma::{Fragment, MmaSync};
use crate::staging::Vec16;

/// `x`: `[1, rows, d_in]`, `weights`: `[matrices, d_out, d_in]` or `[matrices, d_in, d_out]`, `y`: `[rows, d_out]`. A cube
/// takes tiles in turn, `group` rows of them side by side; a cluster takes one.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn warp_specialized<E: Float>(
    x: &TensorMap,
    weights: &TensorMap,
    y: &mut [Vec16],
    epilogue: &EpilogueArgs<E>,
    row_tiles: &RowTiles,
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
        prefetch_map(weights.address());
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
    let column_tiles = epilogue.d_out.div_ceil(tiles.columns());
    let total = row_tiles.count * column_tiles;
    // The cube's part of the inputs.
    let all_steps = d_in.div_ceil(tiles.inputs());
    let steps = all_steps.div_ceil(tiles.cluster);
    let first = min(rank * steps, all_steps);
    let end = min(first + steps, all_steps);
    let mut tile = CUBE_POS / tiles.cluster;
    if plane < PRODUCERS {
        set_registers(24usize, false);
        if plane == 0 {
            let (x, weights) = (x.address(), weights.address());
            while tile < total {
                let (row_tile, column_tile) = raster(tile, row_tiles.count, group, column_tiles);
                let place = row_tiles.place(row_tile, column_tile * tiles.columns());
                let matrix = place.matrix as u32;
                let end = place.end_of(first, end);
                for step in first..end {
                    ring.wait_empty(ring.count);
                    let (stage, full) = (ring.stage(ring.count), ring.full(ring.count));
                    if UNIT_POS_X == 0 {
                        barrier_expect(full, comptime!(tiles.stage_bytes()));
                        barrier_arrive(full);
                    }
                    let input = (step * tiles.inputs()) as u32;
                    copy_matrix_box(stage, x, input, place.row as u32, 0u32.runtime(), full);
                    let (_, boxes) = comptime!(tiles.weight_boxes());
                    #[unroll]
                    for i in 0..boxes {
                        let offset = comptime!(tiles.x_bytes() + i * tiles.outputs * ROW_BYTES / boxes);
                        let to = stage + comptime!(offset as u32);
                        if comptime!(tiles.by_input) {
                            let output = place.column as u32 + comptime!((i * tiles.inputs()) as u32);
                            copy_matrix_box(to, weights, output, input, matrix, full);
                        } else {
                            let output = (place.column + comptime!(i) * epilogue.d_out) as u32;
                            copy_matrix_box(to, weights, input, output, matrix, full);
                        }
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
        // From an output's gate to its up.
        let up = if comptime!(tiles.steps.halves() > 1) { epilogue.d_out } else { 0usize.runtime() };
        while tile < total {
            let (row_tile, column_tile) = raster(tile, row_tiles.count, group, column_tiles);
            let place = row_tiles.place(row_tile, column_tile * tiles.columns());
            let end = place.end_of(first, end);
            acc.clear();
            if comptime!(tiles.steps.scales.is_some()) {
                for step in first..end {
                    let low = epilogue.of_block(place.column, step, tiles.steps);
                    let high = epilogue.of_block(place.column + up, step, tiles.steps);
                    add_stage(&mut acc, &ring, plane, low, high, tiles);
                    ring.count += 1;
                }
            } else if first < end {
                multiply(&mut acc, &ring, plane, false, tiles);
                ring.count += 1;
                for _ in first + 1..end {
                    multiply(&mut acc, &ring, plane, false, tiles);
                    // One product is in flight while the next one is issued.
                    wgmma_wait(&mut acc.tiles, tiles.outputs, 1usize);
                    ring.release(ring.count - 1);
                    ring.count += 1;
                }
                wgmma_wait(&mut acc.tiles, tiles.outputs, 0usize);
                ring.release(ring.count - 1);
            }
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

/// Adds the products of the current stage, 128 inputs of 8 bits, times the scales of both halves of the outputs. The matrix
/// unit keeps 14 bits of a sum of e4m3, so that no more of them may be added up there. Meanwhile the other warpgroup
/// multiplies.
///
/// Source: DeepSeek-AI, *DeepSeek-V3 Technical Report*, 2024, 3.3.2.
#[cube]
fn add_stage(
    acc: &mut Fragment<MmaSync>,
    ring: &StageRing,
    plane: usize,
    low: f32,
    high: f32,
    #[comptime] tiles: WarpgroupTiles,
) {
    let mut part = Fragment::<MmaSync>::new(1usize, comptime!(tiles.outputs / 8));
    multiply(&mut part, ring, plane, true, tiles);
    wgmma_wait(&mut part.tiles, tiles.outputs, 0usize);
    ring.release(ring.count);
    #[unroll]
    for i in 0..comptime!(tiles.outputs / 8) {
        let scale = if comptime!(8 * i < tiles.columns()) { low } else { high };
        acc.tiles[i] += part.tiles[i] * Vector::new(scale);
    }
}

/// Issues `acc += x · weightᵀ` over the current stage, once it has arrived; without the sum before, if it is `fresh`.
#[cube]
fn multiply(
    acc: &mut Fragment<MmaSync>,
    ring: &StageRing,
    plane: usize,
    #[comptime] fresh: bool,
    #[comptime] tiles: WarpgroupTiles,
) {
    ring.wait_full(ring.count);
    let stage = ring.stage(ring.count);
    wgmma_shared(
        &mut acc.tiles,
        stage + (plane / 4 * comptime!(64 * ROW_BYTES)) as u32,
        stage + comptime!(tiles.x_bytes() as u32),
        ROWS,
        comptime!(Product {
            ty: tiles.operands,
            columns: tiles.outputs,
            steps: tiles.inputs() / tiles.operands.depth(),
            fresh,
            b: tiles.weights(),
        }),
    );
}
