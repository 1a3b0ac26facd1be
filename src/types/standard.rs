//! The host's half of standard attention.

use std::ops::Range;

use super::token_ranges::TokenRanges;
use super::variant::{AttentionVariant, LogitTile, Request, Row, SharedVariant};

#[cfg(feature = "cube")]
use burn_flashinfer_kernels::attention as kernels;

/// The smallest scale that sinks and slopes are divided by, the same as in the kernels.
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

impl AttentionVariant for StandardAttention {
    fn scale(&self) -> f32 {
        // A cap has scaled the logits itself, as has a factor that nothing can be divided by.
        if self.soft_cap.is_none() && self.scale >= LEAST_SCALE { self.scale } else { 1.0 }
    }

    fn keys(&self, request: &Request, query: usize) -> Range<usize> {
        let range = request.causal_window(query, self.causal, self.window_left);
        match &self.ranges {
            Some(ranges) => ranges.widen(range, request, query),
            None => range,
        }
    }

    fn logit(&self, product: f64, _row: &Row<'_>, _key: usize) -> f64 {
        let scaled = product * f64::from(self.scale);
        match self.soft_cap.map(f64::from) {
            None => scaled / f64::from(self.scale()),
            Some(cap) => cap * (scaled / cap).tanh(),
        }
    }

    fn slope(&self, row: &Row<'_>) -> f64 {
        row.slopes.get(row.q_head).map_or(0.0, |&slope| f64::from(slope) / f64::from(self.scale()))
    }

    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        self.ranges.as_ref().is_none_or(|ranges| ranges.keeps(&row.request, row.query, key))
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
        if let Some(ranges @ TokenRanges::Items(_)) = &self.ranges {
            tile.for_each(|logit, row, key| {
                if !ranges.keeps(&row.request, row.query, key) {
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
        };
        kernels::Standard { scale, causal, window_left, soft_cap, skip_softmax, ranges }.launch(call)
    }
}
