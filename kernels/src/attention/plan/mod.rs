//! Plans: the work partitioning of a batch, decided on the host from the lengths alone.
//!
//! A plan is made once for a batch and used by every layer of a model. A work item is a tile of rows of one
//! request over a range of its keys, without the keys that no row of the tile sees. The keys of a tile are
//! split among cubes where that ends the batch sooner ([`split`]). A second launch merges the chunks in their
//! order.

pub(super) mod persistent;
mod split;
#[cfg(test)]
mod tests;
mod work;

use std::fmt;

use cubecl::{client::Client, prelude::*};

use super::blueprint::{Blueprint, Choice};
use super::tiled::Tiled;
use crate::device::{DeviceProfile, Refusal, Result};
use crate::problem::Problem;
use crate::request::{KeyRange, RequestShape};
use split::{Chunk, RowTile, TileCosts};
pub use split::{Limits, Split};
pub(crate) use work::{MERGE_ROWS, WorkList, WorkListLaunch, WorkTile, merge_at};
pub use work::{MergeItem, WorkItem};

const KERNEL: &str = "attention";

/// The work partitioning of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    blueprint: Blueprint,
    work_items: Vec<WorkItem>,
    merges: Vec<MergeItem>,
    partial_rows: usize,
    merge_rows: usize,
    mask_tiles: usize,
    longest_walk: usize,
    longest: u64,
    mean: u64,
    /// The reason why there are no tiles.
    why: Option<Refusal>,
}

impl Plan {
    /// Plans a batch on a device.
    ///
    /// # Errors
    ///
    /// If a forced blueprint cannot run, or a count exceeds the integers of the kernels.
    pub fn new(
        device: &DeviceProfile,
        problem: &Problem,
        variant: &dyn KeyRange,
        requests: &[RequestShape],
        choice: Choice,
        split: Split,
    ) -> Result<Self> {
        let limit = i32::MAX as usize;
        let tokens: usize = requests.iter().map(|request| request.qo_len).sum();
        let keys =
            requests.iter().map(|request| request.first.saturating_add(request.kv_len)).max().unwrap_or(0);
        for (argument, got) in [("rows", tokens.saturating_mul(problem.q_heads)), ("keys", keys)] {
            if got > limit {
                return Err(Refusal::Range { kernel: KERNEL, argument, got, limit });
            }
        }
        let blueprint = match choice {
            Choice::Auto => {
                Blueprint::auto(device, problem, variant, requests, matches!(split, Split::Every(_)))
            }
            Choice::Exactly(blueprint) => blueprint,
        };
        blueprint.check(device, problem)?;
        let mut plan = Self {
            blueprint,
            work_items: vec![],
            merges: vec![],
            partial_rows: 0,
            merge_rows: 0,
            mask_tiles: 0,
            longest_walk: 0,
            longest: 0,
            mean: 0,
            why: None,
        };
        let Some(classes) = TileCosts::of(&blueprint) else {
            plan.why = Tiled::auto(device, problem, variant, requests, false).err();
            return Ok(plan);
        };
        let tiles = split::tiles(&classes, problem, variant, requests, device.cores);
        let schedule = split::schedule(&classes, &tiles, problem, device.cores, split);
        (plan.longest, plan.mean) = (schedule.longest, schedule.mean);
        let got = schedule.workspace;
        if got > limit {
            return Err(Refusal::Range { kernel: KERNEL, argument: "workspace", got, limit });
        }
        match &schedule.items {
            Some(items) => plan.write(problem, requests, &tiles, items),
            None => {
                let whole = |tile: &RowTile| work_item(requests, tile, tile.start, tile.end, -1);
                plan.work_items.extend(tiles.iter().map(whole));
            }
        }
        plan.number_mask_tiles(&classes, problem);
        Ok(plan)
    }

    /// Gives each work item its entries in the tile map of a mask: one for each tile of keys, and one for their end.
    fn number_mask_tiles(&mut self, classes: &TileCosts, problem: &Problem) {
        let group = problem.group();
        for item in &mut self.work_items {
            let keys = classes.keys_of(item.qo_len as usize * group);
            let tiles = (item.end - item.start).max(0) as usize;
            let tiles = tiles.div_ceil(keys);
            item.mask_tiles = [self.mask_tiles as u32, (self.mask_tiles as u64 >> 32) as u32];
            self.mask_tiles += tiles + 1;
            self.longest_walk = self.longest_walk.max(tiles);
        }
    }

    /// Writes the lists.
    fn write(&mut self, problem: &Problem, requests: &[RequestShape], tiles: &[RowTile], items: &[Chunk]) {
        // First row of each tile's partial results: its chunks follow one another, in whatever order they
        // run.
        let mut partials = vec![0; tiles.len()];
        for item in items.iter().filter(|item| item.chunk == 0 && item.chunks > 1) {
            let tile = &tiles[item.tile as usize];
            let request = &requests[tile.request as usize];
            let (first, rows) = (tile.first_row as usize, tile.rows as usize);
            partials[item.tile as usize] = self.partial_rows;
            for row in (0..rows).step_by(MERGE_ROWS) {
                let merged = (rows - row).min(MERGE_ROWS);
                self.merge_rows = self.merge_rows.max(merged);
                self.merges.push(MergeItem {
                    first_token: request.first_token as i32,
                    first_row: (first + row) as i32,
                    rows: merged as i32,
                    chunks: item.chunks as i32,
                    partial: (self.partial_rows + row) as i32,
                    per_head: rows as i32,
                    request: request.index as i32,
                    qo_len: request.qo_len as i32,
                    kv_len: request.kv_len as i32,
                    ..MergeItem::default()
                });
            }
            self.partial_rows += rows * problem.kv_heads * item.chunks as usize;
        }
        self.work_items.extend(items.iter().map(|item| {
            let tile = &tiles[item.tile as usize];
            let partial = match item.chunks {
                1 => -1,
                _ => {
                    let before = tile.rows as usize * problem.kv_heads * item.chunk as usize;
                    (partials[item.tile as usize] + before) as i32
                }
            };
            work_item(requests, tile, item.start, item.end, partial)
        }));
    }

    /// The blueprint that runs.
    pub fn blueprint(&self) -> Blueprint {
        self.blueprint
    }

    /// The work items; none if the blueprint does not use them.
    pub fn work_items(&self) -> &[WorkItem] {
        &self.work_items
    }

    /// The merges.
    pub fn merges(&self) -> &[MergeItem] {
        &self.merges
    }

    /// Entries of the tile map of a custom mask.
    pub fn mask_tiles(&self) -> usize {
        self.mask_tiles
    }

    /// Most tiles of keys of a work item.
    pub fn longest_walk(&self) -> usize {
        self.longest_walk
    }

    /// Rows of partial results.
    pub fn partial_rows(&self) -> usize {
        self.partial_rows
    }

    /// Sizes of this plan's lists and workspace.
    pub fn needs(&self) -> Limits {
        Limits {
            work_items: self.work_items.len(),
            merges: self.merges.len(),
            partial_rows: self.partial_rows,
            merge_rows: self.merge_rows,
        }
    }

    /// Upper bounds of all plans of this blueprint and `split` for such batches: as many requests and query
    /// tokens as `requests`, no request with more query tokens than the longest of these, and up to `keys`
    /// keys in all.
    pub fn limits(
        &self,
        device: &DeviceProfile,
        problem: &Problem,
        requests: &[RequestShape],
        keys: usize,
        split: Split,
    ) -> Limits {
        match TileCosts::of(&self.blueprint) {
            Some(classes) => classes.limits(problem, device.cores, requests, keys, split),
            None => Limits::default(),
        }
    }

    /// Copies the lists to a device, for one problem.
    pub fn upload(&self, client: &Client) -> DevicePlan {
        let list = |words: &[i32]| {
            (!words.is_empty()).then(|| {
                let handle = client.create_from_slice(i32::as_bytes(words));
                // SAFETY: the buffer was made of these words.
                unsafe { TensorBinding::from_raw_parts(handle, [1].into(), [words.len()].into()) }
            })
        };
        DevicePlan {
            blueprint: self.blueprint,
            work_items: list(bytemuck::cast_slice(&self.work_items)),
            merges: list(bytemuck::cast_slice(&self.merges)),
            merge_rows: self.merge_rows,
            partial_rows: self.partial_rows,
            mask_tiles: self.mask_tiles,
            longest_walk: self.longest_walk,
            workspace: None,
        }
    }

    /// Largest number of rows of a merge.
    pub fn merge_rows(&self) -> usize {
        self.merge_rows
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.blueprint)?;
        if let Some(refusal) = &self.why {
            return write!(f, "; {refusal}");
        }
        let Limits { work_items, merges, .. } = self.needs();
        write!(f, "; {work_items} work items a key head")?;
        if merges > 0 {
            write!(f, ", {} rows of partial results in {merges} merges", self.partial_rows)?;
        }
        match (100 * self.mean).checked_div(self.longest) {
            Some(percent) => write!(f, ", balanced to {percent}%"),
            None => Ok(()),
        }
    }
}

/// The work item of a tile over a range of keys.
fn work_item(requests: &[RequestShape], tile: &RowTile, start: u32, end: u32, partial: i32) -> WorkItem {
    let RequestShape { index, first_token, qo_len, first, kv_len } = requests[tile.request as usize];
    let [index, first_token, qo_len, kv_len, first] =
        [index, first_token, qo_len, kv_len, first].map(|word| word as i32);
    WorkItem {
        first_token,
        qo_len,
        kv_len,
        first,
        first_row: tile.first_row as i32,
        start: start as i32,
        end: end as i32,
        partial,
        request: index,
        flags: if start == tile.start { WorkItem::FIRST_CHUNK } else { 0 },
        mask_tiles: [0; 2],
    }
}

/// A plan on a device.
#[derive(Clone)]
pub struct DevicePlan {
    /// The blueprint that runs.
    pub blueprint: Blueprint,
    /// [`Plan::work_items`], followed by zeros if there is more room. `i32`, contiguous.
    pub work_items: Option<TensorBinding>,
    /// [`Plan::merges`], followed by zeros if there is more room. `i32`, contiguous.
    pub merges: Option<TensorBinding>,
    /// [`Plan::merge_rows`].
    pub merge_rows: usize,
    /// [`Plan::partial_rows`].
    pub partial_rows: usize,
    /// [`Plan::mask_tiles`].
    pub mask_tiles: usize,
    /// [`Plan::longest_walk`].
    pub longest_walk: usize,
    /// Room for `partial_rows * (head_dim_vo + 2)` f32; without it the launcher allocates some.
    pub workspace: Option<TensorBinding>,
}
