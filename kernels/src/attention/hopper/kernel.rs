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
//! A tile whose weights are all negligible ([`super::super::tiled::negligible`]) costs a warpgroup `S` and a vote of its
//! rows in step 2: the rest of that step, and `O += P V` in the next step 1, are left out.
//!
//! Warpgroups take turns to issue products, so that one's softmax overlaps the other's products.
//!
//! Source: Shah et al., *FlashAttention-3*, 2024.

use cubecl::prelude::*;

use super::super::buffers::{Outputs, QkvVecs};
use super::super::plan::WorkList;
use super::super::variant::Variant;
use super::consumer::{Consumer, consume, scheduler_barrier_arrive};
use super::producer::produce;
use super::ring::{init, shared_vecs};
use super::roles::{PRODUCERS, registers, tile_scheduler};
use super::tensor_maps::TensorMaps;
use crate::isa::nvidia::{form_clusters, prefetch_map, set_registers, shared_address, sync_cluster};
use crate::mma::TileShape;
use crate::staging::Vec16;

/// Buffers are those of the tiled kernel, and the tensor maps.
///
/// Persistent cubes ([`is_persistent`](super::super::plan::persistent::is_persistent)) take work items in snake order; else each cube takes one.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn warp_specialized<V: Variant, E: Float>(
    qkv: &QkvVecs,
    maps: &TensorMaps,
    outputs: &mut Outputs<E>,
    list: &WorkList,
    args: &V::Args,
    #[comptime] tiles: TileShape,
    #[define(E)] _dtype: ElemType,
) {
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(shared_vecs(tiles)), 1024usize);
    let base = shared_address::<Vec16>(&shared);
    if UNIT_POS == 0 {
        prefetch_map(maps.k.address());
        prefetch_map(maps.v.address());
        init(base, tiles);
    }
    if comptime!(tiles.cluster > 1) {
        form_clusters(tiles.cluster);
        sync_cluster();
    } else {
        sync_cube();
    }

    let mut scheduler = tile_scheduler(list, qkv.k.shape(2), tiles);
    let plane = UNIT_POS_Y as usize;
    if plane < PRODUCERS {
        set_registers(comptime!(registers(tiles.planes()).0), false);
        produce(qkv, maps, list, &mut scheduler, base, tiles);
    } else {
        set_registers(comptime!(registers(tiles.planes()).1), true);
        let plane = plane - PRODUCERS;
        let mut consumer = Consumer { base, plane, queries: 0u32.runtime(), stages: 0u32.runtime() };
        // The first turn is the first warpgroup's.
        if plane / 4 == comptime!(tiles.planes() / 4 - 1) {
            scheduler_barrier_arrive(plane, tiles);
        }
        while scheduler.has_work(list) {
            let work = scheduler.work(list, tiles);
            consume::<V, E>(outputs, &work, &list.mask, args, &mut consumer, tiles);
            scheduler.advance();
        }
    }
    // A cube must not exit while a peer may still write to its shared memory or barriers.
    if comptime!(tiles.cluster > 1) {
        sync_cluster();
    }
}
