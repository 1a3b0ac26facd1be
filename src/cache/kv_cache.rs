//! Keys and values of all layers of a model, in pages that sequences share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::ThreadId;

use burn::tensor::Device;
#[cfg(feature = "cube")]
use burn::tensor::Transaction;

use super::clock::{Change, Clock, Stamp, check_thread};
use super::config::CacheConfig;
use super::kv_pages::{KvPages, PageShape};
use super::page_pool::PagePool;
use super::prefix_tree::PrefixTree;
use super::sequence::{Sequence, SequenceId};
use super::stats::CacheStats;
use crate::check::shape;
use crate::error::{Error, Result};

/// Keys and values of all layers of a model for many sequences.
///
/// The memory is taken once and divided into pages. A sequence takes pages as it grows and gives them back
/// when it is freed. [Forks](Self::fork) share the pages of their common prefix; a fork that writes into a
/// shared page gets its own copy of that page first. So do sequences that [start](Self::create_with_prefix)
/// with tokens that others computed, if the cache was told to [remember](Self::remember) them. A sequence may
/// [wait](Self::swap_out) in host memory.
///
/// A call that is refused has changed nothing. A cache may go to another thread, but not while a
/// [graph](crate::DecodeGraph) of it is alive: its pages are refused there ([`Error::Value`]).
///
/// Handles of a cache belong to this cache alone, and to their moment. Page tables, and plans of them, have
/// the places of all tokens of their sequences: any change of one of those makes them stale. Slots and
/// positions have the places of some tokens. They become stale once a sequence of theirs is freed, loses
/// tokens, or gets other pages. Operations refuse stale handles ([`Error::Stale`]) and those of another
/// cache.
///
/// One step of a model:
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{AttentionOptions, CacheConfig, PagedKvCache, append_paged_kv, batch_decode_paged};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let (layers, q_heads, kv_heads, head_dim) = (2, 8, 2, 64);
/// let mut cache = PagedKvCache::new(&CacheConfig::new(layers, 16, 8, kv_heads, head_dim), &device)?;
/// let sequences = [cache.create(), cache.create()];
///
/// // Once for each step: room for one more token in each sequence.
/// let step = cache.step(&sequences.map(|sequence| (sequence, 1)))?;
/// for layer in 0..layers {
///     let q = Tensor::<3>::random([2, q_heads, head_dim], Distribution::Default, &device);
///     let k = Tensor::<3>::random([2, kv_heads, head_dim], Distribution::Default, &device);
///     let v = k.clone();
///     append_paged_kv(cache.layer_mut(layer)?, k, v, step.slots())?;
///     let attended = batch_decode_paged(q, cache.layer(layer)?, step.table(), &AttentionOptions::new())?;
///     assert_eq!(attended.output.dims(), [2, q_heads, head_dim]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PagedKvCache {
    pub(super) layers: Vec<KvPages>,
    pub(super) page_size: usize,
    pub(super) device: Device,
    pub(super) pool: PagePool,
    /// Pages that are remembered. A sequence with one of them has all its ancestors.
    pub(super) tree: PrefixTree,
    pub(super) sequences: BTreeMap<SequenceId, Sequence>,
    pub(super) clock: Arc<Clock>,
    /// The counts so far; the fields of the current use are left 0.
    pub(super) counted: CacheStats,
}

impl PagedKvCache {
    /// Takes the memory of all pages.
    ///
    /// # Errors
    ///
    /// If an extent is 0, there are more tokens than an `i32` counts, the device does not serve the type of
    /// the elements, or it has not the memory ([`Error::OutOfMemory`]). On a CPU that is the memory of the
    /// machine or container, used or not.
    pub fn new(config: &CacheConfig, device: &Device) -> Result<Self> {
        const OP: &str = "PagedKvCache::new";
        config.check(OP, device)?;
        let clock = Arc::new(Clock::default());
        let layer = |_| config.new_layer(device).map(|layer| layer.of_cache(clock.clone()));
        let layers = (0..config.layers).map(layer).collect::<Result<Vec<_>>>()?;
        check_allocated(OP, config, &layers)?;
        Ok(Self {
            layers,
            page_size: config.page_size,
            device: device.clone(),
            pool: PagePool::new(config.pages),
            tree: PrefixTree::new(config.page_size),
            sequences: BTreeMap::new(),
            clock,
            counted: CacheStats::default(),
        })
    }

    /// A new sequence without tokens. It takes no page.
    pub fn create(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// A new sequence with the tokens of `parent`, whose pages both share from now on. It takes no page.
    ///
    /// # Errors
    ///
    /// If there is no such sequence.
    pub fn fork(&mut self, parent: SequenceId) -> Result<SequenceId> {
        let sequence = self.sequence("PagedKvCache::fork", "parent", parent)?.clone();
        for &page in sequence.own_pages(self.page_size) {
            self.pool.share(page);
        }
        Ok(self.insert(sequence))
    }

    /// Gives the pages of `sequence` back, those that no other sequence uses and that are not
    /// [remembered](Self::remember).
    ///
    /// # Errors
    ///
    /// If there is no such sequence.
    pub fn free(&mut self, sequence: SequenceId) -> Result<()> {
        let Some(removed) = self.sequences.remove(&sequence) else {
            return Err(unknown("PagedKvCache::free", "sequence", sequence));
        };
        self.give_up(removed.own_pages(self.page_size));
        self.clock.remove(sequence);
        Ok(())
    }

    /// Shortens `sequence` to its first `len` tokens, for instance to drop the rejected tokens of a draft.
    ///
    /// # Errors
    ///
    /// If there is no such sequence, it is shorter, or its tokens from there on were [given
    /// back](Self::release_before).
    pub fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<()> {
        const OP: &str = "PagedKvCache::truncate";
        let page_size = self.page_size;
        let Some(kept) = self.sequences.get_mut(&sequence) else {
            return Err(unknown(OP, "sequence", sequence));
        };
        if len > kept.len {
            return Err(Error::Value {
                op: OP,
                argument: "len",
                got: len.to_string(),
                expected: format!("at most {}, the length of the sequence", kept.len),
            });
        }
        if len < kept.first {
            return Err(Error::Value {
                op: OP,
                argument: "len",
                got: len.to_string(),
                expected: format!("at least {}, as the tokens before were given back", kept.first),
            });
        }
        if len < kept.len {
            kept.len = len;
            let dropped = kept.pages.split_off(len.div_ceil(page_size));
            self.give_up(&dropped);
            self.clock.touch(sequence, Change::Moved);
        }
        Ok(())
    }

    /// The pages of layer `layer`.
    ///
    /// # Errors
    ///
    /// If there is no such layer.
    pub fn layer(&self, layer: usize) -> Result<&KvPages> {
        let layers = self.layers.len();
        self.layers.get(layer).ok_or_else(|| no_layer("PagedKvCache::layer", layer, layers))
    }

    /// The pages of layer `layer`, to [append to](crate::append_paged_kv).
    ///
    /// Pages that a program puts in their place must be as many, of the same size, on the same device.
    ///
    /// # Errors
    ///
    /// If there is no such layer.
    pub fn layer_mut(&mut self, layer: usize) -> Result<&mut KvPages> {
        let layers = self.layers.len();
        self.layers.get_mut(layer).ok_or_else(|| no_layer("PagedKvCache::layer_mut", layer, layers))
    }

    /// The number of tokens of `sequence`.
    ///
    /// # Errors
    ///
    /// If there is no such sequence.
    pub fn len(&self, sequence: SequenceId) -> Result<usize> {
        Ok(self.sequence("PagedKvCache::len", "sequence", sequence)?.len)
    }

    /// True if no sequence is alive.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Pages that no sequence uses and that are not [remembered](Self::remember).
    pub fn free_pages(&self) -> usize {
        self.pool.free_pages()
    }

    /// Pages that [`reserve`](Self::reserve) could take: those that are free, and those that are remembered and that no
    /// sequence uses.
    pub fn available_pages(&self) -> usize {
        self.pool.free_pages() + self.pool.idle_pages()
    }

    /// Pages in the pool.
    pub fn pages(&self) -> usize {
        self.pool.pages()
    }

    /// Tokens a page holds.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The device that holds the pages.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The current use of the cache, and its counts.
    pub fn stats(&self) -> CacheStats {
        let [pages, free_pages, evictable_pages] =
            [self.pool.pages(), self.pool.free_pages(), self.pool.idle_pages()];
        CacheStats {
            pages,
            free_pages,
            used_pages: pages - free_pages - evictable_pages,
            evictable_pages,
            remembered_pages: self.tree.pages(),
            shared_pages: self.pool.shared_pages(),
            sequences: self.sequences.len(),
            tokens: self.sequences.values().map(|sequence| sequence.len).sum(),
            ..self.counted
        }
    }

    /// The stamp of a handle of these sequences that is made now.
    pub(crate) fn stamp(&self, sequences: &[SequenceId]) -> Arc<Stamp> {
        Arc::new(self.clock.stamp(sequences.to_vec()))
    }

    /// True if `stamp` is of this cache.
    pub(crate) fn made(&self, stamp: &Stamp) -> bool {
        stamp.is_of(&self.clock)
    }

    pub(super) fn stamp_of(&self, growth: &[(SequenceId, usize)]) -> Arc<Stamp> {
        Arc::new(self.clock.stamp(growth.iter().map(|&(id, _)| id).collect()))
    }

    /// Refuses a thread that is not that of the graphs of the cache.
    pub(crate) fn check_thread(&self, op: &'static str) -> Result<()> {
        check_thread(op, "cache", &self.clock)
    }

    /// Keeps the pages on this thread as long as a graph lives that holds the returned value.
    pub(crate) fn keep_to_this_thread(&self) -> Arc<ThreadId> {
        self.clock.keep_to_this_thread()
    }

    /// True if all layers are where they were when they were [pinned](Self::pin).
    pub(crate) fn is_pinned(&self) -> bool {
        self.layers.iter().all(|layer| layer.are_pinned_of(&self.clock))
    }

    /// Keeps the pages where they are from now on. [`append_paged_kv`](crate::append_paged_kv) writes in
    /// place even while clones of them are alive, which then see the new tokens. A captured graph needs this,
    /// since it holds their addresses.
    pub fn pin(&mut self) {
        self.layers.iter_mut().for_each(KvPages::pin);
    }

    pub(super) fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId::new();
        self.sequences.insert(id, sequence);
        self.clock.touch(id, Change::Grown);
        id
    }

    pub(super) fn sequence(
        &self,
        op: &'static str,
        argument: &'static str,
        id: SequenceId,
    ) -> Result<&Sequence> {
        self.sequences.get(&id).ok_or_else(|| unknown(op, argument, id))
    }

    /// Releases the consecutive pages of a sequence. It has used them up to now: they are not the next to be
    /// evicted.
    pub(super) fn give_up(&mut self, pages: &[usize]) {
        self.tree.touch(pages);
        for &page in pages {
            self.pool.release(page);
        }
    }

    /// Refuses layers whose pages are not those of the pool: a program may have put others in their place.
    pub(super) fn check_layers(&self, op: &'static str) -> Result<()> {
        for layer in &self.layers {
            layer.check(op, "layer", &self.device)?;
            let (PageShape { pages, page_size, .. }, expected) = (layer.shape(), self.pool.pages());
            if (pages, page_size) != (expected, self.page_size) {
                let expected = format!("{expected} pages of {} tokens", self.page_size);
                return Err(shape(op, "layer", &layer.dims().0, expected));
            }
        }
        Ok(())
    }
}

/// Refuses pages that the device did not allocate: it says so when they are read.
fn check_allocated(op: &'static str, config: &CacheConfig, layers: &[KvPages]) -> Result<()> {
    #[cfg(feature = "cube")]
    {
        let first = layers.iter().fold(Transaction::default(), |reading, layer| layer.read_first(reading));
        if let Err(error) = first.try_execute() {
            let (bytes, expected) = (config.bytes(), format!("what the device can allocate ({error})"));
            return Err(Error::OutOfMemory { op, argument: "config", bytes, expected });
        }
    }
    let _ = (op, config, layers);
    Ok(())
}

fn unknown(op: &'static str, argument: &'static str, id: SequenceId) -> Error {
    Error::Value {
        op,
        argument,
        got: format!("{id:?}"),
        expected: "a sequence of this cache that is not freed".into(),
    }
}

fn no_layer(op: &'static str, layer: usize, layers: usize) -> Error {
    Error::Value { op, argument: "layer", got: layer.to_string(), expected: format!("below {layers}") }
}
