//! Mixture of experts: the choice of experts for each token, and their feed-forward layers.
//!
//! Nothing is read back: the rows of each expert are counted and placed on the device, in work items of
//! [`segment_gemm`](crate::segment_gemm) for as many tiles as there can be.

mod launch;
mod routing;
mod rows;
mod sort;

pub use launch::{FusedMoe, launch};
pub use routing::{Groups, MAX_EXPERTS, MAX_GROUPS, MAX_TOP_K, Route, Score, route};
pub use sort::{Sort, Sorted, sort};
