//! ```text
//! o_i = Σ_j p_ij v_j / Σ_j p_ij      p_ij = exp2(s_ij - m_i)      s_ij = log2(e) scale logit(q_i·k_j), visible j
//! ```
//! FlashAttention-2 on any [`Mma`]. The queries of the heads that share a key head are packed into rows: row
//! `r` is query `r / group` of head `r % group`. A cube owns a tile of rows. It walks over the keys that any
//! of them sees, or over a chunk of them, a tile of keys at a time:
//!
//! | step | each plane | memory |
//! |---|---|---|
//! | 1 | waits for the tile | *barrier*; the copy of the tile after next begins |
//! | 2 | `S = Q Kᵀ` for its rows and keys | reads keys |
//! | 3 | masks `S` where a range ends in the tile; row_max, `P = exp2(S - m)`, row_sum; `O *= alpha` | none |
//! | 4 | `O += P V` | reads values |
//!
//! `S`, `P` and `O` never leave the registers. With few rows (decoding) the planes take different keys of the
//! tile, and their results are merged in shared memory at the end. A cube with a chunk stores normalised
//! partial results, row_max and row_sum, which [`super::combine`] merges in the order of the keys.
//!
//! Steps 3 and 4 are left out where all weights are negligible ([`super::negligible`]): a plane decides for its rows.
//!
//! Codes of 8 bits become numbers on the way to the matrix unit: `S` is multiplied by the scale of the keys before anything
//! else happens to it, and `O` by that of the values when it is complete. Scales of single tokens multiply columns of `S`, and
//! of `P` after its sum ([`super::token_scales`]). A unit that multiplies codes ([`TileShape::fp8_mma`]) makes codes of queries
//! and `P`, whose scales go the same ways.
//!
//! Keys beyond the last one that a row sees are never read: their places in shared memory are zero.

use cubecl::prelude::*;

use super::super::buffers::{Outputs, QkvVecs, key_scale, value_scale};
use super::super::mask::{CustomMask, key_tiles};
use super::super::plan::{WorkList, WorkTile};
use super::super::variant::Variant;
use super::copy_stage::{copy_stage, kv_head};
use super::epilogue::store_rows;
use super::mask_bits::apply_custom_mask;
use super::merge_planes::merge_planes;
use super::negligible::plane_counts;
use super::softmax::{
    logits, mask_kept, mask_rows, online_softmax, rescale, start_softmax, sum_lanes, unmasked_keys,
    without_factors,
};
use super::token_scales::{column_scales, last_factor, scale_keys, scale_values};
use crate::mma::{Fragment, Mma, TileShape, first_key, first_row, shared_vecs, wait_stage};
use crate::staging::{Ring, Vec16, stages_ahead};

/// Comptime settings besides the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TileConfig {
    /// Tiles of requests with many rows.
    pub prefill: TileShape,
    /// Tiles of requests whose rows fit into one, if they have their own.
    pub decode: Option<TileShape>,
}

impl TileConfig {
    fn shared_vecs<M: Mma, F: Mma>(&self) -> usize {
        shared_vecs::<M>(self.prefill).max(self.decode.map_or(0, shared_vecs::<F>))
    }

    /// Largest number of rows of a request with decode tiles.
    fn decode_rows<F: Mma>(&self) -> usize {
        self.decode.map_or(0, |decode| decode.rows(F::ROWS))
    }
}

/// The cubes of all work items and key heads, see the module.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(crate) fn tiled<M: Mma, F: Mma, V: Variant, E: Float>(
    qkv: &QkvVecs,
    outputs: &mut Outputs<E>,
    list: &WorkList,
    args: &V::Args,
    #[comptime] config: TileConfig,
    #[define(E)] _dtype: ElemType,
) {
    M::launch_bounds(comptime!(config.shared_vecs::<M, F>()));
    // The heads of a work item run side by side: their keys are neighbours in memory, and on MI300X a head
    // stays on an XCD if there are 8.
    let kv_heads = qkv.k.shape(2);
    let index = CUBE_POS / kv_heads;
    if index >= list.count {
        terminate!();
    }
    let work = list.at(index, CUBE_POS % kv_heads, kv_heads);
    if work.first_row >= work.rows.end {
        terminate!();
    }
    let shared = Shared::<[Vec16]>::new_aligned_slice(comptime!(config.shared_vecs::<M, F>()), 128usize);
    let mut decode = false;
    if comptime!(config.decode.is_some()) {
        decode = work.rows.end <= comptime!(config.decode_rows::<F>());
    }
    if decode {
        if comptime!(config.decode.is_some()) {
            let tiles = comptime!(config.decode.unwrap_or(config.prefill));
            attend::<F, V, E>(qkv, outputs, &work, &list.mask, args, &shared, tiles);
        }
    } else {
        attend::<M, V, E>(qkv, outputs, &work, &list.mask, args, &shared, config.prefill);
    }
}

/// Computes one work item, with tiles of one shape.
#[cube]
fn attend<M: Mma, V: Variant, E: Float>(
    qkv: &QkvVecs,
    outputs: &mut Outputs<E>,
    work: &WorkTile,
    custom: &ComptimeOption<CustomMask>,
    args: &V::Args,
    shared: &Shared<[Vec16]>,
    #[comptime] tiles: TileShape,
) {
    let cube_keys = comptime!(tiles.cube_keys());
    let unmasked = unmasked_keys::<V>(args, work, 0usize.runtime(), comptime!(tiles.rows(M::ROWS)));
    let staged = comptime!(M::staged_vecs(tiles));
    let mut ring = Ring::new(shared.clone(), staged, comptime!(tiles.stage_vecs()), tiles.stages);
    let head = kv_head(qkv, work);

    M::fetch_queries(&qkv.q, &work.rows, &mut ring, tiles);
    let ahead = comptime!(stages_ahead(tiles.stages));
    let mut walk = key_tiles(custom, work, cube_keys, ahead);
    #[unroll]
    for i in 0..ahead {
        copy_stage::<M>(&mut ring, qkv, &head, work, walk.ahead(i), i, tiles);
    }
    let mut queries = M::load_queries(&qkv.q, &work.rows, &mut ring, tiles);
    let k_scale = key_scale(&qkv.scales, work.rows.kv_head);
    queries.with_keys(&k_scale, comptime!(tiles.q_tiles * M::LANE_ROWS));

    let mut s = Fragment::<M>::new(tiles.q_tiles, comptime!(tiles.keys / M::COLUMNS));
    let mut o = Fragment::<M>::new(tiles.q_tiles, comptime!(tiles.dims.vo.div_ceil(M::COLUMNS)));
    o.clear();
    let first_row = first_row(tiles, M::ROWS);
    let first = work.is_first_chunk() && (UNIT_POS_Y as usize) < tiles.q_planes;
    let mut softmax = start_softmax::<M, V>(args, &work.rows, first_row, first, tiles);
    // The lane's first key in a tile.
    let lane_key = first_key(tiles) + M::column();

    while walk.at < work.end {
        let at = walk.at;
        let scales = column_scales::<M>(qkv, work, at, tiles);
        wait_stage::<M>(&mut ring, work.end - at, tiles);
        copy_stage::<M>(&mut ring, qkv, &head, work, walk.ahead(ahead), ahead, tiles);

        M::qk::<E>(&queries, &ring, &mut s, tiles);
        queries.scale(&mut s, &k_scale);
        scale_keys::<M>(&mut s, &scales);
        let key = (at + lane_key) as u32;
        let are_kept = comptime!(unmasked.are_kept);
        logits::<M, V>(&mut s, &mut softmax, args, &work.rows, first_row, key, comptime!(!are_kept));
        if unmasked.ends_in(at, cube_keys) {
            mask_rows::<M, V>(&mut s, args, work, first_row, key);
            if comptime!(are_kept) {
                mask_kept::<M, V>(&mut s, args, &work.rows, first_row, key);
            }
        }
        apply_custom_mask::<M, V>(&mut s, custom, &walk, &work.rows, first_row, key);
        if plane_counts::<M>(&s, &softmax, &work.rows, first_row) {
            online_softmax::<M, V>(&mut s, &mut softmax, tiles);
            // A branch around this while no row_max rises costs more than it saves: 3% of a prefill on an H200,
            // since it splits the instruction schedule.
            rescale::<M, V>(&mut o, &softmax);
            scale_values::<M>(&mut s, &scales);
            M::pv::<E>(&s, &ring, &mut o, tiles);
        }

        ring.advance();
        walk.advance(custom);
    }
    sum_lanes::<M, V>(&mut softmax, tiles);
    if comptime!(tiles.kv_planes > 1) {
        merge_planes::<M, V>(&mut ring, &mut softmax, &mut o, tiles);
    }
    if (UNIT_POS_Y as usize) < tiles.q_planes {
        o.scale(&value_scale(&qkv.scales, work.rows.kv_head));
        without_factors::<M>(&mut softmax, &mut o, tiles);
        o.scale(&last_factor(qkv, tiles));
        M::pair_outputs(&mut o, tiles);
        store_rows::<M, V, E>(outputs, args, work, first_row, &softmax, &mut o, tiles);
    }
}
