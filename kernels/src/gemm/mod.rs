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
mod dot;
mod hopper;
mod launch;
pub mod quantized;
mod raster;
mod skinny;
mod stage;
mod tile;
mod tiled;

pub use auto::is_for;
pub use blueprint::{Blueprint, Dot, Problem, Skinny, Tiled, WarpSpecialized};
pub use launch::{Gemm, launch, launch_with};
pub(crate) use stage::Place;
pub(crate) use tile::gemm_tile;
