//! Plans over keys and values one request after the other.

use std::fmt;

use burn::tensor::{Bool, Int, Tensor};

use super::config::PlanConfig;
use super::contiguous::Contiguous;
use super::lists::{KeysOf, Requests};
use super::schedule::Schedule;
use crate::attention::inputs::VariantInputs;
use crate::attention::kv_tensor::KvTensor;
use crate::attention::mask::MaskBits;
use crate::attention::output::AttentionOutput;
use crate::check::same_device;
use crate::error::{Error, Result};
use crate::indptr::Indptr;

/// The work partitioning of a batch whose keys and values are stored one request after the other: made once
/// for a batch, run by every layer. [`PagedPlan`](crate::PagedPlan) is the same for pages.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{AttentionOptions, Indptr, PlanConfig, RaggedPlan};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let config = PlanConfig::new(8, 2, 64, DType::F32).options(AttentionOptions::new().causal(true));
/// let indptr = Indptr::from_lengths(&[5, 12], &device)?;
/// let plan = RaggedPlan::new(&config, &indptr, &indptr)?;
/// let q = Tensor::<3>::random([17, 8, 64], Distribution::Default, &device);
/// let k = Tensor::<3>::random([17, 2, 64], Distribution::Default, &device);
/// assert_eq!(plan.run(q, k.clone(), k)?.output.dims(), [17, 8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct RaggedPlan {
    config: PlanConfig,
    schedule: Schedule,
    tokens: usize,
    keys: usize,
}

impl RaggedPlan {
    /// Plans a batch: request `r` has the query tokens `qo_indptr[r]..qo_indptr[r + 1]` and the keys
    /// `kv_indptr[r]..kv_indptr[r + 1]`.
    ///
    /// # Errors
    ///
    /// If `config` is not one that the device can take; if the row pointers do not fit each other, or the
    /// mask (a causal one wants at least as many keys as queries).
    pub fn new(config: &PlanConfig, qo_indptr: &Indptr, kv_indptr: &Indptr) -> Result<Self> {
        const OP: &str = "RaggedPlan::new";
        let device = qo_indptr.device();
        config.check(OP, &device)?;
        let requests = checked(OP, config, qo_indptr, kv_indptr)?;
        let schedule = Schedule::new(OP, config, requests, &device)?.with_workspace(config);
        Ok(Self { config: config.clone(), schedule, tokens: qo_indptr.total(), keys: kv_indptr.total() })
    }

    /// Plans another batch in place of this one, with the buffers of this one where they are large enough.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and if it is on another device. The plan is as it was then.
    pub fn update(&mut self, qo_indptr: &Indptr, kv_indptr: &Indptr) -> Result<()> {
        const OP: &str = "RaggedPlan::update";
        same_device(OP, "qo_indptr", &qo_indptr.device(), &self.schedule.index().device())?;
        let requests = checked(OP, &self.config, qo_indptr, kv_indptr)?;
        self.schedule.update(OP, &self.config, requests)?;
        self.schedule.grow_workspace(&self.config);
        (self.tokens, self.keys) = (qo_indptr.total(), kv_indptr.total());
        Ok(())
    }

    /// Attention of `q` `[tokens, q_heads, head_dim]` over `k` `[keys, kv_heads, head_dim]` and `v` `[keys, kv_heads,
    /// head_dim_v]`, or with heads before tokens ([`AttentionOptions::kv_layout`](crate::AttentionOptions::kv_layout)). Both may
    /// be [codes](KvTensor::fp8) of the planned format.
    ///
    /// # Errors
    ///
    /// If tensors do not fit the plan in number of tokens, heads, head dimension, element type or device; if a tensor
    /// requires a gradient.
    pub fn run(
        &self,
        q: Tensor<3>,
        k: impl Into<KvTensor>,
        v: impl Into<KvTensor>,
    ) -> Result<AttentionOutput> {
        self.run_with(q, k, v, VariantInputs::new())
    }

    /// [`run`](Self::run), with sinks, slopes, or tensors for a variant.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), and if these tensors are on another device, of another length or type, or require a
    /// gradient.
    pub fn run_with(
        &self,
        q: Tensor<3>,
        k: impl Into<KvTensor>,
        v: impl Into<KvTensor>,
        inputs: VariantInputs,
    ) -> Result<AttentionOutput> {
        let Self { config, schedule, tokens, keys } = self;
        let planned = Contiguous { op: "RaggedPlan::run", config, schedule, tokens: *tokens, keys: *keys };
        planned.run(q, k.into(), v.into(), inputs)
    }

    /// Masks the batch with a bit for each query and key, until another batch is planned: a query of a request sees key `j`
    /// if bit `query · kv_len + j` of the request is set, and neither a causal mask nor a window hides the key.
    ///
    /// `mask`: `[Σ qo_len · kv_len]`, request by request. It is laid out for the kernels once: tiles of keys that no query
    /// of a tile sees are skipped, and those that all see are not masked. A query that sees no key gets 0, and an LSE of
    /// `-inf`. Values of hidden keys must be finite, since they may be multiplied by 0. (FlashInfer's `custom_mask`.)
    ///
    /// # Errors
    ///
    /// If the mask is of another length or on another device, or the device has no bytes. The plan is as it was then.
    pub fn set_custom_mask(&mut self, mask: Tensor<1, Bool>) -> Result<()> {
        self.schedule.set_mask("RaggedPlan::set_custom_mask", &self.config, MaskBits::Bools(mask))
    }

    /// [`set_custom_mask`](Self::set_custom_mask) with eight bits to a byte, the lowest first; the bits of each request begin
    /// with a byte of their own, as [`segment_packbits`](crate::segment_packbits) packs them.
    ///
    /// `mask`: `[Σ ⌈qo_len · kv_len / 8⌉]` of type `U8`. (FlashInfer's `packed_custom_mask`.)
    ///
    /// # Errors
    ///
    /// As [`set_custom_mask`](Self::set_custom_mask), and if the mask is of another type.
    pub fn set_packed_custom_mask(&mut self, mask: Tensor<1, Int>) -> Result<()> {
        self.schedule.set_mask("RaggedPlan::set_packed_custom_mask", &self.config, MaskBits::Packed(mask))
    }

    /// Query tokens of all requests: the rows of `q`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes on the device that the plan holds for partial results; nothing that a caller must size.
    pub fn workspace_bytes(&self) -> usize {
        self.schedule.workspace_bytes()
    }

    /// The blueprint, the work partitioning, and its balance.
    pub fn explain(&self) -> impl fmt::Display {
        self.schedule.explain()
    }
}

fn checked<'a>(
    op: &'static str,
    config: &PlanConfig,
    qo_indptr: &'a Indptr,
    kv_indptr: &'a Indptr,
) -> Result<Requests<'a>> {
    same_device(op, "kv_indptr", &kv_indptr.device(), &qo_indptr.device())?;
    if qo_indptr.requests() != kv_indptr.requests() {
        return Err(Error::Value {
            op,
            argument: "kv_indptr",
            got: format!("of {} requests", kv_indptr.requests()),
            expected: format!("of {} requests, as `qo_indptr`", qo_indptr.requests()),
        });
    }
    config.check_ranges(op, qo_indptr.lengths())?;
    for (request, (queries, keys)) in qo_indptr.lengths().zip(kv_indptr.lengths()).enumerate() {
        config.check_causal(op, request, queries, keys)?;
    }
    Ok(Requests { qo_indptr: qo_indptr.as_slice(), kv: KeysOf::Ragged(kv_indptr.as_slice()) })
}
