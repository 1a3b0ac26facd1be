//! Sequences that wait in host memory.

use burn::tensor::{Tensor, TensorData, Transaction};

use super::{PagedKvCache, Sequence, SequenceId};
use crate::check;
use crate::error::{Error, Result};
use crate::indptr::{index, upload};
use crate::ops::append_paged_kv;
use crate::page_table::SlotMapping;

/// The keys and values of a sequence in host memory, out of a [`PagedKvCache`].
///
/// They are those of its tokens, whatever the pages were: any cache of the same layers takes them.
#[derive(Debug, Clone)]
pub struct SwappedSequence {
    len: usize,
    /// Keys and values of each layer, `[len, kv_heads, head_dim]`; of no layer if there is no token.
    layers: Vec<[TensorData; 2]>,
}

impl SwappedSequence {
    /// How many tokens it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it takes in host memory.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|data| data.bytes().len()).sum()
    }
}

impl PagedKvCache {
    /// Moves `sequence` to host memory: reads its keys and values in all layers, and [frees](Self::free) it.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_flashinfer::{CacheConfig, PagedKvCache};
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// // 4 pages of 16 tokens.
    /// let (layers, heads, head_dim) = (2, 2, 64);
    /// let mut cache = PagedKvCache::new(&CacheConfig::new(layers, 4, 16, heads, head_dim), &Device::default())?;
    /// let waiting = cache.create();
    /// cache.reserve(&[(waiting, 50)])?;
    ///
    /// let swapped = cache.swap_out(waiting)?;
    /// assert_eq!((swapped.len(), cache.free_pages()), (50, 4));
    /// assert_eq!(swapped.bytes(), 2 * layers * 50 * heads * head_dim * size_of::<f32>());
    /// // ... other sequences run ...
    /// let waiting = cache.swap_in(&swapped)?;
    /// assert_eq!((cache.len(waiting)?, cache.free_pages()), (50, 0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no such sequence, the device fails to hand out what it holds, or a layer was
    /// [replaced](Self::layer_mut) by one that does not fit. The sequence is as it was then.
    pub fn swap_out(&mut self, sequence: SequenceId) -> Result<SwappedSequence> {
        const OP: &str = "PagedKvCache::swap_out";
        let Sequence { pages, len } = self.sequence(OP, "sequence", sequence)?;
        let len = *len;
        let mut layers = Vec::new();
        if len > 0 {
            self.check_layers(OP)?;
            let pages = pages.iter().enumerate().map(|(at, &page)| index(OP, "sequence", at, page));
            let pages = upload(pages.collect::<Result<Vec<_>>>()?, &self.device);
            // Layer by layer: the device needs memory for a copy of one only.
            for layer in &self.layers {
                let (k, v) = layer.gather(&pages);
                let [k, v] = [k, v].map(|rows| rows.slice_dim(0, 0..len));
                let reading = Transaction::default().register(k).register(v);
                let read = reading.try_execute().map_err(|error| error.to_string());
                let pair = read.and_then(|read| {
                    <[TensorData; 2]>::try_from(read).map_err(|read| format!("{} tensors", read.len()))
                });
                layers.push(pair.map_err(|got| Error::Read {
                    op: OP,
                    argument: "sequence",
                    got,
                    expected: "its keys and values".into(),
                })?);
            }
        }
        self.free(sequence)?;
        self.counted.swapped_out_tokens += len as u64;
        Ok(SwappedSequence { len, layers })
    }

    /// A new sequence with the tokens of `swapped`, its keys and values bit for bit what they were.
    ///
    /// It makes room as [`reserve`](Self::reserve) does. The example is at [`swap_out`](Self::swap_out).
    ///
    /// # Errors
    ///
    /// If the pool has not enough pages that are free or can be evicted, or the layers of the cache differ from those that
    /// `swapped` is from in number, heads, head dimension or type.
    pub fn swap_in(&mut self, swapped: &SwappedSequence) -> Result<SequenceId> {
        const OP: &str = "PagedKvCache::swap_in";
        if !swapped.is_empty() {
            self.check_layers(OP)?;
            self.check_swapped(OP, swapped)?;
        }
        let needed = swapped.len.div_ceil(self.page_size);
        self.make_room(OP, "swapped", needed)?;
        let pages = (0..needed).map_while(|_| self.pool.take()).collect();
        let sequence = Sequence { pages, len: swapped.len };
        let slots: Vec<_> = sequence.slots(0, self.page_size).collect();
        let slots = SlotMapping::from_slots(OP, &slots, self.page_size, &self.device)?;
        for (layer, rows) in self.layers.iter_mut().zip(&swapped.layers) {
            let [k, v] = rows.each_ref().map(|rows| {
                let dtype = rows.dtype();
                Tensor::<3>::from_data(rows.clone(), (&self.device, dtype))
            });
            append_paged_kv(layer, k, v, &slots)?;
        }
        self.counted.swapped_in_tokens += swapped.len as u64;
        Ok(self.insert(sequence))
    }

    /// Refuses the rows of another model.
    fn check_swapped(&self, op: &'static str, swapped: &SwappedSequence) -> Result<()> {
        let argument = "swapped";
        let layers = self.layers.len();
        if swapped.layers.len() != layers {
            let (got, expected) = (format!("of {} layers", swapped.layers.len()), layers.to_string());
            return Err(Error::Value { op, argument, got, expected });
        }
        for (layer, [k, v]) in self.layers.iter().zip(&swapped.layers) {
            let pool = layer.shape();
            for (rows, dim) in [(k, pool.k_dim), (v, pool.v_dim)] {
                let expected = [swapped.len, pool.kv_heads, dim];
                if **rows.shape() != expected {
                    return Err(check::shape(
                        op,
                        argument,
                        rows.shape(),
                        format!("{expected:?}, as the cache has it"),
                    ));
                }
                check::same_dtype(op, argument, rows.dtype(), layer.k().dtype())?;
            }
        }
        Ok(())
    }
}
