//! Stamps of handles of a cache: they tell if a handle still says where the tokens of its sequences are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::SequenceId;

/// Counts the changes of a cache: when each sequence that is alive changed last.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    now: AtomicU64,
    sequences: Mutex<HashMap<SequenceId, Times>>,
}

/// When a sequence changed last in each way.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    any: u64,
    moved: u64,
}

/// A change of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has more tokens; those that it had are where they were.
    Grown,
    /// Some of its tokens are gone, or are in other pages.
    Moved,
}

/// The claim of a handle about its sequences: it is outdated once that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    /// Where all of their tokens are.
    All,
    /// Where some of their tokens are.
    Some,
}

/// The reason why a handle does not fit the pages of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It is of another cache.
    Foreign,
    /// The sequence has changed since it was made.
    Changed(SequenceId),
    /// The buffer that it is a view of has been rewritten.
    Rewritten,
}

/// The cache and the sequences of a handle, and when it was made.
#[derive(Debug)]
pub(crate) struct Stamp {
    clock: Arc<Clock>,
    sequences: Vec<SequenceId>,
    made: u64,
    rewritten: AtomicBool,
    /// Up to when nothing had changed that matters for [`Says::All`] and [`Says::Some`]: what every layer asks again costs one
    /// comparison.
    current: [AtomicU64; 2],
}

impl Clock {
    fn tick(&self) -> (u64, MutexGuard<'_, HashMap<SequenceId, Times>>) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        (now, self.sequences.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `sequence` is new, or has changed.
    pub(super) fn touch(&self, sequence: SequenceId, change: Change) {
        let (now, mut sequences) = self.tick();
        let times = sequences.entry(sequence).or_default();
        times.any = now;
        if change == Change::Moved {
            times.moved = now;
        }
    }

    /// `sequence` is gone.
    pub(super) fn remove(&self, sequence: SequenceId) {
        self.tick().1.remove(&sequence);
    }

    pub(super) fn stamp(self: &Arc<Self>, sequences: Vec<SequenceId>) -> Stamp {
        let made = self.now.load(Ordering::Relaxed);
        let current = [made, made].map(AtomicU64::new);
        Stamp { clock: self.clone(), sequences, made, rewritten: AtomicBool::new(false), current }
    }
}

impl Stamp {
    /// The buffer that it is a stamp of is overwritten: views of it say something else from now on.
    pub(crate) fn rewrite(&self) {
        self.rewritten.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_of(&self, clock: &Arc<Clock>) -> bool {
        Arc::ptr_eq(clock, &self.clock)
    }

    /// Why a handle with this stamp does not fit pages of the cache of `clock`. Pages that a program manages itself belong to
    /// no cache: nothing is foreign to them.
    pub(crate) fn unfit(&self, clock: Option<&Arc<Clock>>, says: Says) -> Option<Unfit> {
        if clock.is_some_and(|clock| !self.is_of(clock)) {
            return Some(Unfit::Foreign);
        }
        if self.rewritten.load(Ordering::Relaxed) {
            return Some(Unfit::Rewritten);
        }
        let now = self.clock.now.load(Ordering::Relaxed);
        let current = &self.current[says as usize];
        if current.load(Ordering::Relaxed) == now {
            return None;
        }
        let sequences = self.clock.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |sequence: &&SequenceId| {
            sequences.get(sequence).is_none_or(|times| {
                let at = if says == Says::All { times.any } else { times.moved };
                at > self.made
            })
        };
        let found = self.sequences.iter().find(since).copied();
        if found.is_none() {
            current.store(now, Ordering::Relaxed);
        }
        found.map(Unfit::Changed)
    }
}
