//! `y = x · dequantised(weight)ᵀ`: a linear layer on weights of 8 or 4 bits, for activations of any float type.
//!
//! | blueprint | for |
//! |---|---|
//! | [`FewRows`] | few rows of 16 bits: bound by one read of the codes, which become operands in registers; weights are exact |
//! | [`Blueprint::Dequantized`] | all others: the weight once in the type of `x`, rounded, and then a kernel of [`gemm`](super) |
//!
//! [`ScaledGemm`] is a product of rows and a weight both of e4m3, on Hopper and CDNA3.
//!
//! The layouts are those of [`WeightFormat`].

mod auto;
mod blueprint;
mod dequantize;
mod few_rows;
mod launch;
mod scaled;
mod tiles;

pub use self::blueprint::{Blueprint, FewRows, Problem};
pub use self::launch::{QuantizedGemm, Weight, dequantize, launch, launch_with};
pub use self::scaled::{ScaledGemm, launch_scaled};
pub use crate::mma::{Scales, WeightFormat};
