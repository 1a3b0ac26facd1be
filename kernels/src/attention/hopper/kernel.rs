//! FlashAttention-3's schedule, for Hopper: one producer warpgroup copies, the consumer warpgroups multiply.
//!
//! ```text
//! o_i = Σ_j p_ij v_j / Σ_j p_ij      p_ij = exp2(s_ij - m_i)      s_ij = log2(e) scale logit(q_i·k_j), visible j
//! ```
//! Rows, work items and partial results are those of [the tiled kernel](super::super::tiled). Producers walk
//! over the tiles of a work item: one pair of planes over the keys, the other one over the values. They copy
//! each tile into a ring of stages as soon as a stage is empty ([`super::ring`]). So they are ahead by a
//! ring, also from one work item to the next. Each consumer warpgroup owns 64 rows:
//!
//! | step | a warpgroup | matrix units |
//! |---|---|---|
//! | 1 | issues `S = Q Kᵀ` of this tile; `O *= alpha` of the last one, issues its `O += P V` | both, in sequence |
//! | 2 | when `S` has arrived: mask, row_max, `P = exp2(S - m)`, row_sum | `O += P V`, then the other warpgroup's |
//! | 3 | when `O` has arrived: rounds `P` | the other warpgroup's |
//!
//! Warpgroups take turns to issue products, so that one's softmax overlaps the other's products.
//!
//! Source: Shah et al., *FlashAttention-3*, 2024.

use cubecl::prelude::*;

use super::super::kv_table::Table;
use super::super::plan::persistent::{heads_in_l2, item_and_head, snake_order};
use super::super::tiled::TiledParams;
use super::super::variant::Variant;
use super::consumer::{Consumer, consume, scheduler_barrier_arrive};
use super::producer::{MAP_VECS, Producer, make_map, map_at, produce};
use super::ring::{init, maps_at, shared_vecs};
use super::roles::{PRODUCERS, registers};
use crate::isa::nvidia::{acquire_map, form_clusters, set_registers, shared_address, sync_cluster};
use crate::mma::{TileShape, Vec16};

/// Buffers are those of the tiled kernel, and `maps`. That has room for a TMA descriptor of each producer
/// plane: of one cube if they are `prepared`, else of each cube.
///
/// Keys and values are copied in TMA boxes of `box_rows` unless it is 0. It divides a page and a cube's part
/// of the keys of a tile. Persistent cubes ([`PERSISTENT_ROUNDS`]) take work items in snake order; else each
/// cube takes one.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn warp_specialized<V: Variant, E: Float>(
    q: &Tensor<Vec16>,
    k: &Tensor<Vec16>,
    v: &Tensor<Vec16>,
    output: &mut [Vector<E, Const<2>>],
    lse: &mut ComptimeOption<Box<[f32]>>,
    workspace: &mut ComptimeOption<Box<[Vector<f32, Const<2>>]>>,
    work_items: &[i32],
    maps: &mut [Vec16],
    table: &Table,
    args: &V::Args,
    params: &TiledParams,
    box_rows: usize,
    prepared: u32,
    #[comptime] tiles: TileShape,
    #[define(E)] _dtype: ElemType,
) {
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(shared_vecs(tiles)), 1024usize);
    let base = shared_address::<Vec16>(&shared);
    if UNIT_POS == 0 {
        init(base, tiles);
    }
    if comptime!(tiles.cluster > 1) {
        form_clusters(tiles.cluster);
        sync_cluster();
    } else {
        sync_cube();
    }

    let rank = CUBE_POS % tiles.cluster;
    let cluster = CUBE_POS / tiles.cluster;
    let clusters = CUBE_COUNT / tiles.cluster;
    let kv_heads = k.shape(2);
    let total = params.work_items * kv_heads;
    let mut together = kv_heads;
    if clusters == total {
        together = heads_in_l2(work_items, kv_heads, tiles);
    }
    let plane = UNIT_POS_Y as usize;
    if plane < PRODUCERS {
        set_registers(comptime!(registers(tiles.planes()).0), false);
        let mut map = map_at(0usize);
        if box_rows > 0 && cluster < total {
            if prepared == 0 {
                map = map_at(CUBE_POS);
                make_map(k, v, maps, map, base + comptime!(maps_at(tiles) as u32), box_rows as u32, tiles);
            }
            acquire_map::<Vec16>(&maps[map..map + MAP_VECS]);
        }
        let map = &maps[map..map + MAP_VECS];
        let mut producer = Producer { base, queries: 0u32.runtime(), tiles: 0u32.runtime() };
        let mut item = cluster;
        let mut round = 0usize;
        while item < total {
            let (index, head) = item_and_head(item, together, params.work_items, kv_heads);
            produce(
                q,
                k,
                v,
                work_items,
                map,
                rank,
                index,
                head,
                table,
                params,
                box_rows,
                &mut producer,
                tiles,
            );
            round += 1;
            item = snake_order(cluster, clusters, round);
        }
    } else {
        set_registers(comptime!(registers(tiles.planes()).1), true);
        let plane = plane - PRODUCERS;
        let mut consumer = Consumer { base, plane, rank, queries: 0u32.runtime(), keys: 0u32.runtime() };
        // The first turn is the first warpgroup's.
        if plane / 4 == comptime!(tiles.planes() / 4 - 1) {
            scheduler_barrier_arrive(plane, tiles);
        }
        let mut item = cluster;
        let mut round = 0usize;
        while item < total {
            let (index, head) = item_and_head(item, together, params.work_items, kv_heads);
            consume::<V, E>(
                output,
                lse,
                workspace,
                work_items,
                index,
                head,
                args,
                params,
                q.shape(1),
                &mut consumer,
                tiles,
            );
            round += 1;
            item = snake_order(cluster, clusters, round);
        }
    }
    // A cube must not exit while a peer may still write to its shared memory or barriers.
    if comptime!(tiles.cluster > 1) {
        sync_cluster();
    }
}
