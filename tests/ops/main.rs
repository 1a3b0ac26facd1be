//! Every operation through the public API, on every device of the build.
//!
//! `BURN_FLASHINFER_TEST_DEVICES=cuda,cpu` restricts the devices. Inputs are random; the seed is printed, and
//! `BURN_FLASHINFER_TEST_SEED` repeats it.
mod activation;
mod add_norm;
mod append;
mod attention;
mod autodiff;
mod biases;
mod bits;
mod block_tables;
mod burn_ops;
mod cache;
mod cached_codes;
mod cascade;
mod copy;
mod custom_mask;
mod dequantize;
mod devices;
mod edges;
mod errors;
mod fp8;
mod fp8_mma;
#[cfg(feature = "flex")]
mod growth;
mod layer_norm;
mod linear;
#[cfg(all(unix, feature = "flex"))]
mod little_memory;
mod memory;
mod merge;
mod moe;
mod moe_route;
mod norm;
mod paged;
mod plan;
mod problem;
mod properties;
mod quantized;
mod refusals;
mod rope;
mod rope_append;
mod rotated;
mod sampling;
mod scales;
mod segment_gemm;
mod setting;
mod sparse;
mod support;
mod tables;
mod token_ranges;
mod token_scales;
mod token_trees;
mod traits;
mod variants;
