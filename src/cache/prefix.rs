//! Prefixes that outlive their sequences.

use super::clock::Change;
use super::kv_cache::PagedKvCache;
use super::sequence::{Sequence, SequenceId};
use crate::error::{Error, Result};

impl PagedKvCache {
    /// The number of `tokens`, from the first on, whose keys and values a sequence that [starts with
    /// them](Self::create_with_prefix) would find in the cache.
    ///
    /// Nothing is taken, and it does not count as a use: a scheduler may ask for every request that waits.
    /// The example is at [`create_with_prefix`](Self::create_with_prefix).
    pub fn match_prefix(&self, tokens: &[u32]) -> usize {
        self.tree.path(unless_last(tokens)).len() * self.page_size
    }

    /// A new sequence that has the longest [remembered](Self::remember) prefix of `tokens` already, and the
    /// length of that: whole pages, which it shares, and never all of `tokens`, since the last one has to be
    /// computed for its logits. It takes no page.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_flashinfer::{CacheConfig, PagedKvCache};
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// // 8 pages of 4 tokens.
    /// let mut cache = PagedKvCache::new(&CacheConfig::new(1, 8, 4, 2, 64), &Device::default())?;
    /// let prompt = [1, 5, 8, 2, 7, 7, 3, 9, 4];
    /// let (first, computed) = cache.create_with_prefix(&prompt);
    /// assert_eq!(computed, 0);
    /// let slots = cache.reserve(&[(first, prompt.len())])?;
    /// // ... `append_paged_kv` of the keys and values of `prompt` to every layer, at `slots` ...
    /// cache.remember(first, &prompt)?;
    /// cache.free(first)?;
    ///
    /// // The second request computes only what is not in the two full pages.
    /// let (second, computed) = cache.create_with_prefix(&[1, 5, 8, 2, 7, 7, 3, 9, 6, 6]);
    /// assert_eq!((computed, cache.len(second)?), (8, 8));
    /// assert_eq!(cache.match_prefix(&prompt[..8]), 4);
    ///
    /// cache.free(second)?;
    /// cache.forget();
    /// assert_eq!(cache.free_pages(), 8);
    /// # Ok(())
    /// # }
    /// ```
    pub fn create_with_prefix(&mut self, tokens: &[u32]) -> (SequenceId, usize) {
        let pages = self.tree.path(unless_last(tokens));
        for &page in &pages {
            self.pool.share(page);
        }
        let len = pages.len() * self.page_size;
        self.counted.hit_tokens += len as u64;
        self.counted.missed_tokens += (tokens.len() - len) as u64;
        (self.insert(Sequence { pages, len, first: 0 }), len)
    }

    /// Keeps the full pages of `sequence`, for [`create_with_prefix`](Self::create_with_prefix) to find them by its
    /// `tokens`, also once it is freed: until they are [evicted](Self::reserve) or [forgotten](Self::forget).
    ///
    /// The keys and values of all its tokens must have been appended, in every layer. If a prefix is
    /// remembered already in other pages, from a sequence that computed the same, `sequence` and its forks
    /// give theirs back and share those: page tables, slots and positions of them that were made before are
    /// outdated. Pages are not kept if a fork has [given back](Self::release_before) those before them. The example
    /// is at [`create_with_prefix`](Self::create_with_prefix).
    ///
    /// # Errors
    ///
    /// If there is no such sequence; if `tokens` are not as many as it has; if it has given back pages; or if one of
    /// its pages is remembered with other tokens.
    pub fn remember(&mut self, sequence: SequenceId, tokens: &[u32]) -> Result<()> {
        const OP: &str = "PagedKvCache::remember";
        let Sequence { pages, len, first } = self.sequence(OP, "sequence", sequence)?;
        if *first > 0 {
            return Err(Error::Value {
                op: OP,
                argument: "sequence",
                got: format!("{sequence:?}, which gave back its first {first} tokens"),
                expected: "one with all its tokens".into(),
            });
        }
        if tokens.len() != *len {
            return Err(Error::Value {
                op: OP,
                argument: "tokens",
                got: format!("of length {}", tokens.len()),
                expected: format!("{len}, one for each token of {sequence:?}"),
            });
        }
        let mut pages: Vec<usize> = pages.iter().copied().take(len / self.page_size).collect();
        let known = self.tree.path(tokens);
        for (at, page) in pages.iter().enumerate() {
            if known.get(at) != Some(page) && self.tree.contains(*page) {
                let first = at * self.page_size;
                return Err(Error::Value {
                    op: OP,
                    argument: "tokens",
                    got: format!("other tokens than page {page} is remembered with"),
                    expected: format!("what {sequence:?} has before token {}", first + self.page_size),
                });
            }
        }
        let mut merged = Vec::new();
        for (at, (page, &to)) in pages.iter_mut().zip(&known).enumerate() {
            let from = std::mem::replace(page, to);
            if from != to {
                merged.push(Merged { at, from, to });
            }
        }
        self.replace_pages(sequence, &merged);
        self.counted.merged_pages += merged.len() as u64;
        // A user of a remembered page uses all that lead to it.
        let ends = |&at: &usize| self.pool.is_orphaned(pages[at]);
        let end = (known.len()..pages.len()).find(ends).unwrap_or(pages.len());
        pages.truncate(end);
        self.tree.insert(tokens, &pages);
        for &page in pages.iter().skip(known.len()) {
            self.pool.remember(page);
        }
        Ok(())
    }

    /// Drops all remembered pages, for instance when the weights of the model change. Those that no sequence
    /// uses become free.
    pub fn forget(&mut self) {
        for page in self.tree.clear() {
            self.pool.forget(page);
        }
    }

    /// Replaces the `merged` pages of `sequence`, and of every other sequence that uses them, by those they
    /// are merged into. All sequences change, so that later pages may be remembered: a sequence with a page
    /// of the tree has all its ancestors.
    fn replace_pages(&mut self, sequence: SequenceId, merged: &[Merged]) {
        let Some(&Merged { from: first, .. }) = merged.first() else { return };
        // A sequence that shares a page with `sequence` shares all before it.
        let using = if self.pool.owners(first) == 1 {
            self.sequences.range_mut(sequence..=sequence)
        } else {
            self.sequences.range_mut(..)
        };
        for (&id, sequence) in using {
            // Page 0 stands in for pages that it gave back and must stay; its other pages need not be merged.
            if sequence.first > 0 {
                continue;
            }
            let mut moved = false;
            for &Merged { at, from, to } in merged {
                match sequence.pages.get_mut(at) {
                    Some(page) if *page == from => *page = to,
                    _ => break,
                }
                self.pool.share(to);
                self.pool.release(from);
                moved = true;
            }
            if moved {
                self.clock.touch(id, Change::Moved);
            }
        }
    }
}

/// Page `at` of a sequence, `from`, has the same content as `to`.
struct Merged {
    at: usize,
    from: usize,
    to: usize,
}

fn unless_last(tokens: &[u32]) -> &[u32] {
    tokens.split_last().map_or(tokens, |(_, before)| before)
}
