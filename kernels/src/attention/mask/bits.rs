//! The bits of a mask.

use cubecl::prelude::*;

use crate::request::RequestShape;

/// The bits of all requests, and the tile map.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct CustomMask {
    /// Bit `query · kv_len + key` of a request, from its first on; the lowest bit of a word first. A tile of keys beyond the
    /// last bit can be read.
    pub bits: Box<[u32]>,
    /// `[requests, 2]`: first bit of each request, low and high half.
    pub first_bits: Box<[i32]>,
    /// The lists of the work items.
    pub tiles: Box<[i32]>,
}

/// Bit of a query's first key.
#[cube]
pub(crate) fn first_bit(first_bits: &[i32], request: &RequestShape, query: usize) -> u64 {
    let at = 2 * request.index;
    let low = u64::cast_from(u32::reinterpret(first_bits[at]));
    let high = u64::cast_from(u32::reinterpret(first_bits[at + 1]));
    low + (high << 32u64) + u64::cast_from(query) * u64::cast_from(request.kv_len)
}

/// The 32 bits from bit `first` on.
#[cube]
pub(crate) fn word_at(bits: &[u32], first: u64) -> u32 {
    let word = usize::cast_from(first >> 5u64);
    let both = (u64::cast_from(bits[word + 1]) << 32u64) | u64::cast_from(bits[word]);
    u32::cast_from(both >> (first & 31u64))
}

/// True if the query sees the key.
#[cube]
pub(crate) fn keeps(mask: &CustomMask, request: &RequestShape, query: usize, key: usize) -> bool {
    let bit = first_bit(&mask.first_bits, request, query) + u64::cast_from(key);
    (mask.bits[usize::cast_from(bit >> 5u64)] >> u32::cast_from(bit & 31u64)) & 1u32 == 1u32
}
