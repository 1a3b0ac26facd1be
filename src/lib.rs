//! LLM-serving attention for [Burn](https://burn.dev): prefill and decode over paged and ragged keys and
//! values, and the other operations of an LLM decoder layer, on ordinary tensors.
//!
//! | operation | what it does |
//! |---|---|
//! | [`single_prefill`], [`single_decode`] | attention of one request with contiguous keys and values |
//! | [`batch_prefill_ragged`] | attention of requests of different lengths, one after the other |
//! | [`batch_prefill_paged`], [`batch_decode_paged`] | attention over keys and values in pages |
//! | [`PagedPlan`], [`RaggedPlan`] | the same of any mix of requests, planned once for all layers |
//! | [`RotatedPlan`] | over pages whose keys RoPE has not rotated |
//! | [`VariantInputs`], [`alibi_slopes`] | attention sinks and ALiBi, for all of them |
//! | [`Spans`], [`Items`], [`TokenTree`] | images in a causal prompt, multi-item scoring, and trees of drafted tokens |
//! | [`AttentionVariant`] | attention of your own |
//! | [`cascade_attention`], [`CascadePlan`] | attention over pages that requests share, each read once |
//! | [`BlockSparsePlan`], [`VariableBlockSparsePlan`] | attention over chosen blocks of keys, down to single keys |
//! | [`HeadPagesPlan`], [`TokenSparsePlan`] | attention over pages chosen for each key head, or slots for each query token |
//! | [`PodPlan`] | prefill and decode as two tensors, in one launch |
//! | [`DecodeStep`], [`DecodeGraph`] | a decoding step that is captured as a graph and replayed |
//! | [`append_paged_kv`] | writes new keys and values into pages, in place |
//! | [`gather_paged_kv`] | reads pages back |
//! | [`copy_pages`] | copies whole pages, in place |
//! | [`merge_state`], [`merge_state_in_place`] | combines attention over two sets of keys |
//! | [`merge_states`], [`variable_length_merge_states`] | combines attention over any number of them |
//! | [`apply_rope`], [`qk_rms_norm_rope`] | rotary position embedding, after the norm of each head |
//! | [`rope_append_paged_kv`] | the same, and the write to pages, in one launch |
//! | [`rope_quantize_fp8`], [`rms_norm_quant`], [`silu_and_mul_quant`] and so on | with results in 8 bits |
//! | [`rms_norm`], [`gemma_rms_norm`], [`layer_norm`] | normalisation |
//! | [`fused_add_rms_norm`], [`gemma_fused_add_rms_norm`] | normalisation after adding a residual, in place |
//! | [`silu_and_mul`], [`gelu_and_mul`], [`gelu_tanh_and_mul`] | gated activations |
//! | [`sampling`] | from logits to tokens; [`top_k`](sampling::top_k), the largest numbers of rows, and slots of their keys |
//! | [`packbits`], [`segment_packbits`], [`unpackbits`], [`segment_unpackbits`] | masks, eight bits to a byte |
//! | [`matmul_nt`], [`linear`], [`rms_norm_linear`] | linear layers on weights as checkpoints store them, with a norm before and an epilogue |
//! | [`matmul_nt_quantized`] | linear layer on weights of 8 or 4 bits: e4m3, AWQ, GPTQ |
//! | [`scaled_linear`], [`quantize_per_token`] | linear layer on rows and weights of e4m3, and such rows |
//! | [`multiplies_e4m3`] | asks whether that is faster on a device |
//! | [`segment_gemm`], [`SegmentGemm`] | segments of rows times matrices of their own: grouped layers, LoRA |
//! | [`moe_route`], [`fused_moe`] | the choice of experts for each token, and their feed-forward layers |
//!
//! The [`prelude`] has the types and operations of a decoder layer. [`PagedKvCache`] manages pages for many
//! sequences: it shares them between forks, keeps a cache of prefixes, evicts the least recently used under
//! pressure, and moves sequences to host memory and back. [`KvPages`], [`PageTable`], [`SlotMapping`] and
//! [`PageCopies`] are for programs that manage their own. Every operation also exists in
//! [`reference`](mod@reference), slow and in f64.
//!
//! # Conventions
//!
//! They are [FlashInfer](https://docs.flashinfer.ai)'s: queries are `[tokens, q_heads, head_dim]`, keys and
//! values `[tokens, kv_heads, head_dim]`, any number of query heads may share a key head, masks are aligned
//! to the last key, the LSE is to base 2, and a query that sees no key gets output 0 and LSE `-inf`. Elements
//! are f32, f16 or bf16; sums are f32.
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
//! Every argument is checked before anything is written. Every refusal is an [`Error`] that names the
//! operation, the argument, the value it got and the expected one. Host-side indices are checked when they
//! are made into a [`PageTable`], [`SlotMapping`], [`Indptr`] or [`Positions`], once for all layers of a
//! model; batches are checked when they are planned.
#![cfg_attr(docsrs, feature(doc_cfg))]
// A library leaves the choice of backends to the program; a build without any compiles, and refuses every device.
#![cfg_attr(not(any(feature = "flex", feature = "cube")), allow(unused))]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attention;
mod backend;
mod cache;
mod check;
mod dispatch;
mod error;
pub mod extension;
mod indptr;
mod ints;
mod memory;
mod ops;
pub mod reference;
#[cfg(feature = "flex")]
mod simd;
mod types;

pub use attention::{
    AttentionOutput, BlockMask, BlockSparsePlan, CallOptions, Cascade, CascadePlan, DecodeGraph, DecodeStep,
    Dequantize, HeadPageTable, HeadPagesPlan, KvSplit, KvTensor, PagedPlan, PlanConfig, PodPlan, RaggedPlan,
    RotatedPlan, StepConfig, StepTokens, TokenSparsePlan, VariableBlockMask, VariableBlockSparsePlan,
    VariantInputs, alibi_slopes, batch_decode_paged, batch_prefill_paged, batch_prefill_ragged,
    cascade_attention, single_decode, single_prefill,
};
pub use cache::{
    CacheConfig, CacheStats, KvPages, PageCopies, PageTable, PagedKvCache, PagedStep, Positions, SequenceId,
    SlotMapping, SwappedSequence, copy_pages,
};
pub use check::check_support;
pub use error::{Error, Result};
pub use indptr::Indptr;
pub use ops::{
    GptqVersion, LinearOptions, MoeRouting, QkNorm, Qkv, Quantization, QuantizedWeight, Rope, RopeConfig,
    RopeScaling, SegmentGemm, append_paged_kv, apply_rope, fused_add_rms_norm, fused_add_rms_norm_quant,
    fused_moe, gather_paged_kv, gelu_and_mul, gelu_and_mul_quant, gelu_tanh_and_mul, gelu_tanh_and_mul_quant,
    gemma_fused_add_rms_norm, gemma_fused_add_rms_norm_quant, gemma_rms_norm, gemma_rms_norm_linear,
    gemma_rms_norm_quant, layer_norm, layer_norm_quant, linear, matmul_nt, matmul_nt_quantized, merge_state,
    merge_state_in_place, merge_states, moe_route, multiplies_e4m3, packbits, qk_rms_norm_rope,
    quantize_per_token, rms_norm, rms_norm_linear, rms_norm_quant, rope_append_paged_kv, rope_quantize_fp8,
    scaled_linear, segment_gemm, segment_packbits, segment_unpackbits, silu_and_mul, silu_and_mul_quant,
    unpackbits, variable_length_merge_states,
};
pub use types::{
    Activation, AttentionOptions, AttentionVariant, BitOrder, Fp8, HostInputs, InputLengths, Items, KvLayout,
    LogitTile, Request, RopeStyle, RouterScore, Row, SharedVariant, Spans, TokenTree, WeightFormat,
    WeightLayout, WeightScales,
};

/// All that a decoder layer over a paged cache needs, for `use burn_flashinfer::prelude::*`.
pub mod prelude {
    pub use crate::{
        AttentionOptions, AttentionOutput, CacheConfig, KvLayout, KvPages, PagedKvCache, PagedPlan,
        PagedStep, PlanConfig, QkNorm, Qkv, Rope, RopeConfig, SequenceId, append_paged_kv, apply_rope,
        fused_add_rms_norm, matmul_nt, rms_norm, rope_append_paged_kv, silu_and_mul,
    };
}

/// Sampling: from logits to tokens, for a whole batch on the device, without sorting and without reading anything back.
///
/// The drawn token depends on the row, its parameters and the [`DrawKey`](sampling::DrawKey), not on the
/// batch or the device. The computation is in integers, or in operations whose rounding IEEE 754 prescribes.
/// Only the `exp` of [`softmax`](sampling::softmax) may differ in its last bits between devices, and with it,
/// rarely, a token drawn from its result; [`sampling_from_logits`](sampling::sampling_from_logits) has one of
/// its own.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::sampling::{Draws, softmax, top_p_sampling_from_probs};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let logits = Tensor::<2>::random([4, 1000], Distribution::Normal(0.0, 3.0), &device);
/// let temperature = Tensor::full([4], 0.7, &device);
/// let probs = softmax(logits, Some(temperature))?;
/// let step = 17;
/// let samples = top_p_sampling_from_probs(probs, Tensor::full([4], 0.9, &device), &Draws::new(42, step, 4, &device)?)?;
/// assert_eq!(samples.ids.dims(), [4]);
/// # Ok(())
/// # }
/// ```
pub mod sampling {
    pub use crate::ops::sampling::*;
}

/// Building blocks of a variant's kernels: the device's half of an [`AttentionVariant`].
#[cfg(feature = "cube")]
pub mod kernels {
    pub use burn_flashinfer_kernels::Result;
    pub use burn_flashinfer_kernels::attention::{
        Call, CausalWindow, CausalWindowLaunch, Inputs, Kernels, KeyBounds, Math, QueryRow, RequestShape,
        Standard, Variant,
    };
    pub use cubecl;
}

/// The examples of the README compile and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
