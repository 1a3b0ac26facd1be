//! Plans: which cube computes what, decided on the host from the lengths of a batch alone.
//!
//! A plan is made once for a batch and used by every layer of a model. The unit of work is a tile of rows of one request
//! over a range of its keys; what no row of the tile sees is not part of it. The keys of a tile are split among cubes where
//! that ends the batch sooner ([`split`]), and the chunks are merged in their order by a second launch.

mod split;
#[cfg(test)]
mod tests;
mod work;

use std::fmt;

use cubecl::{client::Client, prelude::*};

use super::blueprint::{Blueprint, Choice, Problem};
use super::tiled::Tiled;
use crate::{DeviceProfile, Refusal, Result};
use split::{Classes, Item, Tile};
pub use work::WORDS;
pub(crate) use work::{MERGE_ROWS, Work, merge_at, rows_of, work_at};

const KERNEL: &str = "attention";

/// A request of a batch, as the host knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Its first query token.
    pub first_token: usize,
    /// Query tokens.
    pub qo_len: usize,
    /// Its first key, or the first of its entries in the page table.
    pub first: usize,
    /// Keys.
    pub kv_len: usize,
}

impl Span {
    /// Requests one after the other, of these query tokens and keys. An entry of the page table stands for `page_size`
    /// keys; without pages it is 1.
    pub fn following(lengths: impl IntoIterator<Item = (usize, usize)>, page_size: usize) -> Vec<Self> {
        let (mut first_token, mut first) = (0, 0);
        let following = |(qo_len, kv_len): (usize, usize)| {
            let span = Self { first_token, qo_len, first, kv_len };
            first_token += qo_len;
            first += kv_len.div_ceil(page_size.max(1));
            span
        };
        lengths.into_iter().map(following).collect()
    }
}

/// How the keys of a request are split among cubes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// So that the batch ends soonest.
    #[default]
    Auto,
    /// Every so many keys, rounded up to whole tiles, and with tiles of rows that do not depend on the other requests either:
    /// a request gets the same bits in every batch.
    Every(usize),
    /// Not at all.
    Never,
}

/// What a plan needs room for at most, however long the requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Works.
    pub works: usize,
    /// Merges.
    pub merges: usize,
    /// Rows of partial results.
    pub partial_rows: usize,
    /// Rows that a merge has at most.
    pub merge_rows: usize,
}

/// Which cube computes what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    blueprint: Blueprint,
    forced: bool,
    works: Vec<i32>,
    merges: Vec<i32>,
    partial_rows: usize,
    merge_rows: usize,
    longest: u64,
    mean: u64,
    /// Why there are no tiles.
    why: Option<Refusal>,
}

impl Plan {
    /// Plans a batch on a device.
    ///
    /// # Errors
    ///
    /// If a forced blueprint cannot run, or a number passes what the kernels count with.
    pub fn new(
        device: &DeviceProfile,
        problem: &Problem,
        spans: &[Span],
        choice: Choice,
        split: Split,
    ) -> Result<Self> {
        let limit = i32::MAX as usize;
        let tokens: usize = spans.iter().map(|span| span.qo_len).sum();
        let keys = spans.iter().map(|span| span.first.saturating_add(span.kv_len)).max().unwrap_or(0);
        for (argument, got) in [("rows", tokens.saturating_mul(problem.q_heads)), ("keys", keys)] {
            if got > limit {
                return Err(Refusal::Range { kernel: KERNEL, argument, got, limit });
            }
        }
        let blueprint = match choice {
            Choice::Auto => Blueprint::auto(device, problem, spans, matches!(split, Split::Every(_))),
            Choice::Exactly(blueprint) => blueprint,
        };
        blueprint.check(device, problem)?;
        let mut plan = Self {
            blueprint,
            forced: choice != Choice::Auto,
            works: vec![],
            merges: vec![],
            partial_rows: 0,
            merge_rows: 0,
            longest: 0,
            mean: 0,
            why: None,
        };
        let Some(classes) = Classes::of(&blueprint) else {
            plan.why = Tiled::auto(device, problem, spans, false).err();
            return Ok(plan);
        };
        let tiles = split::tiles(&classes, problem, spans, device.cores);
        let schedule = split::schedule(&classes, &tiles, problem, device.cores, split);
        (plan.longest, plan.mean) = (schedule.longest, schedule.mean);
        let got = schedule.workspace;
        if got > limit {
            return Err(Refusal::Range { kernel: KERNEL, argument: "workspace", got, limit });
        }
        match &schedule.items {
            Some(items) => plan.write(problem, spans, &tiles, items),
            None => {
                plan.works.reserve(tiles.len() * WORDS);
                tiles.iter().for_each(|tile| plan.work(spans, tile, tile.start, tile.end, -1));
            }
        }
        Ok(plan)
    }

    /// Writes the lists.
    fn write(&mut self, problem: &Problem, spans: &[Span], tiles: &[Tile], items: &[Item]) {
        // Where the partial results of a tile begin: its chunks follow one another, whatever order they run in.
        let mut partials = vec![0; tiles.len()];
        for item in items.iter().filter(|item| item.chunk == 0 && item.chunks > 1) {
            let (tile, span) =
                (&tiles[item.tile as usize], &spans[tiles[item.tile as usize].request as usize]);
            let (first, rows) = (tile.first_row as usize, tile.rows as usize);
            partials[item.tile as usize] = self.partial_rows;
            for row in (0..rows).step_by(MERGE_ROWS) {
                let merged = (rows - row).min(MERGE_ROWS);
                self.merge_rows = self.merge_rows.max(merged);
                let words = [
                    span.first_token,
                    first + row,
                    merged,
                    item.chunks as usize,
                    self.partial_rows + row,
                    rows,
                ];
                self.merges.extend(words.map(|word| word as i32).into_iter().chain([0; 2]));
            }
            self.partial_rows += rows * problem.kv_heads * item.chunks as usize;
        }
        self.works.reserve(items.len() * WORDS);
        for item in items {
            let tile = &tiles[item.tile as usize];
            let partial = match item.chunks {
                1 => -1,
                _ => {
                    let before = tile.rows as usize * problem.kv_heads * item.chunk as usize;
                    (partials[item.tile as usize] + before) as i32
                }
            };
            self.work(spans, tile, item.start, item.end, partial);
        }
    }

    /// Writes the work of a tile over a range of keys.
    fn work(&mut self, spans: &[Span], tile: &Tile, start: u32, end: u32, partial: i32) {
        let Span { first_token, qo_len, first, kv_len } = spans[tile.request as usize];
        let [first_token, qo_len, kv_len, first] =
            [first_token, qo_len, kv_len, first].map(|word| word as i32);
        let [first_row, start, end] = [tile.first_row, start, end].map(|word| word as i32);
        self.works.extend_from_slice(&[first_token, qo_len, kv_len, first, first_row, start, end, partial]);
    }

    /// What runs.
    pub fn blueprint(&self) -> Blueprint {
        self.blueprint
    }

    /// The list of works, 8 numbers each; none if the blueprint has no use for it.
    pub fn works(&self) -> &[i32] {
        &self.works
    }

    /// The list of merges, 8 numbers each.
    pub fn merges(&self) -> &[i32] {
        &self.merges
    }

    /// Rows of partial results.
    pub fn partial_rows(&self) -> usize {
        self.partial_rows
    }

    /// What this plan needs room for.
    pub fn needs(&self) -> Limits {
        Limits {
            works: self.works.len() / WORDS,
            merges: self.merges.len() / WORDS,
            partial_rows: self.partial_rows,
            merge_rows: self.merge_rows,
        }
    }

    /// What plans of this blueprint and `split` need room for at most: batches of as many requests and query tokens as
    /// `spans`, none with more query tokens than the longest of these, and of up to `keys` keys in all.
    pub fn limits(
        &self,
        device: &DeviceProfile,
        problem: &Problem,
        spans: &[Span],
        keys: usize,
        split: Split,
    ) -> Limits {
        match Classes::of(&self.blueprint) {
            Some(classes) => classes.limits(problem, device.cores, spans, keys, split),
            None => Limits::default(),
        }
    }

    /// Copies the lists to a device, for one problem.
    pub fn upload(&self, client: &Client) -> Planned {
        let list = |words: &[i32]| {
            (!words.is_empty()).then(|| {
                let handle = client.create_from_slice(i32::as_bytes(words));
                // SAFETY: the buffer was made of these words.
                unsafe { TensorBinding::from_raw_parts(handle, [1].into(), [words.len()].into()) }
            })
        };
        Planned {
            blueprint: Some(self.blueprint),
            forced: self.forced,
            works: list(&self.works),
            merges: list(&self.merges),
            merge_rows: self.merge_rows,
            partial_rows: self.partial_rows,
            workspace: None,
        }
    }

    /// The rows that a merge has at most.
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
        let Limits { works, merges, .. } = self.needs();
        write!(f, "; {works} works a key head")?;
        if merges > 0 {
            write!(f, ", {} rows of partial results in {merges} merges", self.partial_rows)?;
        }
        match (100 * self.mean).checked_div(self.longest) {
            Some(percent) => write!(f, ", balanced to {percent}%"),
            None => Ok(()),
        }
    }
}

/// A plan on a device.
#[derive(Clone)]
pub struct Planned {
    /// What runs; if nothing is said, the portable kernel.
    pub blueprint: Option<Blueprint>,
    /// Whether nothing else may run: not the portable kernel either, if tensors are aligned worse than they were planned.
    pub forced: bool,
    /// [`Plan::works`], and zeros behind them if there is more room. `i32`, contiguous.
    pub works: Option<TensorBinding>,
    /// [`Plan::merges`], and zeros behind them if there is more room. `i32`, contiguous.
    pub merges: Option<TensorBinding>,
    /// [`Plan::merge_rows`].
    pub merge_rows: usize,
    /// [`Plan::partial_rows`].
    pub partial_rows: usize,
    /// Room for `partial_rows * (head_dim_vo + 2)` f32, or the launcher takes some.
    pub workspace: Option<TensorBinding>,
}

impl Planned {
    pub(super) fn blueprint(&self, device: &DeviceProfile, problem: &Problem) -> Result<Blueprint> {
        match self.blueprint.map(|blueprint| (blueprint, blueprint.check(device, problem))) {
            Some((blueprint, Ok(()))) => Ok(blueprint),
            Some((_, Err(refusal))) if self.forced => Err(refusal),
            _ => Ok(Blueprint::portable(device, problem)),
        }
    }
}
