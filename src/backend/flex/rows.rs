//! Operations that go row by row: cache writes, RoPE.

use burn_flex::FlexTensor;

use super::float::Float;
use super::view::{self, Rows, dims, with_rows};
use crate::extension::RopeStyle;
use crate::options::KvLayout;

/// Writes rows to the slots of a page pool: in place if it has no other owner, else in a copy of it.
pub(super) fn append<E: Float>(
    pool: FlexTensor,
    new: FlexTensor,
    slots: &[i32],
    layout: KvLayout,
) -> FlexTensor {
    let mut pool = view::dense(pool);
    let [_, a, b, width] = dims(&pool);
    let (page_size, heads) = if layout == KvLayout::Nhd { (a, b) } else { (b, a) };
    let new = with_rows(new);
    let new: Rows<'_, E, 2> = Rows::of(&new);
    let rows: &mut [E] = pool.storage_mut();
    for (token, &slot) in slots.iter().enumerate() {
        let Ok(slot) = usize::try_from(slot) else { continue };
        let (page, offset) = (slot / page_size, slot % page_size);
        for head in 0..heads {
            let row = match layout {
                KvLayout::Nhd => slot * heads + head,
                KvLayout::Hnd => (page * heads + head) * page_size + offset,
            };
            rows[row * width..(row + 1) * width].copy_from_slice(new.row([token, head]));
        }
    }
    pool
}

/// Rotates the heads of `x` `[tokens, heads, head_dim]`.
pub(super) fn rope<E: Float>(
    x: FlexTensor,
    cos_sin: &FlexTensor,
    positions: &[i32],
    style: RopeStyle,
) -> FlexTensor {
    let dtype = x.dtype();
    let x = with_rows(x);
    let [tokens, heads, dim] = dims(&x);
    let rows: Rows<'_, E, 2> = Rows::of(&x);
    let table: Rows<'_, f32, 1> = Rows::of(cos_sin);
    let pairs = table.width() / 2;
    let mut rotated = Vec::with_capacity(tokens * heads * dim);
    for (token, &position) in positions.iter().enumerate().take(tokens) {
        let (cos, sin) = table.row([position as usize]).split_at(pairs);
        for head in 0..heads {
            let row = rows.row([token, head]);
            let first = rotated.len();
            rotated.extend_from_slice(row);
            let out = &mut rotated[first..];
            for pair in 0..pairs {
                let (a, b) = match style {
                    RopeStyle::Halves => (pair, pair + pairs),
                    RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                };
                let (x, y) = (row[a].widen(), row[b].widen());
                out[a] = E::narrow(x * cos[pair] - y * sin[pair]);
                out[b] = E::narrow(y * cos[pair] + x * sin[pair]);
            }
        }
    }
    view::tensor(rotated, [tokens, heads, dim], dtype)
}
