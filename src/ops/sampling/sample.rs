//! Softmax, and a token for each draw.

use burn::{
    backend::Dispatch,
    tensor::{Bool, DType, Device, Int, Tensor},
};

use super::draws::Draws;
use crate::check::{Floats, shape, wide_integers};
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::FlashInferBackend;
use crate::ints::saturated;

/// Tokens that were drawn.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Samples {
    /// `[draws]`, of type i32: a token of the vocabulary, 0 where the draw is not valid.
    pub ids: Tensor<1, Int>,
    /// `[draws]`: false where there was nothing to draw from, because the row has a NaN, or no probability
    /// above 0, or no logit above `-inf`.
    pub valid: Tensor<1, Bool>,
}

/// The probabilities of logits: `exp(x / temperature) / Σ exp(x / temperature)` over each row.
///
/// `logits`: `[rows, vocab]` of f32, f16 or bf16; `temperature`: `[rows]` of f32, 1 without it; the result is
/// `[rows, vocab]` of f32. The formula holds for every temperature above 0 that f32 represents. At its ends
/// it is what the formula tends to: at 0 and -0 the largest logits share the probability, at infinity all
/// logits above `-inf` do, or those that are `inf`. A row whose logits are all `-inf` becomes 0; a NaN, and a
/// temperature below 0 or NaN, make a row NaN.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, there is no token, or a tensor requires a gradient.
pub fn softmax(logits: Tensor<2>, temperature: Option<Tensor<1>>) -> Result<Tensor<2>> {
    softmax_for("softmax", logits, temperature)
}

/// Draws tokens by their probabilities.
///
/// `probs`: `[rows, vocab]` of f32. They need not add up to 1: the token of a draw is the first at which
/// their running sum exceeds `u` times the sum of the row, `u` uniform in 0..1. A probability counts as a
/// multiple of 2⁻⁴⁰, rounded down, of which a positive one has at least one; above 2 it counts as 2, below 0
/// as 0.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, there is no token or more than 2²² of them, `draws` name
/// a row that is not there, or a tensor requires a gradient.
pub fn sampling_from_probs(probs: Tensor<2>, draws: &Draws) -> Result<Samples> {
    sample("sampling_from_probs", probs, Filters::default(), draws)
}

/// Draws tokens by their logits: each with its [`softmax`] probability, at every temperature, in one pass
/// over the logits.
///
/// `logits`: `[rows, vocab]` of f32, f16 or bf16; `temperature`: `[rows]` of f32, 1 without it. At
/// temperature 0 the largest logits are as likely as each other; [`top_k`](super::top_k) of 1 is the first of them,
/// whatever the draw. A draw is not valid where the temperature is below 0 or NaN.
///
/// Each chunk of 4096 logits has probabilities relative to its largest logit, in multiples of 2⁻⁴⁰, and then
/// relative to the largest of the row. The token is the first at which the running sum exceeds `u` times the
/// total, `u` uniform in 0..1.
///
/// # Errors
///
/// As [`sampling_from_probs`].
pub fn sampling_from_logits(
    logits: Tensor<2>,
    temperature: Option<Tensor<1>>,
    draws: &Draws,
) -> Result<Samples> {
    const OP: &str = "sampling_from_logits";
    let (floats, rows) = rows_to_draw_from(OP, "logits", &logits)?;
    let device = logits.device();
    let temperature = temperatures(OP, &floats, temperature, rows, &device)?;
    floats.on_device("draws", &draws.tensor.device())?;
    draws.check(OP, rows)?;
    if draws.is_empty() {
        return Ok(Samples::none(&device));
    }
    let (ids, valid) = Dispatch::sample_logits(
        logits.into_backend(),
        temperature.into_backend(),
        draws.words().into_backend(),
    );
    Ok(Samples::of(floats.origin.tensor(ids), floats.origin.tensor(valid)))
}

/// [`sampling_from_probs`] from the `top_k` most likely tokens of each row.
///
/// Keeps a token if fewer than `top_k` tokens are strictly more likely, so ties with the last one are kept.
/// `top_k`: `[rows]` of integers of any type; below 1 it counts as 1, and from the size of the vocabulary on
/// all tokens count.
///
/// # Errors
///
/// As [`sampling_from_probs`].
pub fn top_k_sampling_from_probs(probs: Tensor<2>, top_k: Tensor<1, Int>, draws: &Draws) -> Result<Samples> {
    let filters = Filters { top_k: Some(top_k), ..Filters::default() };
    sample("top_k_sampling_from_probs", probs, filters, draws)
}

/// [`sampling_from_probs`] from the fewest most likely tokens that reach the probability `top_p`.
///
/// A token counts if the probabilities of those that are more likely add up to less than `top_p`: the most likely one
/// always does. `top_p`: `[rows]` of f32; from 1 on, and NaN, all tokens count.
///
/// # Errors
///
/// As [`sampling_from_probs`].
pub fn top_p_sampling_from_probs(probs: Tensor<2>, top_p: Tensor<1>, draws: &Draws) -> Result<Samples> {
    let filters = Filters { top_p: Some(top_p), ..Filters::default() };
    sample("top_p_sampling_from_probs", probs, filters, draws)
}

/// [`sampling_from_probs`] from the tokens that are at least `min_p` times as likely as the most likely one.
///
/// `min_p`: `[rows]` of f32, the product rounded to f32; from 1 on only the most likely tokens count, up to 0, and with
/// NaN, all.
///
/// # Errors
///
/// As [`sampling_from_probs`].
pub fn min_p_sampling_from_probs(probs: Tensor<2>, min_p: Tensor<1>, draws: &Draws) -> Result<Samples> {
    let filters = Filters { min_p: Some(min_p), ..Filters::default() };
    sample("min_p_sampling_from_probs", probs, filters, draws)
}

/// Checks a tensor of probabilities, and returns it with its number of rows.
pub(super) fn of_probs(op: &'static str, probs: &Tensor<2>) -> Result<(Floats, usize)> {
    let (floats, rows) = rows_to_draw_from(op, "probs", probs)?;
    floats.f32("probs", probs)?;
    Ok((floats, rows))
}

/// Checks rows whose masses are added up, and counts them.
fn rows_to_draw_from(
    op: &'static str,
    argument: &'static str,
    matrix: &Tensor<2>,
) -> Result<(Floats, usize)> {
    let floats = Floats::first(op, argument, matrix)?;
    let rows = rows(op, argument, matrix)?;
    wide_integers(op, argument, &matrix.device())?;
    if matrix.dims()[1] > MAX_VOCAB {
        return Err(shape(op, argument, &matrix.dims(), format!("at most {MAX_VOCAB} tokens")));
    }
    Ok((floats, rows))
}

pub(super) fn softmax_for(
    op: &'static str,
    logits: Tensor<2>,
    temperature: Option<Tensor<1>>,
) -> Result<Tensor<2>> {
    let floats = Floats::first(op, "logits", &logits)?;
    let rows = rows(op, "logits", &logits)?;
    let temperature = temperatures(op, &floats, temperature, rows, &logits.device())?;
    let probs = Dispatch::softmax_with_temperature(logits.into_backend(), temperature.into_backend());
    Ok(floats.origin.tensor(probs))
}

/// The filters of a row.
#[derive(Default)]
pub(super) struct Filters {
    pub top_k: Option<Tensor<1, Int>>,
    pub top_p: Option<Tensor<1>>,
    pub min_p: Option<Tensor<1>>,
}

pub(super) fn sample(op: &'static str, probs: Tensor<2>, filters: Filters, draws: &Draws) -> Result<Samples> {
    let (floats, rows) = of_probs(op, &probs)?;
    let device = probs.device();
    let Filters { top_k, top_p, min_p } = filters;
    if let Some(top_k) = &top_k {
        floats.on_device("top_k", &top_k.device())?;
        one_each(op, "top_k", top_k.dims(), rows)?;
    }
    for (argument, filter) in [("top_p", &top_p), ("min_p", &min_p)] {
        if let Some(filter) = filter {
            floats.f32(argument, filter)?;
            one_each(op, argument, filter.dims(), rows)?;
        }
    }
    floats.on_device("draws", &draws.tensor.device())?;
    draws.check(op, rows)?;
    if draws.is_empty() {
        return Ok(Samples::none(&device));
    }
    let top_k = top_k.map(|top_k| saturated(top_k).into_backend());
    let (ids, valid) = Dispatch::sample_probs(
        probs.into_backend(),
        top_k.into(),
        top_p.map(Tensor::into_backend).into(),
        min_p.map(Tensor::into_backend).into(),
        draws.words().into_backend(),
    );
    Ok(Samples::of(floats.origin.tensor(ids), floats.origin.tensor(valid)))
}

/// Tokens whose masses, of at most 2 times 2⁴⁰ each, certainly add up to less than 2⁶⁴.
pub(super) const MAX_VOCAB: usize = 1 << 22;

impl Samples {
    fn of(ids: Tensor<1, Int>, valid: Tensor<1, Int>) -> Self {
        Self { ids, valid: valid.equal_elem(1) }
    }

    /// The draws of no token.
    fn none(device: &Device) -> Self {
        let ids = Tensor::zeros([0], (device, DType::I32));
        Self { valid: ids.clone().equal_elem(1), ids }
    }
}

/// The rows of a matrix that has columns.
pub(super) fn rows(op: &'static str, argument: &'static str, matrix: &Tensor<2>) -> Result<usize> {
    let [rows, vocab] = matrix.dims();
    if vocab == 0 || vocab > i32::MAX as usize {
        return Err(shape(op, argument, &[rows, vocab], "from 1 to i32::MAX tokens"));
    }
    Ok(rows)
}

pub(super) fn one_each(
    op: &'static str,
    argument: &'static str,
    dims: [usize; 1],
    rows: usize,
) -> Result<()> {
    if dims == [rows] {
        return Ok(());
    }
    Err(shape(op, argument, &dims, format!("[{rows}], one for each row")))
}

fn temperatures(
    op: &'static str,
    floats: &Floats,
    temperature: Option<Tensor<1>>,
    rows: usize,
    device: &Device,
) -> Result<Tensor<1>> {
    let Some(temperature) = temperature else { return Ok(Tensor::ones([rows], (device, DType::F32))) };
    floats.f32("temperature", &temperature)?;
    one_each(op, "temperature", temperature.dims(), rows)?;
    Ok(temperature)
}
