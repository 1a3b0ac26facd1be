//! The buffers of the attention kernels, by what they hold.

use cubecl::prelude::*;

use super::kv_table::{Table, key_place, origin};
use crate::request::RequestShape;
use crate::staging::Vec16;

/// Queries, keys, values, and where those of each request are.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Qkv<Q: CubePrimitive, K: CubePrimitive, V: CubePrimitive> {
    /// `[tokens, q_heads, qk]`.
    pub q: OwnedTensor<Q>,
    /// `[pages, slots, kv_heads, qk]`.
    pub k: OwnedTensor<K>,
    /// `[pages, slots, kv_heads, vo]`.
    pub v: OwnedTensor<V>,
    pub table: Table,
    /// The scales of codes, of all tokens.
    pub scales: ComptimeOption<CodeScales>,
    /// The scales of codes, of each token.
    pub token_scales: ComptimeOption<TokenScales>,
}

/// The scales of keys and of values that are codes: one for all heads, or one for each.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct CodeScales {
    k: Box<[f32]>,
    v: Box<[f32]>,
    /// Numbers from the scale of a head to the next: 0 or 1.
    k_stride: usize,
    v_stride: usize,
}

/// The scales of keys and of values that are codes, one for each token and head: `[pages, slots, kv_heads, 1]`.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct TokenScales {
    pub k: OwnedTensor<f32>,
    pub v: OwnedTensor<f32>,
}

#[cube]
impl TokenScales {
    /// The scales of a key and of its value.
    pub fn of(&self, table: &Table, request: &RequestShape, key: usize, kv_head: usize) -> (f32, f32) {
        let (page, slot) = key_place(table, request, key);
        let (k, v) = (&self.k, &self.v);
        let k_at = origin(table, request, k.stride(1)) + page * k.stride(0) + slot * k.stride(1);
        let v_at = origin(table, request, v.stride(1)) + page * v.stride(0) + slot * v.stride(1);
        (k[k_at + kv_head * k.stride(2)], v[v_at + kv_head * v.stride(2)])
    }
}

/// The scale of the keys of a head, if they are codes.
#[cube]
pub(crate) fn key_scale(scales: &ComptimeOption<CodeScales>, kv_head: usize) -> ComptimeOption<f32> {
    #[comptime]
    match scales {
        ComptimeOption::Some(scales) => ComptimeOption::new_Some(scales.k[kv_head * scales.k_stride]),
        ComptimeOption::None => ComptimeOption::new_None(),
    }
}

/// The scale of the values of a head, if they are codes.
#[cube]
pub(crate) fn value_scale(scales: &ComptimeOption<CodeScales>, kv_head: usize) -> ComptimeOption<f32> {
    #[comptime]
    match scales {
        ComptimeOption::Some(scales) => ComptimeOption::new_Some(scales.v[kv_head * scales.v_stride]),
        ComptimeOption::None => ComptimeOption::new_None(),
    }
}

/// The results of attention, or its partial results.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Outputs<E: Float> {
    /// `[tokens, q_heads, vo]`.
    pub output: Box<[Vector<E, Const<2>>]>,
    /// `[tokens, q_heads]`: the base-2 log-sum-exp.
    pub lse: ComptimeOption<Box<[f32]>>,
    /// Partial results: `[partial_rows, vo]` normalised, then `[partial_rows, 2]` of row_max and row_sum. Their
    /// logarithm would be rounded where logits are large.
    pub workspace: ComptimeOption<Box<[Vector<f32, Const<2>>]>>,
    /// Rows that the workspace has room for.
    pub partial_rows: usize,
}

/// Tensors in vec16s, with strides in elements.
pub(crate) type QkvVecs = Qkv<Vec16, Vec16, Vec16>;
