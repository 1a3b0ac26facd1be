//! The options of attention.

use super::layout::KvLayout;
use super::variant::{AttentionVariant, SharedVariant, StandardAttention};
use crate::error::{Error, Result};

/// Options of every attention operation, by builder.
///
/// With `s = scale * q·k`, the logit of key `j` for query `i` of a request with `qo_len` queries and `kv_len` keys is
///
/// 1. `s`, or `cap * tanh(s / cap)` with a [soft cap](Self::soft_cap),
/// 2. then `-inf` unless `j <= kv_len - qo_len + i` when [causal](Self::causal) (right-aligned),
/// 3. and `-inf` unless `j >= kv_len - qo_len + i - window` with a [left window](Self::window_left) (inclusive).
///
/// A query that sees no key gets output 0 and LSE `-inf`.
///
/// ```
/// use burn_flashinfer::AttentionOptions;
/// let options = AttentionOptions::new().causal(true).window_left(4095).soft_cap(30.0);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[must_use]
pub struct AttentionOptions {
    pub(crate) causal: bool,
    pub(crate) window_left: Option<usize>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) scale: Option<f32>,
    pub(crate) return_lse: bool,
    pub(crate) kv_layout: Option<KvLayout>,
    pub(crate) variant: Option<SharedVariant>,
}

impl AttentionOptions {
    /// Full attention: no mask, scale `1/sqrt(head_dim)`, no LSE.
    pub const fn new() -> Self {
        Self {
            causal: false,
            window_left: None,
            soft_cap: None,
            scale: None,
            return_lse: false,
            kv_layout: None,
            variant: None,
        }
    }

    /// Lets each query see only keys up to its own position, the last query being at the last key.
    pub const fn causal(mut self, causal: bool) -> Self {
        self.causal = causal;
        self
    }

    /// Lets each query see, of the keys to its left, only the nearest `window` ones (and its own position).
    pub const fn window_left(mut self, window: usize) -> Self {
        self.window_left = Some(window);
        self
    }

    /// Bounds the logits smoothly to `(-cap, cap)`, as Gemma 2 and Grok do.
    pub const fn soft_cap(mut self, cap: f32) -> Self {
        self.soft_cap = Some(cap);
        self
    }

    /// Replaces the factor `1/sqrt(head_dim)` on `q·k`.
    pub const fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Also returns the base-2 logarithm of the sum of exponentials of each row of logits.
    pub const fn return_lse(mut self, return_lse: bool) -> Self {
        self.return_lse = return_lse;
        self
    }

    /// The order of the axes of contiguous keys and values, [`KvLayout::Nhd`] unless set.
    ///
    /// A paged operation takes the order from its pages; if it is set here as well, the two must agree.
    pub const fn kv_layout(mut self, layout: KvLayout) -> Self {
        self.kv_layout = Some(layout);
        self
    }

    /// Replaces the parts of attention beside its products: mask, scale and cap are then the variant's, and
    /// must not be set here as well.
    pub fn variant(mut self, variant: impl AttentionVariant) -> Self {
        self.variant = Some(SharedVariant::new(variant));
        self
    }

    /// Everything decided, for heads of `head_dim` elements.
    pub(crate) fn params(&self, head_dim: usize) -> AttentionParams {
        let variant = self.variant.clone().unwrap_or_else(|| {
            SharedVariant::new(StandardAttention {
                causal: self.causal,
                window_left: self.window_left,
                soft_cap: self.soft_cap,
                scale: self.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            })
        });
        AttentionParams { variant, return_lse: self.return_lse }
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if self.variant.is_some() {
            let set = [
                ("causal", self.causal),
                ("window_left", self.window_left.is_some()),
                ("soft_cap", self.soft_cap.is_some()),
                ("scale", self.scale.is_some()),
            ];
            if let Some((argument, _)) = set.into_iter().find(|(_, set)| *set) {
                let expected = "not to be set, as the variant decides".into();
                return Err(Error::Value { op, argument, got: "set beside a variant".into(), expected });
            }
        }
        if let Some(cap) = self.soft_cap
            && !(cap > 0.0 && cap.is_finite())
        {
            return Err(Error::Value {
                op,
                argument: "soft_cap",
                got: cap.to_string(),
                expected: "a finite number above 0".into(),
            });
        }
        if let Some(scale) = self.scale
            && !scale.is_finite()
        {
            return Err(Error::Value {
                op,
                argument: "scale",
                got: scale.to_string(),
                expected: "a finite number".into(),
            });
        }
        Ok(())
    }
}

/// The settings of attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionParams {
    /// Scale, visible keys, and functions of logits and outputs.
    pub variant: SharedVariant,
    /// Requests the base-2 log-sum-exp.
    pub return_lse: bool,
}
