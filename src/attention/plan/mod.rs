//! Plans: the work partitioning of a batch, decided once for all layers.

mod config;
mod contiguous;
#[cfg(feature = "cube")]
mod kernels;
mod paged;
mod pod;
mod ragged;
mod schedule;
mod step;

pub use config::{KvSplit, PlanConfig};
pub use paged::PagedPlan;
pub use pod::PodPlan;
pub use ragged::RaggedPlan;
pub use step::DecodeStep;

pub(crate) use config::MAX_HEAD_DIM;
pub(crate) use contiguous::Contiguous;
pub(crate) use paged::decode_rows;
pub(crate) use schedule::{KeysOf, Requests, Schedule};
