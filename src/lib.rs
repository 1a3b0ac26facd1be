//! LLM-serving attention for [Burn](https://burn.dev): prefill and decode over paged and ragged keys and values, and
//! what stands around them in a language model, as operations on ordinary tensors.
//!
//! | operation | what it does |
//! |---|---|
//! | [`single_prefill`], [`single_decode`] | attention of one request with contiguous keys and values |
//! | [`batch_prefill_ragged`] | attention of requests of different lengths, one after the other |
//! | [`batch_prefill_paged`], [`batch_decode_paged`] | attention over keys and values in pages |
//! | [`cascade_attention`] | attention over pages that requests share, each read once |
//! | [`append_paged_kv`] | writes new keys and values into pages, in place |
//! | [`merge_state`] | combines attention over two sets of keys |
//! | [`apply_rope`] | rotary position embedding |
//! | [`rms_norm`], [`matmul_nt`] | normalisation, linear layer on weights as checkpoints store them |
//!
//! [`PagedKvCache`] manages pages for many sequences and shares them between forks; [`KvPages`], [`PageTable`] and
//! [`SlotMapping`] are for programs that manage their own. Every operation exists once more in [`reference`](mod@reference),
//! slow and in f64.
//!
//! # Conventions
//!
//! They are [FlashInfer](https://docs.flashinfer.ai)'s: queries are `[tokens, q_heads, head_dim]`, keys and values
//! `[tokens, kv_heads, head_dim]`, any number of query heads may share a key head, masks are aligned to the last key, the
//! LSE is to base 2, and a query that sees no key gets output 0 and LSE `-inf`. Elements are f32, f16 or bf16; sums are
//! f32.
//!
//! # Devices
//!
//! | feature | device | needs |
//! |---|---|---|
//! | `flex` (default) | [`Device::flex()`](burn::tensor::Device) | nothing |
//! | `cpu` | `Device::cpu()`, CubeCL on the CPU | LLVM to build |
//! | `cuda` | `Device::cuda(0)` | LLVM to build, CUDA to run |
//! | `rocm` | `Device::rocm(0)` | LLVM to build, ROCm to run |
//! | `vulkan` | `Device::vulkan(..)` | a Vulkan driver to run |
//! | `fusion` | | Burn's lazy fusion on all of these but Flex |
//!
//! # Gradients
//!
//! The operations are for inference. On an autodiff device they run as on the device inside; a tensor that requires a
//! gradient, or was computed from one that does, is refused with [`Error::Gradient`].
//!
//! # Errors
//!
//! Every argument is checked before anything is written, and every refusal is an [`Error`] that names the operation,
//! the argument, what it got and what it wanted. Host-side indices are checked when they are made into a [`PageTable`],
//! [`SlotMapping`], [`Indptr`] or [`Positions`], once for all layers of a model.
// A library leaves the choice of backends to the program; a build without any compiles, and refuses every device.
#![cfg_attr(not(any(feature = "flex", feature = "cube")), allow(unused))]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backend;
mod cache;
mod cascade;
mod check;
mod error;
pub mod extension;
mod indptr;
mod kv_pages;
mod ops;
mod options;
mod page_pool;
mod page_table;
pub mod reference;

pub use cache::{CacheConfig, PagedKvCache, SequenceId};
pub use cascade::Cascade;
pub use check::check_support;
pub use error::{Error, Result};
pub use extension::RopeStyle;
pub use indptr::{Indptr, Positions};
pub use kv_pages::KvPages;
pub use ops::{
    AttentionOutput, Rope, RopeConfig, RopeScaling, append_paged_kv, apply_rope, batch_decode_paged,
    batch_prefill_paged, batch_prefill_ragged, cascade_attention, matmul_nt, merge_state, rms_norm,
    single_decode, single_prefill,
};
pub use options::{AttentionOptions, KvLayout};
pub use page_table::{PageTable, SlotMapping};

/// The examples of the README compile and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
