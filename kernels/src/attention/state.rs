//! The state of a row's softmax, `(m, l)`: its largest logit, and the sum of its probabilities relative to that.
//!
//! ```text
//! (m, l, o) + (m', l', o') = (M, a l + a' l', a o + a' o')      M = max(m, m')      a = exp(m - M)      a' = exp(m' - M)
//! ```

use cubecl::prelude::*;

/// The number that is subtracted from logits: `m`, or 0 while none is finite, since (-inf) - (-inf) would be NaN.
#[cube]
pub(crate) fn finite(m: f32) -> f32 {
    select(m == f32::NEG_INFINITY, 0.0f32, m)
}

/// The divisor of the output. Without a visible key, or with none but -inf, `l` and the output are 0 and stay 0.
#[cube]
pub(crate) fn divisor(l: f32) -> f32 {
    select(l == 0.0f32, 1.0f32, l)
}

/// The log-sum-exp to the base of `m`, given `log(l)` to that base.
#[cube]
pub(crate) fn lse(m: f32, l: f32, log_l: f32) -> f32 {
    select(l == 0.0f32, f32::NEG_INFINITY, m + log_l)
}
