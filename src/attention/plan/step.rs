//! A decoding step with all inputs in one buffer of a constant address.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use super::config::PlanConfig;
use super::lists::{HostBatch, KeysOf, Requests, fixed_launch};
use super::paged::{PagedPlan, decode_rows};
use super::schedule::Schedule;
use super::step_config::{StepConfig, StepTokens};
use crate::cache::{PageTable, PagedKvCache, Positions, SequenceId, SlotMapping, Stamp};
use crate::dispatch::write_ints;
use crate::error::{Error, Result};
use crate::indptr::{index, upload};
use crate::memory;
use crate::types::{Request, TokenTree};

/// Bytes that a token takes at most while a step is planned, its pages not counted: in row pointers and
/// lengths on the host, in the lists of the step, and in their copy.
const TOKEN_BYTES: usize = 64;

/// All that changes from one decoding step to the next: tokens, positions, slots, page table and plans, in one
/// buffer on the device that [`update`](Self::update) rewrites in one copy.
///
/// Its tensors are views of that buffer, with the same number and lengths in every step. So the launches of a
/// step do not change either: [`DecodeGraph`](crate::DecodeGraph) captures and replays them. Sequences
/// missing from the full number get token 0 at position 0, write nothing, and read no key.
///
/// A model whose layers differ has a plan for each [kind](StepConfig::kind) of them. A step may take [several
/// tokens](StepConfig::q_len) of each sequence: row `i · q_len + t` is token `t` of sequence `i`, and tokens missing from
/// `q_len` are as missing sequences. Rejected ones are dropped by [`PagedKvCache::truncate`]. They may be a
/// [tree](StepConfig::trees), of which [`PagedKvCache::keep`] leaves the accepted ones.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{
///     AttentionOptions, CacheConfig, DecodeStep, PagedKvCache, PlanConfig, StepConfig, append_paged_kv,
/// };
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let mut cache = PagedKvCache::new(&CacheConfig::new(2, 16, 8, 2, 64), &device)?;
/// let (story, letter) = (cache.create(), cache.create());
/// // The second layer sees 16 tokens back. Up to 3 tokens of each sequence.
/// let options = AttentionOptions::new().causal(true);
/// let full = PlanConfig::new(8, 2, 64, DType::F32).options(options.clone());
/// let local = full.clone().options(options.window_left(16));
/// let config = StepConfig::new(full, 2, 100).kind(local).q_len(3);
/// let mut step = DecodeStep::with_config(&config, &cache)?;
///
/// step.update(&mut cache, &[(story, &[5, 3, 8][..]), (letter, &[7][..])])?;
/// assert_eq!(step.tokens().dims(), [2 * 3]);
/// for layer in 0..2 {
///     let [q, k, v] = [8, 2, 2].map(|heads| Tensor::random([6, heads, 64], Distribution::Default, &device));
///     append_paged_kv(cache.layer_mut(layer)?, k, v, &step.slots())?;
///     let attended = step.plan_of(layer)?.run(q, cache.layer(layer)?)?;
///     assert_eq!(attended.output.dims(), [6, 8, 64]);
/// }
/// // The last two were rejected.
/// cache.truncate(story, 1)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct DecodeStep {
    first: PagedPlan,
    others: Vec<PagedPlan>,
    /// The buffer, and where the lists of tokens, positions and slots begin in it.
    index: Tensor<1, Int>,
    lists: usize,
    stamp: Arc<Stamp>,
    requests: usize,
    q_len: usize,
    trees: bool,
    max_len: usize,
    page_size: usize,
    pool_pages: usize,
}

/// The lists of a step without sequences: token 0 at position 0, written nowhere.
fn no_tokens(rows: usize) -> Vec<i32> {
    [0, 0, -1].into_iter().flat_map(|word| iter::repeat_n(word, rows)).collect()
}

impl DecodeStep {
    /// A step of up to `requests` sequences of `cache`, none longer than `max_len` tokens.
    ///
    /// # Errors
    ///
    /// If `requests` or `max_len` is 0 or too large to count, or `config` is not one that the device can take.
    pub fn new(config: &PlanConfig, requests: usize, max_len: usize, cache: &PagedKvCache) -> Result<Self> {
        Self::of("DecodeStep::new", &StepConfig::new(config.clone(), requests, max_len), cache)
    }

    /// A step of sequences of `cache`, for layers of several kinds or for several tokens of each sequence.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and if the step is of no token for a sequence, or of trees and a kind has no causal mask, or a
    /// variant.
    pub fn with_config(config: &StepConfig, cache: &PagedKvCache) -> Result<Self> {
        Self::of("DecodeStep::with_config", config, cache)
    }

    fn of(op: &'static str, config: &StepConfig, cache: &PagedKvCache) -> Result<Self> {
        let &StepConfig { ref first, ref others, requests, max_len, q_len, trees } = config;
        for (argument, got) in [("requests", requests), ("max_len", max_len), ("q_len", q_len)] {
            if got == 0 {
                let expected = "at least 1".into();
                return Err(Error::Value { op, argument, got: "0".into(), expected });
            }
        }
        let (device, page_size) = (cache.device(), cache.page_size());
        let pages = max_len.div_ceil(page_size).saturating_mul(requests);
        index(op, "max_len", 0, pages.saturating_mul(page_size))?;
        index(op, "q_len", 0, requests.saturating_mul(q_len))?;
        let bytes = memory::bytes([requests, q_len, TOKEN_BYTES]);
        let bytes = bytes.saturating_add(memory::bytes([pages, size_of::<i32>()]));
        memory::on_host(op, "requests", bytes)?;
        for config in iter::once(first).chain(others) {
            if let Some(ranges) = &config.options.ranges {
                let expected = "none, as the requests of a step change".into();
                return Err(Error::Value { op, argument: ranges.name(), got: "set".into(), expected });
            }
        }
        let of_kind = |kind: &PlanConfig| {
            let config = StepConfig::with_trees(kind, trees.then_some(&[]));
            config.check(op, device).map(|()| config)
        };
        let (first, others) = (of_kind(first)?, others.iter().map(of_kind).collect::<Result<Vec<_>>>()?);
        let rows = rows(&[], requests, q_len);
        let stamp = cache.stamp(&[]);
        let table = PageTable::trusted(op, vec![0], vec![], &[], page_size, device)?;
        let table = table.padded(rows.len() - 1).stamped(stamp.clone());
        let batch = Requests { qo_indptr: &rows, kv: KeysOf::Paged(&table) };
        let mut batch = HostBatch::new(op, batch, device);
        let mut plan = |kind: PlanConfig| {
            let launch = fixed_launch(op, device, &kind, [requests, q_len, max_len])?;
            let planned = batch.plan(&kind, Some(&launch))?;
            Ok((kind, planned))
        };
        let (first, others) = (plan(first)?, others.into_iter().map(plan).collect::<Result<Vec<_>>>()?);
        let (mut words, places) = batch.finished(&no_tokens(requests * q_len))?;
        // The pages come last, so that an update copies no more of them than there are.
        words.resize(places.words(pages).max(words.len()), 0);
        let index = upload(words, device);
        let made = |(kind, planned)| {
            PagedPlan::made_of(kind, Schedule::of(planned, &places, index.clone()), &rows, &table)
        };
        let (first, others) = (made(first), others.into_iter().map(made).collect());
        let (lists, pool_pages) = (places.extra.start, cache.pages());
        Ok(Self {
            first,
            others,
            index,
            lists,
            stamp,
            requests,
            q_len,
            trees,
            max_len,
            page_size,
            pool_pages,
        })
    }

    /// Makes room in `cache` for the new tokens of each sequence, and rewrites the buffer for the step that
    /// computes them: `tokens` says which token each sequence goes on with, or which up to [`q_len`](Self::q_len).
    ///
    /// # Errors
    ///
    /// If there are too many sequences or tokens of one, or too long ones, a sequence is unknown or named twice, or the
    /// pool has not enough free pages; if there is a tree and the step has none, or it is not of these tokens; if a kind of
    /// layers sees what a sequence [gave back](PagedKvCache::release_before). Nothing has changed then.
    pub fn update<T: StepTokens>(
        &mut self,
        cache: &mut PagedKvCache,
        tokens: &[(SequenceId, T)],
    ) -> Result<()> {
        const OP: &str = "DecodeStep::update";
        self.check_cache(OP, cache)?;
        let &mut Self { requests, q_len, trees: has_trees, .. } = self;
        if tokens.is_empty() || tokens.len() > requests {
            return refuse(format!("of {} sequences", tokens.len()), format!("1 to {requests}"));
        }
        let mut extra = no_tokens(requests * q_len);
        let (token_list, rest) = extra.split_at_mut(requests * q_len);
        let (position_list, slot_list) = rest.split_at_mut(requests * q_len);
        let mut growth = Vec::with_capacity(tokens.len());
        let mut trees = Vec::with_capacity(2 * tokens.len());
        for (at, (sequence, tokens)) in tokens.iter().enumerate() {
            let (tokens, tree) = (tokens.tokens(), tokens.tree());
            let Range { start: first, end: len } = cache.extent(OP, "tokens", *sequence)?;
            if tokens.is_empty() || tokens.len() > q_len {
                return refuse(format!("{} tokens of a sequence", tokens.len()), format!("1 to {q_len}"));
            }
            if tokens.len() > self.max_len.saturating_sub(len) {
                let got = format!("{} more of a sequence of {len} tokens", tokens.len());
                return refuse(got, format!("at most {} in all", self.max_len));
            }
            self.check_tree(OP, tokens, tree)?;
            for (offset, &token) in tokens.iter().enumerate() {
                token_list[at * q_len + offset] = index(OP, "tokens", at, token as usize)?;
                position_list[at * q_len + offset] = index(OP, "tokens", at, len + offset)?;
            }
            for (offset, depth) in tree.iter().flat_map(|tree| tree.depths().enumerate()) {
                position_list[at * q_len + offset] = index(OP, "tokens", at, len + depth)?;
            }
            let index = if q_len > 1 { 2 * at } else { at };
            let request = Request { index, qo_len: tokens.len(), kv_len: len + tokens.len() };
            for plan in iter::once(&self.first).chain(&self.others) {
                plan.config().check_kept(OP, "tokens", &request, first)?;
            }
            growth.push((*sequence, tokens.len()));
            trees.resize(index, None);
            trees.push(tree.cloned());
        }
        let slots = cache.reserve_slots(OP, &growth)?;
        let mut slots = slots.into_iter();
        for (row, &(_, new)) in slot_list.chunks_exact_mut(q_len).zip(&growth) {
            row.iter_mut().zip(slots.by_ref().take(new)).for_each(|(to, slot)| *to = slot);
        }
        let sequences: Vec<_> = growth.iter().map(|&(sequence, _)| sequence).collect();
        let rows = rows(&growth, requests, q_len);
        let table = cache.page_table(&sequences)?;
        let table = if q_len > 1 { table.spaced() } else { table }.padded(rows.len() - 1);
        self.replan(OP, (&rows, has_trees.then_some(&trees)), &table, &extra)
    }

    /// Plans every kind anew, and rewrites the buffer.
    fn replan(
        &mut self,
        op: &'static str,
        (rows, trees): (&[usize], Option<&[Option<TokenTree>]>),
        table: &PageTable,
        extra: &[i32],
    ) -> Result<()> {
        let device = self.index.device();
        let batch = Requests { qo_indptr: rows, kv: KeysOf::Paged(table) };
        let mut batch = HostBatch::new(op, batch, &device);
        let mut plan = |plan: &PagedPlan| {
            let config = StepConfig::with_trees(plan.config(), trees);
            let planned = batch.plan(&config, Some(plan.schedule().launch()))?;
            Ok((config, planned))
        };
        let first = plan(&self.first)?;
        let others = self.others.iter().map(plan).collect::<Result<Vec<_>>>()?;
        let (words, places) = batch.finished(extra)?;
        self.index = write_ints(self.index.clone(), words);
        self.lists = places.extra.start;
        self.first.rewrite(first, &places, self.index.clone(), table);
        for (plan, planned) in self.others.iter_mut().zip(others) {
            plan.rewrite(planned, &places, self.index.clone(), table);
        }
        self.stamp.rewrite();
        if let Some(stamp) = table.stamp() {
            self.stamp = stamp.clone();
        }
        Ok(())
    }

    /// Refuses a tree of other tokens, or in a step that has no trees.
    fn check_tree(&self, op: &'static str, tokens: &[u32], tree: Option<&TokenTree>) -> Result<()> {
        let (got, expected) = match tree {
            Some(_) if !self.trees => {
                ("a tree".into(), "tokens in order, as the step is not of trees".into())
            }
            Some(tree) if tree.len() != tokens.len() => {
                (format!("{} tokens with a tree of {}", tokens.len(), tree.len()), "a tree of them".into())
            }
            _ => return Ok(()),
        };
        Err(Error::Value { op, argument: "tokens", got, expected })
    }

    /// Refuses another cache than the one that the step was made for.
    pub(crate) fn check_cache(&self, op: &'static str, cache: &PagedKvCache) -> Result<()> {
        if cache.made(&self.stamp) {
            return Ok(());
        }
        let (got, expected) = ("another cache".into(), "the one that the step was made for".into());
        Err(Error::Value { op, argument: "cache", got, expected })
    }

    /// `[requests · q_len]`: the tokens of each sequence.
    pub fn tokens(&self) -> Tensor<1, Int> {
        self.list(0)
    }

    /// The position of each token in its sequence, for [`apply_rope`](crate::apply_rope): in a tree its depth behind the tokens
    /// before.
    pub fn positions(&self) -> Positions {
        Positions::of_tensor(self.list(1), self.max_len, Some(self.stamp.clone()))
    }

    /// The slots of the keys and values, for [`append_paged_kv`](crate::append_paged_kv).
    pub fn slots(&self) -> SlotMapping {
        SlotMapping::of_tensor(self.list(2), self.pool_pages, self.page_size, Some(self.stamp.clone()))
    }

    /// Attention of the step, in layers of the first kind: [`PagedPlan::run`].
    pub fn plan(&self) -> &PagedPlan {
        &self.first
    }

    /// Attention of the step, in layers of a kind, numbered as in [`StepConfig::kind`].
    ///
    /// # Errors
    ///
    /// If there is no such kind.
    pub fn plan_of(&self, kind: usize) -> Result<&PagedPlan> {
        let found = if kind == 0 { Some(&self.first) } else { self.others.get(kind - 1) };
        found.ok_or_else(|| Error::Value {
            op: "DecodeStep::plan_of",
            argument: "kind",
            got: kind.to_string(),
            expected: format!("below {}", self.kinds()),
        })
    }

    /// The number of kinds of layers.
    pub fn kinds(&self) -> usize {
        1 + self.others.len()
    }

    /// The largest number of sequences.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// The largest number of tokens of a sequence: every tensor of the step has `requests · q_len` rows.
    pub fn q_len(&self) -> usize {
        self.q_len
    }

    /// The longest that a sequence may be.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    fn list(&self, number: usize) -> Tensor<1, Int> {
        let rows = self.requests * self.q_len;
        let first = self.lists + number * rows;
        self.index.clone().slice_dim(0, first..first + rows)
    }
}

/// The row pointer of a step: the new tokens of each sequence, and those that are missing from `q_len`.
fn rows(growth: &[(SequenceId, usize)], requests: usize, q_len: usize) -> Vec<usize> {
    if q_len == 1 {
        return decode_rows(requests);
    }
    let missing = iter::repeat_n(0, requests - growth.len());
    let new = growth.iter().map(|&(_, new)| new).chain(missing);
    let ends = new.enumerate().flat_map(|(at, new)| [at * q_len + new, (at + 1) * q_len]);
    iter::once(0).chain(ends).collect()
}

fn refuse(got: String, expected: String) -> Result<()> {
    let (op, expected) = ("DecodeStep::update", format!("{expected}, the capacity"));
    Err(Error::Value { op, argument: "tokens", got, expected })
}
