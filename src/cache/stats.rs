//! Statistics of a cache.

use std::fmt;

/// The current use of a [`PagedKvCache`](crate::PagedKvCache), in pages and tokens, and its counts since it was made.
///
/// A page counts once, however many layers it has a part in. Each is free, used, or evictable:
/// `pages = free_pages + used_pages + evictable_pages`.
///
/// ```
/// use burn::tensor::Device;
/// use burn_flashinfer::{CacheConfig, PagedKvCache};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// // 8 pages of 4 tokens.
/// let mut cache = PagedKvCache::new(&CacheConfig::new(1, 8, 4, 2, 64), &Device::default())?;
/// let sequence = cache.create();
/// cache.reserve(&[(sequence, 10)])?;
/// let fork = cache.fork(sequence)?;
/// let stats = cache.stats();
/// assert_eq!((stats.sequences, stats.tokens), (2, 20));
/// assert_eq!((stats.free_pages, stats.used_pages, stats.shared_pages), (5, 3, 3));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct CacheStats {
    /// Pages of the pool.
    pub pages: usize,
    /// Pages without an owner.
    pub free_pages: usize,
    /// Pages that at least one sequence uses.
    pub used_pages: usize,
    /// Pages that are remembered and used by no sequence.
    pub evictable_pages: usize,
    /// Pages that are remembered, used or not.
    pub remembered_pages: usize,
    /// Pages with more than one owner: sequences, and the cache itself if it remembers the page.
    pub shared_pages: usize,
    /// Sequences alive.
    pub sequences: usize,
    /// Tokens of all sequences; those that two sequences share count twice.
    pub tokens: usize,
    /// Tokens that [`create_with_prefix`](crate::PagedKvCache::create_with_prefix) found remembered.
    pub hit_tokens: u64,
    /// Tokens that it was asked for and did not find.
    pub missed_tokens: u64,
    /// Pages that were remembered until their room was needed.
    pub evicted_pages: u64,
    /// Pages given back because others with the same tokens were remembered already.
    pub merged_pages: u64,
    /// Pages copied because a sequence had to write into one that has another owner.
    pub copied_pages: u64,
    /// Tokens [moved](crate::PagedKvCache::swap_out) to host memory.
    pub swapped_out_tokens: u64,
    /// Tokens [moved](crate::PagedKvCache::swap_in) back.
    pub swapped_in_tokens: u64,
}

/// One line for a log: how full the pool is, and how often prefixes were found.
impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, used_pages, evictable_pages, sequences, tokens, hit_tokens, missed_tokens, .. } =
            self;
        write!(
            f,
            "{used_pages} of {pages} pages used, {evictable_pages} evictable; {sequences} sequences of {tokens} tokens; \
             prefixes: {hit_tokens} tokens found, {missed_tokens} not"
        )
    }
}
