//! The lists of a batch on the host, on their way into one tensor.

use std::fmt;
use std::ops::Range;

use burn::tensor::Device;

use super::config::PlanConfig;
use crate::cache::PageTable;
use crate::error::Result;
use crate::extension::{BatchLayout, Launch, PagesLayout};
use crate::indptr::index;
use crate::memory;
use crate::types::{KvLayout, Request};

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

/// A batch that is not yet on the device, and the plans of it for one or more kinds of layers.
pub(super) struct HostBatch<'a> {
    op: &'static str,
    requests: Requests<'a>,
    device: &'a Device,
    lists: Lists,
    qo_indptr: Range<usize>,
    kv_indptr: Range<usize>,
}

/// The plan of a batch for a kind of layers.
pub(super) struct HostPlan {
    pub launch: Launch,
    pub explanation: Explanation,
    ranges: Range<usize>,
}

/// The places of the lists that plans of a batch share.
pub(super) struct Places {
    qo_indptr: Range<usize>,
    kv_indptr: Range<usize>,
    pages: Option<PagesLayout>,
    /// The lists that the caller added.
    pub extra: Range<usize>,
}

/// The choice of the blueprint, and the reason.
#[derive(Debug)]
pub(super) enum Explanation {
    #[cfg(feature = "cube")]
    Kernels(Box<kernels::Plan>),
    Native,
}

impl<'a> HostBatch<'a> {
    pub(super) fn new(op: &'static str, requests: Requests<'a>, device: &'a Device) -> Self {
        let mut lists = Lists::default();
        // Row pointers have been checked to fit `i32` when they were made.
        let [qo_indptr, kv_indptr] = [requests.qo_indptr, requests.kv_indptr()]
            .map(|rows| lists.add(rows.iter().map(|&row| row as i32), 0));
        Self { op, requests, device, lists, qo_indptr, kv_indptr }
    }

    /// Plans the batch for a kind of layers. `fixed`: a launch that must not change, with room for every list.
    pub(super) fn plan(&mut self, config: &PlanConfig, fixed: Option<&Launch>) -> Result<HostPlan> {
        let &mut Self { op, requests, device, ref mut lists, .. } = self;
        requests.check_kept(op, config)?;
        let (launch, explanation) = launch(op, config, requests, device, fixed)?;
        let words = launch.work_items.len().saturating_add(launch.merges.len());
        memory::on_host(op, "batch", memory::bytes([words, size_of::<i32>()]))?;
        let workspace = [launch.partial_rows, config.head_dim_v + 2, size_of::<f32>()];
        memory::on_device(op, "batch", [1, memory::bytes(workspace)], device)?;
        let (work_items, merges) = explanation.lists();
        let work_items = lists.add(work_items.iter().copied(), launch.work_items.len());
        let merges = lists.add(merges.iter().copied(), launch.merges.len());
        let ranges = match &config.options.ranges {
            Some(ranges) => {
                let tokens = requests.qo_indptr.last().copied().unwrap_or(0);
                memory::on_host(op, "batch", memory::bytes([ranges.words(), tokens, size_of::<i32>()]))?;
                lists.add(ranges.table(requests.lengths(), config.options.window_left), 0)
            }
            None => 0..0,
        };
        Ok(HostPlan { launch: Launch { work_items, merges, ..launch }, explanation, ranges })
    }

    /// The numbers of all lists: behind those of the plans the lists of the caller, and last the pages.
    pub(super) fn finished(self, extra: &[i32]) -> Result<(Vec<i32>, Places)> {
        let Self { op, requests, mut lists, qo_indptr, kv_indptr, .. } = self;
        let extra = lists.add(extra.iter().copied(), 0);
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
        Ok((lists.words, Places { qo_indptr, kv_indptr, pages, extra }))
    }
}

impl Places {
    /// The lists of a plan, among those of the batch.
    pub(super) fn layout(&self, launch: Launch, ranges: Range<usize>) -> BatchLayout {
        let Self { qo_indptr, kv_indptr, pages, .. } = self;
        let (qo_indptr, kv_indptr) = (qo_indptr.clone(), kv_indptr.clone());
        BatchLayout { qo_indptr, kv_indptr, pages: pages.clone(), ranges, launch }
    }

    /// Numbers of a buffer with room for so many pages.
    pub(super) fn words(&self, pages: usize) -> usize {
        let first = self.pages.as_ref().map_or(self.extra.end, |pages| pages.indices.start);
        first.saturating_add(pages.max(1)).next_multiple_of(ALIGN)
    }
}

impl HostPlan {
    pub(super) fn placed(self, places: &Places) -> (BatchLayout, Explanation) {
        (places.layout(self.launch, self.ranges), self.explanation)
    }
}

/// The launch and the lengths of its lists, from a plan of the kernels if the device is a CubeCL one.
fn launch(
    op: &'static str,
    config: &PlanConfig,
    requests: Requests<'_>,
    device: &Device,
    fixed: Option<&Launch>,
) -> Result<(Launch, Explanation)> {
    #[cfg(feature = "cube")]
    {
        let blueprint = fixed.and_then(|launch| launch.blueprint);
        let planned = super::kernels::plan(op, device, config, &requests.shapes(), blueprint)?;
        if let Some(plan) = planned {
            let sizes = match fixed {
                Some(launch) => launch.clone(),
                None => super::kernels::launch(plan.blueprint(), plan.needs()),
            };
            let (mask_tiles, longest_walk) = (plan.mask_tiles(), plan.longest_walk());
            let launch = Launch { mask_tiles, longest_walk, ..sizes };
            return Ok((launch, Explanation::Kernels(Box::new(plan))));
        }
    }
    let _ = (op, config, requests, device, fixed);
    Ok((Launch::default(), Explanation::Native))
}

/// The launch of every batch of up to so many requests, each of up to so many queries and keys.
pub(super) fn fixed_launch(
    op: &'static str,
    device: &Device,
    config: &PlanConfig,
    most: [usize; 3],
) -> Result<Launch> {
    #[cfg(feature = "cube")]
    return super::kernels::fixed_launch(op, device, config, most);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (op, device, config, most);
        Ok(Launch::default())
    }
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
    /// Refuses requests that see keys which they gave back.
    fn check_kept(&self, op: &'static str, config: &PlanConfig) -> Result<()> {
        let KeysOf::Paged(table) = self.kv else { return Ok(()) };
        if table.is_complete() {
            return Ok(());
        }
        for (index, (qo_len, kv_len)) in self.lengths().enumerate() {
            config.check_kept(op, "table", &Request { index, qo_len, kv_len }, table.first_key(index))?;
        }
        Ok(())
    }

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
