//! Bits, eight to a byte and back.

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::view;
use crate::extension::BitSegments;
use crate::types::BitOrder;

/// Bytes that a thread takes at least.
const GRAIN: usize = 1 << 14;

/// `bits` as `len` bytes.
pub(super) fn pack(bits: FlexTensor, segments: BitSegments<Flex>, len: usize, order: BitOrder) -> FlexTensor {
    let bits = view::dense(bits);
    let bits: &[u8] = bits.storage();
    let mut bytes = vec![0; len];
    for (from, to) in places(segments, bits.len(), len) {
        bytes[to].par_iter_mut().zip(bits[from].par_chunks(8)).with_min_len(GRAIN).for_each(
            |(byte, bits)| {
                *byte = bits
                    .iter()
                    .enumerate()
                    .fold(0, |byte, (i, &bit)| byte | u8::from(bit != 0) << shift(i, order));
            },
        );
    }
    tensor(bytes)
}

/// `len` bits of `bytes`, one to a byte.
pub(super) fn unpack(
    bytes: FlexTensor,
    segments: BitSegments<Flex>,
    len: usize,
    order: BitOrder,
) -> FlexTensor {
    let bytes = view::dense(bytes);
    let bytes: &[u8] = bytes.storage();
    let mut bits = vec![0; len];
    for (to, from) in places(segments, len, bytes.len()) {
        bits[to].par_chunks_mut(8).zip(&bytes[from]).with_min_len(GRAIN).for_each(|(bits, byte)| {
            for (i, bit) in bits.iter_mut().enumerate() {
                *bit = byte >> shift(i, order) & 1;
            }
        });
    }
    tensor(bits)
}

fn shift(i: usize, order: BitOrder) -> usize {
    match order {
        BitOrder::Big => 7 - i,
        BitOrder::Little => i,
    }
}

/// The bits and the bytes of each segment.
fn places(segments: BitSegments<Flex>, bits: usize, bytes: usize) -> Vec<(Range<usize>, Range<usize>)> {
    match segments {
        BitSegments::One => vec![(0..bits, 0..bytes)],
        BitSegments::Many(bits, bytes) => {
            let [bits, bytes] = [bits, bytes].map(view::indices);
            ranges(bits.storage()).zip(ranges(bytes.storage())).collect()
        }
    }
}

fn ranges(indptr: &[i32]) -> impl Iterator<Item = Range<usize>> {
    indptr.windows(2).map(|pair| pair[0] as usize..pair[1] as usize)
}

fn tensor(bytes: Vec<u8>) -> FlexTensor {
    let shape = Shape::from([bytes.len()]);
    FlexTensor::new(Bytes::from_elems(bytes), Layout::contiguous(shape), DType::U8)
}
