//! A Llama made of `burn_flashinfer` operations, and all it takes to write text with it.
//!
//! Start with [`model`]: it is the part that shows how the operations fit together.

#![allow(
    missing_docs,
    reason = "of a program: most fields are settings of Hugging Face's files, under their names there"
)]

pub mod codes;
pub mod config;
pub mod defaults;
pub mod folder;
pub mod generate;
pub mod json;
#[cfg(all(feature = "kernel-cache", feature = "gpu"))]
pub mod kernel_cache;
pub mod kv_cache;
pub mod kv_scales;
pub mod linear;
mod load;
pub mod model;
pub mod perplexity;
pub mod quantization;
pub mod room;
pub mod rope;
pub mod rules;
pub mod sampling;
pub mod stream;
pub mod tokenizer;
pub mod weights;
