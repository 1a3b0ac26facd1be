//! Stamps of handles of a cache: they tell if a handle still says where the tokens of its sequences are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};

use super::sequence::SequenceId;
use crate::error::{Error, Result};

/// Counts the changes of a cache: when each sequence that is alive changed last.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    now: AtomicU64,
    sequences: Mutex<HashMap<SequenceId, Times>>,
    /// True once there was a graph: before that, the check of every layer costs one load.
    was_captured: AtomicBool,
    /// The thread of the graphs that are alive.
    graphs: Mutex<Weak<ThreadId>>,
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
    /// The places of all of their tokens.
    All,
    /// The places of some of their tokens.
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
    /// The last moments without a relevant change, for [`Says::All`] and [`Says::Some`]: the repeated check
    /// of every layer costs one comparison.
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

    /// Keeps the pages on this thread while the returned value lives: the replays of a graph are ordered in
    /// its stream.
    pub(super) fn keep_to_this_thread(&self) -> Arc<ThreadId> {
        let mut graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        self.was_captured.store(true, Ordering::Release);
        graphs.upgrade().unwrap_or_else(|| {
            let this = Arc::new(thread::current().id());
            *graphs = Arc::downgrade(&this);
            this
        })
    }

    /// True if a graph of another thread replays steps of the cache.
    pub(crate) fn is_of_another_thread(&self) -> bool {
        self.was_captured.load(Ordering::Acquire)
            && self
                .graphs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .upgrade()
                .is_some_and(|thread| *thread != thread::current().id())
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

    /// Why a handle with this stamp does not fit pages of the cache of `clock`. Pages that a program manages
    /// itself belong to no cache: nothing is foreign to them.
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

/// Refuses pages that a graph of another thread reads and writes, in the stream of that thread.
pub(super) fn check_thread(op: &'static str, argument: &'static str, clock: &Clock) -> Result<()> {
    if !clock.is_of_another_thread() {
        return Ok(());
    }
    let (got, expected) = ("of a graph of another thread".into(), "used by that thread alone".into());
    Err(Error::Value { op, argument, got, expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_keeps_the_cache_to_its_thread() {
        let clock = Clock::default();
        let elsewhere = || thread::scope(|scope| scope.spawn(|| clock.is_of_another_thread()).join());
        assert!(matches!(elsewhere(), Ok(false)));
        let first = clock.keep_to_this_thread();
        let second = clock.keep_to_this_thread();
        drop(first);
        assert!(matches!(elsewhere(), Ok(true)));
        assert!(!clock.is_of_another_thread());
        drop(second);
        assert!(matches!(elsewhere(), Ok(false)));
    }
}
