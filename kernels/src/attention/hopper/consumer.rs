//! The consumer warpgroups, which multiply.

use cubecl::prelude::*;

use super::super::buffers::Outputs;
use super::super::mask::{CustomMask, key_tiles};
use super::super::plan::WorkTile;
use super::super::tiled::lane_rows::row_of;
use super::super::tiled::mask_bits::apply_custom_mask;
use super::super::tiled::negligible::lane_counts;
use super::super::tiled::softmax::{
    Softmax, UnmaskedKeys, logits, mask, mask_kept, online_softmax, rescale, start_softmax, sum_lanes,
    unmasked_keys,
};
use super::super::tiled::store_rows;
use super::super::variant::Variant;
use super::ring::{ROW_BYTES, Ring, empty, stage_ptr, wait_full};
use crate::isa::nvidia::{
    Operand, OperandType, Product, any_of, barrier_arrive, barrier_arrive_at, named_barrier, wgmma_registers,
    wgmma_registers_if, wgmma_shared, wgmma_wait,
};
use crate::mma::{Accumulator, Fragment, MmaSync, TileShape, convert_p};
use crate::staging::Vec16;

/// Depth of one instruction, for f16 and bf16.
const DEPTH: usize = OperandType::F16.depth();

/// The state of a consumer: tiles so far.
#[derive(CubeType)]
pub(super) struct Consumer {
    pub base: u32,
    /// Index among the consumer planes.
    pub plane: usize,
    pub queries: u32,
    pub stages: u32,
}

/// Computes one work item. A warp's accumulators have the fragment layout of [`MmaSync`].
#[cube]
pub(super) fn consume<V: Variant, E: Float>(
    outputs: &mut Outputs<E>,
    work: &WorkTile,
    custom: &ComptimeOption<CustomMask>,
    args: &V::Args,
    consumer: &mut Consumer,
    #[comptime] tiles: TileShape,
) {
    if work.first_row < work.rows.end {
        let (base, plane) = (consumer.base, consumer.plane);
        let first_row = plane * 16;
        let mut o = Fragment::<MmaSync>::new(1usize, comptime!(tiles.dims.vo / 8));
        o.clear();
        let mut softmax =
            start_softmax::<MmaSync, V>(args, &work.rows, first_row, work.is_first_chunk(), tiles);
        let mut walk = key_tiles(custom, work, tiles.keys, 0usize);
        if walk.at < work.end {
            let visible = visible_keys::<V>(args, work, plane);
            let mut s = Fragment::<MmaSync>::new(1usize, comptime!(tiles.keys / 8));
            let mut p = Array::<Vec16>::new(comptime!(tiles.keys / DEPTH));
            wait_full(base, consumer.queries, Ring::Queries, tiles);
            wait_full(base, consumer.stages, Ring::Keys, tiles);
            issue_qk(&mut s, &*consumer, tiles);
            wgmma_wait(&mut s.tiles, tiles.keys, 0usize);
            scheduler_barrier_arrive(plane, tiles);
            consumer_release(base, consumer.stages, Ring::Keys, tiles);
            apply_mask::<V>(&mut s, &mut softmax, args, work, &visible, walk.at, tiles);
            apply_custom_mask::<MmaSync, V>(&mut s, custom, &walk, &work.rows, first_row, lane_key(walk.at));
            let mut counts = softmax_if_it_counts::<V>(&mut s, &mut softmax, work, plane, tiles);
            p_operands(&s, &mut p, tiles);
            walk.advance(custom);
            consumer.stages += 1;
            if walk.at < work.end {
                wait_full(base, consumer.stages, Ring::Keys, tiles);
            }
            while walk.at < work.end {
                issue_qk(&mut s, &*consumer, tiles);
                rescale::<MmaSync, V>(&mut o, &softmax);
                issue_pv(&mut o, &p, &softmax, counts, base, consumer.stages - 1, tiles);
                wgmma_wait(&mut s.tiles, tiles.keys, 1usize);
                scheduler_barrier_arrive(plane, tiles);
                consumer_release(base, consumer.stages, Ring::Keys, tiles);
                apply_mask::<V>(&mut s, &mut softmax, args, work, &visible, walk.at, tiles);
                apply_custom_mask::<MmaSync, V>(
                    &mut s,
                    custom,
                    &walk,
                    &work.rows,
                    first_row,
                    lane_key(walk.at),
                );
                counts = softmax_if_it_counts::<V>(&mut s, &mut softmax, work, plane, tiles);
                walk.advance(custom);
                consumer.stages += 1;
                // ptxas moves a wait for products ahead of the code before it, but not over a jump. The next
                // scores need this jump anyway; it keeps the probabilities in parallel with the products.
                if walk.at < work.end {
                    wait_full(base, consumer.stages, Ring::Keys, tiles);
                }
                wgmma_wait(&mut o.tiles, tiles.dims.vo, 0usize);
                consumer_release(base, consumer.stages - 2, Ring::Values, tiles);
                p_operands(&s, &mut p, tiles);
            }
            consumer_release(base, consumer.queries, Ring::Queries, tiles);
            consumer.queries += 1;
            rescale::<MmaSync, V>(&mut o, &softmax);
            issue_pv(&mut o, &p, &softmax, counts, base, consumer.stages - 1, tiles);
            wgmma_wait(&mut o.tiles, tiles.dims.vo, 0usize);
            consumer_release(base, consumer.stages - 1, Ring::Values, tiles);
        }
        sum_lanes::<MmaSync, V>(&mut softmax, tiles);
        store_rows::<MmaSync, V, E>(outputs, args, work, first_row, &softmax, &mut o, tiles);
    }
}

/// Issues `S = Q Kᵀ`, once the keys have arrived.
#[cube]
fn issue_qk(s: &mut Fragment<MmaSync>, consumer: &Consumer, #[comptime] tiles: TileShape) {
    let (base, warpgroup) = (consumer.base, consumer.plane / 4);
    named_barrier(1 + warpgroup as u32, 256usize, true);
    let queries = stage_ptr(base, consumer.queries, Ring::Queries, tiles);
    let queries = queries + (warpgroup * comptime!(64 * ROW_BYTES)) as u32;
    let keys = stage_ptr(base, consumer.stages, Ring::Keys, tiles);
    wgmma_shared(
        &mut s.tiles,
        queries,
        keys,
        comptime!(tiles.rows(16)),
        comptime!(Product {
            ty: OperandType::of(tiles.dtype),
            columns: tiles.keys,
            steps: tiles.dims.qk / DEPTH,
            fresh: true,
            b: Operand { rows: tiles.keys, transposed: false },
        }),
    );
}

/// First of the barriers at which warpgroups vote; those at which they take turns are before it.
const VOTES: u32 = 4;

/// The online softmax of a tile, unless that is negligible in all rows of the warpgroup. Returns 1 or 0, as it counts or
/// not: the same in the whole warpgroup, since it multiplies as one.
#[cube]
fn softmax_if_it_counts<V: Variant>(
    s: &mut Fragment<MmaSync>,
    softmax: &mut Softmax,
    work: &WorkTile,
    plane: usize,
    #[comptime] tiles: TileShape,
) -> u32 {
    let mut counts = 1u32.runtime();
    #[comptime]
    match &softmax.negligible {
        ComptimeOption::Some(distance) => {
            let first_row = plane * 16;
            let of_lane = lane_counts::<MmaSync>(&*s, &*softmax, &work.rows, first_row, *distance);
            let of_lane = u32::cast_from(of_lane);
            counts = any_of(VOTES + (plane / 4) as u32, of_lane, 128usize);
        }
        ComptimeOption::None => {}
    }
    if comptime!(softmax.negligible.is_some()) {
        if counts == 1 {
            online_softmax::<MmaSync, V>(s, softmax, tiles);
        } else {
            #[unroll]
            for r in 0..2usize {
                softmax.alpha[r] = 1.0f32;
            }
        }
    } else {
        online_softmax::<MmaSync, V>(s, softmax, tiles);
    }
    counts
}

/// Issues `O += P V`, once the values have arrived; an empty group of products if the tile does not count. The stage is
/// waited for all the same: it must have arrived before it is released.
#[cube]
fn issue_pv(
    o: &mut Fragment<MmaSync>,
    p: &Array<Vec16>,
    softmax: &Softmax,
    counts: u32,
    base: u32,
    count: u32,
    #[comptime] tiles: TileShape,
) {
    wait_full(base, count, Ring::Values, tiles);
    let values = stage_ptr(base, count, Ring::Values, tiles);
    let product = comptime!(Product {
        ty: OperandType::of(tiles.dtype),
        columns: tiles.dims.vo,
        steps: tiles.keys / DEPTH,
        fresh: false,
        b: Operand { rows: tiles.keys, transposed: true },
    });
    if comptime!(softmax.negligible.is_some()) {
        wgmma_registers_if(counts, &mut o.tiles, p, values, product);
    } else {
        wgmma_registers(&mut o.tiles, p, values, product);
    }
}

/// Lets the next warpgroup issue its products. This one calls it when it has its scores: before them, or
/// after row_max or the probabilities, was the same within the noise.
#[cube]
pub(super) fn scheduler_barrier_arrive(plane: usize, #[comptime] tiles: TileShape) {
    let next = (plane / 4 + 1) % comptime!(tiles.planes() / 4);
    named_barrier(1 + next as u32, 256usize, false);
}

/// Arrives on the stage's empty barrier in every cube of the cluster.
#[cube]
fn consumer_release(base: u32, count: u32, #[comptime] tile: Ring, #[comptime] tiles: TileShape) {
    let lane = UNIT_POS_X as usize;
    let cubes = comptime!(tile.cubes(tiles));
    if lane < cubes {
        let barrier = empty(base, count, tile, tiles);
        if comptime!(cubes == 1) {
            barrier_arrive(barrier);
        } else {
            barrier_arrive_at(barrier, lane as u32);
        }
    }
}

/// The keys of a work item that the rows of a lane, and those of its warpgroup, see.
#[derive(CubeType)]
struct VisibleKeys {
    /// First row of the lane's plane.
    first_row: usize,
    /// Keys that every row of the warpgroup sees.
    unmasked: UnmaskedKeys,
    /// Range of the keys of each of the lane's rows.
    starts: Array<u32>,
    ends: Array<u32>,
}

#[cube]
fn visible_keys<V: Variant>(args: &V::Args, work: &WorkTile, plane: usize) -> VisibleKeys {
    let unmasked = unmasked_keys::<V>(args, work, plane / 4 * 64, 64usize);
    let mut starts = Array::<u32>::new(2usize);
    let mut ends = Array::<u32>::new(2usize);
    #[unroll]
    for r in 0..2usize {
        let query = work.rows.at(plane * 16 + row_of::<MmaSync>(r)).query;
        let (start, end) = V::keys(args, &work.rows.request, query);
        starts[r] = start as u32;
        ends[r] = min(end, work.end) as u32;
    }
    VisibleKeys { first_row: plane * 16, unmasked, starts, ends }
}

/// The lane's first key of the tile from `at` on.
#[cube]
fn lane_key(at: usize) -> u32 {
    (at + MmaSync::column()) as u32
}

/// The logits of the keys from `at` on, masked.
#[cube]
fn apply_mask<V: Variant>(
    s: &mut Fragment<MmaSync>,
    softmax: &mut Softmax,
    args: &V::Args,
    work: &WorkTile,
    visible: &VisibleKeys,
    at: usize,
    #[comptime] tiles: TileShape,
) {
    let key = lane_key(at);
    let are_kept = comptime!(visible.unmasked.are_kept);
    logits::<MmaSync, V>(s, softmax, args, &work.rows, visible.first_row, key, comptime!(!are_kept));
    if visible.unmasked.ends_in(at, tiles.keys) {
        #[unroll]
        for r in 0..2usize {
            mask::<MmaSync, V>(s, r, key, visible.starts[r], visible.ends[r]);
        }
        if comptime!(are_kept) {
            mask_kept::<MmaSync, V>(s, args, &work.rows, visible.first_row, key);
        }
    }
}

/// The probabilities as operand of the next product.
#[cube]
fn p_operands(s: &Fragment<MmaSync>, p: &mut Array<Vec16>, #[comptime] tiles: TileShape) {
    #[unroll]
    for i in 0..comptime!(tiles.keys / DEPTH) {
        p[i] = convert_p(s.tiles[comptime!(2 * i)], s.tiles[comptime!(2 * i + 1)], comptime!(tiles.bf16()));
    }
}
