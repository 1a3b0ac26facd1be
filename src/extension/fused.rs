//! Shapes of outputs that Fusion must know before anything runs.

use super::arguments::{
    AttendedMetadata, BatchMetadata, KeysValuesMetadata, KvTensorsMetadata, MaskedBatch, MaybeIntsMetadata,
    NormedSumMetadata, PagesMetadata, RotatedAndAppendedMetadata, RotationsMetadata, RoundingMetadata,
    RowsMetadata, ScaledRowsMetadata,
};
use crate::types::{AttentionParams, KvLayout, LinearParams, RmsNormStyle, RoutingParams, WeightLayout};
use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{DType, Shape},
};

pub(super) fn f32s(shape: Shape) -> TensorSpec {
    TensorSpec::new(shape, DType::F32)
}

/// Codes of as many numbers.
pub(super) fn codes(numbers: &TensorSpec) -> TensorSpec {
    TensorSpec::new(numbers.shape.clone(), DType::U8)
}

/// Rows of floats, or of fp8 if there is a format.
pub(super) fn rounded(shape: Shape, dtype: DType, rounding: &RoundingMetadata) -> RowsMetadata {
    match rounding.format {
        None => RowsMetadata::Floats(TensorSpec::new(shape, dtype)),
        Some(_) => RowsMetadata::Codes(TensorSpec::new(shape, DType::U8)),
    }
}

/// A code for each number, and a scale for each row.
pub(super) fn scaled_rows(x: &TensorSpec) -> ScaledRowsMetadata {
    ScaledRowsMetadata { codes: codes(x), scales: f32s([x.shape[0]].into()) }
}

pub(super) fn normed_sum(
    x: &TensorSpec,
    residual: &TensorSpec,
    _weight: &TensorSpec,
    rounding: &RoundingMetadata,
    _epsilon: &f32,
    _style: &RmsNormStyle,
) -> NormedSumMetadata {
    NormedSumMetadata { normed: rounded(x.shape.clone(), x.dtype, rounding), sum: residual.clone() }
}

/// The words of a mask, and its tiles.
pub(super) fn mapped_mask(bytes: &TensorSpec, batch: &MaskedBatch) -> (TensorSpec, TensorSpec) {
    let ints = |len: usize| TensorSpec::new([len].into(), DType::I32);
    (ints(MaskedBatch::words(bytes.shape[0])), ints(batch.tiles()))
}

/// A token for each slot.
pub(super) fn gathered(pages: &PagesMetadata, slots: &TensorSpec, dtype: &DType) -> KvTensorsMetadata {
    let rows = |pool: &TensorSpec, dtype: DType| {
        let kv_heads = if pages.layout == KvLayout::Nhd { pool.shape[2] } else { pool.shape[1] };
        TensorSpec::new([slots.shape[0], kv_heads, pool.shape[3]].into(), dtype)
    };
    match (&pages.tensors, dtype) {
        (KvTensorsMetadata::Scaled(k, v, k_scales, v_scales), DType::U8) => {
            let [k, v] = [k, v].map(|pool| rows(pool, DType::U8));
            let [k_scales, v_scales] = [k_scales, v_scales].map(|pool| rows(pool, DType::F32));
            KvTensorsMetadata::Scaled(k, v, k_scales, v_scales)
        }
        (KvTensorsMetadata::Floats(k, v) | KvTensorsMetadata::Codes(k, v), DType::U8) => {
            KvTensorsMetadata::Codes(rows(k, DType::U8), rows(v, DType::U8))
        }
        (
            KvTensorsMetadata::Floats(k, v)
            | KvTensorsMetadata::Codes(k, v)
            | KvTensorsMetadata::Scaled(k, v, ..),
            _,
        ) => KvTensorsMetadata::Floats(rows(k, *dtype), rows(v, *dtype)),
    }
}

pub(super) fn rotated_and_appended(
    pages: &PagesMetadata,
    q: &TensorSpec,
    _k: &TensorSpec,
    _v: &TensorSpec,
    _rotations: &RotationsMetadata,
    _slots: &TensorSpec,
) -> RotatedAndAppendedMetadata {
    RotatedAndAppendedMetadata { q: q.clone(), pages: pages.tensors.clone() }
}

pub(super) fn products(x: &TensorSpec, weights: &TensorSpec, layout: WeightLayout) -> TensorSpec {
    let outputs = if layout == WeightLayout::RowMajor { 2 } else { 1 };
    TensorSpec::new([x.shape[0], weights.shape[outputs]].into(), x.dtype)
}

pub(super) fn linear(x: &TensorSpec, weight: &TensorSpec, params: &LinearParams) -> TensorSpec {
    TensorSpec::new([x.shape[0], params.outputs(weight.shape[0])].into(), params.dtype)
}

pub(super) fn bytes(len: usize) -> TensorSpec {
    TensorSpec::new([len].into(), DType::U8)
}

/// One state for each token.
pub(super) fn merged(
    v: &TensorSpec,
    _s: &TensorSpec,
    indptr: &MaybeIntsMetadata,
) -> (TensorSpec, TensorSpec) {
    let axes = v.shape.num_dims();
    let [heads, dim] = [v.shape[axes - 2], v.shape[axes - 1]];
    let tokens = match indptr {
        MaybeIntsMetadata::None => v.shape[0],
        MaybeIntsMetadata::Some(indptr) => indptr.shape[0] - 1,
    };
    (TensorSpec::new([tokens, heads, dim].into(), v.dtype), f32s([tokens, heads].into()))
}

/// Numbers, and where they are.
pub(super) fn top_k(x: &TensorSpec, k: usize) -> (TensorSpec, TensorSpec) {
    let shape: Shape = [x.shape[0], k].into();
    (TensorSpec::new(shape.clone(), x.dtype), TensorSpec::new(shape, DType::I32))
}

/// Weights, and experts.
pub(super) fn routes(logits: &TensorSpec, params: &RoutingParams) -> (TensorSpec, TensorSpec) {
    let shape: Shape = [logits.shape[0], params.top_k].into();
    (f32s(shape.clone()), TensorSpec::new(shape, DType::I32))
}

/// Tokens, and whether they are some.
pub(super) fn samples(draws: &TensorSpec) -> (TensorSpec, TensorSpec) {
    let one = TensorSpec::new([draws.shape[0]].into(), DType::I32);
    (one.clone(), one)
}

/// Tokens, and counts.
pub(super) fn speculation(draft_ids: &TensorSpec) -> (TensorSpec, TensorSpec) {
    let [requests, drafted] = [draft_ids.shape[0], draft_ids.shape[1]];
    let ids = TensorSpec::new([requests, drafted + 1].into(), DType::I32);
    (ids, TensorSpec::new([requests, 3].into(), DType::I32))
}

pub(super) fn attended(
    q: &TensorSpec,
    kv: &KeysValuesMetadata,
    _batch: &BatchMetadata,
    params: &AttentionParams,
) -> AttendedMetadata {
    let (KvTensorsMetadata::Floats(_, v)
    | KvTensorsMetadata::Codes(_, v)
    | KvTensorsMetadata::Scaled(_, v, ..)) = &kv.tensors;
    let [tokens, heads, dim] = [q.shape[0], q.shape[1], v.shape[v.shape.num_dims() - 1]];
    let output = TensorSpec::new([tokens, heads, dim].into(), q.dtype);
    if params.return_lse {
        AttendedMetadata::WithLse(output, TensorSpec::new([tokens, heads].into(), DType::F32))
    } else {
        AttendedMetadata::WithoutLse(output)
    }
}
