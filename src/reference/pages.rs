//! Keys and values in pages.

use std::ops::Range;

use super::check::{check_len, shape, value};
use super::heads::Heads;
use crate::error::Result;
use crate::types::KvLayout;

/// The keys, or the values, of one layer in pages: `[pages, page_size, kv_heads, head_dim]`, or with heads before
/// tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Pages {
    pages: usize,
    page_size: usize,
    heads: usize,
    dim: usize,
    layout: KvLayout,
    values: Vec<f64>,
}

impl Pages {
    /// Takes `values` as pages. `shape` is that of the tensor, in the order of `layout`.
    ///
    /// # Errors
    ///
    /// If the number of values is not the product of the shape, or a page would be empty.
    pub fn new(shape: [usize; 4], layout: KvLayout, values: Vec<f64>) -> Result<Self> {
        check_len("reference::Pages::new", "values", values.len(), &shape)?;
        let [pages, a, b, dim] = shape;
        let (page_size, heads) = match layout {
            KvLayout::Nhd => (a, b),
            KvLayout::Hnd => (b, a),
        };
        Ok(Self { pages, page_size, heads, dim, layout, values })
    }

    /// The numbers, in the order of the layout.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The range of the elements of `head` of the token in `slot` (`page * page_size + offset in the page`).
    fn row(&self, slot: usize, head: usize) -> Range<usize> {
        let (page, offset) = (slot / self.page_size, slot % self.page_size);
        let row = match self.layout {
            KvLayout::Nhd => (page * self.page_size + offset) * self.heads + head,
            KvLayout::Hnd => (page * self.heads + head) * self.page_size + offset,
        };
        row * self.dim..(row + 1) * self.dim
    }
}

/// The tokens of one request, one after the other: those of the pages `indices`, of which the last holds
/// `last_page_len`.
///
/// # Errors
///
/// If a page is outside the pool, or `last_page_len` is not that of a [`PageTable`](crate::PageTable).
pub fn gather_pages(pages: &Pages, indices: &[usize], last_page_len: usize) -> Result<Heads> {
    const OP: &str = "reference::gather_pages";
    if let Some(page) = indices.iter().find(|&&page| page >= pages.pages) {
        return Err(value(OP, "indices", page.to_string(), format!("below {}", pages.pages)));
    }
    let valid = if indices.is_empty() { 0..=0 } else { 1..=pages.page_size };
    if !valid.contains(&last_page_len) {
        return Err(value(OP, "last_page_len", last_page_len.to_string(), format!("within {valid:?}")));
    }
    let tokens = indices.len().saturating_sub(1) * pages.page_size + last_page_len;
    let mut values = Vec::with_capacity(tokens * pages.heads * pages.dim);
    for token in 0..tokens {
        let slot = indices[token / pages.page_size] * pages.page_size + token % pages.page_size;
        for head in 0..pages.heads {
            values.extend_from_slice(&pages.values[pages.row(slot, head)]);
        }
    }
    Heads::new([tokens, pages.heads, pages.dim], values)
}

/// [`append_paged_kv`](crate::append_paged_kv) for the keys, or for the values: token `t` of `new` goes to the slot
/// `slots[t] = page * page_size + offset in the page`, or nowhere.
///
/// # Errors
///
/// If shapes do not fit together, or a slot is outside the pool. Nothing has been written then.
pub fn append_paged_kv(pages: &mut Pages, new: &Heads, slots: &[Option<usize>]) -> Result<()> {
    const OP: &str = "reference::append_paged_kv";
    let expected = [slots.len(), pages.heads, pages.dim];
    if new.shape != expected {
        return Err(shape(OP, "new", &new.shape, format!("{expected:?}")));
    }
    let end = pages.pages * pages.page_size;
    if let Some(slot) = slots.iter().flatten().find(|&&slot| slot >= end) {
        return Err(value(OP, "slots", slot.to_string(), format!("below {end}")));
    }
    for (token, &slot) in slots.iter().enumerate() {
        let Some(slot) = slot else { continue };
        for head in 0..pages.heads {
            let row = pages.row(slot, head);
            pages.values[row].copy_from_slice(new.row(token, head));
        }
    }
    Ok(())
}
