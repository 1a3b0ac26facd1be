//! Speculative decoding: a large model verifies the tokens that a small one drafted.

use burn::{
    backend::Dispatch,
    tensor::{Bool, DType, Int, Tensor},
};

use super::draws::Draws;
use super::sample::MAX_VOCAB;
use crate::check::{Floats, shape, wide_integers};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::FlashInferBackend;
use crate::ints::saturated;

/// The result of verifying drafts.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct Speculation {
    /// `[requests, drafted + 1]`, of type i32: the drafted tokens before the first that is not accepted, then
    /// one that was drawn in its place, or after the last, then -1.
    pub ids: Tensor<2, Int>,
    /// `[requests]`, of type i32: how many drafted tokens are accepted, each verified by itself.
    pub accepted: Tensor<1, Int>,
    /// `[requests]`, of type i32: how many drafted tokens there are in `ids`.
    pub emitted: Tensor<1, Int>,
    /// `[requests]`: false where the token after the drafted ones could not be drawn, because of a NaN in its
    /// probabilities, or because there was none above 0; it is 0 then.
    pub valid: Tensor<1, Bool>,
}

/// Verifies chains of drafted tokens: the emitted tokens are distributed as if drawn from `target_probs`.
///
/// Token `i` of a draft, of probability `p` in `draft_probs[…, i, :]` and `q` in `target_probs[…, i, :]`, is
/// accepted if `u · p < q`, `u` uniform in 0..1. In place of the first that is not, a token is drawn with the
/// probabilities `max(q - p, 0)` over their sum; after a chain of which all are, one from
/// `target_probs[…, drafted, :]`.
///
/// `draft_probs`: `[requests, drafted, vocab]` of f32; `draft_ids`: `[requests, drafted]` of integers of any
/// type, of which one outside the vocabulary is not accepted; `target_probs`:
/// `[requests, drafted + 1, vocab]` of f32; `draws`: one for each request, in order.
///
/// # Errors
///
/// If shapes, types or devices do not fit together, an axis other than the requests is empty, there are more
/// than 2²² tokens or `i32::MAX` in `ids`, `draws` are not those of the requests, or a tensor requires a
/// gradient.
pub fn chain_speculative_sampling(
    draft_probs: Tensor<3>,
    draft_ids: Tensor<2, Int>,
    target_probs: Tensor<3>,
    draws: &Draws,
) -> Result<Speculation> {
    const OP: &str = "chain_speculative_sampling";
    let floats = Floats::first(OP, "draft_probs", &draft_probs)?;
    floats.f32("draft_probs", &draft_probs)?;
    floats.f32("target_probs", &target_probs)?;
    let device = draft_probs.device();
    wide_integers(OP, "draft_probs", &device)?;
    floats.on_device("draft_ids", &draft_ids.device())?;
    floats.on_device("draws", &draws.tensor.device())?;
    let [requests, drafted, vocab] = draft_probs.dims();
    if drafted == 0 || !(1..=MAX_VOCAB).contains(&vocab) {
        let expected = format!("at least 1 drafted token, and from 1 to {MAX_VOCAB} in the vocabulary");
        return Err(shape(OP, "draft_probs", &draft_probs.dims(), expected));
    }
    // Kernels count the tokens that come out in i32.
    if requests.saturating_mul(drafted + 1) > i32::MAX as usize {
        let expected = format!("at most {} tokens of all drafts, and one more each", i32::MAX);
        return Err(shape(OP, "draft_probs", &draft_probs.dims(), expected));
    }
    if draft_ids.dims() != [requests, drafted] {
        let expected = format!("[{requests}, {drafted}], as `draft_probs`");
        return Err(shape(OP, "draft_ids", &draft_ids.dims(), expected));
    }
    if target_probs.dims() != [requests, drafted + 1, vocab] {
        let expected = format!("[{requests}, {}, {vocab}], one token more than `draft_probs`", drafted + 1);
        return Err(shape(OP, "target_probs", &target_probs.dims(), expected));
    }
    if !draws.are_of(requests) {
        return Err(Error::Value {
            op: OP,
            argument: "draws",
            got: format!("{} draws", draws.len()),
            expected: format!("one from each of {requests} requests, in order"),
        });
    }
    if requests == 0 {
        let none = || Tensor::<1, Int>::zeros([0], (&device, DType::I32));
        let ids = Tensor::zeros([0, drafted + 1], (&device, DType::I32));
        return Ok(Speculation { ids, accepted: none(), emitted: none(), valid: none().equal_elem(1) });
    }
    let (ids, counts) = Dispatch::chain_speculative_sampling(
        draft_probs.into_backend(),
        saturated(draft_ids).into_backend(),
        target_probs.into_backend(),
        draws.words().into_backend(),
    );
    let counts: Tensor<2, Int> = floats.origin.tensor(counts);
    let column = |at: usize| counts.clone().slice([0..requests, at..at + 1]).squeeze_dim::<1>(1);
    Ok(Speculation {
        ids: floats.origin.tensor(ids),
        accepted: column(0),
        emitted: column(1),
        valid: column(2).equal_elem(1),
    })
}
