//! Giving back pages whose keys nobody reads any more.

use std::ops::Range;

use super::clock::Change;
use super::kv_cache::PagedKvCache;
use super::sequence::SequenceId;
use crate::error::{Error, Result};

impl PagedKvCache {
    /// Gives back the pages of `sequence` that lie before token `position`, for models whose layers all have a
    /// [window](crate::AttentionOptions::window_left); returns how many it gave up.
    ///
    /// With windows of `w` keys and the query itself, a sequence of `len` tokens can do without those before
    /// `len - w`. Its length and the positions of its tokens stay what they are, and forks keep their pages. A plan
    /// that would read what was given back is refused. Tables, plans and slots that were made before are outdated.
    ///
    /// As long as a page behind `position` is [remembered](Self::remember), nothing is given back: its prefix leads to it.
    ///
    /// ```
    /// use burn::tensor::{DType, Device};
    /// use burn_flashinfer::{AttentionOptions, CacheConfig, PagedKvCache, PagedPlan, PlanConfig};
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// // 8 pages of 4 tokens.
    /// let mut cache = PagedKvCache::new(&CacheConfig::new(1, 8, 4, 2, 64), &Device::default())?;
    /// let sequence = cache.create();
    /// cache.reserve(&[(sequence, 30)])?;
    /// assert_eq!(cache.release_before(sequence, 30 - 16)?, 3);
    /// assert_eq!((cache.len(sequence)?, cache.first_token(sequence)?, cache.free_pages()), (30, 12, 3));
    ///
    /// let step = cache.step(&[(sequence, 1)])?;
    /// let config = PlanConfig::new(8, 2, 64, DType::F32);
    /// let options = AttentionOptions::new().causal(true);
    /// assert!(PagedPlan::for_step(&config.clone().options(options.clone()), &step).is_err());
    /// let _plan = PagedPlan::for_step(&config.options(options.window_left(16)), &step)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no such sequence, or it is shorter.
    pub fn release_before(&mut self, sequence: SequenceId, position: usize) -> Result<usize> {
        const OP: &str = "PagedKvCache::release_before";
        let len = self.sequence(OP, "sequence", sequence)?.len;
        if position > len {
            let (got, expected) =
                (position.to_string(), format!("at most {len}, the length of the sequence"));
            return Err(Error::Value { op: OP, argument: "position", got, expected });
        }
        let page_size = self.page_size;
        let Some(found) = self.sequences.get_mut(&sequence) else { return Ok(0) };
        let (from, to) = (found.first / page_size, position / page_size);
        let (before, kept) = found.pages.split_at_mut(to);
        if from >= to || kept.first().is_some_and(|&page| self.tree.contains(page)) {
            return Ok(0);
        }
        kept.iter().for_each(|&page| self.pool.orphan(page));
        let released = before[from..].to_vec();
        before[from..].fill(0);
        found.first = to * page_size;
        self.give_up(&released);
        self.clock.touch(sequence, Change::Moved);
        Ok(released.len())
    }

    /// The first token of `sequence` that was not [given back](Self::release_before).
    ///
    /// # Errors
    ///
    /// If there is no such sequence.
    pub fn first_token(&self, sequence: SequenceId) -> Result<usize> {
        Ok(self.sequence("PagedKvCache::first_token", "sequence", sequence)?.first)
    }

    /// From the first token of a sequence that was not given back to its length.
    pub(crate) fn extent(
        &self,
        op: &'static str,
        argument: &'static str,
        sequence: SequenceId,
    ) -> Result<Range<usize>> {
        self.sequence(op, argument, sequence).map(|sequence| sequence.first..sequence.len)
    }
}
