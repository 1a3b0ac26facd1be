//! The operations on CubeCL devices: allocates the outputs and launches the portable kernels.
//!
//! Nothing is copied but a tensor whose last axis has gaps, or a page pool that has another owner.

mod activation;
mod attention;
mod bits;
mod device;
mod linear;
mod merge;
mod moe;
mod norm;
mod pages;
mod quantized;
mod sampling;
mod segment_gemm;
mod tensor;

use burn::backend::{
    DType,
    tensor::{BoolTensor, FloatTensor, IntTensor},
};
use burn_cubecl::CubeBackend;

use crate::extension::{
    Attended, Batch, BitSegments, FlashInferBackend, KeysValues, KvTensors, Limit, MaskedBatch, MaybeFloats,
    MaybeInts, NormedSum, Pages, RotatedAndAppended, Rotations, Rounding, Rows, ScaledRows,
};
use crate::types::{
    Activation, AttentionParams, BitOrder, Fp8, LinearParams, RmsNormStyle, RoutingParams, WeightFormat,
    WeightLayout,
};

pub(crate) use device::{
    MAX_TOP_K, has_bytes, has_fnuz, has_wide_integers, memory, multiplies_e4m3, unsupported_dtype,
};

impl FlashInferBackend for CubeBackend {
    fn batch_attention(
        q: FloatTensor<Self>,
        kv: KeysValues<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        attention::batch_attention(q, kv, batch, params)
    }

    fn write_ints(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        attention::write_ints(buffer, values)
    }

    fn append_paged_kv(
        pages: Pages<Self>,
        tokens: KvTensors<Self>,
        slots: IntTensor<Self>,
    ) -> KvTensors<Self> {
        pages::append_paged_kv(pages, tokens, slots)
    }

    fn gather_paged_kv(pages: Pages<Self>, slots: IntTensor<Self>, dtype: DType) -> KvTensors<Self> {
        pages::gather_paged_kv(pages, slots, dtype)
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        pages::apply_rope(q, k, rotations)
    }

    fn rope_quantize_fp8(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
        q_scale: FloatTensor<Self>,
        k_scale: FloatTensor<Self>,
        format: Fp8,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        pages::rope_quantize_fp8(q, k, rotations, [q_scale, k_scale], format)
    }

    fn rope_append_paged_kv(
        pages: Pages<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotations: Rotations<Self>,
        slots: IntTensor<Self>,
    ) -> RotatedAndAppended<Self> {
        let (q, pages) = pages::rope_append_paged_kv(pages, [q, k, v], rotations, slots);
        RotatedAndAppended { q, pages }
    }

    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
        mask: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        merge::merge_state(v_a, s_a, v_b, s_b, mask)
    }

    fn merge_states(
        v: FloatTensor<Self>,
        s: FloatTensor<Self>,
        indptr: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        merge::merge_states(v, s, indptr)
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> Rows<Self> {
        norm::rms_norm(x, weight, rounding, epsilon, style)
    }

    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> NormedSum<Self> {
        norm::fused_add_rms_norm(x, residual, weight, rounding, epsilon, style)
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
    ) -> Rows<Self> {
        norm::layer_norm_rows(x, gamma, beta, rounding, epsilon)
    }

    fn act_and_mul(x: FloatTensor<Self>, rounding: Rounding<Self>, activation: Activation) -> Rows<Self> {
        activation::act_and_mul(x, rounding, activation)
    }

    fn softmax_with_temperature(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        sampling::softmax_with_temperature(logits, temperature)
    }

    fn apply_penalties(
        logits: FloatTensor<Self>,
        prompt: IntTensor<Self>,
        output: IntTensor<Self>,
        repetition: FloatTensor<Self>,
        frequency: FloatTensor<Self>,
        presence: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        sampling::apply_penalties(logits, prompt, output, repetition, frequency, presence)
    }

    fn renorm_probs(probs: FloatTensor<Self>, by: Limit<Self>) -> FloatTensor<Self> {
        sampling::renorm_probs(probs, by)
    }

    fn top_k_mask_logits(logits: FloatTensor<Self>, top_k: IntTensor<Self>) -> FloatTensor<Self> {
        sampling::top_k_mask_logits(logits, top_k)
    }

    fn top_k(x: FloatTensor<Self>, k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        sampling::top_k(x, k)
    }

    fn sample_logits(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        sampling::sample_logits(logits, temperature, draws)
    }

    fn chain_speculative_sampling(
        draft_probs: FloatTensor<Self>,
        draft_ids: IntTensor<Self>,
        target_probs: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        sampling::chain_speculative_sampling(draft_probs, draft_ids, target_probs, draws)
    }

    fn sample_probs(
        probs: FloatTensor<Self>,
        top_k: MaybeInts<Self>,
        top_p: MaybeFloats<Self>,
        min_p: MaybeFloats<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        sampling::sample_probs(probs, top_k, top_p, min_p, draws)
    }

    fn map_mask(
        bytes: IntTensor<Self>,
        first_bits: IntTensor<Self>,
        index: IntTensor<Self>,
        batch: MaskedBatch,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        attention::map_mask(bytes, first_bits, index, batch)
    }

    fn pack_bits(
        bits: BoolTensor<Self>,
        segments: BitSegments<Self>,
        bytes: usize,
        order: BitOrder,
    ) -> IntTensor<Self> {
        bits::pack(bits, segments, bytes, order)
    }

    fn unpack_bits(
        bytes: IntTensor<Self>,
        segments: BitSegments<Self>,
        bits: usize,
        order: BitOrder,
    ) -> IntTensor<Self> {
        bits::unpack(bytes, segments, bits, order)
    }

    fn segment_gemm(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        work_items: IntTensor<Self>,
        tile_rows: usize,
        layout: WeightLayout,
    ) -> FloatTensor<Self> {
        segment_gemm::segment_gemm(x, weights, work_items, tile_rows, layout)
    }

    fn moe_route(
        logits: FloatTensor<Self>,
        bias: MaybeFloats<Self>,
        params: RoutingParams,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        moe::route(logits, bias, params)
    }

    fn fused_moe(
        x: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        experts: IntTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        moe::fused_moe(x, gate_up, down, weights, experts, activation)
    }

    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        norm: MaybeFloats<Self>,
        bias: MaybeFloats<Self>,
        residual: MaybeFloats<Self>,
        params: LinearParams,
    ) -> FloatTensor<Self> {
        linear::linear(x, weight, norm, bias, residual, params)
    }

    fn matmul_nt_quantized(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        format: WeightFormat,
    ) -> FloatTensor<Self> {
        quantized::matmul_nt_quantized(x, codes, scales, format)
    }

    fn quantize_rows(x: FloatTensor<Self>, format: Fp8) -> ScaledRows<Self> {
        quantized::quantize_rows(x, format)
    }

    fn scaled_linear(
        x: ScaledRows<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        bias: MaybeFloats<Self>,
        residual: MaybeFloats<Self>,
        format: WeightFormat,
        params: LinearParams,
    ) -> FloatTensor<Self> {
        quantized::scaled_linear(x, [codes, scales], bias, residual, format, params)
    }
}
