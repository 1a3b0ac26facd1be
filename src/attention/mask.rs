//! Custom masks of planned batches.

use burn::backend::Dispatch;
use burn::tensor::{Bool, DType, Int, Tensor};

use crate::check::{self, same_device, shape};
use crate::dispatch::{IntoBackend, Origin};
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, MaskedBatch, MaybeMask};
use crate::indptr::{Indptr, upload};
use crate::memory;
use crate::ops::segment_packbits;
use crate::types::BitOrder;

/// The bits of a mask, as a caller has them.
pub(crate) enum MaskBits {
    /// `[Σ qo_len · kv_len]`.
    Bools(Tensor<1, Bool>),
    /// `[Σ ⌈qo_len · kv_len / 8⌉]` of `U8`.
    Packed(Tensor<1, Int>),
}

/// A mask that is laid out for the kernels of a plan.
#[derive(Debug)]
pub(crate) struct CustomMask {
    words: Tensor<1, Int>,
    tiles: Tensor<1, Int>,
    first_bits: Tensor<1, Int>,
}

impl CustomMask {
    /// Lays out the bits of requests with so many `pairs` of queries and keys, whose plan is in `index`.
    pub(crate) fn new(
        op: &'static str,
        bits: MaskBits,
        pairs: &[usize],
        index: &Tensor<1, Int>,
        batch: MaskedBatch,
    ) -> Result<Self> {
        let device = index.device();
        check::bytes(op, "mask", &device)?;
        let bytes = pairs.iter().map(|bits| bits.div_ceil(8)).fold(0, usize::saturating_add);
        let words = MaskedBatch::words(bytes).saturating_add(2 * batch.tiles());
        memory::on_device(op, "mask", [2, memory::bytes([words, size_of::<i32>()])], &device)?;
        let packed = match bits {
            MaskBits::Bools(mask) => packed(op, mask, pairs, index)?,
            MaskBits::Packed(mask) => {
                same_device(op, "mask", &mask.device(), &device)?;
                check_packed(op, &mask)?;
                mask
            }
        };
        if packed.dims() != [bytes] {
            let expected =
                format!("[{bytes}], a bit for each query and key, and whole bytes for each request");
            return Err(shape(op, "mask", &packed.dims(), expected));
        }
        let mut first = 0_u64;
        let mut first_bits = Vec::with_capacity(2 * pairs.len());
        for bits in pairs {
            first_bits.extend([first as i32, (first >> 32) as i32]);
            first += 8 * bits.div_ceil(8) as u64;
        }
        let first_bits = upload(first_bits, &device);
        let origin = Origin::of(index);
        let (words, tiles) = Dispatch::map_mask(
            packed.into_backend(),
            first_bits.clone().into_backend(),
            index.clone().into_backend(),
            batch,
        );
        Ok(Self { words: origin.tensor(words), tiles: origin.tensor(tiles), first_bits })
    }

    pub(crate) fn argument(&self) -> MaybeMask<Dispatch> {
        let [words, tiles, first_bits] =
            [&self.words, &self.tiles, &self.first_bits].map(|tensor| tensor.clone().into_backend());
        MaybeMask::Some(words, tiles, first_bits)
    }
}

/// Refuses a packed mask that is not one of bytes.
pub(crate) fn check_packed(op: &'static str, mask: &Tensor<1, Int>) -> Result<()> {
    if mask.dtype() != DType::U8 {
        let (got, expected) = (format!("{:?}", mask.dtype()), "U8, eight bits each".into());
        return Err(Error::Dtype { op, argument: "mask", got, expected });
    }
    Ok(())
}

/// Packs the bits of each request.
fn packed(
    op: &'static str,
    mask: Tensor<1, Bool>,
    pairs: &[usize],
    index: &Tensor<1, Int>,
) -> Result<Tensor<1, Int>> {
    same_device(op, "mask", &mask.device(), &index.device())?;
    let all = pairs.iter().copied().fold(0, usize::saturating_add);
    if mask.dims() != [all] {
        return Err(shape(op, "mask", &mask.dims(), format!("[{all}], a bool for each query and key")));
    }
    let requests = Indptr::from_lengths(pairs, &index.device())?;
    Ok(segment_packbits(mask, &requests, BitOrder::Little)?.0)
}
