//! A Llama made of `burn_flashinfer` operations, and all it takes to write text with it.
//!
//! Start with [`model`]: it is the part that shows how the operations fit together.

pub mod config;
pub mod folder;
pub mod generate;
pub mod model;
pub mod sampling;
pub mod stream;
pub mod tokenizer;
pub mod weights;
