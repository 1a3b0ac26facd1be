//! Plans: the work partitioning of a batch, decided once for all layers.

mod cascade;
mod config;
mod paged;
mod ragged;
mod schedule;
mod segment_gemm;
mod step;

pub use cascade::CascadePlan;
pub use config::{KvSplit, PlanConfig};
pub use paged::PagedPlan;
pub use ragged::RaggedPlan;
pub use schedule::Launch;
pub use segment_gemm::SegmentGemm;
pub use step::DecodeStep;

pub(crate) use config::MAX_HEAD_DIM;
pub(crate) use paged::decode_rows;
pub(crate) use schedule::{KeysOf, Requests, Schedule};
