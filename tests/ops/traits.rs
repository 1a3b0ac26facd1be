//! Traits of public types: `Send` and `Sync`, and `Display`.

use burn_flashinfer::sampling::{Draws, LogitsPipeline, Penalties, Samples, Speculation};
use burn_flashinfer::{
    AttentionOptions, AttentionOutput, BlockMask, BlockSparsePlan, CacheConfig, CacheStats, CallOptions,
    Cascade, CascadePlan, DecodeStep, Error, Fp8, HeadPageTable, HeadPagesPlan, Indptr, Items, KvLayout,
    KvPages, KvSplit, MoeRouting, PageCopies, PageTable, PagedKvCache, PagedPlan, PagedStep, PlanConfig,
    PodPlan, Positions, Quantization, RaggedPlan, Result, Rope, RopeConfig, SegmentGemm, SequenceId,
    SlotMapping, Spans, StepConfig, SwappedSequence, TokenSparsePlan, TokenTree, VariableBlockMask,
    VariableBlockSparsePlan, VariantInputs,
};

use crate::devices::devices;

const fn send<T: Send>() {}
const fn shared<T: Send + Sync>() {}

/// Compiles, or a type has lost a trait.
const _: () = {
    shared::<(AttentionOptions, PlanConfig, StepConfig, CacheConfig, RopeConfig, VariantInputs, Error)>();
    shared::<(AttentionOutput, Samples, Speculation, CacheStats, Rope, Quantization)>();
    shared::<(PagedKvCache, KvPages, SwappedSequence, SequenceId)>();
    shared::<(PagedStep, PageTable, SlotMapping, Positions, Indptr, PageCopies, Cascade)>();
    shared::<(Spans, Items, TokenTree, CallOptions<'_>)>();
    shared::<(SegmentGemm, MoeRouting, Draws, LogitsPipeline, Penalties)>();
    // Two runs at once would share the workspace.
    send::<(PagedPlan, RaggedPlan, CascadePlan, DecodeStep, PodPlan)>();
    send::<(BlockSparsePlan, VariableBlockSparsePlan, HeadPagesPlan, TokenSparsePlan)>();
    shared::<(BlockMask, VariableBlockMask, HeadPageTable)>();
};

#[test]
fn names_are_short() -> Result<()> {
    assert_eq!(format!("{} {}", KvLayout::Nhd, KvLayout::Hnd), "NHD HND");
    assert_eq!(format!("{} {} {}", Fp8::E4m3, Fp8::E4m3Fnuz, Fp8::E5m2), "e4m3fn e4m3fnuz e5m2");
    let splits = [KvSplit::Auto, KvSplit::Fixed(512), KvSplit::Never];
    assert_eq!(splits.map(|split| split.to_string()), ["auto", "fixed (512 keys)", "never"]);

    let mut cache = PagedKvCache::new(&CacheConfig::new(1, 8, 4, 2, 64), &devices().swap_remove(0).device)?;
    let (sequence, _) = cache.create_with_prefix(&[1, 2, 3]);
    assert!(sequence.to_string().starts_with("sequence "), "{sequence}");
    let step = cache.step(&[(sequence, 5)])?;
    assert_eq!(step.tokens(), 5);
    let stats = "2 of 8 pages used, 0 evictable; 1 sequences of 5 tokens; prefixes: 0 tokens found, 3 not";
    assert_eq!(cache.stats().to_string(), stats);
    Ok(())
}
