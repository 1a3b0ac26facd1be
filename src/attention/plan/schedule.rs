//! The lists of a batch in one tensor.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor};

use super::config::PlanConfig;
use crate::attention::inputs::VariantInputs;
use crate::attention::mask::{CustomMask, MaskBits};
use crate::cache::PageTable;
use crate::dispatch::{IntoBackend, write_ints};
use crate::error::Result;
use crate::extension::{Batch, BatchLayout, Launch, MaskedBatch, MaybeFloats, MaybeMask, PagesLayout};
use crate::indptr::{index, upload};
use crate::memory;
use crate::types::KvLayout;

#[cfg(feature = "cube")]
use burn_flashinfer_kernels::attention as kernels;

/// Lists begin at multiples of this many numbers: devices bind buffers at multiples of 256 bytes.
const ALIGN: usize = 64;

/// The requests of a batch, checked.
#[derive(Clone, Copy)]
pub(crate) struct Requests<'a> {
    pub qo_indptr: &'a [usize],
    pub kv: KeysOf<'a>,
}

/// The places of each request's keys.
#[derive(Clone, Copy)]
pub(crate) enum KeysOf<'a> {
    Ragged(&'a [usize]),
    Paged(&'a PageTable),
}

/// Upper bounds of a fixed schedule: requests of one query token each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub requests: usize,
    /// Entries of page tables, of all requests together.
    pub pages: usize,
}

/// Lists of numbers in a row.
#[derive(Default)]
struct Lists {
    words: Vec<i32>,
}

impl Lists {
    /// A list with room for `room` numbers: zeros behind it.
    fn add(&mut self, list: impl IntoIterator<Item = i32>, room: usize) -> Range<usize> {
        let first = self.words.len();
        self.words.extend(list);
        let end = (first + room).max(self.words.len());
        self.words.resize(end.next_multiple_of(ALIGN), 0);
        first..end
    }
}

/// A batch on a device, and its work partitioning.
///
/// Not `Clone`, since an update would overwrite the lists of both; not `Sync`, since two runs at once would
/// share the workspace.
#[derive(Debug)]
pub(crate) struct Schedule {
    index: Tensor<1, Int>,
    workspace: Option<Tensor<1>>,
    not_sync: PhantomData<Cell<()>>,
    layout: BatchLayout,
    /// The lists that the caller added.
    pub extra: Range<usize>,
    explanation: Explanation,
    /// Pairs of queries and keys of each request: the bits of a mask.
    pairs: Vec<usize>,
    mask: Option<CustomMask>,
}

/// The choice of the blueprint, and the reason.
#[derive(Debug)]
enum Explanation {
    #[cfg(feature = "cube")]
    Kernels(Box<kernels::Plan>),
    Native,
}

impl Schedule {
    /// Plans a batch: on the host alone, and then one copy to the device.
    pub(crate) fn new(
        op: &'static str,
        config: &PlanConfig,
        requests: Requests<'_>,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self::uploaded(HostPlan::new(op, config, requests, device, None)?, device))
    }

    fn uploaded(planned: HostPlan, device: &Device) -> Self {
        let HostPlan { lists: Lists { words }, layout, extra, explanation, pairs } = planned;
        let index = upload(words, device);
        let (workspace, mask) = (None, None);
        Self { index, workspace, not_sync: PhantomData, layout, extra, explanation, pairs, mask }
    }

    /// Plans another batch in place of this one, in the same buffers if they are large enough. `fixed`: with everything
    /// where it was, and so that no launch changes; the lists of the caller are `extra`.
    pub(crate) fn update(
        &mut self,
        op: &'static str,
        config: &PlanConfig,
        requests: Requests<'_>,
        fixed: Option<(&Capacity, &[i32])>,
    ) -> Result<()> {
        let device = self.index.device();
        let fixed =
            fixed.map(|(capacity, extra)| Fixed { capacity, extra, launch: Some(&self.layout.launch) });
        let planned = HostPlan::new(op, config, requests, &device, fixed)?;
        let Lists { words } = planned.lists;
        if words.len() > self.index.dims()[0] {
            self.index = upload(words, &device);
        } else {
            self.index = write_ints(self.index.extract(), words);
        }
        (self.layout, self.extra, self.explanation) = (planned.layout, planned.extra, planned.explanation);
        (self.pairs, self.mask) = (planned.pairs, None);
        Ok(())
    }

    /// A schedule that every batch within `capacity` can be written into, made for `requests`; the lists of
    /// the caller are `extra`.
    pub(crate) fn fixed(
        op: &'static str,
        config: &PlanConfig,
        requests: Requests<'_>,
        (capacity, extra): (&Capacity, &[i32]),
        device: &Device,
    ) -> Result<Self> {
        let fixed = Fixed { capacity, extra, launch: None };
        let mut planned = HostPlan::new(op, config, requests, device, Some(fixed))?;
        // The pages come last, so that an update copies no more of them than there are.
        let end = planned.layout.pages.as_ref().map_or(0, |pages| pages.indices.start + capacity.pages);
        let words = &mut planned.lists.words;
        words.resize(end.max(words.len()).next_multiple_of(ALIGN), 0);
        Ok(Self::uploaded(planned, device).with_workspace(config))
    }

    /// With room for partial results of its own.
    pub(crate) fn with_workspace(mut self, config: &PlanConfig) -> Self {
        self.grow_workspace(config);
        self
    }

    pub(crate) fn grow_workspace(&mut self, config: &PlanConfig) {
        let needed = self.layout.launch.partial_rows * (config.head_dim_v + 2);
        let has = self.workspace.as_ref().map_or(0, |workspace| workspace.dims()[0]);
        if needed > has {
            self.workspace = Some(Tensor::empty([needed], (&self.index.device(), DType::F32)));
        }
    }

    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace.as_ref().map_or(0, |workspace| workspace.dims()[0] * size_of::<f32>())
    }

    pub(crate) fn index(&self) -> &Tensor<1, Int> {
        &self.index
    }

    /// The batch as the backend takes it, of pages of this order if it has pages.
    pub(crate) fn batch(&self, layout: KvLayout, inputs: VariantInputs) -> Batch<Dispatch> {
        let mut lists = self.layout.clone();
        if let Some(pages) = &mut lists.pages {
            pages.layout = layout;
        }
        let workspace = match &self.workspace {
            Some(workspace) if lists.launch.partial_rows > 0 => {
                MaybeFloats::Some(workspace.clone().into_backend())
            }
            _ => MaybeFloats::None,
        };
        let mask = self.mask.as_ref().map_or(MaybeMask::None, CustomMask::argument);
        let (index, inputs) = (self.index.clone().into_backend(), inputs.into_backend());
        Batch { index, workspace, inputs, mask, layout: lists }
    }

    /// The batch with pages that the device has chosen, as many as were planned and each within the pool, and with a mask.
    pub(crate) fn batch_over(
        &self,
        op: &'static str,
        config: &PlanConfig,
        pages: Tensor<1, Int>,
        bits: MaskBits,
    ) -> Result<Batch<Dispatch>> {
        let planned = self.layout.pages.as_ref().map(|pages| pages.indices.clone());
        let index = self.index.clone().without_autodiff();
        let index = match planned {
            Some(planned) => index.slice_assign([planned], pages.without_autodiff()),
            None => index,
        };
        let mask = CustomMask::new(op, bits, &self.pairs, &index, self.masked(config))?.argument();
        let batch = self.batch(KvLayout::Nhd, VariantInputs::new());
        Ok(Batch { index: index.into_backend(), mask, ..batch })
    }

    /// Masks the batch, until it is planned anew.
    pub(crate) fn set_mask(&mut self, op: &'static str, config: &PlanConfig, bits: MaskBits) -> Result<()> {
        self.mask = Some(CustomMask::new(op, bits, &self.pairs, &self.index, self.masked(config))?);
        Ok(())
    }

    /// The batch as a mask is laid out for it.
    fn masked(&self, config: &PlanConfig) -> MaskedBatch {
        MaskedBatch { launch: self.layout.launch.clone(), group: config.q_heads / config.kv_heads }
    }

    pub(crate) fn explain(&self) -> impl fmt::Display {
        &self.explanation
    }
}

/// The buffers of a fixed schedule.
#[derive(Clone, Copy)]
struct Fixed<'a> {
    capacity: &'a Capacity,
    extra: &'a [i32],
    /// The former choice, which must remain.
    #[cfg_attr(not(feature = "cube"), allow(dead_code, reason = "nothing is chosen without kernels"))]
    launch: Option<&'a Launch>,
}

/// A schedule that is not yet on the device.
struct HostPlan {
    lists: Lists,
    layout: BatchLayout,
    extra: Range<usize>,
    explanation: Explanation,
    pairs: Vec<usize>,
}

impl HostPlan {
    fn new(
        op: &'static str,
        config: &PlanConfig,
        requests: Requests<'_>,
        device: &Device,
        fixed: Option<Fixed<'_>>,
    ) -> Result<Self> {
        let mut lists = Lists::default();
        let (launch, explanation) = launch(op, config, requests, device, fixed.as_ref())?;
        let words =
            [launch.work_items.len(), launch.merges.len(), fixed.map_or(0, |fixed| fixed.capacity.pages)];
        let words = words.into_iter().fold(0, usize::saturating_add);
        memory::on_host(op, "batch", memory::bytes([words, size_of::<i32>()]))?;
        let workspace = [launch.partial_rows, config.head_dim_v + 2, size_of::<f32>()];
        memory::on_device(op, "batch", [1, memory::bytes(workspace)], device)?;
        // Row pointers have been checked to fit `i32` when they were made.
        let [qo_indptr, kv_indptr] = [requests.qo_indptr, requests.kv_indptr()]
            .map(|rows| lists.add(rows.iter().map(|&row| row as i32), 0));
        let (work_items, merges) = explanation.lists();
        let work_items = lists.add(work_items.iter().copied(), launch.work_items.len());
        let merges = lists.add(merges.iter().copied(), launch.merges.len());
        let ranges = match &config.options.ranges {
            Some(ranges) => {
                let tokens = requests.qo_indptr.last().copied().unwrap_or(0);
                memory::on_host(op, "batch", memory::bytes([2, tokens, size_of::<i32>()]))?;
                lists.add(ranges.table(requests.lengths()), 0)
            }
            None => 0..0,
        };
        let extra = lists.add(fixed.map_or(&[][..], |fixed| fixed.extra).iter().copied(), 0);
        let pages = match requests.kv {
            KeysOf::Ragged(_) => None,
            KeysOf::Paged(table) => {
                let page_size = table.page_size();
                let last = table.kv_lengths().iter().map(|&len| match len {
                    0 => 0,
                    len => ((len - 1) % page_size + 1) as i32,
                });
                let last_page_len = lists.add(last, 0);
                let mut entries = Vec::with_capacity(table.indices().len().max(1));
                for (at, &page) in table.indices().iter().enumerate() {
                    entries.push(index(op, "table", at, page)?);
                }
                // Never empty: not every runtime can bind an empty buffer. Nothing reads the filler.
                let indices = lists.add(entries, 1);
                Some(PagesLayout { last_page_len, indices, page_size, layout: KvLayout::Nhd })
            }
        };
        let launch = Launch { work_items, merges, ..launch };
        let layout = BatchLayout { qo_indptr, kv_indptr, pages, ranges, launch };
        let pairs = requests.lengths().map(|(queries, keys)| queries.saturating_mul(keys)).collect();
        Ok(Self { lists, layout, extra, explanation, pairs })
    }
}

/// The launch and the lengths of its lists, from a plan of the kernels if the device is a CubeCL one.
fn launch(
    op: &'static str,
    config: &PlanConfig,
    requests: Requests<'_>,
    device: &Device,
    fixed: Option<&Fixed<'_>>,
) -> Result<(Launch, Explanation)> {
    #[cfg(feature = "cube")]
    {
        let page_size = if let KeysOf::Paged(table) = requests.kv { table.page_size() } else { 1 };
        let keys = fixed.map(|fixed| fixed.capacity.pages.saturating_mul(page_size));
        let before = fixed.and_then(|fixed| fixed.launch);
        if let Some(planned) = super::kernels::plan(device, config, &requests.shapes(), before, keys) {
            let (plan, limits) = planned.map_err(|refusal| {
                let got = format!("more than a kernel can count ({refusal})");
                let expected = "fewer or shorter requests".into();
                crate::Error::Value { op, argument: "batch", got, expected }
            })?;
            let limits = limits.unwrap_or(plan.needs());
            let launch = Launch {
                work_items: 0..limits.work_items * kernels::WorkItem::WORDS,
                merges: 0..limits.merges * kernels::MergeItem::WORDS,
                merge_rows: limits.merge_rows,
                partial_rows: limits.partial_rows,
                mask_tiles: plan.mask_tiles(),
                longest_walk: plan.longest_walk(),
                blueprint: Some(plan.blueprint()),
            };
            return Ok((launch, Explanation::Kernels(Box::new(plan))));
        }
    }
    let _ = (op, config, requests, device, fixed);
    Ok((Launch::default(), Explanation::Native))
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "cube")]
            Self::Kernels(plan) => fmt::Display::fmt(plan, f),
            Self::Native => f.pad("native code, parallel over requests, key heads and queries"),
        }
    }
}

impl Explanation {
    /// Work items and merges.
    fn lists(&self) -> (&[i32], &[i32]) {
        match self {
            #[cfg(feature = "cube")]
            Self::Kernels(plan) => {
                (bytemuck::cast_slice(plan.work_items()), bytemuck::cast_slice(plan.merges()))
            }
            Self::Native => (&[], &[]),
        }
    }
}

impl Requests<'_> {
    /// Queries and keys of each request.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (usize, usize)> {
        let keys = move |request: usize| match self.kv {
            KeysOf::Ragged(indptr) => indptr.get(request..request + 2).map_or(0, |rows| rows[1] - rows[0]),
            KeysOf::Paged(table) => table.kv_lengths().get(request).copied().unwrap_or(0),
        };
        self.qo_indptr.windows(2).enumerate().map(move |(request, rows)| (rows[1] - rows[0], keys(request)))
    }

    /// First key of each request, or where its pages begin.
    fn kv_indptr(&self) -> &[usize] {
        match self.kv {
            KeysOf::Ragged(indptr) => indptr,
            KeysOf::Paged(table) => table.indptr(),
        }
    }

    #[cfg(feature = "cube")]
    fn shapes(&self) -> Vec<kernels::RequestShape> {
        let starts = self.qo_indptr.iter().zip(self.kv_indptr());
        let shape = |(index, ((&first_token, &first), (qo_len, kv_len)))| kernels::RequestShape {
            index,
            first_token,
            qo_len,
            first,
            kv_len,
        };
        starts.zip(self.lengths()).enumerate().map(shape).collect()
    }
}
