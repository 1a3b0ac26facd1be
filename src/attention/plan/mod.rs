//! Plans: the work partitioning of a batch, decided once for all layers.

mod config;
mod contiguous;
mod dequantized;
#[cfg(feature = "cube")]
mod kernels;
mod lists;
mod paged;
mod pod;
mod ragged;
mod schedule;
mod step;
mod step_config;

pub use config::{Dequantize, KvSplit, PlanConfig};
pub use paged::PagedPlan;
pub use pod::PodPlan;
pub use ragged::RaggedPlan;
pub use step::DecodeStep;
pub use step_config::{StepConfig, StepTokens};

pub(crate) use config::MAX_HEAD_DIM;
pub(crate) use contiguous::Contiguous;
pub(crate) use dequantized::Dequantized;
pub(crate) use lists::{KeysOf, Requests};
pub(crate) use paged::decode_rows;
pub(crate) use schedule::Schedule;
