//! Standard attention: a variant like any other.
#![allow(missing_docs, reason = "the derived launch structs have none; what is written here does")]

use cubecl::prelude::*;

use super::launch::{Call, Inputs, KERNEL, Kernels};
use super::token_ranges::{TokenRanges, token_ranges};
use super::variant::{CausalWindow, Variant};
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

/// The meaning of [`Inputs::ints`]: the first query token of each request and the end of them, then a `start` and an `end`
/// for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ranges {
    /// There are none.
    #[default]
    None,
    /// A token sees all of its span `start..end`, whatever the mask and the window.
    Spans,
    /// A token sees no key from `start` to `end`: items, each of which sees a prefix and itself.
    Items,
}

/// The smallest factor that sinks and slopes are divided by. With another one the logits are scaled where they are made.
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

    /// The result of [`Variant::scale`]: a cap has scaled the logits itself, as has any factor that is not above 0.
    pub fn logit_scale(&self) -> f32 {
        if self.scales_itself() { 1.0 } else { self.scale }
    }

    fn scales_itself(&self) -> bool {
        let divides = self.scale >= LEAST_SCALE;
        self.soft_cap.is_some() || !divides
    }

    fn mask(&self) -> CausalWindow {
        CausalWindow::new(self.causal, self.window_left)
    }
}

impl KeyRange for Standard {
    /// Every key, if there are spans: the host's half alone knows their places.
    fn keys(&self, request: &RequestShape, query: usize) -> (usize, usize) {
        match self.ranges {
            Ranges::Spans => (0, request.kv_len),
            _ => self.mask().keys(request, query),
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
            _ => Some(token_ranges(&call)?),
        };
        let inner = match self.soft_cap {
            // Finite, so that 0 times it is 0.
            Some(cap) => Some((self.scale / cap).clamp(f32::MIN, f32::MAX)),
            None => self.scales_itself().then_some(self.scale),
        };
        let buffer = |tensor: &Option<TensorBinding>| tensor.clone().map(TensorBinding::into_buffer_arg);
        let args = || {
            let of = |kind| (self.ranges == kind).then(|| ranges.as_ref().map(|ranges| ranges())).flatten();
            StandardArgsLaunch::new(
                inner.is_none().then_some(self.scale).into(),
                self.soft_cap.into(),
                inner.into(),
                self.mask().launch(),
                buffer(&sinks).into(),
                buffer(&slopes).into(),
                of(Ranges::Spans).into(),
                of(Ranges::Items).into(),
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
    /// Factor on `q·k`, unless `inner` is there.
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
    pub spans: ComptimeOption<TokenRanges>,
    /// [`Ranges::Items`].
    pub items: ComptimeOption<TokenRanges>,
    /// The result of [`Variant::negligible`].
    pub negligible: ComptimeOption<f32>,
}

#[cube]
impl Variant for Standard {
    type Args = StandardArgs;

    fn scale(args: &StandardArgs) -> f32 {
        #[comptime]
        match &args.scale {
            ComptimeOption::Some(scale) => *scale,
            ComptimeOption::None => 1.0f32.runtime(),
        }
    }

    fn keys(args: &StandardArgs, request: &RequestShape, query: usize) -> (usize, usize) {
        let (start, end) = args.mask.keys(request, query);
        #[comptime]
        match &args.spans {
            ComptimeOption::Some(spans) => {
                let span = spans.at(request.index, query);
                let (first, last) = (usize::cast_from(span.start), usize::cast_from(span.end));
                (select(span.is_known, min(start, first), start), select(span.is_known, max(end, last), end))
            }
            ComptimeOption::None => (start, end),
        }
    }

    fn logit<M: Math>(args: &StandardArgs, product: f32, _row: &QueryRow, _key: usize) -> f32 {
        #[comptime]
        match &args.inner {
            ComptimeOption::Some(inner) => {
                let scaled = product * *inner;
                #[comptime]
                match &args.cap {
                    ComptimeOption::Some(cap) => *cap * M::tanh(scaled),
                    ComptimeOption::None => scaled,
                }
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
                let hidden = items.at(row.request, row.query);
                let key = key as i32;
                !hidden.is_known || key < hidden.start || key >= hidden.end
            }
            ComptimeOption::None => true.runtime(),
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
