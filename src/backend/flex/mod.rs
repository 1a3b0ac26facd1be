//! Flex, Burn's CPU backend: native code over slices, with rayon and the vector units of the processor at hand.

mod activation;
mod attention;
mod draw;
mod float;
mod gumbel;
mod likely;
mod matmul;
mod merge;
mod norm;
mod penalties;
mod rows;
mod sampling;
mod scratch;
mod simd;
mod speculative;
mod top_k;
mod view;

use burn::backend::{
    Flex,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, bf16, f16};
use burn_flex::FlexTensor;

use crate::extension::{
    Activation, Attended, AttentionParams, Batch, FlashInferBackend, Limit, MaybeFloats, MaybeInts,
    RmsNormStyle, RopeStyle,
};
use crate::options::KvLayout;

/// Calls a function for the element type of a tensor. `check::float` lets no other type through.
macro_rules! by_dtype {
    ($dtype:expr, $module:ident::$function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F16 => $module::$function::<f16>($($argument),*),
            DType::BF16 => $module::$function::<bf16>($($argument),*),
            _ => $module::$function::<f32>($($argument),*),
        }
    };
}

impl FlashInferBackend for Flex {
    fn batch_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        by_dtype!(q.dtype(), attention::attention(q, k, v, batch, params))
    }

    fn write_ints(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        view::overwritten(buffer, &values)
    }

    fn append_paged_kv(
        k_pool: FloatTensor<Self>,
        v_pool: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        slots: IntTensor<Self>,
        layout: KvLayout,
        _pinned: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let slots = view::indices(slots);
        // Of the index tensor only one entry for each token counts: an empty one is padded.
        let slots: &[i32] = &slots.storage()[..view::dims::<3>(&k)[0]];
        let write = |pool: FlexTensor, new: FlexTensor| {
            by_dtype!(new.dtype(), rows::append(pool, new, slots, layout))
        };
        (write(k_pool, k), write(v_pool, v))
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        positions: IntTensor<Self>,
        style: RopeStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let positions = view::indices(positions);
        let rotate =
            |x: FlexTensor| by_dtype!(x.dtype(), rows::rope(x, &cos_sin, positions.storage(), style));
        (rotate(q), rotate(k))
    }

    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
        mask: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (a, b) = (merge::State { v: v_a, s: s_a }, merge::State { v: v_b, s: s_b });
        by_dtype!(a.v.dtype(), merge::two(a, b, ints(mask)))
    }

    fn merge_states(
        v: FloatTensor<Self>,
        s: FloatTensor<Self>,
        indptr: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        by_dtype!(v.dtype(), merge::many(merge::State { v, s }, ints(indptr)))
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), norm::rms_norm(x, weight, epsilon, style))
    }

    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        by_dtype!(x.dtype(), norm::fused_add_rms_norm(x, residual, weight, epsilon, style))
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let (gamma, beta) = (widened(gamma), widened(beta));
        by_dtype!(x.dtype(), norm::layer_norm(x, gamma, beta, epsilon))
    }

    fn act_and_mul(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), activation::act_and_mul(x, activation))
    }

    fn softmax_with_temperature(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        by_dtype!(logits.dtype(), sampling::softmax(logits, temperature))
    }

    fn apply_penalties(
        logits: FloatTensor<Self>,
        prompt: IntTensor<Self>,
        output: IntTensor<Self>,
        repetition: FloatTensor<Self>,
        frequency: FloatTensor<Self>,
        presence: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [repetition, frequency, presence] = [repetition, frequency, presence].map(widened);
        let by = penalties::Penalties { repetition, frequency, presence };
        by_dtype!(logits.dtype(), penalties::apply(logits, prompt, output, &by))
    }

    fn renorm_probs(probs: FloatTensor<Self>, by: Limit<Self>) -> FloatTensor<Self> {
        let by = match by {
            Limit::TopK(top_k) => likely::Limit::TopK(view::indices(top_k).storage().to_vec()),
            Limit::TopP(top_p) => likely::Limit::TopP(widened(top_p)),
        };
        likely::renorm_probs(probs, &by)
    }

    fn top_k_mask_logits(logits: FloatTensor<Self>, top_k: IntTensor<Self>) -> FloatTensor<Self> {
        let top_k = view::indices(top_k);
        by_dtype!(logits.dtype(), likely::top_k_mask_logits(logits, top_k.storage()))
    }

    fn top_k(x: FloatTensor<Self>, k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        by_dtype!(x.dtype(), top_k::top_k(x, k))
    }

    fn sample_logits(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        by_dtype!(logits.dtype(), sampling::sample_logits(logits, temperature, draws))
    }

    fn chain_speculative_sampling(
        draft_probs: FloatTensor<Self>,
        draft_ids: IntTensor<Self>,
        target_probs: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        speculative::chain(draft_probs, draft_ids, target_probs, draws)
    }

    fn sample_probs(
        probs: FloatTensor<Self>,
        top_k: MaybeInts<Self>,
        top_p: MaybeFloats<Self>,
        min_p: MaybeFloats<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        let floats = |floats| match floats {
            MaybeFloats::None => None,
            MaybeFloats::Some(floats) => Some(widened(floats)),
        };
        let filters = sampling::Filters { top_k: ints(top_k), top_p: floats(top_p), min_p: floats(min_p) };
        sampling::sample_probs(probs, &filters, draws)
    }

    fn matmul_nt(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), matmul::matmul_nt(x, weight))
    }
}

/// The elements of a tensor of one axis, in f32.
fn widened(tensor: FlexTensor) -> Vec<f32> {
    by_dtype!(tensor.dtype(), view::widened(tensor))
}

/// The elements of an integer tensor of one axis, if there is one.
fn ints(tensor: MaybeInts<Flex>) -> Option<Vec<i32>> {
    match tensor {
        MaybeInts::None => None,
        MaybeInts::Some(tensor) => Some(view::indices(tensor).storage().to_vec()),
    }
}
