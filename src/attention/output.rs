//! The launch of attention, and its results.

use burn::{backend::Dispatch, tensor::Tensor};

use crate::dispatch::{IntoBackend, Origin};
use crate::error::Result;
use crate::extension::{Attended, Batch, FlashInferBackend, KeysValues};
use crate::memory;
use crate::types::AttentionParams;

/// The results of attention.
#[derive(Debug, Clone)]
#[must_use]
#[non_exhaustive]
pub struct AttentionOutput<const D: usize = 3, const L: usize = 2> {
    /// `[tokens, q_heads, head_dim]`, of the type of the queries: `softmax(logits) · v`.
    pub output: Tensor<D>,
    /// `[tokens, q_heads]` in f32, if [it was asked for](crate::AttentionOptions::return_lse): `log2(Σ exp(logits))`.
    pub lse: Option<Tensor<L>>,
}

/// Attention as planned, of tensors that were checked.
///
/// # Errors
///
/// If the device has no memory for the output.
pub(crate) fn attend(
    op: &'static str,
    q: Tensor<3>,
    kv: KeysValues<Dispatch>,
    v_dim: usize,
    batch: Batch<Dispatch>,
    params: AttentionParams,
) -> Result<AttentionOutput> {
    let [tokens, q_heads, _] = q.dims();
    let output = memory::bytes([tokens, q_heads, v_dim, q.dtype().size()]);
    memory::on_device(op, "q", [1, output], &q.device())?;
    let origin = Origin::of(&q);
    let (output, lse) = match Dispatch::batch_attention(q.into_backend(), kv, batch, params) {
        Attended::WithoutLse(output) => (output, None),
        Attended::WithLse(output, lse) => (output, Some(origin.tensor(lse))),
    };
    Ok(AttentionOutput { output: origin.tensor(output), lse })
}
