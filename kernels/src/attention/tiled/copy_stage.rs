//! Copies of keys and values into shared memory.

use cubecl::prelude::*;

use super::super::buffers::QkvVecs;
use super::super::kv_table::{key_place, origin};
use super::super::plan::WorkTile;
use crate::mma::{Mma, TileShape};
use crate::staging::{Ring, Staging};

/// Offsets of a request's key head in the keys and in the values.
#[derive(CubeType)]
pub(super) struct KvHead {
    k: usize,
    v: usize,
}

#[cube]
pub(super) fn kv_head(qkv: &QkvVecs, work: &WorkTile) -> KvHead {
    let (request, head) = (&work.rows.request, work.rows.kv_head);
    KvHead {
        k: head * qkv.k.stride(2) + origin(&qkv.table, request, qkv.k.stride(1)),
        v: head * qkv.v.stride(2) + origin(&qkv.table, request, qkv.v.stride(1)),
    }
}

/// Begins to copy the tile of keys and values from `first` on to the stage that is `ahead` of the current one; beyond
/// the end of the work item there are zeros.
#[cube]
pub(super) fn copy_stage<M: Mma>(
    ring: &mut Ring,
    qkv: &QkvVecs,
    head: &KvHead,
    work: &WorkTile,
    first: usize,
    #[comptime] ahead: usize,
    #[comptime] tiles: TileShape,
) {
    if first < work.end {
        let (k, v) = (&qkv.k, &qkv.v);
        let stage = ring.after(ahead);
        let copies = comptime!(M::key_copies(tiles));
        let same = comptime!(M::SAME_COPIES && tiles.k_vecs() == tiles.v_vecs());
        let mut v_at = Array::<usize>::new(copies);
        // All source addresses come first: the loads of the page table overlap.
        let mut k_at = Array::<usize>::new(copies);
        #[unroll]
        for i in 0..copies {
            let (row, vec) = M::key_copy(i, tiles);
            let (page, slot) = key_place(&qkv.table, &work.rows.request, min(first + row, work.end - 1));
            k_at[i] = (page * k.stride(0) + slot * k.stride(1) + head.k) / tiles.kv_per_vec() + vec;
            if same {
                v_at[i] = (page * v.stride(0) + slot * v.stride(1) + head.v) / tiles.kv_per_vec() + vec;
            }
        }
        #[unroll]
        for i in 0..copies {
            let (row, vec) = M::key_copy(i, tiles);
            if comptime!(M::even_keys(tiles)) || row < tiles.cube_keys() {
                let to = M::key_at(stage, row, vec, tiles.k_vecs());
                M::Staging::copy(ring, k, k_at[i], first + row < work.end, to, i);
            }
        }
        #[unroll]
        for i in 0..comptime!(M::value_copies(tiles)) {
            let (row, vec) = M::value_copy(i, tiles);
            let at = if same {
                v_at[i]
            } else {
                let (page, slot) = key_place(&qkv.table, &work.rows.request, min(first + row, work.end - 1));
                (page * v.stride(0) + slot * v.stride(1) + head.v) / tiles.kv_per_vec() + vec
            };
            if comptime!(M::even_values(tiles)) || row < tiles.cube_keys() {
                let to = M::value_at(stage + comptime!(tiles.key_vecs()), row, vec, tiles.v_vecs());
                M::Staging::copy(ring, v, at, first + row < work.end, to, comptime!(copies + i));
            }
        }
    }
    M::Staging::commit();
}
