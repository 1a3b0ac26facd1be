//! Requests of one key head each.

use burn::tensor::{Device, Tensor};

use crate::attention::output::AttentionOutput;
use crate::attention::plan::PlanConfig;
use crate::error::{Error, Result};

/// The order of the requests of a batch that has one for each key head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadOrder {
    /// All heads of a token, then those of the next: the queries as they are.
    TokensFirst,
    /// All tokens of a head, then those of the next: the queries are copied.
    HeadsFirst,
}

/// The settings of requests of one key head each.
///
/// # Errors
///
/// If the device cannot take `config`, or there is a variant, which would be told other heads and requests.
pub(super) fn of_one_head(op: &'static str, config: &PlanConfig, device: &Device) -> Result<PlanConfig> {
    if let Some(variant) = &config.options.variant {
        let (got, expected) = (format!("{variant:?}"), "none, as each key head is a request".into());
        return Err(Error::Value { op, argument: "variant", got, expected });
    }
    config.check(op, device)?;
    let mut options = config.options.clone();
    options.kv_layout = None;
    let q_heads = config.q_heads / config.kv_heads;
    Ok(PlanConfig { q_heads, kv_heads: 1, options, ..config.clone() })
}

/// `q` `[tokens, q_heads, head_dim]` as `[tokens · kv_heads, group, head_dim]`.
pub(super) fn split_heads(q: Tensor<3>, kv_heads: usize, order: HeadOrder) -> Tensor<3> {
    let [tokens, q_heads, dim] = q.dims();
    let split = [tokens * kv_heads, q_heads / kv_heads, dim];
    match order {
        HeadOrder::TokensFirst => q.reshape(split),
        HeadOrder::HeadsFirst => {
            q.reshape([tokens, kv_heads, q_heads / kv_heads, dim]).swap_dims(0, 1).reshape(split)
        }
    }
}

/// Undoes [`split_heads`].
pub(super) fn join_heads(attended: AttentionOutput, kv_heads: usize, order: HeadOrder) -> AttentionOutput {
    let AttentionOutput { output, lse } = attended;
    let [rows, group, dim] = output.dims();
    let tokens = rows / kv_heads;
    let (joined, of_lse) = ([tokens, kv_heads * group, dim], [tokens, kv_heads * group]);
    match order {
        HeadOrder::TokensFirst => {
            AttentionOutput { output: output.reshape(joined), lse: lse.map(|lse| lse.reshape(of_lse)) }
        }
        HeadOrder::HeadsFirst => AttentionOutput {
            output: output.reshape([kv_heads, tokens, group, dim]).swap_dims(0, 1).reshape(joined),
            lse: lse.map(|lse| lse.reshape([kv_heads, tokens, group]).swap_dims(0, 1).reshape(of_lse)),
        },
    }
}
