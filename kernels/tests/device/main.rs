//! The kernels on each device of the build, without Burn, against f64 on the host. `BURN_FLASHINFER_TEST_DEVICES=cpu,rocm`
//! leaves out the others.
//!
//! An error may be twice that of the same sum in f32 over the same rounded inputs, rounded once at the end, plus 1e-5:
//! a bound that scales with the problem instead of a tolerance someone picked.

#![cfg(any(feature = "cpu", feature = "cuda", feature = "rocm"))]
#![allow(clippy::needless_range_loop, reason = "one index names a place in several arrays")]

mod attention;
mod cached_codes;
mod case;
mod elements;
mod fp8_mma;
mod gemm;
mod host;
mod merge;
mod moe;
mod quantized;
mod sampling;
mod scaled;
mod segment_gemm;
mod skip_softmax;
mod tiled;
