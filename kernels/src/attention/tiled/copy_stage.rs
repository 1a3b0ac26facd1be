//! Copies of keys and values into shared memory.

use cubecl::prelude::*;

use super::super::kv_table::{Table, key_place};
use super::super::request::RequestShape;
use crate::mma::{Mma, TileShape, Vec16};

/// Begins to copy the tile of keys and values from `first` on; beyond `end` there are zeros.
#[allow(clippy::too_many_arguments, reason = "two tensors and their places")]
#[cube]
pub(super) fn copy_stage<U: Mma>(
    k: &Tensor<Vec16>,
    v: &Tensor<Vec16>,
    k_head: usize,
    v_head: usize,
    table: &Table,
    request: &RequestShape,
    first: usize,
    end: usize,
    shared: &mut [Vec16],
    stage: usize,
    unit: usize,
    staged: &mut Array<Vec16>,
    #[comptime] tiles: TileShape,
) {
    if first < end {
        let copies = comptime!(U::key_copies(tiles));
        let v_copies = comptime!(tiles.copies(tiles.vo_vecs(), U::PLANE, U::VALUE_COPIES));
        let even = comptime!(U::even_keys(tiles));
        let v_even = comptime!(tiles.even(tiles.vo_vecs(), U::PLANE, U::VALUE_COPIES));
        let same = comptime!(U::SAME_COPIES && tiles.qk_vecs() == tiles.vo_vecs());
        let mut v_at = Array::<usize>::new(copies);
        // All source addresses come first: the loads of the page table overlap.
        let mut k_at = Array::<usize>::new(copies);
        #[unroll]
        for i in 0..copies {
            let (row, vec) = U::key_copy(unit, i, tiles);
            let (page, slot) = key_place(table, request, min(first + row, end - 1));
            k_at[i] = (page * k.stride(0) + slot * k.stride(1) + k_head) / tiles.per_vec() + vec;
            if same {
                v_at[i] = (page * v.stride(0) + slot * v.stride(1) + v_head) / tiles.per_vec() + vec;
            }
        }
        #[unroll]
        for i in 0..copies {
            let (row, vec) = U::key_copy(unit, i, tiles);
            if comptime!(even) || row < tiles.cube_keys() {
                U::copy(
                    k,
                    k_at[i],
                    first + row < end,
                    shared,
                    stage,
                    row,
                    vec,
                    0usize,
                    tiles.qk_vecs(),
                    staged,
                    i,
                );
            }
        }
        #[unroll]
        for i in 0..v_copies {
            let (row, vec) = U::value_copy(unit, i, tiles);
            let at = if same {
                v_at[i]
            } else {
                let (page, slot) = key_place(table, request, min(first + row, end - 1));
                (page * v.stride(0) + slot * v.stride(1) + v_head) / tiles.per_vec() + vec
            };
            if comptime!(v_even) || row < tiles.cube_keys() {
                U::copy(
                    v,
                    at,
                    first + row < end,
                    shared,
                    stage,
                    row,
                    vec,
                    tiles.key_vecs(),
                    tiles.vo_vecs(),
                    staged,
                    comptime!(copies + i),
                );
            }
        }
    }
    U::commit_stage();
}
