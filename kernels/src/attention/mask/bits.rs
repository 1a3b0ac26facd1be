//! The bits of a mask.

use cubecl::prelude::*;

use super::super::tiled::lane_rows::row_of;
use super::super::tiled::softmax::masked;
use super::super::variant::Variant;
use crate::mma::{Fragment, Mma, column_step};
use crate::request::{RequestShape, TileRows};

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
pub(super) fn first_bit(first_bits: &[i32], request: &RequestShape, query: usize) -> u64 {
    let at = 2 * request.index;
    let low = u64::cast_from(u32::reinterpret(first_bits[at]));
    let high = u64::cast_from(u32::reinterpret(first_bits[at + 1]));
    low + (high << 32u64) + u64::cast_from(query) * u64::cast_from(request.kv_len)
}

/// The 32 bits from bit `first` on.
#[cube]
pub(super) fn word_at(bits: &[u32], first: u64) -> u32 {
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

/// Masks the logits whose bit is 0; `key` is the lane's first.
#[cube]
pub(crate) fn apply_mask_bits<M: Mma, V: Variant>(
    s: &mut Fragment<M>,
    mask: &CustomMask,
    rows: &TileRows,
    first_row: usize,
    key: u32,
) {
    let columns = s.lane_columns();
    // The columns of a lane are spread over so many keys.
    let words = comptime!(column_step::<M>(columns - 1) / 32 + 1);
    #[unroll]
    for r in 0..s.lane_rows() {
        let query = rows.at(first_row + row_of::<M>(r)).query;
        let first = first_bit(&mask.first_bits, &rows.request, query) + u64::cast_from(key);
        #[unroll]
        for i in 0..words {
            let word = word_at(&mask.bits, first + comptime!(32 * i as u64));
            #[unroll]
            for c in 0..columns {
                let step = comptime!(column_step::<M>(c));
                if comptime!(step / 32 == i) {
                    let is_kept = (word >> comptime!((step % 32) as u32)) & 1u32 == 1u32;
                    s.set(r, c, select(is_kept, s.get(r, c), masked::<V>()));
                }
            }
        }
    }
}
