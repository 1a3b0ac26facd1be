//! The most likely tokens: sampled from by count and by probability, renormalised, masked.

use burn::{
    backend::Dispatch,
    tensor::{Int, Tensor},
};

use super::draws::Draws;
use super::sample::{Filters, Samples, of_probs, one_each, rows, sample, softmax_for};
use crate::check::{Floats, wide_integers};
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::{FlashInferBackend, Limit};
use crate::ints::saturated;

/// The order of two filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum FilterOrder {
    /// The probabilities of the `top_k` most likely tokens are made a distribution, of which `top_p` is a part.
    #[default]
    TopKFirst,
    /// Both count in the distribution that was given.
    Joint,
}

/// [`sampling_from_probs`](super::sampling_from_probs) from the tokens that count for
/// [`top_k_sampling_from_probs`](super::top_k_sampling_from_probs) and for
/// [`top_p_sampling_from_probs`](super::top_p_sampling_from_probs), the latter in the distribution that `order` says.
///
/// # Errors
///
/// As [`sampling_from_probs`](super::sampling_from_probs).
pub fn top_k_top_p_sampling_from_probs(
    probs: Tensor<2>,
    top_k: Tensor<1, Int>,
    top_p: Tensor<1>,
    order: FilterOrder,
    draws: &Draws,
) -> Result<Samples> {
    const OP: &str = "top_k_top_p_sampling_from_probs";
    match order {
        FilterOrder::Joint => {
            let filters = Filters { top_k: Some(top_k), top_p: Some(top_p), ..Filters::default() };
            sample(OP, probs, filters, draws)
        }
        FilterOrder::TopKFirst => {
            let probs = renorm_top_k(OP, probs, top_k)?;
            sample(OP, probs, Filters { top_p: Some(top_p), ..Filters::default() }, draws)
        }
    }
}

/// [`top_k_top_p_sampling_from_probs`] of the [`softmax`](super::softmax) of logits.
///
/// `logits`: `[rows, vocab]` of f32, f16 or bf16; `temperature`: `[rows]` of f32, 1 without it.
///
/// # Errors
///
/// As [`sampling_from_probs`](super::sampling_from_probs).
pub fn top_k_top_p_sampling_from_logits(
    logits: Tensor<2>,
    temperature: Option<Tensor<1>>,
    top_k: Tensor<1, Int>,
    top_p: Tensor<1>,
    order: FilterOrder,
    draws: &Draws,
) -> Result<Samples> {
    const OP: &str = "top_k_top_p_sampling_from_logits";
    let probs = softmax_for(OP, logits, temperature)?;
    let probs = match order {
        FilterOrder::Joint => {
            let filters = Filters { top_k: Some(top_k), top_p: Some(top_p), ..Filters::default() };
            return sample(OP, probs, filters, draws);
        }
        FilterOrder::TopKFirst => renorm_top_k(OP, probs, top_k)?,
    };
    sample(OP, probs, Filters { top_p: Some(top_p), ..Filters::default() }, draws)
}

/// The distribution of the fewest most likely tokens that reach the probability `top_p`: their probabilities divided by
/// their sum, and 0 for all others.
///
/// `probs`: `[rows, vocab]` of f32, `top_p`: `[rows]` of f32. Which tokens count is as with
/// [`top_p_sampling_from_probs`](super::top_p_sampling_from_probs). A NaN stays where it is and does not count.
///
/// # Errors
///
/// As [`sampling_from_probs`](super::sampling_from_probs).
pub fn top_p_renorm_probs(probs: Tensor<2>, top_p: Tensor<1>) -> Result<Tensor<2>> {
    const OP: &str = "top_p_renorm_probs";
    let (floats, rows) = of_probs(OP, &probs)?;
    floats.f32("top_p", &top_p)?;
    one_each(OP, "top_p", top_p.dims(), rows)?;
    let by = Limit::TopP(top_p.into_backend());
    Ok(floats.origin.tensor(Dispatch::renorm_probs(probs.into_backend(), by)))
}

/// The distribution of the `top_k` most likely tokens: their probabilities divided by their sum, and 0 for all others.
///
/// `probs`: `[rows, vocab]` of f32, `top_k`: `[rows]` of integers. Which tokens count is as with
/// [`top_k_sampling_from_probs`](super::top_k_sampling_from_probs). A NaN stays where it is and does not count.
///
/// # Errors
///
/// As [`sampling_from_probs`](super::sampling_from_probs).
pub fn top_k_renorm_probs(probs: Tensor<2>, top_k: Tensor<1, Int>) -> Result<Tensor<2>> {
    renorm_top_k("top_k_renorm_probs", probs, top_k)
}

/// The `top_k` largest logits, and `-inf` for all others.
///
/// `logits`: `[rows, vocab]` of f32, f16 or bf16, the result of the same type; `top_k`: `[rows]` of integers,
/// of which one below 1 counts as 1. A logit counts if fewer than `top_k` are larger: of those equal to the
/// last, all do. A NaN stays where it is and does not count.
///
/// # Errors
///
/// As [`sampling_from_probs`](super::sampling_from_probs).
pub fn top_k_mask_logits(logits: Tensor<2>, top_k: Tensor<1, Int>) -> Result<Tensor<2>> {
    const OP: &str = "top_k_mask_logits";
    let floats = Floats::first(OP, "logits", &logits)?;
    let rows = rows(OP, "logits", &logits)?;
    wide_integers(OP, "logits", &logits.device())?;
    floats.on_device("top_k", &top_k.device())?;
    one_each(OP, "top_k", top_k.dims(), rows)?;
    let masked = Dispatch::top_k_mask_logits(logits.into_backend(), saturated(top_k).into_backend());
    Ok(floats.origin.tensor(masked))
}

pub(super) fn renorm_top_k(op: &'static str, probs: Tensor<2>, top_k: Tensor<1, Int>) -> Result<Tensor<2>> {
    let (floats, rows) = of_probs(op, &probs)?;
    floats.on_device("top_k", &top_k.device())?;
    one_each(op, "top_k", top_k.dims(), rows)?;
    let by = Limit::TopK(saturated(top_k).into_backend());
    Ok(floats.origin.tensor(Dispatch::renorm_probs(probs.into_backend(), by)))
}
