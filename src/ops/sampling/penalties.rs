//! Penalties on tokens that a sequence has already.

use burn::{
    backend::Dispatch,
    tensor::{Int, Tensor},
};

use super::sample::{one_each, rows};
use crate::check::{Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::FlashInferBackend;
use crate::ints::saturated;

/// The tokens of a batch's sequences so far, and their penalties.
///
/// Counts are integers of any type. One below 0 counts as 0, one above `i32::MAX` as that.
#[derive(Debug, Clone)]
pub struct Penalties {
    /// `[rows, vocab]` of integers: how often each token is in the prompt.
    pub prompt: Tensor<2, Int>,
    /// `[rows, vocab]` of integers: the count of the token in the generated text.
    pub output: Tensor<2, Int>,
    /// `[rows]` of f32, above 0, none at 1: divides positive logits, and multiplies negative ones, of tokens
    /// in prompt or output.
    pub repetition: Tensor<1>,
    /// `[rows]` of f32, none at 0: subtracted as often as a token is in the output.
    pub frequency: Tensor<1>,
    /// `[rows]` of f32, none at 0: subtracted if a token is in the output.
    pub presence: Tensor<1>,
}

/// Penalises logits for tokens that their sequences have already: with `x' = x / repetition` if `x > 0`, else
/// `x · repetition`, for a token in prompt or output, and `x' = x` for others,
///
/// `x' - frequency · n - presence` for a token that is `n > 0` times in the output, and `x'` for others.
///
/// `logits`: `[rows, vocab]` of f32, f16 or bf16, and so is the result, computed in f32 and rounded once. It
/// takes the memory of `logits` where these have no other owner.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, there is no token, or a tensor requires a gradient.
pub fn apply_penalties(logits: Tensor<2>, penalties: &Penalties) -> Result<Tensor<2>> {
    const OP: &str = "apply_penalties";
    let floats = Floats::first(OP, "logits", &logits)?;
    let rows = rows(OP, "logits", &logits)?;
    for (argument, counts) in [("prompt", &penalties.prompt), ("output", &penalties.output)] {
        floats.on_device(argument, &counts.device())?;
        if counts.dims() != logits.dims() {
            return Err(shape(OP, argument, &counts.dims(), format!("{:?}, as `logits`", logits.dims())));
        }
    }
    for (argument, penalty) in [
        ("repetition", &penalties.repetition),
        ("frequency", &penalties.frequency),
        ("presence", &penalties.presence),
    ] {
        floats.f32(argument, penalty)?;
        one_each(OP, argument, penalty.dims(), rows)?;
    }
    let penalised = Dispatch::apply_penalties(
        logits.into_backend(),
        saturated(penalties.prompt.clone()).into_backend(),
        saturated(penalties.output.clone()).into_backend(),
        penalties.repetition.clone().into_backend(),
        penalties.frequency.clone().into_backend(),
        penalties.presence.clone().into_backend(),
    );
    Ok(floats.origin.tensor(penalised))
}
