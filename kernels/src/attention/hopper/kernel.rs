//! FlashAttention-3's schedule, for Hopper: one warpgroup copies, the others multiply.
//!
//! ```text
//! o_i = Σ_j p_ij v_j / Σ_j p_ij      p_ij = exp2(s_ij - m_i)      s_ij = log2(e) scale logit(q_i·k_j), visible j
//! ```
//! Rows, works and partial results are those of [the tiled kernel](super::super::tiled). Producers go through a work's
//! tiles, one pair of planes those of the keys, the other one those of the values, and put each into a ring of stages as soon
//! as its place is free ([`super::ring`]); so they are ahead by a ring, also from one work to the next. Each warpgroup of
//! consumers owns 64 rows:
//!
//! | step | a warpgroup | matrix units |
//! |---|---|---|
//! | 1 | begins `S = Q Kᵀ` of this tile; `O *= exp2(m_old - m)` of the last one, begins its `O += P V` | both, one after the other |
//! | 2 | when `S` is there: masks, new maxima, `P = exp2(S - m)`, sums | `O += P V`, then the other warpgroup's |
//! | 3 | when `O` is there: rounds `P` | the other warpgroup's |
//!
//! Warpgroups take turns to begin products, so that one's softmax meets the other's products.
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

/// Planes that copy: a warpgroup, which is what registers are handed out to.
pub(in super::super) const PRODUCERS: usize = 4;

/// Rounds up to which each core has one cube, which goes on to the next work while the last one ends. With more, works
/// are left to whoever is free first (H200, 8192 tokens: 559 TFLOP/s against 546; 2048 tokens: 428 against 444).
const PERSISTENT_ROUNDS: usize = 8;

/// Bytes of keys and values that works which run side by side read. 4 MiB to 24 MiB are the same within the noise.
const L2_BUDGET: usize = 8 << 20;

/// Whether all works are shared out at once.
pub(in super::super) fn is_persistent(items: usize, cores: Option<usize>, cluster: usize) -> bool {
    cores.is_some_and(|cores| items <= PERSISTENT_ROUNDS * (cores / cluster))
}

/// Cubes for so many works of key heads.
pub(in super::super) fn cubes_for(items: usize, cores: Option<usize>, cluster: usize) -> usize {
    cluster
        * match cores {
            Some(cores) if is_persistent(items, Some(cores), cluster) => items.min(cores / cluster),
            _ => items,
        }
}

/// Buffers as those of the tiled kernel, and `maps` with room for a descriptor of each plane that copies, of one cube if they
/// are `prepared`, else of each. Keys and values are copied in boxes of `box_rows`, which divide a page and a cube's share of
/// the keys of a tile, if it is not 0. Cubes share the works out among themselves by rounds, if each core has one
/// ([`PERSISTENT_ROUNDS`]); else each takes one.
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
    // Nobody leaves whose memory or barriers the others may still write to.
    if comptime!(tiles.cluster > 1) {
        sync_cluster();
    }
}

/// The rows of a cube: of a work's those that its rank in the cluster says, or none.
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

/// Key heads whose works run side by side: as many as have their keys and values in a part of the second-level cache
/// together, by the first request, which has the heaviest work. 32 heads of 16384 keys all together: 507 TFLOP/s, in
/// turn 581 (H200).
#[cube]
fn heads_in_l2(work_items: &[i32], kv_heads: usize, #[comptime] tiles: TileShape) -> usize {
    let bytes = usize::cast_from(work_items[2]) * comptime!((tiles.dims.qk + tiles.dims.vo) * 2);
    min(max(L2_BUDGET / max(bytes, 1), 1), kv_heads)
}

/// The work and the head of an item.
#[cube]
fn item_and_head(item: usize, together: usize, works: usize, kv_heads: usize) -> (usize, usize) {
    let section = item / (works * together);
    let first = section * together;
    let heads = min(together, kv_heads - first);
    let at = item - works * first;
    (at / heads, first + at % heads)
}

/// What a cube does in a round: forwards and backwards in turn, so that who had the heaviest gets the lightest.
#[cube]
fn snake_order(at: usize, count: usize, round: usize) -> usize {
    round * count + select(round % 2 == 1, count - 1 - at, at)
}

/// Registers of a unit that copies, and of one that multiplies in so many planes: no more in all than the launch gave,
/// everyone the same multiple of 8. Who asks for more waits for ever.
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
