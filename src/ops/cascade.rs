//! Attention over pages that requests share.

use burn::tensor::{DType, Tensor};

use super::attention::{AttentionOutput, paged};
use super::merge::merge_state;
use crate::cascade::Cascade;
use crate::error::{Error, Result};
use crate::kv_pages::KvPages;
use crate::options::AttentionOptions;

/// Attention of a batch whose requests share pages: as [`batch_prefill_paged`](crate::batch_prefill_paged) (or
/// [`batch_decode_paged`](crate::batch_decode_paged)) of the batch that `cascade` was made of, but each shared page is
/// read once for all requests that share it.
///
/// `q`: `[tokens, q_heads, head_dim]`. The levels are merged in their order, in f32; with more than two of them what each
/// level found is kept in f32 until all are.
///
/// # Errors
///
/// As [`batch_prefill_paged`](crate::batch_prefill_paged), and if there is a left window although something is shared: a
/// group of requests has no positions.
pub fn cascade_attention(
    q: Tensor<3>,
    pages: &KvPages,
    cascade: &Cascade,
    options: &AttentionOptions,
) -> Result<AttentionOutput> {
    const OP: &str = "cascade_attention";
    const NAMES: [&str; 2] = ["cascade"; 2];
    let Cascade { own, shared, .. } = cascade;
    if let Some(window) = options.window_left
        && !shared.is_empty()
    {
        return Err(Error::Value {
            op: OP,
            argument: "window_left",
            got: window.to_string(),
            expected: "none, as requests share keys".into(),
        });
    }
    let dtype = q.dtype();
    let exact = |tensor: Tensor<3>| if shared.len() > 1 { tensor.cast(DType::F32) } else { tensor };
    let all_keys = options.causal(false).return_lse(true);
    let own_options = options.return_lse(options.return_lse || !shared.is_empty());
    // The own keys first: they alone can be refused for a causal mask.
    let attended = paged(OP, NAMES, q.clone(), own.qo_indptr.as_slice(), pages, &own.table, &own_options)?;
    let mut merged: Option<(Tensor<3>, Tensor<2>)> = None;
    for level in shared {
        let found = paged(OP, NAMES, q.clone(), level.qo_indptr.as_slice(), pages, &level.table, &all_keys)?;
        if let Some(lse) = found.lse {
            let output = exact(found.output);
            merged = Some(match merged {
                Some((before, before_lse)) => merge_state(before, before_lse, output, lse)?,
                None => (output, lse),
            });
        }
    }
    let (Some((before, before_lse)), Some(lse)) = (merged, attended.lse.clone()) else {
        return Ok(attended);
    };
    let (output, lse) = merge_state(before, before_lse, exact(attended.output), lse)?;
    Ok(AttentionOutput { output: output.cast(dtype), lse: options.return_lse.then_some(lse) })
}
