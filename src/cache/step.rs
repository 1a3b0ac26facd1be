//! The inputs of a step that all layers of a model share: slots, positions, page table, row pointer of the queries.

use super::kv_cache::PagedKvCache;
use super::page_table::PageTable;
use super::positions::Positions;
use super::sequence::SequenceId;
use super::slot_mapping::SlotMapping;
use crate::error::{Error, Result};
use crate::memory;

/// A step of a model over a [`PagedKvCache`]: made by [`PagedKvCache::step`], used by every layer.
///
/// Its parts are of one moment. Operations refuse them once they are outdated, as the cache says. A captured graph wants
/// a [`DecodeStep`](crate::DecodeStep), whose buffers stay.
#[derive(Debug, Clone)]
#[must_use]
pub struct PagedStep {
    slots: SlotMapping,
    positions: Positions,
    table: PageTable,
    qo_indptr: Vec<usize>,
}

impl PagedStep {
    /// The slots of the new tokens' keys and values, for [`append_paged_kv`](crate::append_paged_kv).
    pub fn slots(&self) -> &SlotMapping {
        &self.slots
    }

    /// The position of each new token in its sequence, for [`apply_rope`](crate::apply_rope).
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// The page table, one request for each sequence. The lengths count the new tokens.
    pub fn table(&self) -> &PageTable {
        &self.table
    }

    /// `[requests + 1]`: the new tokens of request `r` are `qo_indptr[r]..qo_indptr[r + 1]`.
    pub fn qo_indptr(&self) -> &[usize] {
        &self.qo_indptr
    }

    /// New tokens of all sequences: the rows of the queries.
    pub fn tokens(&self) -> usize {
        self.slots.len()
    }
}

impl PagedKvCache {
    /// Makes room for `tokens` more tokens in each `(sequence, tokens)` as [`reserve`](Self::reserve) does,
    /// and returns all that layers must know about them.
    ///
    /// [`PagedPlan::for_step`](crate::PagedPlan::for_step) plans the attention of the step.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_flashinfer::{CacheConfig, PagedKvCache};
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// let mut cache = PagedKvCache::new(&CacheConfig::new(1, 16, 8, 2, 64), &Device::default())?;
    /// let (story, letter) = (cache.create(), cache.create());
    /// let step = cache.step(&[(story, 20), (letter, 3)])?;
    /// assert_eq!((step.tokens(), step.qo_indptr()), (23, &[0, 20, 23][..]));
    /// assert_eq!(step.table().kv_lengths(), [20, 3]);
    /// let step = cache.step(&[(story, 1)])?;
    /// assert_eq!(step.table().kv_lengths(), [21]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve), and if there is no sequence.
    pub fn step(&mut self, growth: &[(SequenceId, usize)]) -> Result<PagedStep> {
        const OP: &str = "PagedKvCache::step";
        not_empty(OP, "growth", growth.len())?;
        let all = growth.iter().fold(0_usize, |all, &(_, tokens)| all.saturating_add(tokens));
        // Nothing may be refused after the room is made.
        let mut positions = memory::list(OP, "growth", all)?;
        let slots = self.reserve_slots(OP, growth)?;
        let stamp = self.stamp_of(growth);
        let table = self.table_of(OP, "growth", growth.iter().map(|&(id, _)| id))?.stamped(stamp.clone());
        let mut qo_indptr = Vec::with_capacity(growth.len() + 1);
        qo_indptr.push(0);
        for (&(_, tokens), &len) in growth.iter().zip(table.kv_lengths()) {
            // A pool has no more tokens than an `i32` counts.
            positions.extend((len - tokens..len).map(|position| position as i32));
            qo_indptr.push(positions.len());
        }
        let slots = SlotMapping::trusted(slots, self.page_size, &self.device).stamped(stamp.clone());
        let positions = Positions::uploaded(positions, &self.device).stamped(stamp);
        Ok(PagedStep { slots, positions, table, qo_indptr })
    }

    /// The page table of these sequences, one request each.
    ///
    /// # Errors
    ///
    /// If there is no sequence, or one of them is unknown.
    pub fn page_table(&self, sequences: &[SequenceId]) -> Result<PageTable> {
        const OP: &str = "PagedKvCache::page_table";
        not_empty(OP, "sequences", sequences.len())?;
        let table = self.table_of(OP, "sequences", sequences.iter().copied())?;
        Ok(table.stamped(self.stamp(sequences)))
    }

    fn table_of(
        &self,
        op: &'static str,
        argument: &'static str,
        sequences: impl ExactSizeIterator<Item = SequenceId>,
    ) -> Result<PageTable> {
        let mut indptr = vec![0];
        let mut indices = Vec::new();
        let mut last_page_len = Vec::with_capacity(sequences.len());
        let mut first_keys = Vec::new();
        for (request, id) in sequences.enumerate() {
            let sequence = self.sequence(op, argument, id)?;
            if sequence.first > 0 {
                first_keys.resize(request, 0);
                first_keys.push(sequence.first);
            }
            indices.extend_from_slice(&sequence.pages);
            indptr.push(indices.len());
            last_page_len.push(match sequence.len % self.page_size {
                0 if sequence.len > 0 => self.page_size,
                rest => rest,
            });
        }
        // Not checked again: a sequence owns each of its pages once, and all are of the pool.
        let table = PageTable::trusted(op, indptr, indices, &last_page_len, self.page_size, &self.device)?;
        Ok(table.with_first_keys(first_keys))
    }

    /// The positions of the last `tokens` tokens of each `(sequence, tokens)`, which
    /// [`reserve`](Self::reserve) has just added.
    ///
    /// # Errors
    ///
    /// If a sequence is unknown or shorter.
    pub fn last_positions(&self, growth: &[(SequenceId, usize)]) -> Result<Positions> {
        const OP: &str = "PagedKvCache::last_positions";
        let (mut ranges, mut all) = (Vec::with_capacity(growth.len()), 0_usize);
        for &(id, tokens) in growth {
            let len = self.sequence(OP, "growth", id)?.len;
            let Some(first) = len.checked_sub(tokens) else {
                return Err(Error::Value {
                    op: OP,
                    argument: "growth",
                    got: format!("{tokens} tokens of {id:?}"),
                    expected: format!("at most {len}, its length"),
                });
            };
            ranges.push(first..len);
            all = all.saturating_add(tokens);
        }
        let mut positions = memory::list(OP, "growth", all)?;
        // A pool has no more tokens than an `i32` counts.
        positions.extend(ranges.into_iter().flatten().map(|position| position as i32));
        Ok(Positions::uploaded(positions, &self.device).stamped(self.stamp_of(growth)))
    }
}

fn not_empty(op: &'static str, argument: &'static str, sequences: usize) -> Result<()> {
    if sequences > 0 {
        return Ok(());
    }
    let (got, expected) = ("empty".into(), "at least one sequence".into());
    Err(Error::Value { op, argument, got, expected })
}
