//! Attention over pages that requests share.

use std::iter;

use burn::tensor::Tensor;

use super::levels::Cascade;
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
/// in f32 ([`merge_states`](crate::merge_states)).
///
/// # Errors
///
/// As [`batch_prefill_paged`](crate::batch_prefill_paged), and if there is a left window although something
/// is shared: a group of requests has no positions.
pub fn cascade_attention(
    q: Tensor<3>,
    pages: &KvPages,
    cascade: &Cascade,
    options: &AttentionOptions,
) -> Result<AttentionOutput> {
    const OP: &str = "cascade_attention";
    const NAMES: [&str; 2] = ["cascade"; 2];
    let Cascade { own, shared, .. } = cascade;
    check_shares(OP, options, cascade)?;
    check_room(OP, &q, cascade.levels())?;
    let own_keys = options.clone().return_lse(options.return_lse || !shared.is_empty());
    let all_keys = own_keys.clone().causal(false);
    // The own keys first: they alone can be refused for a causal mask.
    let levels = iter::once((own, &own_keys)).chain(shared.iter().map(|level| (level, &all_keys)));
    let found = levels.map(|(level, options)| {
        paged(OP, NAMES, q.clone(), level.qo_indptr.as_slice(), pages, &level.table, options)
    });
    merge_levels(found.collect::<Result<_>>()?, options.return_lse)
}

/// Refuses options that need positions where requests share keys: a left window, and a variant of the
/// caller's.
pub(super) fn check_shares(op: &'static str, options: &AttentionOptions, cascade: &Cascade) -> Result<()> {
    if cascade.shared.is_empty() {
        return Ok(());
    }
    let refused = |argument, got| {
        Err(Error::Value { op, argument, got, expected: "none, as requests share keys".into() })
    };
    match (options.window_left, &options.variant) {
        (Some(window), _) => refused("window_left", window.to_string()),
        (_, Some(variant)) => refused("variant", format!("{variant:?}")),
        _ => Ok(()),
    }
}

/// Refuses more levels than fit in memory: the results of each level, and all of them together for the merge.
pub(super) fn check_room(op: &'static str, q: &Tensor<3>, levels: usize) -> Result<()> {
    let found = memory::bytes([q.shape().num_elements(), q.dtype().size()]);
    memory::on_device(op, "q", [levels.saturating_mul(2), found], &q.device())
}

/// Merges the results of all levels into attention over all keys.
pub(super) fn merge_levels(levels: Vec<AttentionOutput>, return_lse: bool) -> Result<AttentionOutput> {
    let levels = match <[_; 1]>::try_from(levels) {
        Ok([alone]) => return Ok(alone),
        Err(levels) => levels,
    };
    let states: Vec<_> =
        levels.into_iter().filter_map(|level| level.lse.map(|lse| (level.output, lse))).collect();
    let (output, lse) = match <[_; 2]>::try_from(states) {
        Ok([(v_a, s_a), (v_b, s_b)]) => merge_state(v_a, s_a, v_b, s_b)?,
        Err(states) => {
            let (v, s): (Vec<_>, Vec<_>) = states.into_iter().unzip();
            merge_states(Tensor::stack(v, 1), Tensor::stack(s, 1))?
        }
    };
    Ok(AttentionOutput { output, lse: return_lse.then_some(lse) })
}
