//! Reservation of new tokens: takes pages, copies shared pages before a write, and evicts.

use std::collections::BTreeMap;

use super::clock::Change;
use super::copy::{PageCopies, copy_pages};
use super::kv_cache::PagedKvCache;
use super::sequence::{Sequence, SequenceId};
use super::slot_mapping::SlotMapping;
use crate::error::{Error, Result};
use crate::memory;

/// The pages that a call of [`PagedKvCache::reserve`] takes from the pool.
struct Plan {
    pages: usize,
    /// The sequences that need a page of their own in place of their last one.
    copies_tail: Vec<bool>,
}

impl PagedKvCache {
    /// Makes room for `tokens` more tokens in each `(sequence, tokens)`, for all or for none, and says where they go:
    /// first all tokens of the first sequence, then those of the second, and so on.
    ///
    /// The lengths count the new tokens from now on: append their keys and values to every layer with
    /// [`append_paged_kv`](crate::append_paged_kv) before attention reads them. [`step`](Self::step) returns all that a step
    /// needs beside the slots.
    ///
    /// If too few pages are free, [remembered](Self::remember) ones that no sequence uses are evicted, no
    /// more than needed. Of the prefixes that are not part of a longer one, the least recently used goes
    /// first, page by page from its end.
    ///
    /// # Errors
    ///
    /// If a sequence is unknown or named twice, or the pool has not enough pages that are free or can be
    /// evicted; if a shared page has to be copied in a layer that was [replaced](Self::layer_mut) by one that
    /// does not fit; or if the host has no memory for a slot of each token.
    pub fn reserve(&mut self, growth: &[(SequenceId, usize)]) -> Result<SlotMapping> {
        const OP: &str = "PagedKvCache::reserve";
        let slots = self.reserve_slots(OP, growth)?;
        let slots = SlotMapping::trusted(slots, self.page_size, &self.device);
        Ok(slots.stamped(self.stamp_of(growth)))
    }

    /// The same, on the host alone.
    pub(crate) fn reserve_slots(
        &mut self,
        op: &'static str,
        growth: &[(SequenceId, usize)],
    ) -> Result<Vec<i32>> {
        let plan = self.plan(op, growth)?;
        if plan.copies_tail.contains(&true) {
            self.check_layers(op)?;
        }
        self.pool.check_available(op, "growth", plan.pages)?;
        let all = growth.iter().fold(0_usize, |all, &(_, tokens)| all.saturating_add(tokens));
        let mut slots = memory::list(op, "growth", all)?;
        self.make_room(op, "growth", plan.pages)?;

        let (mut from, mut to) = (Vec::new(), Vec::new());
        for (&(id, tokens), copies_tail) in growth.iter().zip(plan.copies_tail) {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            if copies_tail && let (Some(tail), Some(own)) = (sequence.pages.last_mut(), self.pool.take()) {
                let shared = std::mem::replace(tail, own);
                from.push(shared);
                to.push(own);
            }
            if tokens > 0 {
                self.clock.touch(id, if copies_tail { Change::Moved } else { Change::Grown });
            }
            let first = sequence.len;
            sequence.len += tokens;
            while sequence.pages.len() * self.page_size < sequence.len
                && let Some(page) = self.pool.take()
            {
                sequence.pages.push(page);
            }
            slots.extend(sequence.slots(first, self.page_size));
        }
        self.replace(&from, &to)?;
        Ok(slots)
    }

    /// Copies `shared` pages, which a sequence gives up, to those that it has taken in place of them.
    pub(super) fn replace(&mut self, shared: &[usize], own: &[usize]) -> Result<()> {
        for shared in shared {
            self.give_up(std::slice::from_ref(shared));
        }
        if !shared.is_empty() {
            let copies = PageCopies::new(shared, own, self.page_size, self.pool.pages(), &self.device)?;
            for layer in &mut self.layers {
                copy_pages(layer, &copies)?;
            }
            self.counted.copied_pages += shared.len() as u64;
        }
        Ok(())
    }

    fn plan(&self, op: &'static str, growth: &[(SequenceId, usize)]) -> Result<Plan> {
        let mut seen: Vec<SequenceId> = growth.iter().map(|&(id, _)| id).collect();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Value {
                op,
                argument: "growth",
                got: format!("{:?} twice", twice[0]),
                expected: "each sequence once".into(),
            });
        }
        // Owners that give up a shared last page within this very call, so that the last of them may keep it.
        let mut leaving: BTreeMap<usize, u32> = BTreeMap::new();
        let mut plan = Plan { pages: 0, copies_tail: Vec::with_capacity(growth.len()) };
        for &(id, tokens) in growth {
            let sequence = self.sequence(op, "growth", id)?;
            let grown = sequence.len.saturating_add(tokens).div_ceil(self.page_size);
            let copies = self.shared_tail(sequence, tokens).is_some_and(|page| {
                let left = leaving.entry(page).or_default();
                let copies = self.pool.owners(page) - *left > 1;
                *left += u32::from(copies);
                copies
            });
            let new = grown.saturating_sub(sequence.pages.len()).saturating_add(usize::from(copies));
            plan.pages = plan.pages.saturating_add(new);
            plan.copies_tail.push(copies);
        }
        Ok(plan)
    }

    /// The partly filled last page of `sequence`, if `tokens` more tokens would be written into it and it has
    /// another owner.
    fn shared_tail(&self, sequence: &Sequence, tokens: usize) -> Option<usize> {
        let partly_filled = !sequence.len.is_multiple_of(self.page_size);
        sequence
            .pages
            .last()
            .copied()
            .filter(|&page| tokens > 0 && partly_filled && self.pool.owners(page) > 1)
    }

    /// Evicts idle pages until `needed` pages are free. Nothing is evicted if that cannot be.
    pub(super) fn make_room(
        &mut self,
        op: &'static str,
        argument: &'static str,
        needed: usize,
    ) -> Result<()> {
        self.pool.check_available(op, argument, needed)?;
        // A leaf goes first, but whatever is behind an idle page is idle: a sequence that uses a page of the
        // tree uses all that lead to it. So there is an idle leaf as long as there is an idle page.
        while self.pool.free_pages() < needed
            && let Some(page) = self.tree.evict(|page| self.pool.is_idle(page))
        {
            self.pool.forget(page);
            self.counted.evicted_pages += 1;
        }
        Ok(())
    }
}
