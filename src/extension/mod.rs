//! The interface between Burn and the kernels, which a backend implements.
//!
//! Everything that arrives here has been checked by the functions of this crate. A backend trusts shapes,
//! element types, devices and indices, and must not read anything that the arguments do not name: not an
//! unused slot of a page, not a page that no request owns.

mod arguments;
#[cfg(feature = "fusion")]
mod fused;

use burn::backend::{
    Backend, backend_extension,
    tensor::{BoolTensor, FloatTensor, IntTensor},
};
use burn::tensor::DType;

pub use arguments::*;

use crate::types::Fp8;
pub use crate::types::{
    Activation, AttentionParams, BitOrder, ExpertGroups, LinearParams, RmsNormStyle, RopeStyle, RouterScore,
    RoutingParams, WeightFormat, WeightLayout,
};

/// The operations of this crate, as a backend provides them.
///
/// Float tensors are f32, f16 or bf16. Any strides are allowed, but the last axis of a page pool is contiguous. Tensors
/// come without autodiff: the operations take it off their arguments and put it on their results.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(all(feature = "cube", feature = "fusion"))
)]
pub trait FlashInferBackend: Backend {
    /// Attention of `q` `[tokens, q_heads, head_dim]` over the keys and values of each request.
    #[fusion(meta = fused::attended)]
    fn batch_attention(
        q: FloatTensor<Self>,
        #[extension_type] kv: KeysValues<Self>,
        #[extension_type] batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self>;

    /// Lays out the bytes (`U8`) of a custom mask for the kernels of a batch, whose lists are in `index`; `first_bits` are
    /// those of [`MaybeMask`]. Returns the bits and the tiles of keys that are visible.
    #[fusion(meta = |bytes, _, _, batch| fused::mapped_mask(bytes, batch))]
    fn map_mask(
        bytes: IntTensor<Self>,
        first_bits: IntTensor<Self>,
        index: IntTensor<Self>,
        batch: MaskedBatch,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// Writes `values` to the front of `buffer`, an `i32` tensor of one axis at least as long, and returns
    /// it: in place, even if it has other owners, on devices that capture graphs.
    #[fusion(meta = |buffer, _| buffer.clone())]
    fn write_ints(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self>;

    /// Writes token `t` of `tokens`, `[tokens, kv_heads, head_dim]`, to slot `slots[t]` of `pages`, where
    /// slot `page * page_size + offset` is a token's place; a negative slot skips the token. Floats are
    /// rounded to fp8 where the pages are fp8; fp8 is copied. In place when the pages have no other owner, or
    /// are pinned.
    #[fusion(meta = |pages, _, _| pages.tensors.clone())]
    fn append_paged_kv(
        #[extension_type] pages: Pages<Self>,
        #[extension_type] tokens: KvTensors<Self>,
        slots: IntTensor<Self>,
    ) -> KvTensors<Self>;

    /// Reads the slots: fp8 if `dtype` is `U8`, else floats of that type. The rows of negative slots are not
    /// defined.
    #[fusion(meta = fused::gathered)]
    fn gather_paged_kv(
        #[extension_type] pages: Pages<Self>,
        slots: IntTensor<Self>,
        dtype: DType,
    ) -> KvTensors<Self>;

    /// Rotates the first `rotary_dim` elements of every head of `q` and `k` `[tokens, heads, head_dim]`; in
    /// place, where one has no other owner.
    #[fusion(meta = |q, k, _| (q.clone(), k.clone()))]
    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        #[extension_type] rotations: Rotations<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// [`apply_rope`](Self::apply_rope), then `x / scale` in 8 bits, with scales `[1]` or `[heads]` (f32).
    #[fusion(meta = |q, k, _, _, _, _| (fused::codes(q), fused::codes(k)))]
    fn rope_quantize_fp8(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        #[extension_type] rotations: Rotations<Self>,
        q_scale: FloatTensor<Self>,
        k_scale: FloatTensor<Self>,
        format: Fp8,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// [`apply_rope`](Self::apply_rope), whose keys go to the slots of pages, and with them the values.
    #[fusion(meta = fused::rotated_and_appended)]
    fn rope_append_paged_kv(
        #[extension_type] pages: Pages<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        #[extension_type] rotations: Rotations<Self>,
        slots: IntTensor<Self>,
    ) -> RotatedAndAppended<Self>;

    /// Merges two attention states of each token: `v` `[tokens, heads, head_dim]`, `s` `[tokens, heads]`
    /// (base 2, f32). Where `mask` `[tokens]` (`i32`) is 0, the first one stays as it is. In place of `v_a`
    /// and `s_a` when they have no other owner.
    #[fusion(meta = |v_a, s_a, _, _, _| (v_a.clone(), s_a.clone()))]
    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
        #[extension_type] mask: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Merges the attention states of each token: `v` `[tokens, states, heads, head_dim]`, `s`
    /// `[tokens, states, heads]` (base 2, f32). With `indptr` `[tokens + 1]` (`i32`) `v` is
    /// `[rows, heads, head_dim]`, `s` `[rows, heads]`, and those of token `t` are the rows
    /// `indptr[t]..indptr[t + 1]`. There is at least one state or row.
    #[fusion(meta = fused::merged)]
    fn merge_states(
        v: FloatTensor<Self>,
        s: FloatTensor<Self>,
        #[extension_type] indptr: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `x / sqrt(mean(x^2) + epsilon) * weight` over the rows of `x` `[rows, width]`, in f32, rounded once.
    #[fusion(meta = |x, _, rounding, _, _| fused::rounded(x.shape.clone(), x.dtype, rounding))]
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> Rows<Self>;

    /// `t = x + residual` in f32; returns `rms_norm(t)` and `t`, each rounded once. In place of `x` and `residual` when
    /// they have no other owner.
    #[fusion(meta = fused::normed_sum)]
    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] rounding: Rounding<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> NormedSum<Self>;

    /// `(x - mean(x)) / sqrt(variance(x) + epsilon) * gamma + beta` over the rows of `x` `[rows, width]`, in
    /// f32, rounded once. `gamma` and `beta` are both of the type of `x`, or both f32.
    // Burn's backends have a `layer_norm` already.
    #[fusion(meta = |x, _, _, rounding, _| fused::rounded(x.shape.clone(), x.dtype, rounding))]
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] rounding: Rounding<Self>,
        epsilon: f32,
    ) -> Rows<Self>;

    /// `act(a) * b` for the halves `a` and `b` of each row of `x` `[rows, 2 * width]`, in f32, rounded once.
    #[fusion(meta = |x, rounding, _| fused::rounded([x.shape[0], x.shape[1] / 2].into(), x.dtype, rounding))]
    fn act_and_mul(
        x: FloatTensor<Self>,
        #[extension_type] rounding: Rounding<Self>,
        activation: Activation,
    ) -> Rows<Self>;

    /// `exp(x / t) / Σ exp(x / t)` over the rows of `logits` `[rows, vocab]` with their temperatures `t`
    /// `[rows]` (f32): in f32, the largest logits alone at temperature 0.
    #[fusion(meta = |logits, _| fused::f32s(logits.shape.clone()))]
    fn softmax_with_temperature(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `logits` `[rows, vocab]`, less likely where a token is in `prompt` or `output`, which have the number
    /// of each (`i32`, as `logits`), by three penalties `[rows]` (f32). In place when the logits have no
    /// other owner.
    #[fusion(meta = |logits, _, _, _, _, _| logits.clone())]
    fn apply_penalties(
        logits: FloatTensor<Self>,
        prompt: IntTensor<Self>,
        output: IntTensor<Self>,
        repetition: FloatTensor<Self>,
        frequency: FloatTensor<Self>,
        presence: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Filters `probs` `[rows, vocab]` (f32): the kept ones divided by their sum, and 0 for the others.
    #[fusion(meta = |probs, _| probs.clone())]
    fn renorm_probs(probs: FloatTensor<Self>, #[extension_type] by: Limit<Self>) -> FloatTensor<Self>;

    /// `logits` `[rows, vocab]`, but `-inf` where at least `top_k` `[rows]` others are larger.
    #[fusion(dtype = logits, shape = logits)]
    fn top_k_mask_logits(logits: FloatTensor<Self>, top_k: IntTensor<Self>) -> FloatTensor<Self>;

    /// The `k` largest numbers of each row of `x` `[rows, vocab]`, and where they are (`i32`): the largest
    /// first, NaN last, the first of equals first.
    #[fusion(meta = |x, k| fused::top_k(x, *k))]
    fn top_k(x: FloatTensor<Self>, k: usize) -> (FloatTensor<Self>, IntTensor<Self>);

    /// A token for each of `draws` `[draws, 6]` (see [`Draws`](crate::sampling::Draws)), and whether it is
    /// one (1 or 0): drawn by `softmax(logits / t)`, all `i32`.
    #[fusion(meta = |_, _, draws| fused::samples(draws))]
    fn sample_logits(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// Verifies drafts `draft_ids` `[requests, drafted]` with `draft_probs` `[requests, drafted, vocab]`
    /// (f32), by `target_probs` `[requests, drafted + 1, vocab]` (f32). Returns the tokens
    /// `[requests, drafted + 1]`, and `[requests, 3]`: the number accepted each by itself, the number before
    /// the first rejection, and 1 if a token follows these.
    #[fusion(meta = |_, draft_ids, _, _| fused::speculation(draft_ids))]
    fn chain_speculative_sampling(
        draft_probs: FloatTensor<Self>,
        draft_ids: IntTensor<Self>,
        target_probs: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// A token for each of `draws` `[draws, 6]`, and whether it is one (1 or 0), all `i32`: drawn by `probs`
    /// `[rows, vocab]` (f32) from the tokens that pass the filters, `[rows]` each.
    #[fusion(meta = |_, _, _, _, draws| fused::samples(draws))]
    fn sample_probs(
        probs: FloatTensor<Self>,
        #[extension_type] top_k: MaybeInts<Self>,
        #[extension_type] top_p: MaybeFloats<Self>,
        #[extension_type] min_p: MaybeFloats<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// The bits of each segment eight to a byte, `bytes` of them (`U8`); zeros fill up the last one of each.
    #[fusion(meta = |_, _, bytes, _| fused::bytes(*bytes))]
    fn pack_bits(
        bits: BoolTensor<Self>,
        #[extension_type] segments: BitSegments<Self>,
        bytes: usize,
        order: BitOrder,
    ) -> IntTensor<Self>;

    /// Unpacks the bytes (`U8`) of `pack_bits`: one of its `bits` to a byte (`U8`) that is 0 or 1.
    #[fusion(meta = |_, _, bits, _| fused::bytes(*bits))]
    fn unpack_bits(
        bytes: IntTensor<Self>,
        #[extension_type] segments: BitSegments<Self>,
        bits: usize,
        order: BitOrder,
    ) -> IntTensor<Self>;

    /// `x[r] · weights[i]` for the rows `r` and the matrix `i` of each of `work_items`, accumulated in f32: `x`
    /// `[rows, d_in]`, `weights` `[matrices, d_in, d_out]`, or in the order of `layout`. Each work item of
    /// `work_items` (`i32`) has the first row, the end of its rows (at least one, at most `tile_rows`), and the
    /// matrix. Each row is in one of them, and there is a row.
    #[fusion(meta = |x, weights, _, _, layout| fused::products(x, weights, *layout))]
    fn segment_gemm(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        work_items: IntTensor<Self>,
        tile_rows: usize,
        layout: WeightLayout,
    ) -> FloatTensor<Self>;

    /// The `top_k` experts of each row of `logits` `[tokens, experts]` with the largest `score + bias`, the first of equals
    /// first: their weights (f32), and which they are (`i32`), `[tokens, top_k]` each. `bias` is `[experts]` (f32). The
    /// groups divide the experts, and those chosen have at least `top_k`.
    #[fusion(meta = |logits, _, params| fused::routes(logits, params))]
    fn moe_route(
        logits: FloatTensor<Self>,
        #[extension_type] bias: MaybeFloats<Self>,
        params: RoutingParams,
    ) -> (FloatTensor<Self>, IntTensor<Self>);

    /// `Σ_k weights[t, k] · down[e] · (act(gate[e] · x[t]) · (up[e] · x[t]))` for each row `t` of `x` `[tokens, hidden]` and
    /// `e = experts[t, k]`, accumulated in f32. `gate_up` is `[experts, 2 * inter, hidden]`, the gates first, and `down`
    /// `[experts, hidden, inter]`. `weights` (f32) and `experts` (`i32`) are `[tokens, top_k]`; a number that is no expert's,
    /// which may be any, adds nothing. No axis but that of tokens is empty.
    #[fusion(dtype = x, shape = x)]
    fn fused_moe(
        x: FloatTensor<Self>,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        experts: IntTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// `norm(x) · weightᵀ` for `x` `[rows, in]` and `weight` `[out, in]`, accumulated in f32, and its epilogue. The RMS norm
    /// with the factors `norm` `[in]` is there if these are. The epilogue is `bias` `[out]`, the gate and the soft cap, and
    /// `residual`, which has the shape and type of the output. In place where it has no other owner.
    #[fusion(meta = |x, weight, _, _, _, params| fused::linear(x, weight, params))]
    fn linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] norm: MaybeFloats<Self>,
        #[extension_type] bias: MaybeFloats<Self>,
        #[extension_type] residual: MaybeFloats<Self>,
        params: LinearParams,
    ) -> FloatTensor<Self>;

    /// `x · weightᵀ` for `x` `[rows, in]` and a weight `[out, in]` in codes, accumulated in f32: `codes` (`U8`) and `scales`
    /// (f32) as [`QuantizedWeight`](crate::QuantizedWeight) stores them. Of many rows the weight may be rounded to the type
    /// of `x` first.
    #[fusion(dtype = x, shape = { let mut shape = x.clone(); shape[1] = codes[0]; shape })]
    fn matmul_nt_quantized(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        format: WeightFormat,
    ) -> FloatTensor<Self>;

    /// Rows of `x` `[rows, width]` rounded to codes, each divided by `max |x| / largest code`, or by 1 if that is 0.
    #[fusion(meta = |x, _| fused::scaled_rows(x))]
    fn quantize_rows(x: FloatTensor<Self>, format: Fp8) -> ScaledRows<Self>;

    /// [`linear`](Self::linear) without a norm, of rows `x` of e4m3, with one scale or one for each row, and a
    /// weight of e4m3. `bias` and `residual` are of the type of the output.
    #[fusion(meta = |x, codes, _, _, _, _, params| fused::linear(&x.codes, codes, params))]
    fn scaled_linear(
        #[extension_type] x: ScaledRows<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        #[extension_type] bias: MaybeFloats<Self>,
        #[extension_type] residual: MaybeFloats<Self>,
        format: WeightFormat,
        params: LinearParams,
    ) -> FloatTensor<Self>;
}
