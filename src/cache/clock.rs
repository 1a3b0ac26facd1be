//! Which page tables still say where the tokens of their sequences are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::SequenceId;

/// Counts the changes of a cache: when each sequence that is alive changed last.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    now: AtomicU64,
    changed: Mutex<HashMap<SequenceId, u64>>,
}

/// The sequences of a page table, and when it was made.
#[derive(Debug)]
pub(crate) struct Stamp {
    clock: Arc<Clock>,
    sequences: Vec<SequenceId>,
    made: u64,
    /// Up to when nothing had changed that matters: what every layer asks again costs one comparison.
    current: AtomicU64,
}

impl Clock {
    /// `sequence` is new, has grown or shrunk, or has other pages.
    pub(super) fn touch(&self, sequence: SequenceId) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(sequence, now);
    }

    /// `sequence` is gone.
    pub(super) fn remove(&self, sequence: SequenceId) {
        self.now.fetch_add(1, Ordering::Relaxed);
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).remove(&sequence);
    }

    pub(super) fn stamp(self: &Arc<Self>, sequences: &[SequenceId]) -> Stamp {
        let made = self.now.load(Ordering::Relaxed);
        Stamp { clock: self.clone(), sequences: sequences.to_vec(), made, current: AtomicU64::new(made) }
    }
}

impl Stamp {
    /// A sequence that has changed in the cache of `clock` since, if that is its cache.
    pub(crate) fn outdated(&self, clock: Option<&Arc<Clock>>) -> Option<SequenceId> {
        let now = self.clock.now.load(Ordering::Relaxed);
        if !clock.is_some_and(|clock| Arc::ptr_eq(clock, &self.clock))
            || self.current.load(Ordering::Relaxed) == now
        {
            return None;
        }
        let changed = self.clock.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |sequence: &&SequenceId| changed.get(sequence).is_none_or(|&at| at > self.made);
        let found = self.sequences.iter().find(since).copied();
        if found.is_none() {
            self.current.store(now, Ordering::Relaxed);
        }
        found
    }
}
