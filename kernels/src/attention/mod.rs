//! Attention of any query over single, ragged and paged keys.

mod blueprint;
mod buffers;
mod checked;
mod hopper;
mod kv_table;
mod launch;
mod mask;
mod plan;
mod portable;
mod standard;
pub(crate) mod state;
mod tiled;
mod token_table;
mod variant;

pub use crate::element::Element;
pub use crate::math::Math;
pub use crate::problem::{Alignment, HeadDims, Problem};
pub use crate::request::{KeyRange, QueryRow, RequestShape};
pub use blueprint::{Blueprint, Choice};
pub use checked::KvScales;
pub use launch::{Attention, Batch, Call, Inputs, Kernels, launch};
pub use mask::{Mask, MaskBits, map_tiles, mask_words};
pub use plan::{DevicePlan, Limits, MergeItem, Plan, Split, WorkItem};
pub use portable::Portable;
pub use standard::{Ranges, Standard};
pub use tiled::{Mixed, Tiled};
pub use token_table::TREE_TOKENS;
pub use variant::{CausalWindow, CausalWindowLaunch, KeyBounds, Variant};
