//! Plain data, without tensors: what everything else may import.

mod code8;
mod fp8;
mod layout;
mod linear;
mod moe;
mod options;
mod standard;
mod styles;
mod token_ranges;
mod token_tree;
mod variant;
mod weight;

pub use code8::Code8;
pub use fp8::Fp8;
pub use layout::{BitOrder, KvLayout, WeightLayout};
pub use linear::LinearParams;
pub use moe::{ExpertGroups, RouterScore, RoutingParams};
pub use options::{AttentionOptions, AttentionParams};
#[cfg(all(test, feature = "flex"))]
pub(crate) use standard::StandardAttention;
pub use styles::{Activation, RmsNormStyle, RopeStyle};
pub use token_ranges::{Items, Spans};
pub use token_tree::TokenTree;
#[cfg(feature = "cube")]
pub(crate) use variant::PlannedKeys;
pub(crate) use variant::visible;
pub use variant::{AttentionVariant, HostInputs, InputLengths, LogitTile, Request, Row, SharedVariant};
pub(crate) use weight::int4;
pub use weight::{WeightFormat, WeightScales};
