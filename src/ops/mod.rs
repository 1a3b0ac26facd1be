//! The operations, as functions on tensors. They check their arguments and hand them to the backend.

mod activation;
mod append;
mod bits;
mod linear;
mod merge;
mod moe;
mod norm;
mod quantization;
mod quantized;
mod rope;
pub(crate) mod sampling;
mod segment_gemm;

pub use activation::{
    gelu_and_mul, gelu_and_mul_quant, gelu_tanh_and_mul, gelu_tanh_and_mul_quant, silu_and_mul,
    silu_and_mul_quant,
};
pub use append::{append_paged_kv, gather_paged_kv};
pub use bits::{packbits, segment_packbits, segment_unpackbits, unpackbits};
pub use linear::{LinearOptions, gemma_rms_norm_linear, linear, matmul_nt, rms_norm_linear};
pub use merge::{merge_state, merge_state_in_place, merge_states, variable_length_merge_states};
pub use moe::{MoeRouting, fused_moe, moe_route};
pub use norm::{
    fused_add_rms_norm, fused_add_rms_norm_quant, gemma_fused_add_rms_norm, gemma_fused_add_rms_norm_quant,
    gemma_rms_norm, gemma_rms_norm_quant, layer_norm, layer_norm_quant, rms_norm, rms_norm_quant,
};
pub use quantization::{Quantization, quantize_per_token};
pub use quantized::{GptqVersion, QuantizedWeight, matmul_nt_quantized, multiplies_e4m3, scaled_linear};
pub use rope::{
    QkNorm, Qkv, Rope, RopeConfig, RopeScaling, apply_rope, qk_rms_norm_rope, rope_append_paged_kv,
    rope_quantize_fp8,
};
pub use segment_gemm::{SegmentGemm, segment_gemm};
