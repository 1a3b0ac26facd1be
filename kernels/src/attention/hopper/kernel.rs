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
use super::super::plan::{WorkTile, rows_of};
use super::super::request::TileRows;
use super::super::tiled::TiledParams;
use super::super::variant::Variant;
use super::consumer::{Consumer, consume, scheduler_barrier_arrive};
use super::producer::{MAP_VECS, Producer, make_map, map_at, produce};
use super::ring::{init, maps_at, shared_vecs};
use crate::isa::nvidia::{acquire_map, form_clusters, set_registers, shared_address, sync_cluster};
use crate::mma::{TileShape, Vec16};

/// Producer planes: one warpgroup, since registers are assigned to warpgroups.
pub(in super::super) const PRODUCERS: usize = 4;

/// Rounds up to which a launch is persistent: each core has one cube, which goes on to the next work item
/// while the last one ends. With more rounds, cubes take work items as they become free (H200, 8192 tokens:
/// 559 TFLOP/s against 546; 2048 tokens: 428 against 444).
const PERSISTENT_ROUNDS: usize = 8;

/// L2 budget for keys and values of concurrent work items. 4 MiB to 24 MiB are the same within the noise.
const L2_BUDGET: usize = 8 << 20;

/// True if the launch is persistent.
pub(in super::super) fn is_persistent(items: usize, cores: Option<usize>, cluster: usize) -> bool {
    cores.is_some_and(|cores| items <= PERSISTENT_ROUNDS * (cores / cluster))
}

/// Cubes for so many work items over all key heads.
pub(in super::super) fn cubes_for(items: usize, cores: Option<usize>, cluster: usize) -> usize {
    cluster
        * match cores {
            Some(cores) if is_persistent(items, Some(cores), cluster) => items.min(cores / cluster),
            _ => items,
        }
}

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

/// The rows of a cube: the part of a work item's rows for its rank in the cluster, or none.
#[cube]
pub(super) fn rows_of_rank(
    work: &WorkTile,
    kv_head: usize,
    group: usize,
    rank: usize,
    #[comptime] tiles: TileShape,
) -> TileRows {
    let mut rows = rows_of(work, kv_head, group);
    rows.first = min(rows.first + rank * comptime!(tiles.rows(16)), rows.end);
    rows
}

/// Key heads whose work items run side by side: as many as fit in the L2 budget with their keys and values.
/// The estimate is by the first request, which has the heaviest work item. 32 heads of 16384 keys all
/// together: 507 TFLOP/s, in turn 581 (H200).
#[cube]
fn heads_in_l2(work_items: &[i32], kv_heads: usize, #[comptime] tiles: TileShape) -> usize {
    let bytes = usize::cast_from(work_items[2]) * comptime!((tiles.dims.qk + tiles.dims.vo) * 2);
    min(max(L2_BUDGET / max(bytes, 1), 1), kv_heads)
}

/// The work item and the key head of an item.
#[cube]
fn item_and_head(item: usize, together: usize, works: usize, kv_heads: usize) -> (usize, usize) {
    let section = item / (works * together);
    let first = section * together;
    let heads = min(together, kv_heads - first);
    let at = item - works * first;
    (at / heads, first + at % heads)
}

/// The item of a cube in a round: forwards and backwards in turn, so that the heaviest and the lightest are
/// paired.
#[cube]
fn snake_order(at: usize, count: usize, round: usize) -> usize {
    round * count + select(round % 2 == 1, count - 1 - at, at)
}

/// Registers of a producer unit, and of a consumer unit in so many planes, in multiples of 8. The sum must
/// not exceed the registers of the launch, or `setmaxnreg` deadlocks.
pub(super) fn registers(planes: usize) -> (usize, usize) {
    if planes == 8 { (24, 240) } else { (32, 160) }
}

#[cfg(test)]
mod tests {
    use super::{PRODUCERS, registers};

    #[test]
    fn nobody_asks_for_more_registers_than_there_are() {
        for consumers in [8, 12] {
            let (copying, multiplying) = registers(consumers);
            // A launch gives every lane the same multiple of 8 of the 64 Ki registers of a core.
            let planes = PRODUCERS + consumers;
            let given = (1 << 16) / (32 * planes) / 8 * 8;
            assert!(PRODUCERS * copying + consumers * multiplying <= planes * given, "{consumers}");
            assert_eq!((copying % 8, multiplying % 8), (0, 0));
        }
    }
}
