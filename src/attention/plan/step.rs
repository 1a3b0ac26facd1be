//! A decoding step with all inputs in one buffer of a constant address.

use std::iter;

use burn::tensor::{Int, Tensor};

use super::config::PlanConfig;
use super::paged::{PagedPlan, decode_rows};
use super::schedule::Capacity;
use crate::cache::{PagedKvCache, Positions, SequenceId, SlotMapping};
use crate::error::{Error, Result};
use crate::indptr::index;
use crate::memory;

/// Bytes that a request takes at most while a step is planned, its pages not counted: in row pointers and
/// lengths on the host, in the lists of the step, and in their copy.
const REQUEST_BYTES: usize = 64;

/// All that changes from one decoding step to the next: tokens, positions, slots, page table and plan, in one
/// buffer on the device that [`update`](Self::update) rewrites in one copy.
///
/// Its tensors are views of that buffer, with the same number and lengths in every step. So the launches of a
/// step do not change either: [`DecodeGraph`](crate::DecodeGraph) captures and replays them. Sequences
/// missing from the full number get token 0 at position 0, write nothing, and read no key.
#[derive(Debug)]
#[must_use]
pub struct DecodeStep {
    plan: PagedPlan,
    requests: usize,
    max_len: usize,
    pool_pages: usize,
}

/// The lists of a step without sequences: token 0 at position 0, written nowhere.
fn no_sequences(requests: usize) -> Vec<i32> {
    [0, 0, -1].into_iter().flat_map(|word| iter::repeat_n(word, requests)).collect()
}

impl DecodeStep {
    /// A step of up to `requests` sequences of `cache`, none longer than `max_len` tokens.
    ///
    /// # Errors
    ///
    /// If `requests` or `max_len` is 0 or too large to count, or `config` is not one that the device can take.
    pub fn new(config: &PlanConfig, requests: usize, max_len: usize, cache: &PagedKvCache) -> Result<Self> {
        const OP: &str = "DecodeStep::new";
        for (argument, got) in [("requests", requests), ("max_len", max_len)] {
            if got == 0 {
                let expected = "at least 1".into();
                return Err(Error::Value { op: OP, argument, got: "0".into(), expected });
            }
        }
        let pages = max_len.div_ceil(cache.page_size()).saturating_mul(requests);
        index(OP, "max_len", 0, pages.saturating_mul(cache.page_size()))?;
        let list_bytes = memory::bytes([requests, REQUEST_BYTES]);
        let bytes = list_bytes.saturating_add(memory::bytes([pages, size_of::<i32>()]));
        memory::on_host(OP, "requests", bytes)?;
        let capacity = Capacity { requests, pages };
        let plan = PagedPlan::fixed(OP, config, capacity, &no_sequences(requests), cache)?;
        Ok(Self { plan, requests, max_len, pool_pages: cache.pages() })
    }

    /// Makes room in `cache` for one more token of each sequence, and rewrites the buffer for the step that
    /// computes them: `tokens` says which token each sequence goes on with.
    ///
    /// # Errors
    ///
    /// If there are too many sequences or too long ones, a sequence is unknown or named twice, or the pool
    /// has not enough free pages. Nothing has changed then.
    pub fn update(&mut self, cache: &mut PagedKvCache, tokens: &[(SequenceId, u32)]) -> Result<()> {
        const OP: &str = "DecodeStep::update";
        let refuse = |got: String, expected: String| {
            Err(Error::Value {
                op: OP,
                argument: "tokens",
                got,
                expected: format!("{expected}, the capacity"),
            })
        };
        self.check_cache(OP, cache)?;
        let before = self.plan.stamp().cloned();
        if tokens.is_empty() || tokens.len() > self.requests {
            return refuse(format!("of {} sequences", tokens.len()), format!("1 to {}", self.requests));
        }
        let mut extra = no_sequences(self.requests);
        let (token_list, rest) = extra.split_at_mut(self.requests);
        let (position_list, slot_list) = rest.split_at_mut(self.requests);
        for (at, &(sequence, token)) in tokens.iter().enumerate() {
            let len = cache.len(sequence)?;
            if len >= self.max_len {
                return refuse(format!("a sequence of {len} tokens"), format!("below {}", self.max_len));
            }
            token_list[at] = index(OP, "tokens", at, token as usize)?;
            position_list[at] = index(OP, "tokens", at, len)?;
        }
        let growth: Vec<_> = tokens.iter().map(|&(sequence, _)| (sequence, 1)).collect();
        let slots = cache.reserve_slots(OP, &growth)?;
        let sequences: Vec<_> = tokens.iter().map(|&(sequence, _)| sequence).collect();
        let table = cache.page_table(&sequences)?.padded(self.requests);
        slot_list[..slots.len()].copy_from_slice(&slots);
        self.plan.replan(OP, &decode_rows(self.requests), &table, &extra)?;
        if let Some(before) = before {
            before.rewrite();
        }
        Ok(())
    }

    /// Refuses another cache than the one that the step was made for.
    pub(crate) fn check_cache(&self, op: &'static str, cache: &PagedKvCache) -> Result<()> {
        if self.plan.stamp().is_none_or(|stamp| cache.made(stamp)) {
            return Ok(());
        }
        let (got, expected) = ("another cache".into(), "the one that the step was made for".into());
        Err(Error::Value { op, argument: "cache", got, expected })
    }

    /// `[requests]`: the token of each sequence.
    pub fn tokens(&self) -> Tensor<1, Int> {
        self.list(0)
    }

    /// The position of each token in its sequence, for [`apply_rope`](crate::apply_rope).
    pub fn positions(&self) -> Positions {
        Positions::of_tensor(self.list(1), self.max_len, self.plan.stamp().cloned())
    }

    /// The slots of the keys and values, for [`append_paged_kv`](crate::append_paged_kv).
    pub fn slots(&self) -> SlotMapping {
        let stamp = self.plan.stamp().cloned();
        SlotMapping::of_tensor(self.list(2), self.pool_pages, self.plan.page_size(), stamp)
    }

    /// Attention of the step: [`PagedPlan::run`].
    pub fn plan(&self) -> &PagedPlan {
        &self.plan
    }

    /// The largest number of sequences: the rows of every tensor of the step.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// The longest that a sequence may be.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    fn list(&self, number: usize) -> Tensor<1, Int> {
        let first = self.plan.schedule().extra.start + number * self.requests;
        self.plan.schedule().index().clone().slice_dim(0, first..first + self.requests)
    }
}
