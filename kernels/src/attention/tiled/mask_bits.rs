//! Custom masks of the scores of a plane.

use cubecl::prelude::*;

use super::super::mask::{CustomMask, KeyTiles, first_bit, word_at};
use super::super::variant::Variant;
use super::lane_rows::row_of;
use super::softmax::masked;
use crate::mma::{Fragment, Mma, column_step};
use crate::request::TileRows;

/// Masks the logits of the current tile of a walk, unless the mask keeps all of them; `key` is the lane's first.
#[cube]
pub(in super::super) fn apply_custom_mask<M: Mma, V: Variant>(
    s: &mut Fragment<M>,
    mask: &ComptimeOption<CustomMask>,
    walk: &KeyTiles,
    rows: &TileRows,
    first_row: usize,
    key: u32,
) {
    #[comptime]
    match mask {
        ComptimeOption::Some(mask) => {
            if !walk.is_full() {
                apply_mask_bits::<M, V>(s, mask, rows, first_row, key);
            }
        }
        ComptimeOption::None => {}
    }
}

/// Masks the logits whose bit is 0; `key` is the lane's first.
#[cube]
fn apply_mask_bits<M: Mma, V: Variant>(
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
