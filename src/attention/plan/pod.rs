//! Prefill and decode side by side.

use std::fmt;

use burn::tensor::Tensor;

use super::config::PlanConfig;
use super::paged::PagedPlan;
use crate::attention::inputs::VariantInputs;
use crate::attention::output::AttentionOutput;
use crate::cache::{KvPages, PageTable};
use crate::check::{Floats, same_device, shape};
use crate::dispatch::{IntoBackend, Origin};
use crate::error::{Error, Result};
use crate::indptr::Indptr;

/// A [`PagedPlan`] whose prefill and decode come as two tensors and go as two: both run in one launch.
///
/// (FlashInfer's `PODWithPagedKVCacheWrapper`, after POD-Attention, <https://arxiv.org/abs/2410.18038>.)
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{AttentionOptions, Indptr, KvLayout, KvPages, PageTable, PlanConfig, PodPlan};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // A prompt of 20 tokens, and two requests that decode.
/// let table = PageTable::new(&[0, 2, 3, 4], &[4, 2, 0, 1], &[4, 9, 16], 16, 8, &device)?;
/// let config = PlanConfig::new(8, 2, 64, DType::F32).options(AttentionOptions::new().causal(true));
/// let plan = PodPlan::new(&config, &Indptr::from_lengths(&[20], &device)?, &table)?;
/// let q = |tokens| Tensor::<3>::random([tokens, 8, 64], Distribution::Default, &device);
/// let pool = Tensor::<4>::random([8, 16, 2, 64], Distribution::Default, &device);
/// let (prefill, decode) = plan.run(q(20), q(2), &KvPages::new(pool.clone(), pool, KvLayout::Nhd)?)?;
/// assert_eq!([prefill.output.dims(), decode.output.dims()], [[20, 8, 64], [2, 8, 64]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct PodPlan {
    plan: PagedPlan,
    config: PlanConfig,
    /// Query tokens of prefill and of decode.
    tokens: [usize; 2],
}

impl PodPlan {
    /// Plans a batch: the first requests of `table` prefill, with the query tokens of `qo_indptr`; each of the others decodes
    /// one.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::new`], and if there is nothing to prefill or nothing to decode.
    pub fn new(config: &PlanConfig, qo_indptr: &Indptr, table: &PageTable) -> Result<Self> {
        const OP: &str = "PodPlan::new";
        same_device(OP, "qo_indptr", &qo_indptr.device(), &table.device())?;
        let (prefill, requests) = (qo_indptr.total(), qo_indptr.requests());
        let decode = table.requests().saturating_sub(requests);
        if prefill == 0 || decode == 0 {
            let got = format!("of {prefill} queries of {requests} requests");
            let expected =
                format!("of a query at least, and fewer than the {} requests of `table`", table.requests());
            return Err(Error::Value { op: OP, argument: "qo_indptr", got, expected });
        }
        let rows = qo_indptr.as_slice().iter().copied().chain((1..=decode).map(|token| prefill + token));
        let plan = PagedPlan::of(OP, config, &rows.collect::<Vec<_>>(), table)?;
        Ok(Self { plan, config: config.clone(), tokens: [prefill, decode] })
    }

    /// Attention of `q_prefill` `[prefill tokens, q_heads, head_dim]` and `q_decode` `[decoding requests, q_heads, head_dim]`
    /// over the keys and values of one layer: that of prefill, and that of decode.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::run`].
    pub fn run(
        &self,
        q_prefill: Tensor<3>,
        q_decode: Tensor<3>,
        pages: &KvPages,
    ) -> Result<(AttentionOutput, AttentionOutput)> {
        const OP: &str = "PodPlan::run";
        let PlanConfig { q_heads, head_dim, .. } = self.config;
        Floats::first(OP, "q_prefill", &q_prefill)?.like("q_decode", &q_decode)?;
        for ((argument, q), tokens) in
            [("q_prefill", &q_prefill), ("q_decode", &q_decode)].into_iter().zip(self.tokens)
        {
            let planned = [tokens, q_heads, head_dim];
            if q.dims() != planned {
                return Err(shape(OP, argument, &q.dims(), format!("{planned:?}, as planned")));
            }
        }
        let origin = Origin::of(&q_prefill);
        let q = Tensor::cat(vec![q_prefill.without_autodiff(), q_decode.without_autodiff()], 0);
        let AttentionOutput { output, lse } = self.plan.run_as(OP, q, pages, VariantInputs::new())?;
        let [prefill, decode] = self.tokens;
        let part = |tokens: std::ops::Range<usize>| AttentionOutput {
            output: origin.tensor(output.clone().slice_dim(0, tokens.clone()).into_backend()),
            lse: lse.clone().map(|lse| origin.tensor(lse.slice_dim(0, tokens).into_backend())),
        };
        Ok((part(0..prefill), part(prefill..prefill + decode)))
    }

    /// Bytes on the device that the plan holds for partial results; nothing that a caller must size.
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    /// The blueprint, the work partitioning, and its balance.
    pub fn explain(&self) -> impl fmt::Display {
        self.plan.explain()
    }
}
