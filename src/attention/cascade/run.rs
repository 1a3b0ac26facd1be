//! Attention over pages that requests share.

use std::iter;

use burn::tensor::{DType, Tensor};

use super::levels::{Cascade, Level};
use crate::attention::inputs::{CallOptions, VariantInputs};
use crate::attention::output::AttentionOutput;
use crate::attention::unplanned::paged;
use crate::cache::KvPages;
use crate::error::{Error, Result};
use crate::memory;
use crate::ops::{merge_state, merge_states};
use crate::types::AttentionOptions;

/// Attention of a batch whose requests share pages: as [`batch_prefill_paged`](crate::batch_prefill_paged) (or
/// [`batch_decode_paged`](crate::batch_decode_paged)) of the batch that `cascade` was made of, but each shared page is
/// read once for all requests that share it.
///
/// `q`: `[tokens, q_heads, head_dim]`. The results of the levels, each rounded once, are merged in one pass,
/// in f32 ([`merge_states`](crate::merge_states)). `options` may come with [tensors](crate::CallOptions): sinks count
/// once, with a request's own keys, and slopes see the positions of the batch.
///
/// # Errors
///
/// As [`batch_prefill_paged`](crate::batch_prefill_paged), and if there is a left window, spans, items, or a variant that
/// is not one [over shared keys](crate::AttentionVariant::over_shared), although something is shared: a group of requests
/// has no positions.
pub fn cascade_attention<'a>(
    q: Tensor<3>,
    pages: &KvPages,
    cascade: &Cascade,
    options: impl Into<CallOptions<'a>>,
) -> Result<AttentionOutput> {
    const OP: &str = "cascade_attention";
    const NAMES: [&str; 2] = ["cascade"; 2];
    let CallOptions { options, inputs } = options.into();
    let Cascade { own, shared, .. } = cascade;
    let [own_keys, all_keys] = options_of_levels(OP, options, cascade)?;
    check_room(OP, &q, cascade.levels())?;
    let (slopes, of_shared) = (inputs.slopes.clone(), inputs.over_shared());
    let run = |level: &Level, call: (&AttentionOptions, VariantInputs)| {
        paged(OP, NAMES, q.clone(), level.qo_indptr.as_slice(), pages, &level.table, call.into())
    };
    // The own keys first: they alone can be refused for a causal mask.
    let own = run(own, (&own_keys, inputs))?;
    let shared = shared.iter().map(|level| {
        let attended = run(level, (&all_keys, of_shared.clone()))?;
        Ok(at_positions(attended, level.shifts.as_ref(), slopes.as_ref()))
    });
    merge_levels(own, shared.collect::<Result<_>>()?, options)
}

/// The options of the requests' own keys, and of those that they share.
///
/// # Errors
///
/// If they need positions where requests share keys: a left window, ranges of tokens, and most variants of the caller's.
pub(super) fn options_of_levels(
    op: &'static str,
    options: &AttentionOptions,
    cascade: &Cascade,
) -> Result<[AttentionOptions; 2]> {
    if cascade.shared.is_empty() {
        return Ok([options.clone(), options.clone()]);
    }
    let refused = |argument, got| {
        Err(Error::Value { op, argument, got, expected: "none, as requests share keys".into() })
    };
    if let Some(window) = options.window_left {
        return refused("window_left", window.to_string());
    }
    if let Some(ranges) = &options.ranges {
        return refused(ranges.name(), "set".into());
    }
    // Refuses an LSE that is asked for and is not there, before one is asked for here.
    options.check(op)?;
    let own = options.clone().return_lse(options.has_softmax());
    let shared = match &options.variant {
        None => own.clone().causal(false),
        Some(variant) => match variant.over_shared() {
            Some(shared) => AttentionOptions { variant: Some(shared), ..own.clone() },
            None => return refused("variant", format!("{variant:?}")),
        },
    };
    Ok([own, shared])
}

/// The LSE of biased logits, where the queries of a group are `shifts` away from the positions that it gave them.
pub(super) fn at_positions(
    attended: AttentionOutput,
    shifts: Option<&Tensor<1>>,
    slopes: Option<&Tensor<1>>,
) -> AttentionOutput {
    match (attended, shifts, slopes) {
        (AttentionOutput { output, lse: Some(lse) }, Some(shifts), Some(slopes)) => {
            let slopes = slopes.clone().mul_scalar(std::f32::consts::LOG2_E).unsqueeze_dim::<2>(0);
            let lse = lse + shifts.clone().unsqueeze_dim::<2>(1) * slopes;
            AttentionOutput { output, lse: Some(lse) }
        }
        (attended, ..) => attended,
    }
}

/// Refuses more levels than fit in memory: the results of each level, and all of them together for the merge.
pub(super) fn check_room(op: &'static str, q: &Tensor<3>, levels: usize) -> Result<()> {
    let found = memory::bytes([q.shape().num_elements(), q.dtype().size()]);
    memory::on_device(op, "q", [levels.saturating_mul(2), found], &q.device())
}

/// Merges the results of all levels into attention over all keys.
pub(super) fn merge_levels(
    own: AttentionOutput,
    shared: Vec<AttentionOutput>,
    options: &AttentionOptions,
) -> Result<AttentionOutput> {
    if shared.is_empty() {
        return Ok(own);
    }
    if !options.has_softmax() {
        return Ok(summed(own, shared));
    }
    let states: Vec<_> =
        iter::once(own).chain(shared).filter_map(|level| Some((level.output, level.lse?))).collect();
    let (output, lse) = match <[_; 2]>::try_from(states) {
        Ok([(v_a, s_a), (v_b, s_b)]) => merge_state(v_a, s_a, v_b, s_b)?,
        Err(states) => {
            let (v, s): (Vec<_>, Vec<_>) = states.into_iter().unzip();
            merge_states(Tensor::stack(v, 1), Tensor::stack(s, 1))?
        }
    };
    Ok(AttentionOutput { output, lse: options.return_lse.then_some(lse) })
}

/// The sum of all levels, whose weights nothing normalises: in f32, rounded once.
fn summed(own: AttentionOutput, shared: Vec<AttentionOutput>) -> AttentionOutput {
    let dtype = own.output.dtype();
    let of_all = own.output.cast(DType::F32);
    let output = shared.into_iter().fold(of_all, |sum, level| sum + level.output.cast(DType::F32));
    AttentionOutput { output: output.cast(dtype), lse: None }
}
