//! Attention on matrix cores.

mod auto;
mod bias;
mod blueprint;
mod combine;
mod copy_stage;
mod epilogue;
mod kernel;
pub(super) mod lane_rows;
mod launch;
pub(super) mod mask_bits;
mod merge_planes;
pub(super) mod negligible;
pub(super) mod softmax;
mod token_scales;

pub use blueprint::{Mixed, Tiled};
pub(super) use epilogue::store_rows;
pub(super) use launch::launch;
