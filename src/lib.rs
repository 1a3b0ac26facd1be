//! LLM-serving attention for [Burn](burn).
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backend;
mod cache;
mod check;
mod error;
pub mod extension;
mod indptr;
mod ops;
mod options;
mod page_pool;
mod page_table;

pub use cache::{CacheConfig, KvPages, PagedKvCache, SequenceId};
pub use error::{Error, Result};
pub use extension::RopeStyle;
pub use indptr::{Indptr, Positions};
pub use ops::{
    AttentionOutput, Rope, RopeConfig, RopeScaling, append_paged_kv, apply_rope, batch_decode_paged,
    batch_prefill_paged, batch_prefill_ragged, matmul_nt, merge_state, rms_norm, single_decode,
    single_prefill,
};
pub use options::{AttentionOptions, KvLayout};
pub use page_table::{PageTable, SlotMapping};
