//! The host's half of standard attention.

use std::ops::Range;

use super::token_ranges::TokenRanges;
use super::variant::{AttentionVariant, LogitTile, Request, Row, SharedVariant};

#[cfg(feature = "cube")]
use burn_flashinfer_kernels::attention as kernels;

/// The smallest factor that sinks and slopes are divided by, the same as in the kernels.
const LEAST_SCALE: f32 = 1e-30;

/// The host's half of [`kernels::Standard`]: scaled products behind a causal mask, a window and ranges of tokens, soft-capped
/// if asked for, with the sinks and slopes of the call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StandardAttention {
    pub causal: bool,
    pub window_left: Option<usize>,
    pub soft_cap: Option<f32>,
    /// Factor on the products, before the cap.
    pub scale: f32,
    /// For the kernels alone: Flex leaves out nothing.
    pub skip_softmax: Option<f32>,
    pub ranges: Option<TokenRanges>,
}

impl StandardAttention {
    /// The cap, or a larger one of the same probabilities: logits up to `LEAST_SCALE` are all of weight 1.
    fn cap(&self) -> Option<f32> {
        self.soft_cap.map(|cap| cap.max(LEAST_SCALE))
    }
}

impl AttentionVariant for StandardAttention {
    fn scale(&self) -> f32 {
        // A factor that nothing can be divided by is in the logits.
        let scale = if self.scale >= LEAST_SCALE { self.scale } else { 1.0 };
        self.cap().unwrap_or(scale)
    }

    fn keys(&self, request: &Request, query: usize) -> Range<usize> {
        let range = request.causal_window(query, self.causal, self.window_left);
        match &self.ranges {
            Some(ranges) => ranges.widen(range, request, query),
            None => range,
        }
    }

    fn logit(&self, product: f64, _row: &Row<'_>, _key: usize) -> f64 {
        let scaled = product * f64::from(self.scale) / f64::from(self.scale());
        if self.soft_cap.is_some() { scaled.tanh() } else { scaled }
    }

    fn slope(&self, row: &Row<'_>) -> f64 {
        row.slopes.get(row.q_head).map_or(0.0, |&slope| f64::from(slope) / f64::from(self.scale()))
    }

    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        let keeps = |ranges: &TokenRanges| ranges.keeps(&row.request, row.query, key, self.window_left);
        self.ranges.as_ref().is_none_or(keeps)
    }

    fn start(&self, row: &Row<'_>) -> (f64, f64) {
        let sink = |&sink: &f32| (f64::from(sink) / f64::from(self.scale()), 1.0);
        row.sinks.get(row.q_head).map_or((f64::NEG_INFINITY, 0.0), sink)
    }

    fn over_shared(&self) -> Option<SharedVariant> {
        let everywhere = self.window_left.is_none() && self.ranges.is_none();
        everywhere.then(|| SharedVariant::new(Self { causal: false, ..self.clone() }))
    }

    #[cfg(feature = "flex")]
    fn transform(&self, tile: &mut LogitTile<'_>) {
        match self.soft_cap {
            None => tile.products().iter_mut().for_each(|product| *product *= self.scale),
            Some(cap) => {
                // Finite, for 0 times it is 0.
                let inner = (self.scale / cap).clamp(f32::MIN, f32::MAX);
                crate::simd::soft_cap(tile.products(), inner, cap);
            }
        }
        let slopes = tile.inputs().slopes;
        if !slopes.is_empty() {
            tile.for_each(|logit, row, key| {
                let slope = slopes.get(row.q_head).copied().unwrap_or_default();
                *logit += slope * (key as i64 - row.position()) as f32;
            });
        }
        let window = self.window_left;
        if let Some(ranges) = &self.ranges
            && !ranges.keep_all(&tile.request(), tile.keys(), window)
        {
            tile.for_each(|logit, row, key| {
                if !ranges.keeps(&row.request, row.query, key, window) {
                    *logit = f32::NEG_INFINITY;
                }
            });
        }
    }

    fn finish_row(&self, _output: &mut [f32], _row: &Row<'_>) {}

    #[cfg(feature = "cube")]
    fn kernels(&self) -> Option<&dyn kernels::Kernels> {
        Some(self)
    }
}

#[cfg(feature = "cube")]
impl kernels::Kernels for StandardAttention {
    fn launch(&self, call: kernels::Call<'_>) -> burn_flashinfer_kernels::Result<()> {
        let Self { causal, window_left, soft_cap, scale, skip_softmax, ref ranges } = *self;
        let ranges = match ranges {
            None => kernels::Ranges::None,
            Some(TokenRanges::Spans(_)) => kernels::Ranges::Spans,
            Some(TokenRanges::Items(_)) => kernels::Ranges::Items,
            Some(TokenRanges::Trees(_)) => kernels::Ranges::Trees,
        };
        kernels::Standard { scale, causal, window_left, soft_cap, skip_softmax, ranges }.launch(call)
    }
}
