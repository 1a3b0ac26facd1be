//! Launches of packing bits.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::bits::{self, PackBits, Segments, UnpackBits};

use super::tensor::{empty_like, index, launched};
use crate::extension::BitSegments;
use crate::types::BitOrder;

pub(super) fn pack(
    bits: CubeTensor,
    segments: BitSegments<CubeBackend>,
    len: usize,
    order: BitOrder,
) -> CubeTensor {
    let bytes = empty_like(&bits, [len].into(), DType::U8);
    if len > 0 {
        // A device stores a bool as a byte, or as a word where it has no bytes.
        let (client, dtype) = (bits.client.clone(), dtype_to_storage_type(bits.dtype));
        let pack = PackBits {
            bits: into_contiguous(bits).binding(),
            bytes: bytes.clone().binding(),
            segments: segments_of(segments),
            order: order_of(order),
        };
        // SAFETY: `Indptr` checks the row pointer of bits, of which `ops::bits` computes that of bytes.
        launched(unsafe { bits::pack(&client, pack, dtype) });
    }
    bytes
}

pub(super) fn unpack(
    bytes: CubeTensor,
    segments: BitSegments<CubeBackend>,
    len: usize,
    order: BitOrder,
) -> CubeTensor {
    let bits = empty_like(&bytes, [len].into(), DType::U8);
    if len > 0 {
        let client = bytes.client.clone();
        let unpack = UnpackBits {
            bytes: into_contiguous(bytes).binding(),
            bits: bits.clone().binding(),
            segments: segments_of(segments),
            order: order_of(order),
        };
        // SAFETY: as in `pack`.
        launched(unsafe { bits::unpack(&client, unpack) });
    }
    bits
}

fn segments_of(segments: BitSegments<CubeBackend>) -> Option<Segments> {
    match segments {
        BitSegments::One => None,
        BitSegments::Many(bits, bytes) => Some(Segments { bits: index(bits), bytes: index(bytes) }),
    }
}

fn order_of(order: BitOrder) -> bits::BitOrder {
    match order {
        BitOrder::Big => bits::BitOrder::Big,
        BitOrder::Little => bits::BitOrder::Little,
    }
}
