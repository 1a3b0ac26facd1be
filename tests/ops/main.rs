//! Every operation through the public API, on every device of the build.
//!
//! `BURN_FLASHINFER_TEST_DEVICES=cuda,cpu` restricts the devices. Inputs are random; the seed is printed, and
//! `BURN_FLASHINFER_TEST_SEED` repeats it.
mod activation;
mod add_norm;
mod append;
mod attention;
mod autodiff;
mod bits;
mod block_tables;
mod burn_ops;
mod cache;
mod cascade;
mod copy;
mod custom_mask;
mod devices;
mod edges;
mod errors;
mod fp8;
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
mod oracle;
mod paged;
mod plan;
mod problem;
mod properties;
mod quantized;
mod refusals;
mod rope;
mod rope_append;
mod sampling;
mod scales;
mod segment_gemm;
mod sparse;
mod support;
mod tables;
mod traits;
mod variants;
