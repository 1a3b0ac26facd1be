//! The options of attention.

use super::layout::KvLayout;
use super::standard::StandardAttention;
use super::token_ranges::{Items, Spans, TokenRanges};
use super::token_tree::{TokenTree, Trees};
use super::variant::{AttentionVariant, SharedVariant};
use crate::error::{Error, Result};

/// Options of every attention operation, by builder.
///
/// With `s = scale * q·k`, the logit of key `j` for query `i` of a request with `qo_len` queries and `kv_len` keys is
///
/// 1. `s`, or `cap * tanh(s / cap)` with a [soft cap](Self::soft_cap),
/// 2. plus `slope * (j - (kv_len - qo_len + i))` with [slopes](crate::VariantInputs::slopes) (ALiBi),
/// 3. then `-inf` unless `j <= kv_len - qo_len + i` when [causal](Self::causal) (right-aligned),
/// 4. and `-inf` unless `j >= kv_len - qo_len + i - window` with a [left window](Self::window_left) (inclusive).
///
/// A query that sees no key gets output 0 and LSE `-inf`. With [sinks](crate::VariantInputs::sinks) each row has one more
/// logit, whose value is 0.
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
    pub(crate) skip_softmax: Option<f32>,
    pub(crate) return_lse: bool,
    pub(crate) kv_layout: Option<KvLayout>,
    pub(crate) variant: Option<SharedVariant>,
    pub(crate) ranges: Option<TokenRanges>,
    pub(crate) fp8_mma: bool,
}

impl AttentionOptions {
    /// Full attention: no mask, scale `1/sqrt(head_dim)`, no LSE.
    pub const fn new() -> Self {
        Self {
            causal: false,
            window_left: None,
            soft_cap: None,
            scale: None,
            skip_softmax: None,
            return_lse: false,
            kv_layout: None,
            variant: None,
            ranges: None,
            fp8_mma: false,
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

    /// Lets kernels leave out tiles of keys whose weights are all below `threshold`, above 0 and below 1, times the largest
    /// so far of their row (BLASST, arXiv 2512.12087): without exponentials and product with values. The LSE is without
    /// them too. Which keys make a tile is the kernel's choice, and `Flex` computes all: results differ by at most the
    /// weight of the keys left out. FlashInfer's `skip_softmax_threshold_scale_factor` is `threshold` times the length of
    /// the context. A threshold of 0.001 is a distance of 6.9 between logits.
    pub const fn skip_softmax(mut self, threshold: f32) -> Self {
        self.skip_softmax = Some(threshold);
        self
    }

    /// Lets prefill over [keys and values of e4m3](crate::KvPages::new_fp8) multiply codes where a device has matrix cores for
    /// them: at twice the speed of 16 bits, with the error of 8. Each query row is divided by its largest number and rounded
    /// to e4m3, and so is each weight `p`, as `2^7 p`. The row sum is that of weights that are not rounded.
    ///
    /// An MI300X does so with queries of 16 bits. Everything else computes as without it: decoding, which is as fast,
    /// variants without a softmax, whose weights are not bounded, pages with a scale for each token, e5m2, and other devices.
    pub const fn fp8_mma(mut self, yes: bool) -> Self {
        self.fp8_mma = yes;
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

    /// Lets the tokens of each span see each other, besides what a [causal](Self::causal) mask lets them see.
    pub fn spans(self, spans: Spans) -> Self {
        self.ranges(TokenRanges::Spans(spans))
    }

    /// Hides the items of each request from each other, behind a [causal](Self::causal) mask: multi-item scoring.
    pub fn items(self, items: Items) -> Self {
        self.ranges(TokenRanges::Items(items))
    }

    /// Makes the new tokens of requests trees, for each request one as long as its queries or none, behind a
    /// [causal](Self::causal) mask: a token sees what was there before, its ancestors and itself.
    ///
    /// A [window](Self::window_left) counts from the position of a token, which is its depth behind what was there before. A
    /// request without a tree is as one of other options. A step has its trees from
    /// [`StepConfig::trees`](crate::StepConfig::trees).
    ///
    /// ```
    /// use burn_flashinfer::{AttentionOptions, TokenTree};
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// // The first request has four drafted tokens, the second is a prompt.
    /// let drafted = TokenTree::new(&[None, Some(0), Some(0), Some(1)])?;
    /// let options = AttentionOptions::new().causal(true).trees(&[Some(drafted), None]);
    /// # let _ = options;
    /// # Ok(())
    /// # }
    /// ```
    pub fn trees(self, trees: &[Option<TokenTree>]) -> Self {
        self.ranges(TokenRanges::Trees(Trees(trees.into())))
    }

    pub(crate) fn ranges(mut self, ranges: TokenRanges) -> Self {
        self.ranges = Some(ranges);
        self
    }

    /// True if new tokens do not sit where their rows are.
    pub(crate) fn has_trees(&self) -> bool {
        matches!(self.ranges, Some(TokenRanges::Trees(_)))
    }

    /// The variant that these options are, for heads of `head_dim` elements.
    pub fn to_variant(&self, head_dim: usize) -> SharedVariant {
        self.params(head_dim).variant
    }

    /// False if there is no LSE, as a variant has no softmax.
    pub(crate) fn has_softmax(&self) -> bool {
        self.variant.as_ref().is_none_or(|variant| variant.softmax())
    }

    /// Everything decided, for heads of `head_dim` elements.
    pub(crate) fn params(&self, head_dim: usize) -> AttentionParams {
        let variant = self.variant.clone().unwrap_or_else(|| {
            SharedVariant::new(StandardAttention {
                causal: self.causal,
                window_left: self.window_left,
                soft_cap: self.soft_cap,
                scale: self.scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
                skip_softmax: self.skip_softmax,
                ranges: self.ranges.clone(),
            })
        });
        AttentionParams { variant, return_lse: self.return_lse }
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let ranges = self.ranges.as_ref();
        if let Some(variant) = &self.variant {
            let set = [
                ("causal", self.causal),
                ("window_left", self.window_left.is_some()),
                ("soft_cap", self.soft_cap.is_some()),
                ("scale", self.scale.is_some()),
                ("skip_softmax", self.skip_softmax.is_some()),
                (ranges.map_or("", TokenRanges::name), ranges.is_some()),
            ];
            if let Some((argument, _)) = set.into_iter().find(|(_, set)| *set) {
                let expected = "not to be set, as the variant decides".into();
                return Err(Error::Value { op, argument, got: "set beside a variant".into(), expected });
            }
            if self.return_lse && !variant.softmax() {
                let (got, expected) = ("set beside a variant without a softmax", "not to be set");
                let (got, expected) = (got.into(), format!("{expected}, as there is no LSE"));
                return Err(Error::Value { op, argument: "return_lse", got, expected });
            }
        }
        if let Some(ranges) = ranges.filter(|_| !self.causal) {
            let (got, expected) = ("set without `causal`".into(), "a causal mask".into());
            return Err(Error::Value { op, argument: ranges.name(), got, expected });
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
        if let Some(threshold) = self.skip_softmax
            && !(threshold > 0.0 && threshold < 1.0)
        {
            let (got, expected) = (threshold.to_string(), "a number above 0 and below 1".into());
            return Err(Error::Value { op, argument: "skip_softmax", got, expected });
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
