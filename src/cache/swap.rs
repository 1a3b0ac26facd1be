//! Sequences that wait in host memory.

use std::iter;

use burn::tensor::{DType, Int, Tensor, TensorData, Transaction};

use super::kv_cache::PagedKvCache;
use super::kv_pages::KvPages;
use super::sequence::{Sequence, SequenceId};
use super::slot_mapping::SlotMapping;
use crate::check;
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::KvTensors;
use crate::indptr::upload;
use crate::memory;
use crate::types::Code8;

/// The keys and values of a sequence in host memory, out of a [`PagedKvCache`].
///
/// They are those of its tokens, whatever the pages were: any cache of the same layers takes them.
#[derive(Debug, Clone)]
pub struct SwappedSequence {
    len: usize,
    /// The first token that was not given back.
    first: usize,
    /// The keys and values of each layer; of none if there is no token.
    layers: Vec<Layer>,
}

/// Keys and values of a layer, `[len - first, kv_heads, head_dim]`.
#[derive(Debug, Clone)]
struct Layer {
    k: TensorData,
    v: TensorData,
    /// The format, if they are codes. Their scales are those of the pages, or of each token.
    format: Option<Code8>,
    /// The scales of each token and head, `[len - first, kv_heads, 1]`, if they have some.
    scales: Option<[TensorData; 2]>,
}

impl SwappedSequence {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that it takes in host memory.
    pub fn bytes(&self) -> usize {
        let tensors = |layer: &Layer| {
            let scales = layer.scales.iter().flatten().map(|scales| scales.bytes().len()).sum::<usize>();
            layer.k.bytes().len() + layer.v.bytes().len() + scales
        };
        self.layers.iter().map(tensors).sum()
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
    /// If there is no such sequence, the host has not the memory, the device fails to hand out what it holds,
    /// or a layer was [replaced](Self::layer_mut) by one that does not fit. The sequence is as it was then.
    pub fn swap_out(&mut self, sequence: SequenceId) -> Result<SwappedSequence> {
        const OP: &str = "PagedKvCache::swap_out";
        let found = self.sequence(OP, "sequence", sequence)?;
        let (len, first) = (found.len, found.first);
        let mut layers = Vec::new();
        if len > first {
            self.check_layers(OP)?;
            self.check_copy(OP, "sequence", len - first)?;
            let slots = upload(found.slots(first, self.page_size), &self.device);
            // Layer by layer: the device needs memory for a copy of one only.
            for layer in &self.layers {
                let both = Transaction::default();
                let reading = match layer.read(slots.clone(), layer.dtype()) {
                    KvTensors::Floats(k, v) => {
                        let [k, v] = [k, v].map(Tensor::<3>::from_dispatch);
                        both.register(k).register(v)
                    }
                    KvTensors::Codes(k, v) => {
                        let [k, v] = [k, v].map(Tensor::<3, Int>::from_dispatch);
                        both.register(k).register(v)
                    }
                    KvTensors::Scaled(k, v, k_scales, v_scales) => {
                        let [k, v] = [k, v].map(Tensor::<3, Int>::from_dispatch);
                        let [k_scales, v_scales] = [k_scales, v_scales].map(Tensor::<3>::from_dispatch);
                        both.register(k).register(v).register(k_scales).register(v_scales)
                    }
                };
                let (k, v, scales) = to_host(reading).map_err(|got| Error::Read {
                    op: OP,
                    argument: "sequence",
                    got,
                    expected: "its keys and values".into(),
                })?;
                layers.push(Layer { k, v, format: layer.code(), scales });
            }
        }
        self.free(sequence)?;
        self.counted.swapped_out_tokens += (len - first) as u64;
        Ok(SwappedSequence { len, first, layers })
    }

    /// A new sequence with the tokens of `swapped`, and the same keys and values bit for bit.
    ///
    /// It makes room as [`reserve`](Self::reserve) does. The example is at [`swap_out`](Self::swap_out).
    ///
    /// # Errors
    ///
    /// If the pool has not enough pages that are free or can be evicted, or the layers of the cache differ
    /// from those that `swapped` is from in number, heads, head dimension or type.
    pub fn swap_in(&mut self, swapped: &SwappedSequence) -> Result<SequenceId> {
        const OP: &str = "PagedKvCache::swap_in";
        let &SwappedSequence { len, first, .. } = swapped;
        if len > first {
            self.check_layers(OP)?;
            self.check_swapped(OP, swapped)?;
        }
        let before = first / self.page_size;
        let needed = len.div_ceil(self.page_size) - before;
        self.make_room(OP, "swapped", needed)?;
        let own = (0..needed).map_while(|_| self.pool.take());
        let sequence = Sequence { pages: iter::repeat_n(0, before).chain(own).collect(), len, first };
        let slots = sequence.slots(first, self.page_size).collect();
        let slots = SlotMapping::trusted(slots, self.page_size, &self.device);
        for (layer, Layer { k, v, format, scales }) in self.layers.iter_mut().zip(&swapped.layers) {
            let (device, dtype, rows) = (&self.device, k.dtype(), [k, v].map(Clone::clone));
            let tokens = if format.is_some() {
                let [k, v] = rows
                    .map(|rows| Tensor::<3, Int>::from_data(rows, (device, dtype)))
                    .map(IntoBackend::into_backend);
                match scales.clone() {
                    None => KvTensors::Codes(k, v),
                    Some(scales) => {
                        let [k_scales, v_scales] = scales
                            .map(|scales| Tensor::<3>::from_data(scales, (device, DType::F32)))
                            .map(IntoBackend::into_backend);
                        KvTensors::Scaled(k, v, k_scales, v_scales)
                    }
                }
            } else {
                let [k, v] = rows.map(|rows| Tensor::<3>::from_data(rows, (device, dtype)));
                KvTensors::Floats(k.into_backend(), v.into_backend())
            };
            layer.write(tokens, &slots);
        }
        self.counted.swapped_in_tokens += (len - first) as u64;
        Ok(self.insert(sequence))
    }

    /// Refuses to copy `tokens` tokens of all layers to a host that has not the memory.
    fn check_copy(&self, op: &'static str, argument: &'static str, tokens: usize) -> Result<()> {
        let token = |layer: &KvPages| {
            let pool = layer.shape();
            let numbers = memory::bytes([pool.kv_heads, pool.k_dim + pool.v_dim, layer.dtype().size()]);
            numbers.saturating_add(layer.token_scale_bytes())
        };
        let token = self.layers.iter().map(token).fold(0, usize::saturating_add);
        memory::on_host(op, argument, memory::bytes([tokens, token]))
    }

    /// Refuses the rows of another model.
    fn check_swapped(&self, op: &'static str, swapped: &SwappedSequence) -> Result<()> {
        let argument = "swapped";
        let layers = self.layers.len();
        if swapped.layers.len() != layers {
            let (got, expected) = (format!("of {} layers", swapped.layers.len()), layers.to_string());
            return Err(Error::Value { op, argument, got, expected });
        }
        for (layer, Layer { k, v, format, scales }) in self.layers.iter().zip(&swapped.layers) {
            let pool = layer.shape();
            for (rows, dim) in [(k, pool.k_dim), (v, pool.v_dim)] {
                let expected = [swapped.len - swapped.first, pool.kv_heads, dim];
                if **rows.shape() != expected {
                    return Err(check::shape(
                        op,
                        argument,
                        rows.shape(),
                        format!("{expected:?}, as the cache has it"),
                    ));
                }
                check::same_dtype(op, argument, rows.dtype(), layer.dtype())?;
            }
            if *format != layer.code() {
                let [got, expected] = [*format, layer.code()].map(|format| format!("{format:?}"));
                let expected = format!("{expected}, as the cache has it");
                return Err(Error::Value { op, argument, got, expected });
            }
            let per_token = [scales.is_some(), layer.token_scale_bytes() > 0];
            if per_token[0] != per_token[1] {
                let [got, expected] =
                    per_token.map(|per| if per { "for each token" } else { "for all tokens" });
                let (got, expected) =
                    (format!("with scales {got}"), format!("scales {expected}, as the cache has them"));
                return Err(Error::Value { op, argument, got, expected });
            }
        }
        Ok(())
    }
}

/// Reads keys, values, and scales of tokens if there are some; or says why the device does not.
fn to_host(
    reading: Transaction,
) -> std::result::Result<(TensorData, TensorData, Option<[TensorData; 2]>), String> {
    let mut read = reading.try_execute().map_err(|error| error.to_string())?;
    let scales = <[TensorData; 2]>::try_from(read.split_off(read.len().min(2))).ok();
    let [k, v] = <[TensorData; 2]>::try_from(read).map_err(|read| format!("{} tensors", read.len()))?;
    Ok((k, v, scales))
}
