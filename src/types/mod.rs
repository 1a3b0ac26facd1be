//! Plain data, without tensors: what everything else may import.

mod fp8;
mod layout;
mod linear;
mod moe;
mod options;
mod styles;
mod variant;
mod weight;

pub use fp8::Fp8;
pub use layout::{BitOrder, KvLayout, WeightLayout};
pub use linear::LinearParams;
pub use moe::{ExpertGroups, RouterScore, RoutingParams};
pub use options::{AttentionOptions, AttentionParams};
pub use styles::{Activation, RmsNormStyle, RopeStyle};
#[cfg(feature = "cube")]
pub(crate) use variant::PlannedKeys;
#[cfg(all(test, feature = "flex"))]
pub(crate) use variant::StandardAttention;
pub(crate) use variant::visible;
pub use variant::{AttentionVariant, LogitTile, Request, Row, SharedVariant};
pub(crate) use weight::int4;
pub use weight::{WeightFormat, WeightScales};
