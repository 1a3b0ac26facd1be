//! Reference of every operation: slow, in f64, on plain numbers. The fast operations must agree with it.
//!
//! Nothing here needs a backend. The tests of this crate compare every device with these functions. They also
//! define the exact result of an operation, where two results differ.
//!
//! ```
//! use burn_flashinfer::AttentionOptions;
//! use burn_flashinfer::reference::{Heads, attention, merge_state};
//!
//! # fn main() -> burn_flashinfer::Result<()> {
//! // Two tokens, one head of two elements.
//! let q = Heads::new([2, 1, 2], vec![1.0, 0.0, 0.0, 1.0])?;
//! let k = Heads::new([2, 1, 2], vec![3.0, 0.5, -1.0, 2.0])?;
//! let v = Heads::new([2, 1, 2], vec![1.0, 2.0, 3.0, 4.0])?;
//!
//! let whole = attention(&q, &k, &v, &AttentionOptions::new())?;
//! let [first, second] = [0..1, 1..2].map(|keys| {
//!     attention(&q, &k.tokens(keys.clone())?, &v.tokens(keys)?, &AttentionOptions::new())
//! });
//! let merged = merge_state(&first?, &second?)?;
//! assert!((merged.output.values()[0] - whole.output.values()[0]).abs() < 1e-12);
//! assert!((merged.lse[0] - whole.lse[0]).abs() < 1e-12);
//! # Ok(())
//! # }
//! ```

mod attention;
mod bits;
mod check;
mod heads;
mod merge;
mod moe;
mod pages;
mod rope;
mod rows;
mod sampling;

pub use attention::{attention, attention_of, batch_attention, batch_attention_with};
pub use bits::{packbits, segment_packbits, segment_unpackbits, unpackbits};
pub use heads::{Heads, State};
pub use merge::{merge_state, merge_state_in_place, merge_states, variable_length_merge_states};
pub use moe::{ExpertLayers, fused_moe, moe_route};
pub use pages::{Pages, append_paged_kv, gather_pages};
pub use rope::apply_rope;
pub use rows::{
    fused_add_rms_norm, gelu_and_mul, gelu_tanh_and_mul, gemma_fused_add_rms_norm, gemma_rms_norm,
    layer_norm, matmul_nt, rms_norm, segment_gemm, silu_and_mul,
};
pub use sampling::{
    Chain, Filter, apply_penalties, chain_speculative_sampling, distribution, renormalised, softmax, top_k,
    top_k_mask_logits,
};
