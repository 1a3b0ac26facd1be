//! Sequences of a cache: their names, pages and lengths.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A sequence of one [`PagedKvCache`](crate::PagedKvCache). It is never used again once the sequence is freed, nor by another
/// cache of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

impl SequenceId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// `sequence 7`.
impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// The pages and the length of a sequence.
#[derive(Debug, Clone, Default)]
pub(super) struct Sequence {
    /// Page 0 stands in for each page before that of token `first`.
    pub pages: Vec<usize>,
    pub len: usize,
    /// The tokens before it were given back.
    pub first: usize,
}

impl Sequence {
    /// The pages that it uses.
    pub(super) fn own_pages(&self, page_size: usize) -> &[usize] {
        self.pages.get(self.first / page_size..).unwrap_or_default()
    }

    /// The slots of its tokens, from token `first` on. A pool has no more slots than an `i32` counts.
    pub(super) fn slots(&self, first: usize, page_size: usize) -> impl Iterator<Item = i32> {
        (first..self.len).filter_map(move |position| self.slot(position, page_size))
    }

    /// The slot of the token at a position.
    pub(super) fn slot(&self, position: usize, page_size: usize) -> Option<i32> {
        let page = self.pages.get(position / page_size)?;
        Some((page * page_size + position % page_size) as i32)
    }
}
