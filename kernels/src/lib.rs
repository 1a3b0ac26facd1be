//! CubeCL kernels of burn-flashinfer, for any CubeCL program: there is no Burn type in this crate.
//!
//! Each module holds a kernel and its launcher, which checks the requirements of the kernel. Tensors arrive
//! as [`TensorBinding`](cubecl::prelude::TensorBinding)s, whose strides are honoured. The contents of index
//! tensors (row pointers, page indices, slots, positions) are on the device, where no launcher sees them. A
//! launcher whose kernel trusts them is `unsafe`: its caller checks them when it builds them.
//!
//! Attention in f16 and bf16 has kernels for matrix units ([`attention::Tiled`]), made of instructions that
//! CubeCL does not have ([`Instruction`]). All other kernels, and attention on all other devices, need no matrix
//! unit, and of plane operations no more than shuffles; they compute in f32 whatever the element type, so
//! they run on every CubeCL device that has those, and on its CPU runtime, where a unit is alone.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod attention;
pub mod bits;
mod code8;
mod device;
mod element;
mod fp8;
pub mod gemm;
mod isa;
mod math;
pub mod merge;
mod mma;
pub mod moe;
#[cfg(feature = "compilers")]
pub mod offline;
mod problem;
mod request;
mod rows;
pub mod sampling;
pub mod segment_gemm;
mod staging;

pub use code8::{Code8, Quantized};
pub use device::{Arch, DeviceProfile, Instruction, KvLayout, Refusal, Result};
pub use element::Element;
pub use fp8::Fp8;
pub use mma::MmaKind;
pub use rows::{activation, append, append_scaled, norm, pages, quantize, rope};
