//! The parts of attention beside its two products.
//!
//! ```text
//! o_i = finish(Σ_j p_ij v_j / Σ_j p_ij)      p_ij = exp(s_ij)      for the keys j of `keys` that `keep` keeps
//! s_ij = scale · (logit(q_i·k_j) + slope_i · (j - position_i))
//! ```
//! Without the softmax (`SOFTMAX`) it is `o_i = finish(Σ_j s_ij v_j)`. Every kernel is generic over a [`Variant`]. The hooks see what FlashInfer's variants see: the request, the
//! query and the key within it, and the heads. [`Standard`] is one like any other.

#![allow(missing_docs, reason = "the derived launch structs have none; what is written here does")]

use cubecl::prelude::*;

use crate::math::Math;
use crate::request::{QueryRow, RequestShape};

/// The parts of attention beside the two products. Only `scale` has no default. Kernels do not check indices:
/// a hook must not read beyond the tensors of its `Args`, as [`Call::run`](super::Call::run) says.
///
/// Hooks read, and must not write. They are called for tiles: for keys beyond a request's last one and rows twice, but not
/// for keys that no row of a tile sees, and in no order. CubeCL would let a hook store to an `Atomic` of its `Args`, which
/// are shared. But the tensors of a call are its inputs: other tensors may have the same memory, a copy may stand for one
/// whose strides the kernel cannot take, and neither Burn's Fusion nor a captured graph knows that they change. The results
/// of a call are its output and LSE, so what a hook is to write has to be the output: without a softmax and with the
/// identity for values that is the logits, as `examples/dump_logits.rs` shows.
///
/// The hooks are `#[cube]` functions: implement the trait with `#[cube] impl Variant for ...`. The trait
/// itself is written out, since `#[cube]` on a trait drops default bodies.
pub trait Variant: Send + Sync + 'static {
    /// The tensors and scalars of the hooks, a `#[derive(CubeType, CubeLaunch)]` struct.
    type Args: LaunchArg + Send + Sync + 'static;

    /// False if the logits are the weights of the values themselves: no exponential, no normalising, no LSE.
    const SOFTMAX: bool = true;

    /// The factor on every logit, above 0.
    fn scale(args: &Self::Args) -> f32;

    /// The keys `start..end` that query `query` of a request can see. Keys outside are never read. Neither
    /// end may decrease from a query to the next: a tile of queries reads from the first one's start to the
    /// last one's end.
    fn keys(_args: &Self::Args, request: &RequestShape, _query: usize) -> (usize, usize) {
        (0, request.kv_len)
    }

    /// The logit before `scale`, of the product `q·k`.
    fn logit<M: Math>(_args: &Self::Args, product: f32, _row: &QueryRow, _key: usize) -> f32 {
        product
    }

    /// The growth of a row's logits from a key to the next, 0 at the query's own position: a linear bias, which costs one
    /// fused multiply-add. It is found once for each row and tile of queries, and before `scale`.
    fn slope(_args: &Self::Args, _row: &QueryRow) -> ComptimeOption<f32> {
        ComptimeOption::None
    }

    /// The mask of single keys within the range of [`keys`](Self::keys): false is a logit of -inf, or a weight of 0.
    fn keep(_args: &Self::Args, _row: &QueryRow, _key: usize) -> bool {
        true
    }

    /// Keys that all queries from `first` to `last` see and [`keep`](Self::keep) keeps: in tiles of nothing else the kernels on
    /// matrix units do not ask. Without such bounds they ask for every key.
    fn unmasked(
        _args: &Self::Args,
        _request: &RequestShape,
        _first: usize,
        _last: usize,
    ) -> ComptimeOption<KeyBounds> {
        ComptimeOption::None
    }

    /// `(m, l)` of a row before its first key: the largest logit, before `scale`, and the sum of
    /// `exp(scale · (logit - m))`. `(z / scale, 1)` is a sink of logit `z`, whose value is 0.
    fn start(_args: &Self::Args, _row: &QueryRow) -> (f32, f32) {
        (f32::NEG_INFINITY, 0.0)
    }

    /// The distance of `s_ij` below the largest of its row so far, above 0, from which on a key may be left out: skip-softmax.
    /// A whole tile of keys is, and only if that holds for all rows that compute it together. `-ln(t)` leaves out weights
    /// below `t` times the largest. Which tiles there are is the kernel's choice. The first that a row sees is never left out,
    /// unless the row [starts](Self::start) with a maximum.
    ///
    /// Source: *BLASST*, arXiv 2512.12087.
    fn negligible(_args: &Self::Args, _request: &RequestShape) -> ComptimeOption<f32> {
        ComptimeOption::None
    }

    /// An element of the output, from the normalised one.
    fn finish(_args: &Self::Args, output: f32, _row: &QueryRow) -> f32 {
        output
    }

    #[doc(hidden)]
    fn __expand_scale(scope: &Scope, args: &<Self::Args as CubeType>::ExpandType) -> NativeExpand<f32>;

    #[doc(hidden)]
    fn __expand_keys(
        scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        request: &<RequestShape as CubeType>::ExpandType,
        _query: NativeExpand<usize>,
    ) -> (NativeExpand<usize>, NativeExpand<usize>) {
        (0usize.into_expand(scope), request.kv_len)
    }

    #[doc(hidden)]
    fn __expand_logit<M: Math>(
        _scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        product: NativeExpand<f32>,
        _row: &<QueryRow as CubeType>::ExpandType,
        _key: NativeExpand<usize>,
    ) -> NativeExpand<f32> {
        product
    }

    #[doc(hidden)]
    fn __expand_slope(
        _scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        _row: &<QueryRow as CubeType>::ExpandType,
    ) -> ComptimeOptionExpand<f32> {
        ComptimeOptionExpand::None
    }

    #[doc(hidden)]
    fn __expand_keep(
        scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        _row: &<QueryRow as CubeType>::ExpandType,
        _key: NativeExpand<usize>,
    ) -> NativeExpand<bool> {
        true.into_expand(scope)
    }

    #[doc(hidden)]
    fn __expand_unmasked(
        _scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        _request: &<RequestShape as CubeType>::ExpandType,
        _first: NativeExpand<usize>,
        _last: NativeExpand<usize>,
    ) -> ComptimeOptionExpand<KeyBounds> {
        ComptimeOptionExpand::None
    }

    #[doc(hidden)]
    fn __expand_start(
        scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        _row: &<QueryRow as CubeType>::ExpandType,
    ) -> (NativeExpand<f32>, NativeExpand<f32>) {
        (f32::NEG_INFINITY.into_expand(scope), 0.0f32.into_expand(scope))
    }

    #[doc(hidden)]
    fn __expand_negligible(
        _scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        _request: &<RequestShape as CubeType>::ExpandType,
    ) -> ComptimeOptionExpand<f32> {
        ComptimeOptionExpand::None
    }

    #[doc(hidden)]
    fn __expand_finish(
        _scope: &Scope,
        _args: &<Self::Args as CubeType>::ExpandType,
        output: NativeExpand<f32>,
        _row: &<QueryRow as CubeType>::ExpandType,
    ) -> NativeExpand<f32> {
        output
    }
}

/// The keys `start..end`.
#[derive(CubeType)]
pub struct KeyBounds {
    /// First key.
    pub start: usize,
    /// One past the last key.
    pub end: usize,
}

/// A right-aligned causal mask and a left window, for the `Args` of a variant.
#[derive(CubeType, CubeLaunch)]
pub struct CausalWindow {
    /// Keys before the query's own; `i32::MAX` for no window.
    pub window_left: usize,
    /// 1 or 0.
    pub causal: u32,
}

#[cube]
impl CausalWindow {
    /// The keys `start..end` that query `query` sees: the last query sits at the last key, and sees itself and
    /// `window_left` keys before it.
    pub fn keys(&self, request: &RequestShape, query: usize) -> (usize, usize) {
        // Position of the query among the keys, shifted by qo_len to stay above 0.
        let shifted = request.kv_len + query;
        let mut end = request.kv_len;
        if self.causal == 1 {
            end = saturating_sub(shifted + 1, request.qo_len);
        }
        (saturating_sub(shifted, request.qo_len + self.window_left), end)
    }
}

impl CausalWindow {
    /// The range of keys of standard attention with these options.
    pub fn new(causal: bool, window_left: Option<usize>) -> Self {
        let none = i32::MAX as usize;
        Self { window_left: window_left.map_or(none, |window| window.min(none)), causal: causal.into() }
    }

    /// The argument of a launch.
    pub fn launch(&self) -> CausalWindowLaunch {
        CausalWindowLaunch::new(self.window_left, self.causal)
    }
}

#[cube]
pub(super) fn saturating_sub(a: usize, b: usize) -> usize {
    select(a > b, a - min(a, b), 0usize)
}
