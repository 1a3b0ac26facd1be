//! Sampling of tokens without sorting, from logits or from filtered probabilities; and the largest values of
//! a row, sorted.
//!
//! A row belongs to one cube (or on a CPU to one unit), and nothing is read back to the host. Random numbers
//! are those of Philox 4x32-10, a function of the draw alone. The choice of a token is computed in integers,
//! whose sums do not depend on their order, or in fused operations. So a draw gives the same token on every
//! device and in every batch.

mod chunk;
mod draw;
mod filter;
mod fixed_point;
mod logits;
mod penalties;
mod probs;
mod radix_select;
mod softmax;
mod speculative;
mod top_k;
mod weights;

pub use draw::DRAW_WORDS;
pub use filter::{Filter, Limit, Output, launch as filter};
pub use fixed_point::MAX_VOCAB;
pub(crate) use fixed_point::{from_radix_key, radix_key};
pub use logits::{SampleLogits, launch as sample_logits};
pub use penalties::{Penalties, launch as apply_penalties};
pub use probs::{SampleProbs, launch as sample_probs};
pub use radix_select::MAX_TOP_K;
pub use softmax::{Softmax, launch as softmax};
pub use speculative::{COUNTS, Emit, Verify, launch as verify, launch_emit as emit};
pub use top_k::{TopK, launch as top_k};
