//! Attention: its requests are checked, planned and run.

mod cascade;
mod graph;
mod inputs;
mod kv_tensor;
mod mask;
mod output;
mod plan;
mod rotated;
mod sparse;
mod unplanned;

pub use cascade::{Cascade, CascadePlan, cascade_attention};
pub use graph::DecodeGraph;
pub use inputs::{CallOptions, VariantInputs, alibi_slopes};
pub use kv_tensor::KvTensor;
pub use output::AttentionOutput;
pub use plan::{
    DecodeStep, Dequantize, KvSplit, PagedPlan, PlanConfig, PodPlan, RaggedPlan, StepConfig, StepTokens,
};
pub use rotated::RotatedPlan;
pub use sparse::{
    BlockMask, BlockSparsePlan, HeadPageTable, HeadPagesPlan, TokenSparsePlan, VariableBlockMask,
    VariableBlockSparsePlan,
};
pub use unplanned::{
    batch_decode_paged, batch_prefill_paged, batch_prefill_ragged, single_decode, single_prefill,
};
