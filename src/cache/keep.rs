//! Accepted tokens of a tree, moved together.

use std::mem;
use std::ops::Range;

use super::kv_cache::PagedKvCache;
use super::sequence::SequenceId;
use super::slot_mapping::SlotMapping;
use crate::error::{Error, Result};
use crate::indptr::upload;
use crate::memory;

impl PagedKvCache {
    /// Keeps, of the tokens of `sequence` from token `first` on, those at `first + kept[i]`, which become tokens `first + i`,
    /// and drops the others: the rejected tokens of a [tree](crate::TokenTree).
    ///
    /// Keys and values are copied on the device, bit for bit, those of every layer; none if all that is kept comes first.
    /// Pages that others own too are replaced by copies before, as by [`reserve`](Self::reserve).
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use burn_flashinfer::{CacheConfig, PagedKvCache, TokenTree, append_paged_kv};
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// let mut cache = PagedKvCache::new(&CacheConfig::new(1, 8, 4, 2, 64), &Device::default())?;
    /// let sequence = cache.create();
    /// let tree = TokenTree::new(&[None, Some(0), Some(0), Some(2)])?;
    /// let slots = cache.reserve(&[(sequence, 4)])?;
    /// let k = Tensor::<3>::random([4, 2, 64], Distribution::Default, &Device::default());
    /// append_paged_kv(cache.layer_mut(0)?, k.clone(), k, &slots)?;
    ///
    /// // The path from token 0 over token 2 to token 3.
    /// cache.keep(sequence, 0, &tree.path(3).unwrap_or_default())?;
    /// assert_eq!(cache.len(sequence)?, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no such sequence, it is shorter than `first`, or its tokens from there on were [given
    /// back](Self::release_before); if `kept` does not ascend, or has a token that is not there; if the pool has not enough
    /// pages for copies, or a layer was [replaced](Self::layer_mut) by one that does not fit.
    pub fn keep(&mut self, sequence: SequenceId, first: usize, kept: &[usize]) -> Result<()> {
        const OP: &str = "PagedKvCache::keep";
        let found = self.sequence(OP, "sequence", sequence)?;
        let (begin, len) = (found.first, found.len);
        if !(begin..=len).contains(&first) {
            let expected = format!("{begin} to {len}, tokens that the sequence has");
            return Err(Error::Value { op: OP, argument: "first", got: first.to_string(), expected });
        }
        let mut least = 0;
        for (at, &token) in kept.iter().enumerate() {
            if token < least || token >= len - first {
                let expected = format!("at least {least}, and below {}", len - first);
                return Err(Error::Index { op: OP, argument: "kept", at, got: token.to_string(), expected });
            }
            least = token + 1;
        }
        let stay = kept.iter().enumerate().take_while(|&(at, &token)| at == token).count();
        let (start, end) = (first + stay, first + kept.len());
        if start < end {
            let mut from = memory::list(OP, "kept", end - start)?;
            from.extend(kept.iter().skip(stay).map(|token| first + token));
            self.move_tokens(OP, sequence, &from, start..end)?;
        }
        self.truncate(sequence, end)
    }

    /// Copies tokens `from` of a sequence over its tokens `to`, in pages that it alone owns from then on.
    fn move_tokens(
        &mut self,
        op: &'static str,
        sequence: SequenceId,
        from: &[usize],
        to: Range<usize>,
    ) -> Result<()> {
        let page_size = self.page_size;
        let mut slots = [memory::list(op, "kept", from.len())?, memory::list(op, "kept", from.len())?];
        let is_shared = |page: &usize| self.pool.owners(*page) > 1;
        let pages = &self.sequence(op, "sequence", sequence)?.pages;
        let shared: Vec<usize> = (to.start / page_size..to.end.div_ceil(page_size))
            .filter(|&at| pages.get(at).is_some_and(is_shared))
            .collect();
        self.check_layers(op)?;
        self.make_room(op, "sequence", shared.len())?;
        let Some(found) = self.sequences.get_mut(&sequence) else { return Ok(()) };
        let (mut replaced, mut own) = (Vec::new(), Vec::new());
        for at in shared {
            if let (Some(page), Some(new)) = (found.pages.get_mut(at), self.pool.take()) {
                replaced.push(mem::replace(page, new));
                own.push(new);
            }
        }
        slots[0].extend(from.iter().filter_map(|&token| found.slot(token, page_size)));
        slots[1].extend(to.filter_map(|token| found.slot(token, page_size)));
        self.replace(&replaced, &own)?;
        let [from, to] = slots;
        let (from, to) = (upload(from, &self.device), SlotMapping::trusted(to, page_size, &self.device));
        for layer in &mut self.layers {
            let tokens = layer.read(from.clone(), layer.dtype());
            layer.write(tokens, &to);
        }
        Ok(())
    }
}
