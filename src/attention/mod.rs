//! Attention: variants, options and inputs.

mod inputs;
mod variant;

pub use inputs::VariantInputs;
#[cfg(feature = "cube")]
pub(crate) use variant::PlannedKeys;
pub use variant::{AttentionVariant, LogitTile, Request, Row, SharedVariant};
pub(crate) use variant::{StandardAttention, visible};
