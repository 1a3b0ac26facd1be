//! The seam between Burn and the kernels: what a backend implements.
//!
//! Everything that arrives here has been checked by the functions of this crate. A backend trusts shapes, element types,
//! devices and indices, and must not read anything that the arguments do not name: not an unused slot of a page, not
//! a page that no request owns.
#![allow(
    clippy::large_enum_variant,
    reason = "an optional tensor is one a call and taken apart at once; so are those derived"
)]

use std::ops::Range;

use burn::backend::{
    Backend, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};

use crate::options::KvLayout;
pub use crate::plan::Launch;

/// Where the queries and the keys of each request lie, and who computes what.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub struct Batch<B: Backend> {
    /// `i32`: one list after the other, as `layout` says.
    pub index: IntTensor<B>,
    /// f32: room for partial results, if there are any. Written whoever else holds it.
    #[extension_type]
    pub workspace: MaybeFloats<B>,
    /// What is where.
    pub layout: BatchLayout,
}

/// The lists of a [`Batch`], as ranges of its `index`. Request `r` owns the query tokens `qo_indptr[r]..qo_indptr[r + 1]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchLayout {
    /// `[requests + 1]`: first query token of each request.
    pub qo_indptr: Range<usize>,
    /// `[requests + 1]`: first key of each request; or where its pages begin in `indices`.
    pub kv_indptr: Range<usize>,
    /// If keys and values are pages: `k`, `v` are `[pages, page_size, kv_heads, head_dim]`, or with heads before tokens. If
    /// not, `[kv_tokens, kv_heads, head_dim]`.
    pub pages: Option<PagesLayout>,
    /// What the kernels run.
    pub launch: Launch,
}

/// The lists of a batch whose keys and values lie in pages.
#[derive(Debug, Clone, PartialEq)]
pub struct PagesLayout {
    /// `[requests]`: tokens in the last page of each request, 0 for a request without pages.
    pub last_page_len: Range<usize>,
    /// `[kv_indptr[requests]]`: pages, in the order of the tokens they hold. Never empty: padded with one 0.
    pub indices: Range<usize>,
    /// Tokens a page holds.
    pub page_size: usize,
    /// Order of the axes of a page.
    pub layout: KvLayout,
}

/// The numbers of an attention problem, all of them decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// Right-aligned causal mask.
    pub causal: bool,
    /// Inclusive left window.
    pub window_left: Option<usize>,
    /// Soft cap on the logits.
    pub soft_cap: Option<f32>,
    /// Factor on `q·k`.
    pub scale: f32,
    /// Whether to return the base-2 log-sum-exp.
    pub return_lse: bool,
}

/// What attention returns: `output` `[tokens, q_heads, head_dim_vo]` of the type of the queries, and if it was asked
/// for `lse` `[tokens, q_heads]` in f32.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum Attended<B: Backend> {
    /// The output alone.
    WithoutLse(FloatTensor<B>),
    /// The output and the base-2 log-sum-exp.
    WithLse(FloatTensor<B>, FloatTensor<B>),
}

/// How RoPE pairs the elements of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RopeStyle {
    /// Element `i` with `i + rotary_dim / 2`: Llama and GPT-NeoX as Hugging Face stores them.
    #[default]
    Halves,
    /// Element `2i` with `2i + 1`: GPT-J, Llama as Meta stores it.
    Interleaved,
}

/// What the norm of a row is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RmsNormStyle {
    /// The weight.
    Plain,
    /// `1 + weight`, the sum in f32.
    Gemma,
}

/// What the first half of a row goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `a / (1 + exp(-a))`.
    Silu,
    /// `a / 2 * (1 + erf(a / sqrt(2)))`.
    Gelu,
    /// `a / 2 * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3)))`.
    GeluTanh,
}

/// A float tensor, or none.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum MaybeFloats<B: Backend> {
    /// There is none.
    None,
    /// This one.
    Some(FloatTensor<B>),
}

/// An integer tensor, or none.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum MaybeInts<B: Backend> {
    /// There is none.
    None,
    /// This one.
    Some(IntTensor<B>),
}

/// How much of each row of probabilities counts.
#[derive(Debug, Clone, ExtensionType)]
#[cfg_attr(feature = "fusion", extension_type(fusion))]
pub enum Limit<B: Backend> {
    /// `[rows]`: the tokens than which fewer than these are more likely.
    TopK(IntTensor<B>),
    /// `[rows]` of f32: the tokens than which the more likely ones have less probability.
    TopP(FloatTensor<B>),
}

/// The operations of this crate, as a backend provides them.
///
/// Float tensors are f32, f16 or bf16. Any strides are allowed, but the last axis of a page pool is contiguous.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(all(feature = "cube", feature = "fusion")),
    Autodiff
)]
pub trait FlashInferBackend: Backend {
    /// Attention of `q` `[tokens, q_heads, head_dim]` over the keys and values of each request.
    #[fusion(meta = fused::attended)]
    fn batch_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        #[extension_type] batch: Batch<Self>,
        params: AttentionParams,
    ) -> Attended<Self>;

    /// Writes `values` to the front of `buffer`, an `i32` tensor of one axis at least as long, and returns it: in place,
    /// whoever else holds it, on devices that capture graphs.
    #[fusion(meta = |buffer, _| buffer.clone())]
    fn write_ints(buffer: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self>;

    /// Writes token `t` of `k` and `v` `[tokens, kv_heads, head_dim]` to slot `slots[t]` of the pools, where slot
    /// `page * page_size + offset` is a token's place; a negative slot skips the token. In place when the pools have
    /// no other owner, or if they are `pinned` on devices that capture graphs.
    #[fusion(meta = |k_pool, v_pool, _, _, _, _, _| (k_pool.clone(), v_pool.clone()))]
    fn append_paged_kv(
        k_pool: FloatTensor<Self>,
        v_pool: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        slots: IntTensor<Self>,
        layout: KvLayout,
        pinned: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Rotates the first `rotary_dim` elements of every head of `q` and `k` `[tokens, heads, head_dim]`. Row `p` of
    /// `cos_sin` `[max_positions, rotary_dim]` (f32) holds the cosines of position `p`, then the sines.
    #[fusion(meta = |q, k, _, _, _| (q.clone(), k.clone()))]
    fn apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos_sin: FloatTensor<Self>,
        positions: IntTensor<Self>,
        style: RopeStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Merges two attention states of each token: `v` `[tokens, heads, head_dim]`, `s` `[tokens, heads]` (base 2, f32). Where
    /// `mask` `[tokens]` (`i32`) is 0, the first one stays as it is. In place of `v_a` and `s_a` when they have no other owner.
    #[fusion(meta = |v_a, s_a, _, _, _| (v_a.clone(), s_a.clone()))]
    fn merge_state(
        v_a: FloatTensor<Self>,
        s_a: FloatTensor<Self>,
        v_b: FloatTensor<Self>,
        s_b: FloatTensor<Self>,
        #[extension_type] mask: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Merges the attention states of each token: `v` `[tokens, states, heads, head_dim]`, `s` `[tokens, states, heads]`
    /// (base 2, f32). With `indptr` `[tokens + 1]` (`i32`) `v` is `[rows, heads, head_dim]`, `s` `[rows, heads]`, and those of
    /// token `t` are the rows `indptr[t]..indptr[t + 1]`. There is at least one state or row.
    #[fusion(meta = fused::merged)]
    fn merge_states(
        v: FloatTensor<Self>,
        s: FloatTensor<Self>,
        #[extension_type] indptr: MaybeInts<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `x / sqrt(mean(x^2) + epsilon) * weight` over the rows of `x` `[rows, width]`, in f32, rounded once.
    #[fusion(dtype = x, shape = x)]
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> FloatTensor<Self>;

    /// `t = x + residual` in f32; returns `rms_norm(t)` and `t`, each rounded once. In place of `x` and `residual` when
    /// they have no other owner.
    #[fusion(meta = |x, residual, _, _, _| (x.clone(), residual.clone()))]
    fn fused_add_rms_norm(
        x: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        style: RmsNormStyle,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `(x - mean(x)) / sqrt(variance(x) + epsilon) * gamma + beta` over the rows of `x` `[rows, width]`, in f32, rounded
    /// once. `gamma` and `beta` are both of the type of `x`, or both f32.
    // Burn's backends have a `layer_norm` already.
    #[fusion(dtype = x, shape = x)]
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// `act(a) * b` for the halves `a` and `b` of each row of `x` `[rows, 2 * width]`, in f32, rounded once.
    #[fusion(dtype = x, shape = { let mut shape = x.clone(); shape[1] /= 2; shape })]
    fn act_and_mul(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// `exp(x / t) / Σ exp(x / t)` over the rows of `logits` `[rows, vocab]` with their temperatures `t` `[rows]` (f32): in
    /// f32, the largest logits alone at temperature 0.
    #[fusion(meta = |logits, _| fused::f32s(logits.shape.clone()))]
    fn softmax_with_temperature(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `logits` `[rows, vocab]`, less likely where a token is in `prompt` or `output`, which have the number of each (`i32`,
    /// as `logits`), by three penalties `[rows]` (f32). In place when the logits have no other owner.
    #[fusion(meta = |logits, _, _, _, _, _| logits.clone())]
    fn apply_penalties(
        logits: FloatTensor<Self>,
        prompt: IntTensor<Self>,
        output: IntTensor<Self>,
        repetition: FloatTensor<Self>,
        frequency: FloatTensor<Self>,
        presence: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `probs` `[rows, vocab]` (f32) of what counts, divided by their sum, and 0 for the others.
    #[fusion(meta = |probs, _| probs.clone())]
    fn renorm_probs(probs: FloatTensor<Self>, #[extension_type] by: Limit<Self>) -> FloatTensor<Self>;

    /// `logits` `[rows, vocab]`, but `-inf` where at least `top_k` `[rows]` others are larger.
    #[fusion(dtype = logits, shape = logits)]
    fn top_k_mask_logits(logits: FloatTensor<Self>, top_k: IntTensor<Self>) -> FloatTensor<Self>;

    /// The `k` largest numbers of each row of `x` `[rows, vocab]`, and where they are (`i32`): the largest first, NaN last,
    /// the first of equals first.
    #[fusion(meta = |x, k| fused::top_k(x, *k))]
    fn top_k(x: FloatTensor<Self>, k: usize) -> (FloatTensor<Self>, IntTensor<Self>);

    /// A token for each of `draws` `[draws, 6]` (see [`Draws`](crate::sampling::Draws)), and whether it is one (1 or 0):
    /// `argmax(logit / t - ln(-ln(u)))`, all `i32`.
    #[fusion(meta = |_, _, draws| fused::samples(draws))]
    fn sample_logits(
        logits: FloatTensor<Self>,
        temperature: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// Of drafts `draft_ids` `[requests, drafted]` with `draft_probs` `[requests, drafted, vocab]` (f32), judged by
    /// `target_probs` `[requests, drafted + 1, vocab]` (f32): the tokens `[requests, drafted + 1]`, and `[requests, 3]`: how
    /// many are accepted each by itself, how many before the first that is not, and whether there is one after these.
    #[fusion(meta = |_, draft_ids, _, _| fused::speculation(draft_ids))]
    fn chain_speculative_sampling(
        draft_probs: FloatTensor<Self>,
        draft_ids: IntTensor<Self>,
        target_probs: FloatTensor<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// A token for each of `draws` `[draws, 6]`, and whether it is one (1 or 0), all `i32`: drawn by `probs` `[rows, vocab]`
    /// (f32) from the tokens that pass the filters, `[rows]` each.
    #[fusion(meta = |_, _, _, _, draws| fused::samples(draws))]
    fn sample_probs(
        probs: FloatTensor<Self>,
        #[extension_type] top_k: MaybeInts<Self>,
        #[extension_type] top_p: MaybeFloats<Self>,
        #[extension_type] min_p: MaybeFloats<Self>,
        draws: IntTensor<Self>,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// `x · weightᵀ` for `x` `[rows, in]` and `weight` `[out, in]`, accumulated in f32.
    #[fusion(dtype = x, shape = { let mut shape = x.clone(); shape[1] = weight[0]; shape })]
    fn matmul_nt(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Shapes of outputs that Fusion must know before anything runs.
#[cfg(feature = "fusion")]
mod fused {
    use super::{AttendedMetadata, AttentionParams, BatchMetadata, MaybeIntsMetadata};
    use burn::{
        backend::fusion::custom::TensorSpec,
        tensor::{DType, Shape},
    };

    pub(super) fn f32s(shape: Shape) -> TensorSpec {
        TensorSpec::new(shape, DType::F32)
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
        _k: &TensorSpec,
        v: &TensorSpec,
        _batch: &BatchMetadata,
        params: &AttentionParams,
    ) -> AttendedMetadata {
        let [tokens, heads, dim] = [q.shape[0], q.shape[1], v.shape[v.shape.num_dims() - 1]];
        let output = TensorSpec::new([tokens, heads, dim].into(), q.dtype);
        if params.return_lse {
            AttendedMetadata::WithLse(output, TensorSpec::new([tokens, heads].into(), DType::F32))
        } else {
            AttendedMetadata::WithoutLse(output)
        }
    }
}
