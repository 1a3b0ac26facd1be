//! Attention of any query over single, ragged and paged keys.

mod blueprint;
mod hopper;
mod kv_table;
mod launch;
mod plan;
mod portable;
mod request;
mod tiled;
mod variant;

pub use crate::math::Math;
pub use blueprint::{Alignment, Blueprint, Choice, HeadDims, Mixed, Problem};
pub use launch::{Attention, Batch, Call, Inputs, Kernels, KeyRange, launch};
pub use plan::{DevicePlan, Limits, MergeItem, Plan, Split, WorkItem};
pub use portable::Portable;
pub(crate) use request::TileRows;
pub use request::{QueryRow, RequestShape};
pub use tiled::{MmaKind, Tiled};
pub use variant::{CausalWindow, CausalWindowLaunch, SoftCap, Standard, Variant};
