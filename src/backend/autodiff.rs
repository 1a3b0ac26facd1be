//! Inference passes through an autodiff backend to the one inside; there is no backward pass.
//!
//! The operations refuse a tensor that requires a gradient before they get here (`ops::check`), so cutting the graph
//! loses nothing.

use burn::backend::{
    Autodiff, AutodiffBackend as _,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{FloatTensor, IntTensor},
};

use crate::extension::{
    Activation, Attended, AttentionParams, Batch, FlashInferBackend, Limit, MaybeFloats, MaybeInts,
    RmsNormStyle, RopeStyle,
};
use crate::options::KvLayout;

impl<B: FlashInferBackend, C: CheckpointStrategy> FlashInferBackend for Autodiff<B, C> {
    fn batch_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        // Integer tensors are the same on both sides.
        let Batch { index, workspace, layout } = batch;
        let batch = Batch { index, workspace: inner(workspace), layout };
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
        k_pool: FloatTensor<Self>,
        v_pool: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        slots: IntTensor<Self>,
        layout: KvLayout,
        pinned: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (k_pool, v_pool) = (Self::inner(k_pool), Self::inner(v_pool));
        let (k_pool, v_pool) =
            B::append_paged_kv(k_pool, v_pool, Self::inner(k), Self::inner(v), slots, layout, pinned);
        (Self::from_inner(k_pool), Self::from_inner(v_pool))
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        positions: IntTensor<Self>,
        style: RopeStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (q, k) = B::apply_rope(Self::inner(q), Self::inner(k), Self::inner(cos_sin), positions, style);
        (Self::from_inner(q), Self::from_inner(k))
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
        epsilon: f32,
        style: RmsNormStyle,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::rms_norm(Self::inner(x), Self::inner(weight), epsilon, style))
    }

    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, residual) = (Self::inner(x), Self::inner(residual));
        let (y, sum) = B::fused_add_rms_norm(x, residual, Self::inner(weight), epsilon, style);
        (Self::from_inner(y), Self::from_inner(sum))
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        Self::from_inner(B::layer_norm_rows(Self::inner(x), Self::inner(gamma), Self::inner(beta), epsilon))
    }

    fn act_and_mul(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        Self::from_inner(B::act_and_mul(Self::inner(x), activation))
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

/// Integer tensors are the same on both sides.
fn ints<B: FlashInferBackend, C: CheckpointStrategy>(ints: MaybeInts<Autodiff<B, C>>) -> MaybeInts<B> {
    match ints {
        MaybeInts::None => MaybeInts::None,
        MaybeInts::Some(ints) => MaybeInts::Some(ints),
    }
}
