//! `y = x · weightᵀ`: a linear layer on weights in the order of checkpoints.
//!
//! | kernel | for |
//! |---|---|
//! | [`Dot`] | any width and alignment, every device whose units run in planes |
//! | [`Skinny`] | few rows, bound by one read of the weights, which are the wide operand of the matrix unit |
//! | [`Tiled`] | more rows |
//! | [`WarpSpecialized`] | more rows on Hopper |
//!
//! [`Blueprint::auto`] chooses; [`launch_with`] takes exactly one.

mod auto;
mod blueprint;
mod code_scales;
mod dot;
mod epilogue;
mod finish;
mod hopper;
mod launch;
mod machine;
mod normed;
pub mod quantized;
mod raster;
mod settings;
mod skinny;
mod stage;
mod tile;
mod tiled;

pub use crate::mma::TF32;
pub use auto::is_for;
pub use blueprint::{Blueprint, Dot, Problem, Skinny, Tiled, WarpSpecialized};
pub use epilogue::Epilogue;
pub(crate) use epilogue::{EpilogueArgs, Steps};
pub use finish::finish;
pub use hopper::WORK_WORDS;
pub(crate) use hopper::{Matrices, ROWS, launch as launch_matrices};
pub use launch::{Dtypes, Gemm, launch, launch_with};
pub use normed::RmsNorm;
pub(crate) use stage::Place;
pub(crate) use tile::gemm_tile;
