//! Inference passes through an autodiff backend to the one inside; there is no backward pass.
//!
//! The operations refuse a tensor that requires a gradient before they get here (`ops::check`), so cutting the graph
//! loses nothing.

use burn::backend::{
    Autodiff, AutodiffBackend as _,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{BoolTensor, FloatTensor, IntTensor},
};

use burn::tensor::DType;

use crate::extension::{
    Activation, Attended, AttentionParams, Batch, BitOrder, BitSegments, FlashInferBackend, KvTensors, Limit,
    MaybeFloats, MaybeHeadNorm, MaybeInts, MaybeScales, NormedSum, Pages, RmsNormStyle, RotatedAndAppended,
    Rotations, Rounding, Rows, WeightLayout,
};
use crate::fp8::Fp8;

impl<B: FlashInferBackend, C: CheckpointStrategy> FlashInferBackend for Autodiff<B, C> {
    fn batch_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        // Integer tensors are the same on both sides.
        let Batch { index, workspace, floats, ints, layout } = batch;
        // Enumerations of integers differ in type alone.
        let ints = match ints {
            MaybeInts::None => MaybeInts::None,
            MaybeInts::Some(ints) => MaybeInts::Some(ints),
        };
        let batch = Batch { index, workspace: inner(workspace), floats: inner(floats), ints, layout };
        match B::batch_attention(Self::inner(q), Self::inner(k), Self::inner(v), batch, params) {
            Attended::WithoutLse(output) => Attended::WithoutLse(Self::from_inner(output)),
            Attended::WithLse(output, lse) => {
                Attended::WithLse(Self::from_inner(output), Self::from_inner(lse))
            }
        }
    }

    fn write_ints(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        B::write_ints(buffer, values)
    }

    fn append_paged_kv(
        pages: Pages<Self>,
        tokens: KvTensors<Self>,
        slots: IntTensor<Self>,
    ) -> KvTensors<Self> {
        outside(B::append_paged_kv(inner_pages(pages), inside(tokens), slots))
    }

    fn gather_paged_kv(pages: Pages<Self>, slots: IntTensor<Self>, dtype: DType) -> KvTensors<Self> {
        outside(B::gather_paged_kv(inner_pages(pages), slots, dtype))
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k) = B::apply_rope(Self::inner(q), Self::inner(k), inner_rotations(rotations));
        (Self::from_inner(q), Self::from_inner(k))
    }

    fn rope_quantize_fp8(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
        q_scale: FloatTensor<Self>,
        k_scale: FloatTensor<Self>,
        format: Fp8,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        let rotations = inner_rotations(rotations);
        let [q, k, q_scale, k_scale] = [q, k, q_scale, k_scale].map(Self::inner);
        B::rope_quantize_fp8(q, k, rotations, q_scale, k_scale, format)
    }

    fn rope_append_paged_kv(
        pages: Pages<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotations: Rotations<Self>,
        slots: IntTensor<Self>,
    ) -> RotatedAndAppended<Self> {
        let (pages, rotations) = (inner_pages(pages), inner_rotations(rotations));
        let [q, k, v] = [q, k, v].map(Self::inner);
        let RotatedAndAppended { q, pages } = B::rope_append_paged_kv(pages, q, k, v, rotations, slots);
        RotatedAndAppended { q: Self::from_inner(q), pages: outside(pages) }
    }

    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
        mask: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (v_a, s_a) = (Self::inner(v_a), Self::inner(s_a));
        let (v, s) = B::merge_state(v_a, s_a, Self::inner(v_b), Self::inner(s_b), ints(mask));
        (Self::from_inner(v), Self::from_inner(s))
    }

    fn merge_states(
        v: FloatTensor<Self>,
        s: FloatTensor<Self>,
        indptr: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (v, s) = B::merge_states(Self::inner(v), Self::inner(s), ints(indptr));
        (Self::from_inner(v), Self::from_inner(s))
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> Rows<Self> {
        rows(B::rms_norm(Self::inner(x), Self::inner(weight), inner_rounding(rounding), epsilon, style))
    }

    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> NormedSum<Self> {
        let [x, residual, weight] = [x, residual, weight].map(Self::inner);
        let rounding = inner_rounding(rounding);
        let NormedSum { normed, sum } = B::fused_add_rms_norm(x, residual, weight, rounding, epsilon, style);
        NormedSum { normed: rows(normed), sum: Self::from_inner(sum) }
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
    ) -> Rows<Self> {
        let [x, gamma, beta] = [x, gamma, beta].map(Self::inner);
        rows(B::layer_norm_rows(x, gamma, beta, inner_rounding(rounding), epsilon))
    }

    fn act_and_mul(x: FloatTensor<Self>, rounding: Rounding<Self>, activation: Activation) -> Rows<Self> {
        rows(B::act_and_mul(Self::inner(x), inner_rounding(rounding), activation))
    }

    fn softmax_with_temperature(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::softmax_with_temperature(Self::inner(logits), Self::inner(temperature)))
    }

    fn apply_penalties(
        logits: FloatTensor<Self>,
        prompt: IntTensor<Self>,
        output: IntTensor<Self>,
        repetition: FloatTensor<Self>,
        frequency: FloatTensor<Self>,
        presence: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [repetition, frequency, presence] = [repetition, frequency, presence].map(Self::inner);
        let logits = Self::inner(logits);
        Self::from_inner(B::apply_penalties(logits, prompt, output, repetition, frequency, presence))
    }

    fn renorm_probs(probs: FloatTensor<Self>, by: Limit<Self>) -> FloatTensor<Self> {
        let by = match by {
            Limit::TopK(top_k) => Limit::TopK(top_k),
            Limit::TopP(top_p) => Limit::TopP(Self::inner(top_p)),
        };
        Self::from_inner(B::renorm_probs(Self::inner(probs), by))
    }

    fn top_k_mask_logits(logits: FloatTensor<Self>, top_k: IntTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::top_k_mask_logits(Self::inner(logits), top_k))
    }

    fn top_k(x: FloatTensor<Self>, k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        let (values, ids) = B::top_k(Self::inner(x), k);
        (Self::from_inner(values), ids)
    }

    fn sample_logits(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        B::sample_logits(Self::inner(logits), Self::inner(temperature), draws)
    }

    fn chain_speculative_sampling(
        draft_probs: FloatTensor<Self>,
        draft_ids: IntTensor<Self>,
        target_probs: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        let (draft_probs, target_probs) = (Self::inner(draft_probs), Self::inner(target_probs));
        B::chain_speculative_sampling(draft_probs, draft_ids, target_probs, draws)
    }

    fn sample_probs(
        probs: FloatTensor<Self>,
        top_k: MaybeInts<Self>,
        top_p: MaybeFloats<Self>,
        min_p: MaybeFloats<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        B::sample_probs(Self::inner(probs), ints(top_k), inner(top_p), inner(min_p), draws)
    }

    fn pack_bits(
        bits: BoolTensor<Self>,
        segments: BitSegments<Self>,
        bytes: usize,
        order: BitOrder,
    ) -> IntTensor<Self> {
        B::pack_bits(bits, bit_segments(segments), bytes, order)
    }

    fn unpack_bits(
        bytes: IntTensor<Self>,
        segments: BitSegments<Self>,
        bits: usize,
        order: BitOrder,
    ) -> IntTensor<Self> {
        B::unpack_bits(bytes, bit_segments(segments), bits, order)
    }

    fn segment_gemm(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        works: IntTensor<Self>,
        tile_rows: usize,
        layout: WeightLayout,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::segment_gemm(Self::inner(x), Self::inner(weights), works, tile_rows, layout))
    }

    fn matmul_nt(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::from_inner(B::matmul_nt(Self::inner(x), Self::inner(weight)))
    }
}

fn inner<B: FlashInferBackend, C: CheckpointStrategy>(floats: MaybeFloats<Autodiff<B, C>>) -> MaybeFloats<B> {
    match floats {
        MaybeFloats::None => MaybeFloats::None,
        MaybeFloats::Some(floats) => MaybeFloats::Some(Autodiff::<B, C>::inner(floats)),
    }
}

fn rows<B: FlashInferBackend, C: CheckpointStrategy>(rows: Rows<B>) -> Rows<Autodiff<B, C>> {
    match rows {
        Rows::Floats(rows) => Rows::Floats(Autodiff::<B, C>::from_inner(rows)),
        Rows::Codes(codes) => Rows::Codes(codes),
    }
}

fn inner_rounding<B: FlashInferBackend, C: CheckpointStrategy>(
    Rounding { scale, format }: Rounding<Autodiff<B, C>>,
) -> Rounding<B> {
    Rounding { scale: inner(scale), format }
}

fn inside<B: FlashInferBackend, C: CheckpointStrategy>(tensors: KvTensors<Autodiff<B, C>>) -> KvTensors<B> {
    let inner = Autodiff::<B, C>::inner;
    match tensors {
        KvTensors::Floats(k, v) => KvTensors::Floats(inner(k), inner(v)),
        KvTensors::Codes(k, v) => KvTensors::Codes(k, v),
    }
}

fn outside<B: FlashInferBackend, C: CheckpointStrategy>(tensors: KvTensors<B>) -> KvTensors<Autodiff<B, C>> {
    let outer = Autodiff::<B, C>::from_inner;
    match tensors {
        KvTensors::Floats(k, v) => KvTensors::Floats(outer(k), outer(v)),
        KvTensors::Codes(k, v) => KvTensors::Codes(k, v),
    }
}

fn inner_pages<B: FlashInferBackend, C: CheckpointStrategy>(
    Pages { tensors, scales, format, layout, pinned }: Pages<Autodiff<B, C>>,
) -> Pages<B> {
    let inner = Autodiff::<B, C>::inner;
    let scales = match scales {
        MaybeScales::None => MaybeScales::None,
        MaybeScales::Some(k, v) => MaybeScales::Some(inner(k), inner(v)),
    };
    Pages { tensors: inside(tensors), scales, format, layout, pinned }
}

fn inner_rotations<B: FlashInferBackend, C: CheckpointStrategy>(
    Rotations { cos_sin, positions, norm, style }: Rotations<Autodiff<B, C>>,
) -> Rotations<B> {
    let inner = Autodiff::<B, C>::inner;
    let norm = match norm {
        MaybeHeadNorm::None => MaybeHeadNorm::None,
        MaybeHeadNorm::Some(q, k, epsilon) => MaybeHeadNorm::Some(inner(q), inner(k), epsilon),
    };
    Rotations { cos_sin: inner(cos_sin), positions, norm, style }
}

/// Integer tensors are the same on both sides.
fn ints<B: FlashInferBackend, C: CheckpointStrategy>(ints: MaybeInts<Autodiff<B, C>>) -> MaybeInts<B> {
    match ints {
        MaybeInts::None => MaybeInts::None,
        MaybeInts::Some(ints) => MaybeInts::Some(ints),
    }
}

fn bit_segments<B: FlashInferBackend, C: CheckpointStrategy>(
    segments: BitSegments<Autodiff<B, C>>,
) -> BitSegments<B> {
    match segments {
        BitSegments::One => BitSegments::One,
        BitSegments::Many(bits, bytes) => BitSegments::Many(bits, bytes),
    }
}
