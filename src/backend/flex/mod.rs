//! Flex, Burn's CPU backend: native code over slices, with rayon and the vector units of the processor at hand.

mod activation;
mod attention;
mod bits;
mod codes;
mod draw;
mod dtype;
mod filter;
mod float;
mod linear;
mod logits;
mod matmul;
mod merge;
mod moe;
mod norm;
mod output;
mod pages;
mod penalties;
mod quantized;
mod rope;
mod sampling;
mod scratch;
mod segment_gemm;
mod simd;
mod speculative;
mod top_k;
mod view;
mod weights;

use burn::backend::{
    Flex,
    tensor::{BoolTensor, FloatTensor, IntTensor},
};
use burn::tensor::{DType, bf16, f16};
use burn_flex::FlexTensor;

use self::dtype::{by_dtype, rounded};
use crate::extension::{
    Attended, Batch, BitSegments, FlashInferBackend, KeysValues, KvTensors, Limit, MaskedBatch, MaybeFloats,
    MaybeHeadNorm, MaybeInts, MaybeScales, NormedSum, Pages, RotatedAndAppended, Rotations, Rounding, Rows,
    ScaledRows,
};
use crate::types::{
    Activation, AttentionParams, BitOrder, Code8, Fp8, LinearParams, RmsNormStyle, RopeStyle, RoutingParams,
    WeightFormat, WeightLayout,
};

impl FlashInferBackend for Flex {
    fn batch_attention(
        q: FloatTensor<Self>,
        kv: KeysValues<Self>,
        batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self> {
        by_dtype!(q.dtype(), attention::attention(q, kv, batch, params))
    }

    fn write_ints(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        view::overwritten(buffer, &values)
    }

    fn append_paged_kv(
        pages: Pages<Self>,
        tokens: KvTensors<Self>,
        slots: IntTensor<Self>,
    ) -> KvTensors<Self> {
        let slots = view::indices(slots);
        let format = pages.format.unwrap_or(Code8::Int8);
        let codes = codes(pages.scales, pages.format);
        let layout = pages.layout;
        match (pages.tensors, tokens) {
            (KvTensors::Codes(k_pool, v_pool), KvTensors::Floats(k, v)) => {
                let write = |pool: FlexTensor, new: FlexTensor, codes: &pages::Codes| {
                    let slots = of_tokens(&slots, &new);
                    by_dtype!(new.dtype(), pages::append_codes(pool, new, slots, layout, codes))
                };
                let [k_codes, v_codes] = &codes;
                KvTensors::Codes(write(k_pool, k, k_codes), write(v_pool, v, v_codes))
            }
            (KvTensors::Scaled(k_pool, v_pool, k_scales, v_scales), KvTensors::Floats(k, v)) => {
                let write = |pool: FlexTensor, scales: FlexTensor, new: FlexTensor| {
                    let slots = of_tokens(&slots, &new);
                    by_dtype!(new.dtype(), pages::append_scaled(pool, scales, new, slots, layout, format))
                };
                let (k, k_scales) = write(k_pool, k_scales, k);
                let (v, v_scales) = write(v_pool, v_scales, v);
                KvTensors::Scaled(k, v, k_scales, v_scales)
            }
            (pools, tokens) => {
                let write = |pool: FlexTensor, new: FlexTensor| {
                    let slots = of_tokens(&slots, &new);
                    pages::append_copies(pool, new, slots, layout)
                };
                let (KvTensors::Floats(k, v) | KvTensors::Codes(k, v) | KvTensors::Scaled(k, v, ..)) =
                    &tokens;
                let (k, v) = (k.clone(), v.clone());
                match (pools, tokens) {
                    (KvTensors::Floats(k_pool, v_pool), _) => {
                        KvTensors::Floats(write(k_pool, k), write(v_pool, v))
                    }
                    (KvTensors::Codes(k_pool, v_pool), _) => {
                        KvTensors::Codes(write(k_pool, k), write(v_pool, v))
                    }
                    (
                        KvTensors::Scaled(k_pool, v_pool, mut k_scales, mut v_scales),
                        KvTensors::Scaled(_, _, k_new, v_new),
                    ) => {
                        (k_scales, v_scales) = (write(k_scales, k_new), write(v_scales, v_new));
                        KvTensors::Scaled(write(k_pool, k), write(v_pool, v), k_scales, v_scales)
                    }
                    // `ops` appends codes to pages that they are read from.
                    (pools @ KvTensors::Scaled(..), _) => pools,
                }
            }
        }
    }

    fn gather_paged_kv(pages: Pages<Self>, slots: IntTensor<Self>, dtype: DType) -> KvTensors<Self> {
        let slots = view::indices(slots);
        let slots: &[i32] = slots.storage();
        let layout = pages.layout;
        match pages.tensors {
            KvTensors::Floats(k, v) => {
                let [k, v] = [k, v].map(|pool| pages::gather_copies(pool, slots, layout));
                KvTensors::Floats(k, v)
            }
            KvTensors::Codes(k, v) if dtype == DType::U8 => {
                let [k, v] = [k, v].map(|pool| pages::gather_copies(pool, slots, layout));
                KvTensors::Codes(k, v)
            }
            KvTensors::Codes(k, v) => {
                let [k_codes, v_codes] = codes(pages.scales, pages.format);
                let read = |pool: FlexTensor, codes: &pages::Codes| {
                    by_dtype!(dtype, pages::gather_codes(pool, slots, layout, codes))
                };
                KvTensors::Floats(read(k, &k_codes), read(v, &v_codes))
            }
            KvTensors::Scaled(k, v, k_scales, v_scales) => {
                let copied = |pool: FlexTensor| pages::gather_copies(pool, slots, layout);
                let (k, v, k_scales, v_scales) = (copied(k), copied(v), copied(k_scales), copied(v_scales));
                if dtype == DType::U8 {
                    return KvTensors::Scaled(k, v, k_scales, v_scales);
                }
                let format = pages.format.unwrap_or(Code8::Int8);
                let wide = |codes: FlexTensor, scales: FlexTensor| {
                    by_dtype!(dtype, pages::rescaled(codes, scales, format))
                };
                KvTensors::Floats(wide(k, k_scales), wide(v, v_scales))
            }
        }
    }

    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let by = Rotation::of(rotations);
        (by.rotated(q, 0), by.rotated(k, 1))
    }

    fn rope_quantize_fp8(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        rotations: Rotations<Self>,
        q_scale: FloatTensor<Self>,
        k_scale: FloatTensor<Self>,
        format: Fp8,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        let by = Rotation::of(rotations);
        let quantized = |x: FlexTensor, which: usize, scale: FlexTensor| {
            pages::quantized(
                by.rotated_wide(x, which),
                &pages::Codes { format: format.into(), scales: widened(scale) },
            )
        };
        (quantized(q, 0, q_scale), quantized(k, 1, k_scale))
    }

    fn rope_append_paged_kv(
        pages: Pages<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        rotations: Rotations<Self>,
        slots: IntTensor<Self>,
    ) -> RotatedAndAppended<Self> {
        let by = Rotation::of(rotations);
        let q = by.rotated(q, 0);
        let pages = match pages.tensors {
            KvTensors::Floats(..) => {
                let tokens = KvTensors::Floats(by.rotated(k, 1), v);
                Self::append_paged_kv(pages, tokens, slots)
            }
            // As the kernels, which look at all of a key before they round it.
            KvTensors::Scaled(..) => {
                let tokens = KvTensors::Floats(by.rotated(k, 1), v);
                Self::append_paged_kv(pages, tokens, slots)
            }
            // Fp8 is rounded once: from f32, for the values as well, so that both are of one type.
            KvTensors::Codes(..) => {
                let v = by_dtype!(v.dtype(), view::wide(v));
                let tokens = KvTensors::Floats(by.rotated_wide(k, 1), v);
                Self::append_paged_kv(pages, tokens, slots)
            }
        };
        RotatedAndAppended { q, pages }
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
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> Rows<Self> {
        let factors = norm::factors(widened(weight), style);
        rounded!(rounding, x.dtype(), norm::rms_norm(x, &factors, epsilon))
    }

    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> NormedSum<Self> {
        let factors = norm::factors(widened(weight), style);
        match codes_of_rows(rounding) {
            None => {
                let (normed, sum) =
                    by_dtype!(x.dtype(), norm::fused_add_rms_norm(x, residual, &factors, epsilon));
                NormedSum { normed: Rows::Floats(normed), sum }
            }
            Some(codes) => {
                let (wide, sum) =
                    by_dtype!(x.dtype(), norm::fused_add_rms_norm_wide(x, residual, &factors, epsilon));
                NormedSum { normed: Rows::Codes(pages::quantized(wide, &codes)), sum }
            }
        }
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        rounding: Rounding<Self>,
        epsilon: f32,
    ) -> Rows<Self> {
        let (gamma, beta) = (widened(gamma), widened(beta));
        rounded!(rounding, x.dtype(), norm::layer_norm(x, &gamma, &beta, epsilon))
    }

    fn act_and_mul(x: FloatTensor<Self>, rounding: Rounding<Self>, activation: Activation) -> Rows<Self> {
        rounded!(rounding, x.dtype(), activation::act_and_mul(x, activation))
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
            Limit::TopK(top_k) => filter::Limit::TopK(view::indices(top_k).storage().to_vec()),
            Limit::TopP(top_p) => filter::Limit::TopP(widened(top_p)),
        };
        filter::renorm_probs(probs, &by)
    }

    fn top_k_mask_logits(logits: FloatTensor<Self>, top_k: IntTensor<Self>) -> FloatTensor<Self> {
        let top_k = view::indices(top_k);
        by_dtype!(logits.dtype(), filter::top_k_mask_logits(logits, top_k.storage()))
    }

    fn top_k(x: FloatTensor<Self>, k: usize) -> (FloatTensor<Self>, IntTensor<Self>) {
        by_dtype!(x.dtype(), top_k::top_k(x, k))
    }

    fn sample_logits(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        by_dtype!(logits.dtype(), logits::sample(logits, temperature, draws))
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
        let floats = |floats: MaybeFloats<Self>| floats.into_option().map(widened);
        let filters = sampling::Filters { top_k: ints(top_k), top_p: floats(top_p), min_p: floats(min_p) };
        sampling::sample_probs(probs, &filters, draws)
    }

    fn map_mask(
        bytes: IntTensor<Self>,
        _first_bits: IntTensor<Self>,
        index: IntTensor<Self>,
        _batch: MaskedBatch,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        // Keys are visited one by one, by the bytes as they are.
        (bytes, index)
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
        _tile_rows: usize,
        layout: WeightLayout,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), segment_gemm::segment_gemm(x, weights, work_items, layout))
    }

    fn moe_route(
        logits: FloatTensor<Self>,
        bias: MaybeFloats<Self>,
        params: RoutingParams,
    ) -> (FloatTensor<Self>, IntTensor<Self>) {
        by_dtype!(logits.dtype(), moe::route(logits, bias.into_option(), params))
    }

    fn fused_moe(
        x: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        experts: IntTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), moe::fused_moe(x, [gate_up, down], weights, experts, activation))
    }

    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        norm: MaybeFloats<Self>,
        bias: MaybeFloats<Self>,
        residual: MaybeFloats<Self>,
        params: LinearParams,
    ) -> FloatTensor<Self> {
        let (norm, bias, residual) = (norm.into_option(), bias.into_option(), residual.into_option());
        by_dtype!(x.dtype(), linear::linear(x, weight, norm, bias, residual, params))
    }

    fn matmul_nt_quantized(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        format: WeightFormat,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), quantized::matmul_nt(x, codes, scales, format))
    }

    fn quantize_rows(x: FloatTensor<Self>, format: Fp8) -> ScaledRows<Self> {
        by_dtype!(x.dtype(), quantized::quantize_rows(x, format))
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
        let (bias, residual) = (bias.into_option(), residual.into_option());
        let (x, weight) = (quantized::rows(x.codes, x.scales), quantized::numbers(codes, scales, format));
        by_dtype!(params.dtype, linear::of_f32(x, weight, bias, residual, params))
    }
}

/// The fp8 formats and scales of keys and of values; none without scales.
fn codes(scales: MaybeScales<Flex>, format: Option<Code8>) -> [pages::Codes; 2] {
    let format = format.unwrap_or(Code8::Int8);
    let scales = match scales {
        MaybeScales::None => [vec![1.0], vec![1.0]],
        MaybeScales::Some(k, v) => [k, v].map(widened),
    };
    scales.map(|scales| pages::Codes { format, scales })
}

/// The fp8 format and scale of rows, if they are rounded to fp8.
fn codes_of_rows(rounding: Rounding<Flex>) -> Option<pages::Codes> {
    match (rounding.scale, rounding.format) {
        (MaybeFloats::Some(scale), Some(format)) => {
            Some(pages::Codes { format: format.into(), scales: widened(scale) })
        }
        _ => None,
    }
}

/// The entries of an index tensor, one for each token: an empty tensor is padded.
fn of_tokens<'a>(slots: &'a FlexTensor, tokens: &FlexTensor) -> &'a [i32] {
    &slots.storage()[..view::dims::<3>(tokens)[0]]
}

/// Rotations of queries and of keys, taken apart.
struct Rotation {
    cos_sin: FlexTensor,
    positions: FlexTensor,
    norms: Option<[rope::HeadNorm; 2]>,
    style: RopeStyle,
}

impl Rotation {
    fn of(Rotations { cos_sin, positions, norm, style }: Rotations<Flex>) -> Self {
        let norms = match norm {
            MaybeHeadNorm::None => None,
            MaybeHeadNorm::Some(q, k, epsilon) => {
                Some([q, k].map(|weight| rope::HeadNorm { weight: widened(weight), epsilon }))
            }
        };
        Self { cos_sin: view::with_rows(cos_sin), positions: view::indices(positions), norms, style }
    }

    fn by(&self) -> rope::Rotations<'_> {
        let Self { cos_sin, positions, style, .. } = self;
        rope::Rotations { cos_sin, positions: positions.storage(), style: *style }
    }

    /// Queries (0) or keys (1), rotated.
    fn rotated(&self, x: FlexTensor, which: usize) -> FlexTensor {
        let norm = self.norms.as_ref().map(|norms| &norms[which]);
        by_dtype!(x.dtype(), rope::rope(x, &self.by(), norm))
    }

    /// The same in f32.
    fn rotated_wide(&self, x: FlexTensor, which: usize) -> FlexTensor {
        let norm = self.norms.as_ref().map(|norms| &norms[which]);
        by_dtype!(x.dtype(), rope::rope_wide(x, &self.by(), norm))
    }
}

/// The elements of a tensor of one axis, in f32.
fn widened(tensor: FlexTensor) -> Vec<f32> {
    by_dtype!(tensor.dtype(), view::widened(tensor))
}

/// The elements of an integer tensor of one axis, if there is one.
fn ints(tensor: MaybeInts<Flex>) -> Option<Vec<i32>> {
    tensor.into_option().map(|tensor| view::indices(tensor).storage().to_vec())
}
