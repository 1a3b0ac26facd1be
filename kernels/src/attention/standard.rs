//! Standard attention: a variant like any other.
#![allow(missing_docs, reason = "the derived launch structs have none; what is written here does")]

use cubecl::prelude::*;

use super::launch::{Call, Inputs, KERNEL, Kernels};
use super::token_table::{TREE_TOKENS, TokenTable, token_table};
use super::variant::{CausalWindow, KeyBounds, Variant, saturating_sub};
use crate::device::tensor::{Result, contiguous};
use crate::math::Math;
use crate::request::{KeyRange, QueryRow, RequestShape};

/// Scaled dot products with a causal mask, a window and a soft cap; with the sinks and slopes that a call has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standard {
    /// Factor on `q·k`, before the cap.
    pub scale: f32,
    /// Right-aligned causal mask.
    pub causal: bool,
    /// Inclusive left window.
    pub window_left: Option<usize>,
    /// Bound of the logits.
    pub soft_cap: Option<f32>,
    /// The weight, relative to the largest of its row so far, below which tiles of keys are left out: above 0 and below 1.
    pub skip_softmax: Option<f32>,
    /// The meaning of [`Inputs::ints`].
    pub ranges: Ranges,
}

/// The meaning of [`Inputs::ints`]: the first query token of each request and the end of them, then for each token a `start`
/// and an `end`, or what a tree has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ranges {
    /// There are none.
    #[default]
    None,
    /// A token sees all of its span `start..end`, whatever the mask and the window.
    Spans,
    /// A token sees no key from `start` to `end`: items, each of which sees a prefix and itself.
    Items,
    /// A token sees, of the request's query tokens, those of 64 bits, and of the keys before them those from `start` on:
    /// `start`, then the low and the high half of the bits. A request of more than [`TREE_TOKENS`] has no tree: all bits are 1.
    Trees,
}

impl Ranges {
    /// Numbers of a token.
    fn words(self) -> usize {
        match self {
            Self::None => 0,
            Self::Spans | Self::Items => 2,
            Self::Trees => 3,
        }
    }
}

/// The smallest factor that sinks and slopes are divided by. With another scale the logits are scaled where they are made.
const LEAST_SCALE: f32 = 1e-30;

impl Standard {
    /// Every query sees every key, without a cap.
    pub const fn new(scale: f32) -> Self {
        Self {
            scale,
            causal: false,
            window_left: None,
            soft_cap: None,
            skip_softmax: None,
            ranges: Ranges::None,
        }
    }

    /// The result of [`Variant::scale`]: the cap, the scale, or 1 where the scale is not above 0.
    pub fn logit_scale(&self) -> f32 {
        let scale = if self.divides() { self.scale } else { 1.0 };
        self.cap().unwrap_or(scale)
    }

    fn divides(&self) -> bool {
        self.scale >= LEAST_SCALE
    }

    /// The cap, or a larger one of the same probabilities: logits up to `LEAST_SCALE` are all of weight 1.
    fn cap(&self) -> Option<f32> {
        self.soft_cap.map(|cap| cap.max(LEAST_SCALE))
    }

    fn mask(&self) -> CausalWindow {
        CausalWindow::new(self.causal, self.window_left)
    }
}

impl KeyRange for Standard {
    /// Every key, if there are spans: the host's half alone knows their places.
    fn keys(&self, request: &RequestShape, query: usize) -> (usize, usize) {
        let (start, end) = self.mask().keys(request, query);
        match self.ranges {
            Ranges::Spans => (0, request.kv_len),
            Ranges::Trees => (self.mask().keys(request, query.saturating_sub(TREE_TOKENS - 1)).0, end),
            Ranges::Items | Ranges::None => (start, end),
        }
    }
}

impl Kernels for Standard {
    fn launch(&self, call: Call<'_>) -> Result<()> {
        let Inputs { sinks, slopes, .. } = call.inputs().clone();
        for (argument, tensor) in [("sinks", &sinks), ("slopes", &slopes)] {
            if let Some(tensor) = tensor {
                contiguous(KERNEL, argument, tensor, &[call.q_heads()])?;
            }
        }
        let ranges = match self.ranges {
            Ranges::None => None,
            some => Some(token_table(&call, some.words())?),
        };
        let inner = match self.cap() {
            // Finite, so that 0 times it is 0.
            Some(cap) => Some((self.scale / cap).clamp(f32::MIN, f32::MAX)),
            None => (!self.divides()).then_some(self.scale),
        };
        let buffer = |tensor: &Option<TensorBinding>| tensor.clone().map(TensorBinding::into_buffer_arg);
        let args = || {
            let of = |kind| (self.ranges == kind).then(|| ranges.as_ref().map(|ranges| ranges())).flatten();
            StandardArgsLaunch::new(
                inner.is_none().then_some(self.scale).into(),
                self.cap().into(),
                inner.into(),
                self.mask().launch(),
                buffer(&sinks).into(),
                buffer(&slopes).into(),
                of(Ranges::Spans).into(),
                of(Ranges::Items).into(),
                of(Ranges::Trees).into(),
                self.skip_softmax.map(|threshold| -threshold.ln()).into(),
            )
        };
        // SAFETY: sinks and slopes have a number for each query head, and the ranges clamp what they read.
        unsafe { call.run::<Self>(args) }
    }
}

/// The arguments of [`Standard`].
#[derive(CubeType, CubeLaunch)]
pub struct StandardArgs {
    /// Factor on `q·k`, unless there is a cap or `inner`.
    pub scale: ComptimeOption<f32>,
    /// Bound of the logits.
    pub cap: ComptimeOption<f32>,
    /// Factor on `q·k` within the logit: the scale, divided by the cap if there is one.
    pub inner: ComptimeOption<f32>,
    /// The keys that a query sees.
    pub mask: CausalWindow,
    /// `[q_heads]`: natural logits without a value.
    pub sinks: ComptimeOption<Box<[f32]>>,
    /// `[q_heads]`: growth of the scaled logits from a key to the next.
    pub slopes: ComptimeOption<Box<[f32]>>,
    /// [`Ranges::Spans`].
    pub spans: ComptimeOption<TokenTable>,
    /// [`Ranges::Items`].
    pub items: ComptimeOption<TokenTable>,
    /// [`Ranges::Trees`].
    pub trees: ComptimeOption<TokenTable>,
    /// The result of [`Variant::negligible`].
    pub negligible: ComptimeOption<f32>,
}

#[cube]
impl Variant for Standard {
    type Args = StandardArgs;

    fn scale(args: &StandardArgs) -> f32 {
        #[comptime]
        match (&args.cap, &args.scale) {
            (ComptimeOption::Some(cap), _) => *cap,
            (ComptimeOption::None, ComptimeOption::Some(scale)) => *scale,
            (ComptimeOption::None, ComptimeOption::None) => 1.0f32.runtime(),
        }
    }

    fn keys(args: &StandardArgs, request: &RequestShape, query: usize) -> (usize, usize) {
        let (start, end) = args.mask.keys(request, query);
        #[comptime]
        match &args.spans {
            ComptimeOption::Some(spans) => {
                let span = spans.range(request.index, query);
                let (first, last) = (usize::cast_from(span.start), usize::cast_from(span.end));
                (select(span.is_known, min(start, first), start), select(span.is_known, max(end, last), end))
            }
            ComptimeOption::None => {
                #[comptime]
                match &args.trees {
                    // A token may be as near to the first one of its tree as the mask's first token is.
                    ComptimeOption::Some(_trees) => {
                        let first = saturating_sub(query, comptime!(TREE_TOKENS - 1).runtime());
                        let (start, _) = args.mask.keys(request, first);
                        (start, end)
                    }
                    ComptimeOption::None => (start, end),
                }
            }
        }
    }

    fn logit<M: Math>(args: &StandardArgs, product: f32, _row: &QueryRow, _key: usize) -> f32 {
        #[comptime]
        match &args.inner {
            ComptimeOption::Some(inner) => {
                let scaled = product * *inner;
                if comptime!(args.cap.is_some()) { M::tanh(scaled) } else { scaled }
            }
            ComptimeOption::None => product,
        }
    }

    fn slope(args: &StandardArgs, row: &QueryRow) -> ComptimeOption<f32> {
        #[comptime]
        match &args.slopes {
            ComptimeOption::Some(slopes) => ComptimeOption::new_Some(slopes[row.q_head] / Self::scale(args)),
            ComptimeOption::None => ComptimeOption::new_None(),
        }
    }

    fn keep(args: &StandardArgs, row: &QueryRow, key: usize) -> bool {
        #[comptime]
        match &args.items {
            ComptimeOption::Some(items) => {
                let hidden = items.range(row.request, row.query);
                let key = key as i32;
                !hidden.is_known || key < hidden.start || key >= hidden.end
            }
            ComptimeOption::None =>
            {
                #[comptime]
                match &args.trees {
                    ComptimeOption::Some(trees) => {
                        let old = saturating_sub(row.kv_len, row.qo_len);
                        trees.branch(row.request, row.query).sees(key, old)
                    }
                    ComptimeOption::None => true.runtime(),
                }
            }
        }
    }

    fn unmasked(
        args: &StandardArgs,
        request: &RequestShape,
        first: usize,
        last: usize,
    ) -> ComptimeOption<KeyBounds> {
        #[comptime]
        match &args.trees {
            ComptimeOption::Some(_trees) => {
                // A token is no further from the first one of its tree than its row.
                let (start, _) = args.mask.keys(request, last);
                let (_, end) = args.mask.keys(request, first);
                let old = saturating_sub(request.kv_len, request.qo_len);
                let is_tree = request.qo_len <= TREE_TOKENS;
                ComptimeOption::new_Some(KeyBounds { start, end: select(is_tree, old, end) })
            }
            ComptimeOption::None => ComptimeOption::new_None(),
        }
    }

    fn negligible(args: &StandardArgs, _request: &RequestShape) -> ComptimeOption<f32> {
        #[comptime]
        match &args.negligible {
            ComptimeOption::Some(distance) => ComptimeOption::new_Some(*distance),
            ComptimeOption::None => ComptimeOption::new_None(),
        }
    }

    fn start(args: &StandardArgs, row: &QueryRow) -> (f32, f32) {
        #[comptime]
        match &args.sinks {
            ComptimeOption::Some(sinks) => (sinks[row.q_head] / Self::scale(args), 1.0f32.runtime()),
            ComptimeOption::None => (f32::NEG_INFINITY.runtime(), 0.0f32.runtime()),
        }
    }
}
