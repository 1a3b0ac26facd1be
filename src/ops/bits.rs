//! Boolean masks, eight to a byte and back.

use burn::{
    backend::Dispatch,
    tensor::{Bool, DType, Device, Int, Tensor},
};

use crate::check::{self, same_device, shape};
use crate::dispatch::{IntoBackend, Origin};
use crate::error::{Error, Result};
use crate::extension::{BitSegments, FlashInferBackend};
use crate::indptr::Indptr;
use crate::types::BitOrder;

/// Packs bits eight to a byte: `x` `[bits]` becomes `[bits / 8]`, rounded up, of type [`U8`](DType::U8).
///
/// Bit `i` goes to byte `i / 8`; `order` says to which of its bits. The last byte is filled up with zeros (numpy's and
/// FlashInfer's `packbits`).
///
/// ```
/// use burn::tensor::{Bool, Device, Tensor};
/// use burn_flashinfer::{BitOrder, packbits, unpackbits};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let mask = [true, true, false, false, true, false, false, false, true];
/// let x = Tensor::<1, Bool>::from_data(mask, &Device::default());
/// let packed = packbits(x.clone(), BitOrder::Little)?;
/// assert_eq!(packed.clone().into_data().iter::<u8>().collect::<Vec<_>>(), [0b0001_0011, 1]);
/// assert_eq!(unpackbits(packed, 9, BitOrder::Little)?.into_data(), x.clone().into_data());
/// let packed = packbits(x, BitOrder::Big)?;
/// assert_eq!(packed.into_data().iter::<u8>().collect::<Vec<_>>(), [0b1100_1000, 0b1000_0000]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If the device is not one of this crate's, or has no bytes.
pub fn packbits(x: Tensor<1, Bool>, order: BitOrder) -> Result<Tensor<1, Int>> {
    const OP: &str = "packbits";
    has_bytes(OP, "x", &x.device())?;
    let bytes = x.dims()[0].div_ceil(8);
    Ok(pack(x, BitSegments::One, bytes, order))
}

/// Packs the bits of each segment as [`packbits`] does, so that each begins with a byte of its own.
///
/// `x`: `[indptr.total()]`; the bits of segment `s` are `indptr[s]..indptr[s + 1]`. Returns the bytes of all
/// segments, one after the other, and their row pointer: a segment of `n` bits has `n / 8` bytes, rounded up
/// (FlashInfer's `segment_packbits`, which makes the custom masks of attention).
///
/// ```
/// use burn::tensor::{Bool, Device, Tensor};
/// use burn_flashinfer::{BitOrder, Indptr, segment_packbits};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let x = Tensor::<1, Bool>::from_data([true, true, false, true], &device);
/// let indptr = Indptr::from_lengths(&[1, 0, 3], &device)?;
/// let (packed, byte_indptr) = segment_packbits(x, &indptr, BitOrder::Little)?;
/// assert_eq!(packed.into_data().iter::<u8>().collect::<Vec<_>>(), [0b1, 0b101]);
/// assert_eq!(byte_indptr.as_slice(), [0, 1, 1, 2]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`packbits`], and if the row pointer is on another device or does not cover exactly the bits of `x`.
pub fn segment_packbits(
    x: Tensor<1, Bool>,
    indptr: &Indptr,
    order: BitOrder,
) -> Result<(Tensor<1, Int>, Indptr)> {
    const OP: &str = "segment_packbits";
    has_bytes(OP, "x", &x.device())?;
    same_device(OP, "indptr", &indptr.device(), &x.device())?;
    let [bits] = x.dims();
    if indptr.total() != bits {
        return Err(Error::Index {
            op: OP,
            argument: "indptr",
            at: indptr.requests(),
            got: indptr.total().to_string(),
            expected: format!("{bits}, the bits of `x`"),
        });
    }
    let byte_indptr = in_bytes(indptr)?;
    let packed = pack(x, segments(indptr, &byte_indptr), byte_indptr.total(), order);
    Ok((packed, byte_indptr))
}

/// Unpacks the first `len` bits of the result of [`packbits`].
///
/// `packed`: `[len / 8]`, rounded up, of type [`U8`](DType::U8); the result is `[len]`.
///
/// # Errors
///
/// If `packed` is of another length or type, or the device is not one of this crate's.
pub fn unpackbits(packed: Tensor<1, Int>, len: usize, order: BitOrder) -> Result<Tensor<1, Bool>> {
    const OP: &str = "unpackbits";
    let bytes = len.div_ceil(8);
    check_packed(OP, &packed, bytes, || format!("[{bytes}], the bytes of {len} bits"))?;
    Ok(unpack(packed, BitSegments::One, len, order))
}

/// The bits that [`segment_packbits`] packed; `indptr` is the row pointer of bits that it was given, not the
/// one of bytes that it returned.
///
/// # Errors
///
/// As [`unpackbits`], and if the row pointer is on another device.
pub fn segment_unpackbits(
    packed: Tensor<1, Int>,
    indptr: &Indptr,
    order: BitOrder,
) -> Result<Tensor<1, Bool>> {
    const OP: &str = "segment_unpackbits";
    let bytes = indptr.lengths().map(|bits| bits.div_ceil(8)).sum();
    check_packed(OP, &packed, bytes, || format!("[{bytes}], the bytes of the segments of `indptr`"))?;
    same_device(OP, "indptr", &indptr.device(), &packed.device())?;
    let byte_indptr = in_bytes(indptr)?;
    Ok(unpack(packed, segments(indptr, &byte_indptr), indptr.total(), order))
}

/// The row pointer of the bytes of segments of bits.
fn in_bytes(indptr: &Indptr) -> Result<Indptr> {
    let lengths: Vec<usize> = indptr.lengths().map(|bits| bits.div_ceil(8)).collect();
    Indptr::from_lengths(&lengths, &indptr.device())
}

fn segments(bits: &Indptr, bytes: &Indptr) -> BitSegments<Dispatch> {
    BitSegments::Many(bits.tensor.clone().into_backend(), bytes.tensor.clone().into_backend())
}

fn pack(
    x: Tensor<1, Bool>,
    segments: BitSegments<Dispatch>,
    bytes: usize,
    order: BitOrder,
) -> Tensor<1, Int> {
    let origin = Origin::of(&x);
    origin.tensor(Dispatch::pack_bits(x.into_backend(), segments, bytes, order))
}

fn unpack(
    packed: Tensor<1, Int>,
    segments: BitSegments<Dispatch>,
    bits: usize,
    order: BitOrder,
) -> Tensor<1, Bool> {
    let origin = Origin::of(&packed);
    let bits = Dispatch::unpack_bits(packed.into_backend(), segments, bits, order);
    origin.tensor::<1, Int>(bits).bool()
}

fn check_packed(
    op: &'static str,
    packed: &Tensor<1, Int>,
    bytes: usize,
    expected: impl FnOnce() -> String,
) -> Result<()> {
    const ARGUMENT: &str = "packed";
    has_bytes(op, ARGUMENT, &packed.device())?;
    if packed.dtype() != DType::U8 {
        let got = format!("{:?}", packed.dtype());
        return Err(Error::Dtype { op, argument: ARGUMENT, got, expected: "U8".into() });
    }
    if packed.dims() != [bytes] {
        return Err(shape(op, ARGUMENT, &packed.dims(), expected()));
    }
    Ok(())
}

fn has_bytes(op: &'static str, argument: &'static str, device: &Device) -> Result<()> {
    check::device(op, argument, device)?;
    check::bytes(op, argument, device)
}
