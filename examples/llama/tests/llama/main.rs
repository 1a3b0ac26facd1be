//! The Llama program: against Hugging Face, against itself, on damaged folders, and as a process.

mod checkpoint;
mod config;
mod defaults;
mod failures;
mod fixture;
mod generation;
mod kv_cache;
mod parity;
mod program;
mod quantized;
mod quantized_failures;
mod random;
mod resources;
mod settings;
mod streaming;
