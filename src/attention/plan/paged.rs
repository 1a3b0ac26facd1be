//! Plans over keys and values in pages.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use burn::tensor::{Bool, Int, Tensor};

use super::config::PlanConfig;
use super::dequantized::Dequantized;
use super::lists::{HostPlan, KeysOf, Places, Requests};
use super::schedule::Schedule;
use crate::attention::inputs::VariantInputs;
use crate::attention::kv_tensor::element;
use crate::attention::mask::MaskBits;
use crate::attention::output::{AttentionOutput, attend};
use crate::cache::{KvPages, PageTable, PagedStep, Says, Stamp};
use crate::check::{Floats, same_device, shape};
use crate::error::{Error, Result};
use crate::indptr::Indptr;

/// The work partitioning of a batch whose keys and values are in pages: made once for a batch, run by every
/// layer.
///
/// Requests may decode, prefill, and append to a cached prefix in one batch. On devices with matrix cores all
/// of them run in one launch, with prefill and decode tiles side by side. So decode tiles read while prefill
/// tiles multiply.
///
/// Planning is host work alone (tens of microseconds) and one copy to the device; it reads nothing back. Keys
/// are split among cores where that ends the batch sooner, by a model of the cost of each chunk. The model
/// counts causal masks and windows. The partial results are in a workspace that the plan owns. (FlashInfer's
/// `plan` and `run`, with the work lists of its `BatchAttention`, <https://docs.flashinfer.ai>.) A plan
/// belongs to one thread at a time: two runs at once would share the workspace.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{
///     AttentionOptions, CacheConfig, PagedKvCache, PagedPlan, PlanConfig, append_paged_kv,
/// };
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let (layers, q_heads, kv_heads, head_dim) = (2, 8, 2, 64);
/// let mut cache = PagedKvCache::new(&CacheConfig::new(layers, 16, 8, kv_heads, head_dim), &device)?;
/// let options = AttentionOptions::new().causal(true);
/// let config = PlanConfig::for_pages(q_heads, cache.layer(0)?).options(options);
///
/// // A prompt of 20 tokens, and one of 3.
/// let prompts = [(cache.create(), 20), (cache.create(), 3)];
/// let step = cache.step(&prompts)?;
/// let plan = PagedPlan::for_step(&config, &step)?;
/// for layer in 0..layers {
///     let q = Tensor::<3>::random([23, q_heads, head_dim], Distribution::Default, &device);
///     let k = Tensor::<3>::random([23, kv_heads, head_dim], Distribution::Default, &device);
///     append_paged_kv(cache.layer_mut(layer)?, k.clone(), k, step.slots())?;
///     assert_eq!(plan.run(q, cache.layer(layer)?)?.output.dims(), [23, q_heads, head_dim]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct PagedPlan {
    config: PlanConfig,
    schedule: Schedule,
    tokens: usize,
    page_size: usize,
    pages_needed: usize,
    /// The keys as numbers, if codes become numbers first.
    dequantized: Option<Dequantized>,
    /// The moment of the page table, if a cache made it.
    stamp: Option<Arc<Stamp>>,
}

impl PagedPlan {
    /// Plans a batch: request `r` has the query tokens `qo_indptr[r]..qo_indptr[r + 1]`, and the keys of row
    /// `r` of `table`.
    ///
    /// # Errors
    ///
    /// If `config` is not one that the device can take; if row pointer and page table do not fit each other,
    /// or the mask (a causal one wants at least as many keys as queries).
    pub fn new(config: &PlanConfig, qo_indptr: &Indptr, table: &PageTable) -> Result<Self> {
        const OP: &str = "PagedPlan::new";
        same_device(OP, "qo_indptr", &qo_indptr.device(), &table.device())?;
        Self::of(OP, config, qo_indptr.as_slice(), table)
    }

    /// Plans a batch of requests with one query token each.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn decode(config: &PlanConfig, table: &PageTable) -> Result<Self> {
        Self::of("PagedPlan::decode", config, &decode_rows(table.requests()), table)
    }

    /// Plans the new tokens of a step of a cache.
    ///
    /// # Errors
    ///
    /// If `config` is not one that the device can take.
    pub fn for_step(config: &PlanConfig, step: &PagedStep) -> Result<Self> {
        Self::of("PagedPlan::for_step", config, step.qo_indptr(), step.table())
    }

    pub(crate) fn of(
        op: &'static str,
        config: &PlanConfig,
        rows: &[usize],
        table: &PageTable,
    ) -> Result<Self> {
        config.check(op, &table.device())?;
        check_requests(op, config, rows, table)?;
        let dequantized = Dequantized::of(op, config, rows, table)?;
        let (of_kernels, kv) = planned_keys(config, &dequantized, table);
        let schedule = Schedule::new(op, &of_kernels, Requests { qo_indptr: rows, kv }, &table.device())?;
        Ok(Self { dequantized, ..Self::made_of(config.clone(), schedule, rows, table) })
    }

    /// The plan of a schedule of these requests.
    pub(super) fn made_of(config: PlanConfig, schedule: Schedule, rows: &[usize], table: &PageTable) -> Self {
        Self {
            schedule: schedule.with_workspace(&config),
            config,
            tokens: rows.last().copied().unwrap_or(0),
            page_size: table.page_size(),
            pages_needed: table.pages_needed(),
            dequantized: None,
            stamp: table.stamp().cloned(),
        }
    }

    /// Plans another batch in place of this one, with the buffers of this one where they are large enough.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and if the pages are on another device. The plan is as it was then.
    pub fn update(&mut self, qo_indptr: &Indptr, table: &PageTable) -> Result<()> {
        const OP: &str = "PagedPlan::update";
        same_device(OP, "qo_indptr", &qo_indptr.device(), &table.device())?;
        self.update_rows(OP, qo_indptr.as_slice(), table)
    }

    /// Plans another batch of requests with one query token each in place of this one.
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update).
    pub fn update_decode(&mut self, table: &PageTable) -> Result<()> {
        self.update_rows("PagedPlan::update_decode", &decode_rows(table.requests()), table)
    }

    /// Plans the new tokens of a step of a cache in place of this batch.
    ///
    /// # Errors
    ///
    /// If the pages are on another device. The plan is as it was then.
    pub fn update_step(&mut self, step: &PagedStep) -> Result<()> {
        self.update_rows("PagedPlan::update_step", step.qo_indptr(), step.table())
    }

    fn update_rows(&mut self, op: &'static str, rows: &[usize], table: &PageTable) -> Result<()> {
        same_device(op, "table", &table.device(), &self.schedule.index().device())?;
        check_requests(op, &self.config, rows, table)?;
        let dequantized = Dequantized::of(op, &self.config, rows, table)?;
        let (of_kernels, kv) = planned_keys(&self.config, &dequantized, table);
        self.schedule.update(op, &of_kernels, Requests { qo_indptr: rows, kv })?;
        self.dequantized = dequantized;
        (self.page_size, self.pages_needed) = (table.page_size(), table.pages_needed());
        self.stamp = table.stamp().cloned();
        self.tokens = rows.last().copied().unwrap_or(0);
        self.schedule.grow_workspace(&self.config);
        Ok(())
    }

    /// Another batch of a step with as many queries and the same launch, whose lists are in `index`.
    pub(super) fn rewrite(
        &mut self,
        (config, planned): (PlanConfig, HostPlan),
        places: &Places,
        index: Tensor<1, Int>,
        table: &PageTable,
    ) {
        self.config = config;
        self.schedule.replace(planned, places, index);
        self.pages_needed = table.pages_needed();
        self.stamp = table.stamp().cloned();
    }

    /// Attention of `q` `[tokens, q_heads, head_dim]`, the query tokens of all requests one after the other,
    /// over the keys and values of one layer.
    ///
    /// # Errors
    ///
    /// If tensors do not fit the plan in number of tokens, heads, head dimension, element type, fp8 format, page size,
    /// order of axes or device; if the pool has fewer pages than the page table names, or is of another
    /// cache; if sequences of the cache have changed since its page table was made ([`Error::Stale`]); if a
    /// tensor requires a gradient.
    pub fn run(&self, q: Tensor<3>, pages: &KvPages) -> Result<AttentionOutput> {
        self.run_with(q, pages, VariantInputs::new())
    }

    /// [`run`](Self::run), with sinks, slopes, or tensors for a variant.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), and if these tensors are on another device, of another length or type, or require a
    /// gradient.
    pub fn run_with(&self, q: Tensor<3>, pages: &KvPages, inputs: VariantInputs) -> Result<AttentionOutput> {
        self.run_as("PagedPlan::run", q, pages, inputs)
    }

    /// [`run_with`](Self::run_with), as a part of operation `op`.
    pub(crate) fn run_as(
        &self,
        op: &'static str,
        q: Tensor<3>,
        pages: &KvPages,
        inputs: VariantInputs,
    ) -> Result<AttentionOutput> {
        let (config, pool) = (&self.config, pages.shape());
        let floats = Floats::first(op, "q", &q)?;
        pages.check_beside(&floats)?;
        floats.on_device("plan", &self.schedule.index().device())?;
        pages.check_current(op, "plan", Says::All, self.stamp.as_ref())?;
        let refuse = |argument, got: String, expected: String| {
            Err(Error::Value { op, argument, got, expected: format!("{expected}, as planned") })
        };
        if q.dtype() != config.dtype {
            let (got, expected) = (format!("{:?}", q.dtype()), format!("{:?}, as planned", config.dtype));
            return Err(Error::Dtype { op, argument: "q", got, expected });
        }
        if pages.code() != config.code {
            let [got, planned] = [pages.code(), config.code].map(|format| element(format, config.dtype));
            return Err(Error::Dtype {
                op,
                argument: "pages",
                got,
                expected: format!("{planned}, as planned"),
            });
        }
        let planned = [self.tokens, config.q_heads, config.head_dim];
        if q.dims() != planned {
            return Err(shape(op, "q", &q.dims(), format!("{planned:?}, as planned")));
        }
        let heads = (pool.kv_heads, pool.k_dim, pool.v_dim);
        let planned = (config.kv_heads, config.head_dim, config.head_dim_v);
        if heads != planned {
            let (kv_heads, k_dim, v_dim) = planned;
            let expected = format!("{kv_heads} heads of {k_dim} elements (values of {v_dim}), as planned");
            return Err(shape(op, "pages", &pages.dims().0, expected));
        }
        if pool.page_size != self.page_size {
            let got = format!("of pages of {} tokens", pool.page_size);
            return refuse("pages", got, format!("pages of {} tokens", self.page_size));
        }
        if self.pages_needed > pool.pages {
            let got = format!("a pool of {} pages", pool.pages);
            return refuse("pages", got, format!("at least {} pages", self.pages_needed));
        }
        if let Some(layout) = config.options.kv_layout
            && layout != pages.layout()
        {
            return refuse("pages", format!("{:?}", pages.layout()), format!("{layout:?}"));
        }
        let inputs = inputs.checked(op, &floats, config.q_heads, &config.options)?;
        let batch = self.schedule.batch(pages.layout(), inputs);
        let kv = match &self.dequantized {
            Some(dequantized) => dequantized.read(op, pages, config.dtype)?,
            None => pages.stored(),
        };
        attend(op, q, kv, config.head_dim_v, batch, config.params())
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
        self.schedule.set_mask("PagedPlan::set_custom_mask", &self.config, MaskBits::Bools(mask))
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
        self.schedule.set_mask("PagedPlan::set_packed_custom_mask", &self.config, MaskBits::Packed(mask))
    }

    /// Query tokens of all requests: the rows of `q`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn config(&self) -> &PlanConfig {
        &self.config
    }

    /// Bytes on the device that the plan holds for partial results; nothing that a caller must size.
    pub fn workspace_bytes(&self) -> usize {
        self.schedule.workspace_bytes()
    }

    /// The blueprint, the work partitioning, and its balance.
    pub fn explain(&self) -> impl fmt::Display {
        let first = if self.dequantized.is_some() { "codes become numbers first; " } else { "" };
        format!("{first}{}", self.schedule.explain())
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}

/// The settings of the kernels, and where they find the keys.
fn planned_keys<'a>(
    config: &'a PlanConfig,
    dequantized: &'a Option<Dequantized>,
    table: &'a PageTable,
) -> (Cow<'a, PlanConfig>, KeysOf<'a>) {
    match dequantized {
        Some(dequantized) => (Cow::Owned(Dequantized::config(config)), dequantized.keys()),
        None => (Cow::Borrowed(config), KeysOf::Paged(table)),
    }
}

/// The row pointer of requests of one query each.
pub(crate) fn decode_rows(requests: usize) -> Vec<usize> {
    (0..=requests).collect()
}

fn check_requests(op: &'static str, config: &PlanConfig, rows: &[usize], table: &PageTable) -> Result<()> {
    let requests = rows.len() - 1;
    if requests != table.requests() {
        return Err(Error::Value {
            op,
            argument: "qo_indptr",
            got: format!("of {requests} requests"),
            expected: format!("of {} requests, as `table`", table.requests()),
        });
    }
    config.check_ranges(op, rows.windows(2).map(|rows| rows[1] - rows[0]))?;
    for (request, (rows, &keys)) in rows.windows(2).zip(table.kv_lengths()).enumerate() {
        config.check_causal(op, request, rows[1] - rows[0], keys)?;
    }
    Ok(())
}
