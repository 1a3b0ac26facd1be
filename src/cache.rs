//! Keys and values of all layers of a model, in pages that sequences share.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};

use crate::check;
use crate::error::{Error, Result};
use crate::indptr::{Positions, index, upload};
use crate::kv_pages::KvPages;
use crate::ops::append_paged_kv;
use crate::options::KvLayout;
use crate::page_pool::PagePool;
use crate::page_table::{PageTable, SlotMapping};

/// The extents of a [`PagedKvCache`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    layers: usize,
    pages: usize,
    page_size: usize,
    kv_heads: usize,
    head_dim: usize,
    layout: KvLayout,
    dtype: DType,
}

impl CacheConfig {
    /// `layers` layers, each with `pages` pages of `page_size` tokens of `kv_heads` heads of `head_dim` elements; in
    /// [`KvLayout::Nhd`] and f32 unless set otherwise.
    pub fn new(layers: usize, pages: usize, page_size: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { layers, pages, page_size, kv_heads, head_dim, layout: KvLayout::Nhd, dtype: DType::F32 }
    }

    /// The order of the axes of a page.
    pub fn layout(mut self, layout: KvLayout) -> Self {
        self.layout = layout;
        self
    }

    /// The type of an element: f32, f16 or bf16.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Bytes that the keys and values of all layers take.
    pub fn bytes(&self) -> usize {
        let elements = [self.layers, self.pages, self.page_size, self.kv_heads, self.head_dim];
        elements.into_iter().fold(2 * self.dtype.size(), usize::saturating_mul)
    }
}

/// A sequence of a [`PagedKvCache`]. Never used again once the sequence is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

#[derive(Debug, Clone, Default)]
struct Sequence {
    pages: Vec<usize>,
    len: usize,
}

/// Keys and values of all layers of a model for many sequences.
///
/// The memory is taken once and divided into pages. A sequence takes pages as it grows and gives them back when it is
/// freed. [Forks](Self::fork) share the pages of their common prefix; a fork that writes into a shared page gets its own
/// copy of that page first.
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
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: u64,
}

/// A page that a sequence must copy before it writes behind its `tokens` tokens.
struct PageCopy {
    from: usize,
    to: usize,
    tokens: usize,
}

impl PagedKvCache {
    /// Takes the memory of all pages.
    ///
    /// # Errors
    ///
    /// If an extent is 0, or the device does not serve the type of the elements.
    pub fn new(config: &CacheConfig, device: &Device) -> Result<Self> {
        const OP: &str = "PagedKvCache::new";
        let CacheConfig { layers, pages, page_size, kv_heads, head_dim, layout, dtype } = *config;
        let extents = [
            ("layers", layers),
            ("pages", pages),
            ("page_size", page_size),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
        ];
        if let Some((argument, _)) = extents.into_iter().find(|&(_, extent)| extent == 0) {
            return Err(Error::Value { op: OP, argument, got: "0".into(), expected: "at least 1".into() });
        }
        // A slot, `page * page_size + offset`, is an i32 on the device.
        if pages.saturating_mul(page_size) > i32::MAX as usize {
            return Err(Error::Value {
                op: OP,
                argument: "pages",
                got: pages.to_string(),
                expected: format!("at most {} pages of {page_size} tokens", i32::MAX as usize / page_size),
            });
        }
        let bytes = [page_size, kv_heads, head_dim, dtype.size()];
        if bytes
            .into_iter()
            .try_fold(pages, usize::checked_mul)
            .is_none_or(|bytes| bytes > isize::MAX as usize)
        {
            return Err(Error::Value {
                op: OP,
                argument: "kv_heads",
                got: kv_heads.to_string(),
                expected: format!("a layer whose keys take at most {} bytes", isize::MAX),
            });
        }
        check::device(OP, "device", device)?;
        check::float(OP, "dtype", dtype, device)?;
        let shape = match layout {
            KvLayout::Nhd => [pages, page_size, kv_heads, head_dim],
            KvLayout::Hnd => [pages, kv_heads, page_size, head_dim],
        };
        let zeros = || Tensor::<4>::zeros(shape, (device, dtype));
        let layers =
            (0..layers).map(|_| KvPages::new(zeros(), zeros(), layout)).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            layers,
            page_size,
            device: device.clone(),
            pool: PagePool::new(pages),
            sequences: BTreeMap::new(),
            next_id: 0,
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

    /// Gives the pages of `sequence` back, those that no fork still uses.
    ///
    /// # Errors
    ///
    /// If there is no such sequence.
    pub fn free(&mut self, sequence: SequenceId) -> Result<()> {
        let Some(removed) = self.sequences.remove(&sequence) else {
            return Err(unknown("PagedKvCache::free", "sequence", sequence));
        };
        for page in removed.pages {
            self.pool.release(page);
        }
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
        for page in kept.pages.split_off(len.div_ceil(page_size)) {
            self.pool.release(page);
        }
        Ok(())
    }

    /// Makes room for `tokens` more tokens in each `(sequence, tokens)`, for all or for none, and says where they go:
    /// first all tokens of the first sequence, then those of the second, and so on.
    ///
    /// The lengths count the new tokens from now on: append their keys and values to every layer with
    /// [`append_paged_kv`] before attention reads them.
    ///
    /// # Errors
    ///
    /// If a sequence is unknown or named twice, or the pool has not enough free pages.
    pub fn reserve(&mut self, growth: &[(SequenceId, usize)]) -> Result<SlotMapping> {
        const OP: &str = "PagedKvCache::reserve";
        let mut needed = 0;
        let mut seen: Vec<SequenceId> = growth.iter().map(|&(id, _)| id).collect();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Value {
                op: OP,
                argument: "growth",
                got: format!("{:?} twice", twice[0]),
                expected: "each sequence once".into(),
            });
        }
        // Owners that give up a shared last page within this very call, so that the last of them may keep it.
        let mut leaving: BTreeMap<usize, u32> = BTreeMap::new();
        let mut copied = Vec::with_capacity(growth.len());
        for &(id, tokens) in growth {
            let sequence = self.sequence(OP, "growth", id)?;
            let grown = sequence.len.saturating_add(tokens).div_ceil(self.page_size);
            needed = grown.saturating_sub(sequence.pages.len()).saturating_add(needed);
            let copies = self.shared_tail(sequence, tokens).is_some_and(|page| {
                let left = leaving.entry(page).or_default();
                let copies = self.pool.owners(page) - *left > 1;
                *left += u32::from(copies);
                copies
            });
            needed += usize::from(copies);
            copied.push(copies);
        }
        self.pool.check_free(OP, "growth", needed)?;

        let mut slots = Vec::new();
        let mut copies = Vec::new();
        for (&(id, tokens), copies_tail) in growth.iter().zip(copied) {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            if copies_tail && let (Some(tail), Some(to)) = (sequence.pages.last_mut(), self.pool.take()) {
                let from = std::mem::replace(tail, to);
                self.pool.release(from);
                copies.push(PageCopy { from, to, tokens: sequence.len % self.page_size });
            }
            let first = sequence.len;
            sequence.len += tokens;
            while sequence.pages.len() * self.page_size < sequence.len
                && let Some(page) = self.pool.take()
            {
                sequence.pages.push(page);
            }
            slots.extend((first..sequence.len).map(|position| {
                let page = sequence.pages.get(position / self.page_size)?;
                Some(page * self.page_size + position % self.page_size)
            }));
        }
        self.copy_pages(&copies)?;
        SlotMapping::from_slots(OP, &slots, self.page_size, &self.device)
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
        PageTable::upload(OP, indptr, indices, &last_page_len, self.page_size, &self.device)
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

    /// The pages of layer `layer`, to [append to](append_paged_kv).
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

    /// Pages that no sequence uses.
    pub fn free_pages(&self) -> usize {
        self.pool.free_pages()
    }

    /// Pages in the pool.
    pub fn pages(&self) -> usize {
        self.pool.pages()
    }

    /// Tokens a page holds.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn sequence(&self, op: &'static str, argument: &'static str, id: SequenceId) -> Result<&Sequence> {
        self.sequences.get(&id).ok_or_else(|| unknown(op, argument, id))
    }

    /// The partly filled last page of `sequence`, if `tokens` more tokens would be written into it.
    fn shared_tail(&self, sequence: &Sequence, tokens: usize) -> Option<usize> {
        let partly_filled = !sequence.len.is_multiple_of(self.page_size);
        sequence
            .pages
            .last()
            .copied()
            .filter(|&page| tokens > 0 && partly_filled && self.pool.owners(page) > 1)
    }

    /// Copies the tokens of shared pages to the pages that replace them, in every layer.
    fn copy_pages(&mut self, copies: &[PageCopy]) -> Result<()> {
        const OP: &str = "PagedKvCache::reserve";
        if copies.is_empty() {
            return Ok(());
        }
        let mut from = Vec::with_capacity(copies.len());
        let mut slots = Vec::with_capacity(copies.len() * self.page_size);
        for (at, copy) in copies.iter().enumerate() {
            from.push(index(OP, "growth", at, copy.from)?);
            let first = copy.to * self.page_size;
            slots.extend((0..self.page_size).map(|row| (row < copy.tokens).then_some(first + row)));
        }
        let from = upload(from, &self.device);
        let slots = SlotMapping::from_slots(OP, &slots, self.page_size, &self.device)?;
        for layer in &mut self.layers {
            let (k, v) = layer.gather(&from);
            append_paged_kv(layer, k, v, &slots)?;
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
