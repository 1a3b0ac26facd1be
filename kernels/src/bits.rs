//! Bits in bytes: masks eight to a byte, and back.

use cubecl::{
    client::Client,
    ir::{ElemType, UIntKind, features::TypeUsage},
    prelude::*,
};

use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, contiguous, shape};

const PACK: &str = "pack_bits";
const UNPACK: &str = "unpack_bits";
const BYTE: ElemType = ElemType::UInt(UIntKind::U8);

/// The order of bits in a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BitOrder {
    /// The highest bit is the first.
    Big,
    /// The lowest bit is the first.
    Little,
}

/// Segments that each begin with a byte of their own. Index tensors are contiguous, of `i32`.
pub struct Segments {
    /// `[segments + 1]`: first bit of each segment.
    pub bits: TensorBinding,
    /// `[segments + 1]`: first byte of each segment.
    pub bytes: TensorBinding,
}

/// The segment that owns place `at`: the last that begins there or before, which skips empty ones.
#[cube]
fn owner(indptr: &[i32], segments: usize, at: usize) -> usize {
    let (mut low, mut high) = (0usize, segments);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if usize::cast_from(indptr[middle]) <= at {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// The shift of bit `i` in a byte.
#[cube]
fn shift(i: u32, #[comptime] order: BitOrder) -> u32 {
    #[comptime]
    match order {
        BitOrder::Big => 7u32 - i,
        BitOrder::Little => i,
    }
}

/// Packs up to eight bits into one byte per unit; a bit is set where an element is not 0.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn pack_bits<B: Int>(
    bits: &[B],
    bit_indptr: &ComptimeOption<Box<[i32]>>,
    byte_indptr: &ComptimeOption<Box<[i32]>>,
    bytes: &mut [u8],
    total_bits: usize,
    segments: usize,
    total: usize,
    #[comptime] order: BitOrder,
    #[define(B)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let mut first = ABSOLUTE_POS * 8;
    let mut end = total_bits;
    #[comptime]
    match bit_indptr {
        ComptimeOption::Some(bit_indptr) =>
        {
            #[comptime]
            match byte_indptr {
                ComptimeOption::Some(byte_indptr) => {
                    let segment = owner(byte_indptr, segments, ABSOLUTE_POS);
                    let byte = ABSOLUTE_POS - usize::cast_from(byte_indptr[segment]);
                    first = usize::cast_from(bit_indptr[segment]) + byte * 8;
                    end = usize::cast_from(bit_indptr[segment + 1]);
                }
                ComptimeOption::None => {}
            }
        }
        ComptimeOption::None => {}
    }
    let mut byte = 0u32;
    for i in 0..8u32 {
        let at = first + i as usize;
        if at < end && bits[at] != B::from_int(0) {
            byte |= 1u32 << shift(i, order);
        }
    }
    bytes[ABSOLUTE_POS] = u8::cast_from(byte);
}

/// Unpacks one bit per unit.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn unpack_bits(
    bytes: &[u8],
    bit_indptr: &ComptimeOption<Box<[i32]>>,
    byte_indptr: &ComptimeOption<Box<[i32]>>,
    bits: &mut [u8],
    segments: usize,
    total: usize,
    #[comptime] order: BitOrder,
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let mut byte = ABSOLUTE_POS / 8;
    let mut bit = ABSOLUTE_POS % 8;
    #[comptime]
    match bit_indptr {
        ComptimeOption::Some(bit_indptr) =>
        {
            #[comptime]
            match byte_indptr {
                ComptimeOption::Some(byte_indptr) => {
                    let segment = owner(bit_indptr, segments, ABSOLUTE_POS);
                    let within = ABSOLUTE_POS - usize::cast_from(bit_indptr[segment]);
                    byte = usize::cast_from(byte_indptr[segment]) + within / 8;
                    bit = within % 8;
                }
                ComptimeOption::None => {}
            }
        }
        ComptimeOption::None => {}
    }
    let found = u32::cast_from(bytes[byte]) >> shift(bit as u32, order);
    bits[ABSOLUTE_POS] = u8::cast_from(found & 1u32);
}

/// Bits, and the bytes that take eight each.
pub struct PackBits {
    /// `[bits]`, contiguous, of an integer type: a bit is set where the element is not 0.
    pub bits: TensorBinding,
    /// `[bytes]` of `u8`, contiguous.
    pub bytes: TensorBinding,
    /// Segments that begin with a byte of their own; none if all bits are one segment.
    pub segments: Option<Segments>,
    /// The order of bits in a byte.
    pub order: BitOrder,
}

/// True if a device has tensors of bytes.
pub fn has_bytes(client: &Client) -> bool {
    client.properties().type_usage(BYTE).is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
}

/// Packs bits eight to a byte; the last byte of each segment is padded with zeros.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// The row pointers of `segments` rise from 0 to the number of bits and of bytes. A segment of `n` bits has
/// `n / 8` bytes, rounded up.
pub unsafe fn pack(client: &Client, pack: PackBits, dtype: ElemType) -> Result<()> {
    let PackBits { bits, bytes, segments, order } = pack;
    let (total_bits, total) = (bits.size(), bytes.size());
    check(PACK, &bits, &bytes, segments.as_ref())?;
    if total == 0 {
        return Ok(());
    }
    let (count, dim) = elementwise(PACK, client, total)?;
    let address = addresses(&[(&bits, dtype.size()), (&bytes, 1)]);
    let (bit_indptr, byte_indptr, segments) = buffers(segments);
    // SAFETY: a unit beyond the last byte stops. Bits are read below `total_bits`, or by the contract on row
    // pointers below the end of a segment, which is not beyond it.
    unsafe {
        pack_bits::launch_unchecked(
            client,
            count,
            dim,
            address,
            bits.into_buffer_arg(),
            bit_indptr.into(),
            byte_indptr.into(),
            bytes.into_buffer_arg(),
            total_bits,
            segments,
            total,
            order,
            dtype,
        );
    }
    Ok(())
}

/// Bytes, and the tensor for their bits, one to a byte.
pub struct UnpackBits {
    /// `[bytes]` of `u8`, contiguous.
    pub bytes: TensorBinding,
    /// `[bits]` of `u8`, contiguous.
    pub bits: TensorBinding,
    /// Segments, as in [`PackBits`].
    pub segments: Option<Segments>,
    /// Order, as in [`PackBits`].
    pub order: BitOrder,
}

/// Unpacks the bits of [`pack`], as bytes that are 0 or 1.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// As [`pack`].
pub unsafe fn unpack(client: &Client, unpack: UnpackBits) -> Result<()> {
    let UnpackBits { bytes, bits, segments, order } = unpack;
    let total = bits.size();
    check(UNPACK, &bits, &bytes, segments.as_ref())?;
    if total == 0 {
        return Ok(());
    }
    let (count, dim) = elementwise(UNPACK, client, total)?;
    let address = addresses(&[(&bits, 1), (&bytes, 1)]);
    let (bit_indptr, byte_indptr, segments) = buffers(segments);
    // SAFETY: a unit beyond the last bit stops. The byte of a bit is below their number, which `check`
    // compared, or by the contract on row pointers within its segment.
    unsafe {
        unpack_bits::launch_unchecked(
            client,
            count,
            dim,
            address,
            bytes.into_buffer_arg(),
            bit_indptr.into(),
            byte_indptr.into(),
            bits.into_buffer_arg(),
            segments,
            total,
            order,
        );
    }
    Ok(())
}

fn check(
    kernel: &'static str,
    bits: &TensorBinding,
    bytes: &TensorBinding,
    segments: Option<&Segments>,
) -> Result<()> {
    contiguous(kernel, "bits", bits, &[bits.size()])?;
    let Some(Segments { bits: bit_indptr, bytes: byte_indptr }) = segments else {
        return contiguous(kernel, "bytes", bytes, &[bits.size().div_ceil(8)]);
    };
    contiguous(kernel, "bytes", bytes, &[bytes.size()])?;
    contiguous(kernel, "bit_indptr", bit_indptr, &[bit_indptr.size()])?;
    contiguous(kernel, "byte_indptr", byte_indptr, &[bit_indptr.size()])?;
    if bit_indptr.size() < 2 {
        return Err(shape(kernel, "bit_indptr", bit_indptr, "[segments + 1] with a segment"));
    }
    Ok(())
}

/// The row pointers, and the number of segments.
fn buffers(segments: Option<Segments>) -> (Option<BufferArg>, Option<BufferArg>, usize) {
    match segments {
        Some(Segments { bits, bytes }) => {
            let count = bits.size() - 1;
            (Some(bits.into_buffer_arg()), Some(bytes.into_buffer_arg()), count)
        }
        None => (None, None, 0),
    }
}
