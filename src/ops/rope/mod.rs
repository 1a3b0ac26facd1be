//! Rotary position embedding.

mod apply;
mod config;
mod table;

pub use apply::{QkNorm, Qkv, apply_rope, qk_rms_norm_rope, rope_append_paged_kv, rope_quantize_fp8};
pub use config::{RopeConfig, RopeScaling};
pub use table::Rope;
