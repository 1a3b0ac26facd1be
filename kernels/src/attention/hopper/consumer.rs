//! The consumer warpgroups, which multiply.

use cubecl::prelude::*;

use super::super::plan::{WorkTile, work_at};
use super::super::request::TileRows;
use super::super::tiled::softmax::{Softmax, logits, mask, online_softmax, row_of, start_softmax};
use super::super::tiled::{TiledParams, store_rows};
use super::super::variant::Variant;
use super::ring::{ROW_BYTES, Ring, empty, stage_ptr, wait_full};
use super::roles::rows_of_rank;
use crate::isa::nvidia::{
    DEPTH, Operand, Product, barrier_arrive, barrier_arrive_at, named_barrier, wgmma_registers, wgmma_shared,
    wgmma_wait,
};
use crate::math::LOG2_E;
use crate::mma::{Mma, MmaSync, TileShape, Vec16, p_operand};

/// The state of a consumer: tiles so far.
#[derive(CubeType)]
pub(super) struct Consumer {
    pub base: u32,
    /// Index among the consumer planes.
    pub plane: usize,
    /// Rank of its cube in the cluster.
    pub rank: usize,
    pub queries: u32,
    pub keys: u32,
}

/// Computes one work item. A warp's accumulators have the fragment layout of [`MmaSync`].
#[allow(clippy::too_many_arguments, reason = "the buffers of the kernel")]
#[cube]
pub(super) fn consume<V: Variant, E: Float>(
    output: &mut [Vector<E, Const<2>>],
    lse: &mut ComptimeOption<Box<[f32]>>,
    workspace: &mut ComptimeOption<Box<[Vector<f32, Const<2>>]>>,
    work_items: &[i32],
    index: usize,
    kv_head: usize,
    args: &V::Args,
    params: &TiledParams,
    q_heads: usize,
    consumer: &mut Consumer,
    #[comptime] tiles: TileShape,
) {
    let work = work_at(work_items, index);
    let owned = rows_of_rank(&work, kv_head, params.group, consumer.rank, tiles);
    if work.first_row < owned.end {
        let lane = UNIT_POS_X as usize;
        let (base, plane) = (consumer.base, consumer.plane);
        let elements = comptime!(tiles.dims.vo / 8);
        let mut o = Array::<Vector<f32, Const<4>>>::new(elements);
        #[unroll]
        for i in 0..elements {
            o[i] = Vector::new(0.0f32);
        }
        let first_row = plane * 16;
        let mut softmax = start_softmax::<MmaSync, V>(args, &owned, first_row, work.is_first_chunk(), tiles);
        let scale_log2 = V::scale(args) * LOG2_E;
        if work.start < work.end {
            let range = mask_range::<V>(&owned, &work, args, plane);
            let mut scores = Array::<Vector<f32, Const<4>>>::new(comptime!(tiles.keys / 8));
            let mut operand = Array::<Vec16>::new(comptime!(tiles.keys / DEPTH));
            wait_full(base, consumer.queries, Ring::Queries, tiles);
            wait_full(base, consumer.keys, Ring::Keys, tiles);
            issue_qk(&mut scores, base, plane, consumer.keys, tiles);
            wgmma_wait(&mut scores, tiles.keys, 0usize);
            scheduler_barrier_arrive(plane, tiles);
            consumer_release(base, consumer.keys, lane, Ring::Keys, tiles);
            let mut at = work.start;
            apply_mask::<V>(&mut scores, &range, at, args, &owned, first_row, tiles);
            online_softmax::<MmaSync>(&mut scores, &mut softmax, scale_log2, tiles);
            convert_p(&scores, &mut operand, tiles);
            at += tiles.keys;
            consumer.keys += 1;
            if at < work.end {
                wait_full(base, consumer.keys, Ring::Keys, tiles);
            }
            while at < work.end {
                issue_qk(&mut scores, base, plane, consumer.keys, tiles);
                alpha(&mut o, &softmax, tiles);
                issue_pv(&mut o, &operand, base, consumer.keys - 1, tiles);
                wgmma_wait(&mut scores, tiles.keys, 1usize);
                scheduler_barrier_arrive(plane, tiles);
                consumer_release(base, consumer.keys, lane, Ring::Keys, tiles);
                apply_mask::<V>(&mut scores, &range, at, args, &owned, first_row, tiles);
                online_softmax::<MmaSync>(&mut scores, &mut softmax, scale_log2, tiles);
                at += tiles.keys;
                consumer.keys += 1;
                // ptxas moves a wait for products ahead of the code before it, but not over a jump. The next
                // scores need this jump anyway; it keeps the probabilities in parallel with the products.
                if at < work.end {
                    wait_full(base, consumer.keys, Ring::Keys, tiles);
                }
                wgmma_wait(&mut o, tiles.dims.vo, 0usize);
                consumer_release(base, consumer.keys - 2, lane, Ring::Values, tiles);
                convert_p(&scores, &mut operand, tiles);
            }
            consumer_release(base, consumer.queries, lane, Ring::Queries, tiles);
            consumer.queries += 1;
            alpha(&mut o, &softmax, tiles);
            issue_pv(&mut o, &operand, base, consumer.keys - 1, tiles);
            wgmma_wait(&mut o, tiles.dims.vo, 0usize);
            consumer_release(base, consumer.keys - 1, lane, Ring::Values, tiles);
        }
        #[unroll]
        for r in 0..2usize {
            softmax.row_sum[r] = MmaSync::row_sum(softmax.row_sum[r]);
        }
        store_rows::<MmaSync, V, E>(
            output,
            lse,
            workspace,
            args,
            &work,
            &owned,
            &softmax,
            &o,
            scale_log2,
            q_heads,
            params.partial_rows,
            lane,
            plane,
            tiles,
        );
    }
}

/// Issues `S = Q Kᵀ`, once the keys have arrived.
#[cube]
fn issue_qk(
    scores: &mut Array<Vector<f32, Const<4>>>,
    base: u32,
    plane: usize,
    count: u32,
    #[comptime] tiles: TileShape,
) {
    named_barrier(1 + (plane / 4) as u32, 256usize, true);
    let queries = base + (plane / 4 * comptime!(64 * ROW_BYTES)) as u32;
    let keys = stage_ptr(base, count, Ring::Keys, tiles);
    wgmma_shared(
        scores,
        queries,
        keys,
        comptime!(tiles.rows(16)),
        comptime!(Product {
            bf16: tiles.bf16(),
            columns: tiles.keys,
            steps: tiles.dims.qk / DEPTH,
            fresh: true,
            b: Operand { rows: tiles.keys, transposed: false },
        }),
    );
}

/// Multiplies the output by alpha of the last tile.
#[cube]
fn alpha(o: &mut Array<Vector<f32, Const<4>>>, softmax: &Softmax, #[comptime] tiles: TileShape) {
    let alpha = MmaSync::spread(&softmax.alpha, 0usize);
    #[unroll]
    for i in 0..comptime!(tiles.dims.vo / 8) {
        o[i] *= alpha;
    }
}

/// Issues `O += P V`, once the values have arrived.
#[cube]
fn issue_pv(
    o: &mut Array<Vector<f32, Const<4>>>,
    operand: &Array<Vec16>,
    base: u32,
    count: u32,
    #[comptime] tiles: TileShape,
) {
    wait_full(base, count, Ring::Values, tiles);
    let values = stage_ptr(base, count, Ring::Values, tiles);
    wgmma_registers(
        o,
        operand,
        values,
        comptime!(Product {
            bf16: tiles.bf16(),
            columns: tiles.dims.vo,
            steps: tiles.keys / DEPTH,
            fresh: false,
            b: Operand { rows: tiles.keys, transposed: true },
        }),
    );
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
fn consumer_release(
    base: u32,
    count: u32,
    lane: usize,
    #[comptime] tile: Ring,
    #[comptime] tiles: TileShape,
) {
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
struct MaskRange {
    /// Range of the keys that every row of the warpgroup sees.
    unmasked_start: usize,
    unmasked_end: usize,
    /// Range of the keys of each of the lane's rows.
    starts: Array<u32>,
    ends: Array<u32>,
}

#[cube]
fn mask_range<V: Variant>(owned: &TileRows, work: &WorkTile, args: &V::Args, plane: usize) -> MaskRange {
    let lane = UNIT_POS_X as usize;
    let first_row = plane / 4 * 64;
    let (_, unmasked_end) = V::keys(args, &owned.request, owned.at(first_row).query);
    let (unmasked_start, _) = V::keys(args, &owned.request, owned.at(first_row + 63).query);
    let mut starts = Array::<u32>::new(2usize);
    let mut ends = Array::<u32>::new(2usize);
    #[unroll]
    for r in 0..2usize {
        let query = owned.at(plane * 16 + row_of::<MmaSync>(lane, r)).query;
        let (start, end) = V::keys(args, &owned.request, query);
        starts[r] = start as u32;
        ends[r] = min(end, work.end) as u32;
    }
    MaskRange { unmasked_start, unmasked_end: min(unmasked_end, work.end), starts, ends }
}

/// The logits of the keys from `at` on, masked.
#[cube]
fn apply_mask<V: Variant>(
    scores: &mut Array<Vector<f32, Const<4>>>,
    range: &MaskRange,
    at: usize,
    args: &V::Args,
    owned: &TileRows,
    first_row: usize,
    #[comptime] tiles: TileShape,
) {
    let key = (at + MmaSync::column(UNIT_POS_X as usize)) as u32;
    logits::<MmaSync, V>(scores, args, owned, first_row, key, tiles);
    if at < range.unmasked_start || at + tiles.keys > range.unmasked_end {
        #[unroll]
        for r in 0..2usize {
            mask::<MmaSync>(scores, r, key, range.starts[r], range.ends[r], tiles);
        }
    }
}

/// The probabilities as operand of the next product.
#[cube]
fn convert_p(
    scores: &Array<Vector<f32, Const<4>>>,
    operand: &mut Array<Vec16>,
    #[comptime] tiles: TileShape,
) {
    #[unroll]
    for i in 0..comptime!(tiles.keys / DEPTH) {
        let (low, high) = (scores[comptime!(2 * i)], scores[comptime!(2 * i + 1)]);
        operand[i] = p_operand(low, high, comptime!(tiles.bf16()));
    }
}
