//! Softmax and sampling.

mod draws;
mod filter;
mod penalties;
mod pipeline;
mod sample;
mod speculative;
mod top_k;
mod top_k_transform;

pub use draws::{DrawKey, Draws};
pub use filter::{
    FilterOrder, top_k_mask_logits, top_k_renorm_probs, top_k_top_p_sampling_from_logits,
    top_k_top_p_sampling_from_probs, top_p_renorm_probs,
};
pub use penalties::{Penalties, apply_penalties};
pub use pipeline::{LogitsPipeline, Step};
pub use sample::{
    Samples, min_p_sampling_from_probs, sampling_from_logits, sampling_from_probs, softmax,
    top_k_sampling_from_probs, top_p_sampling_from_probs,
};
pub use speculative::{Speculation, chain_speculative_sampling};
pub use top_k::top_k;
pub use top_k_transform::{top_k_page_table_transform, top_k_ragged_transform};
