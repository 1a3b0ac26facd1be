//! Keys and values of all layers of a model, in pages that sequences share.

mod clock;
mod config;
mod prefix;
mod reserve;
mod stats;
mod swap;

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Device;

use crate::check::shape;
use crate::error::{Error, Result};
use crate::indptr::Positions;
use crate::kv_pages::{KvPages, PageShape};
use crate::page_pool::PagePool;
use crate::page_table::PageTable;
use crate::prefix_tree::PrefixTree;

pub(crate) use clock::{Clock, Stamp};
pub use config::CacheConfig;
pub use stats::CacheStats;
pub use swap::SwappedSequence;

/// A sequence of a [`PagedKvCache`]. Never used again once the sequence is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

#[derive(Debug, Clone, Default)]
struct Sequence {
    pages: Vec<usize>,
    len: usize,
}

impl Sequence {
    /// Where its tokens are, from token `first` on.
    fn slots(&self, first: usize, page_size: usize) -> impl Iterator<Item = Option<usize>> {
        (first..self.len).map(move |position| {
            let page = self.pages.get(position / page_size)?;
            Some(page * page_size + position % page_size)
        })
    }
}

/// Keys and values of all layers of a model for many sequences.
///
/// The memory is taken once and divided into pages. A sequence takes pages as it grows and gives them back when it is
/// freed. [Forks](Self::fork) share the pages of their common prefix; a fork that writes into a shared page gets its own
/// copy of that page first. So do sequences that [start](Self::create_with_prefix) with tokens that others computed, if the
/// cache was told to [remember](Self::remember) them. A sequence may [wait](Self::swap_out) in host memory.
///
/// A call that is refused has changed nothing. Page tables are of the moment: make them after the calls that change
/// sequences.
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
/// let slots = cache.reserve(&sequences.map(|sequence| (sequence, 1)))?;
/// let table = cache.page_table(&sequences)?;
/// for layer in 0..layers {
///     let q = Tensor::<3>::random([2, q_heads, head_dim], Distribution::Default, &device);
///     let k = Tensor::<3>::random([2, kv_heads, head_dim], Distribution::Default, &device);
///     let v = k.clone();
///     append_paged_kv(cache.layer_mut(layer)?, k, v, &slots)?;
///     let attended = batch_decode_paged(q, cache.layer(layer)?, &table, &AttentionOptions::new())?;
///     assert_eq!(attended.output.dims(), [2, q_heads, head_dim]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PagedKvCache {
    layers: Vec<KvPages>,
    page_size: usize,
    device: Device,
    pool: PagePool,
    /// Pages that are remembered. Whoever uses one of them uses all that lead to it.
    tree: PrefixTree,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: u64,
    clock: Arc<Clock>,
    /// What has been done so far; the fields that say how the cache is used now are left 0.
    counted: CacheStats,
}

impl PagedKvCache {
    /// Takes the memory of all pages.
    ///
    /// # Errors
    ///
    /// If an extent is 0, or the device does not serve the type of the elements.
    pub fn new(config: &CacheConfig, device: &Device) -> Result<Self> {
        const OP: &str = "PagedKvCache::new";
        config.check(OP, device)?;
        let clock = Arc::new(Clock::default());
        let layer = |_| config.new_layer(device).map(|layer| layer.of_cache(clock.clone()));
        let layers = (0..config.layers).map(layer).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            layers,
            page_size: config.page_size,
            device: device.clone(),
            pool: PagePool::new(config.pages),
            tree: PrefixTree::new(config.page_size),
            sequences: BTreeMap::new(),
            next_id: 0,
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
        for &page in &sequence.pages {
            self.pool.share(page);
        }
        Ok(self.insert(sequence))
    }

    /// Gives the pages of `sequence` back, those that no other sequence uses and that are not [remembered](Self::remember).
    ///
    /// # Errors
    ///
    /// If there is no such sequence.
    pub fn free(&mut self, sequence: SequenceId) -> Result<()> {
        let Some(removed) = self.sequences.remove(&sequence) else {
            return Err(unknown("PagedKvCache::free", "sequence", sequence));
        };
        self.give_up(&removed.pages);
        self.clock.remove(sequence);
        Ok(())
    }

    /// Shortens `sequence` to its first `len` tokens, for instance to drop the rejected tokens of a draft.
    ///
    /// # Errors
    ///
    /// If there is no such sequence, or it is shorter.
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
        kept.len = len;
        let dropped = kept.pages.split_off(len.div_ceil(page_size));
        self.give_up(&dropped);
        self.clock.touch(sequence);
        Ok(())
    }

    /// The page table of these sequences, one request each.
    ///
    /// # Errors
    ///
    /// If there is no sequence, or one of them is unknown.
    pub fn page_table(&self, sequences: &[SequenceId]) -> Result<PageTable> {
        const OP: &str = "PagedKvCache::page_table";
        let mut indptr = vec![0];
        let mut indices = Vec::new();
        let mut last_page_len = Vec::with_capacity(sequences.len());
        for &id in sequences {
            let sequence = self.sequence(OP, "sequences", id)?;
            indices.extend_from_slice(&sequence.pages);
            indptr.push(indices.len());
            last_page_len.push(match sequence.len % self.page_size {
                0 if sequence.len > 0 => self.page_size,
                rest => rest,
            });
        }
        if sequences.is_empty() {
            return Err(Error::Value {
                op: OP,
                argument: "sequences",
                got: "empty".into(),
                expected: "at least one sequence".into(),
            });
        }
        // Not checked again: a sequence owns each of its pages once, and all are of the pool.
        let table = PageTable::trusted(OP, indptr, indices, &last_page_len, self.page_size, &self.device)?;
        Ok(table.stamped(self.clock.stamp(sequences)))
    }

    /// The positions of the last `tokens` tokens of each `(sequence, tokens)`: what [`reserve`](Self::reserve) has just
    /// made room for.
    ///
    /// # Errors
    ///
    /// If a sequence is unknown or shorter.
    pub fn last_positions(&self, growth: &[(SequenceId, usize)]) -> Result<Positions> {
        const OP: &str = "PagedKvCache::last_positions";
        let mut positions = Vec::new();
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
            positions.extend(first..len);
        }
        Positions::new(&positions, &self.device)
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

    /// How many tokens `sequence` has.
    ///
    /// # Errors
    ///
    /// If there is no such sequence.
    pub fn len(&self, sequence: SequenceId) -> Result<usize> {
        Ok(self.sequence("PagedKvCache::len", "sequence", sequence)?.len)
    }

    /// Whether no sequence is alive.
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

    /// Keeps the pages where they are from now on: [`append_paged_kv`](crate::append_paged_kv) writes in place even while
    /// clones of them are alive, which then see what is written. What a captured graph needs, for it knows them by their
    /// place.
    pub fn pin(&mut self) {
        self.layers.iter_mut().for_each(KvPages::pin);
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.insert(id, sequence);
        self.clock.touch(id);
        id
    }

    fn sequence(&self, op: &'static str, argument: &'static str, id: SequenceId) -> Result<&Sequence> {
        self.sequences.get(&id).ok_or_else(|| unknown(op, argument, id))
    }

    /// A sequence uses these pages no more, which it had one after the other. Up to now it did: they are not what is evicted
    /// next.
    fn give_up(&mut self, pages: &[usize]) {
        self.tree.touch(pages);
        for &page in pages {
            self.pool.release(page);
        }
    }

    /// Refuses layers whose pages are not those of the pool: a program may have put others in their place.
    fn check_layers(&self, op: &'static str) -> Result<()> {
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
