//! Copying whole pages within a pool.

use std::collections::HashSet;

use burn::tensor::{Device, Int, Tensor};

use super::kv_pages::KvPages;
use super::slot_mapping::SlotMapping;
use crate::check;
use crate::error::{Error, Result};
use crate::indptr::upload;
use crate::memory;

/// Pairs of pages of a pool, source and destination, for [`copy_pages`].
///
/// It is checked once, when it is made, and trusted from then on: make it once and use it in every layer. The example
/// is at [`copy_pages`].
#[derive(Debug, Clone)]
#[must_use]
pub struct PageCopies {
    len: usize,
    /// One past the largest page.
    end: usize,
    /// Slots, as many as `to` has.
    from: Tensor<1, Int>,
    to: SlotMapping,
}

impl PageCopies {
    /// Page `to[i]` becomes a copy of page `from[i]`, in a pool of `pages` pages of `page_size` tokens. A page may be
    /// copied more than once.
    ///
    /// # Errors
    ///
    /// If `page_size` is 0; if `from` and `to` differ in length; if a page is outside the pool, or its slots
    /// pass `i32::MAX`; if `to` names a page twice, or one that `from` names as well; if there is no memory
    /// for a slot of each token that is copied.
    pub fn new(
        from: &[usize],
        to: &[usize],
        page_size: usize,
        pages: usize,
        device: &Device,
    ) -> Result<Self> {
        const OP: &str = "PageCopies::new";
        if page_size == 0 {
            let (got, expected) = ("0".into(), "at least 1".into());
            return Err(Error::Value { op: OP, argument: "page_size", got, expected });
        }
        if from.len() != to.len() {
            return Err(Error::Value {
                op: OP,
                argument: "to",
                got: format!("of length {}", to.len()),
                expected: format!("{}, the length of `from`", from.len()),
            });
        }
        let refuse = |argument, at, page: usize, expected| {
            Err(Error::Index { op: OP, argument, at, got: page.to_string(), expected })
        };
        for (argument, list) in [("from", from), ("to", to)] {
            if let Some((at, &page)) = list.iter().enumerate().find(|&(_, &page)| page >= pages) {
                return refuse(argument, at, page, format!("a page of the pool, below {pages}"));
            }
        }
        let copied: HashSet<usize> = from.iter().copied().collect();
        let mut written = HashSet::with_capacity(to.len());
        for (at, &page) in to.iter().enumerate() {
            if copied.contains(&page) {
                return refuse("to", at, page, "a page that is not copied from as well".into());
            }
            if !written.insert(page) {
                return refuse("to", at, page, "a page that is not copied to already".into());
            }
        }
        // Slots are i32.
        let most = i32::MAX as usize / page_size;
        for (argument, list) in [("from", from), ("to", to)] {
            if let Some((at, &page)) = list.iter().enumerate().find(|&(_, &page)| page >= most) {
                return refuse(argument, at, page, format!("below {most}, as pages have {page_size} tokens"));
            }
        }
        let count = from.len().saturating_mul(page_size);
        memory::on_host(OP, "page_size", memory::bytes([2, count, size_of::<i32>()]))?;
        memory::on_device(OP, "page_size", [2, memory::bytes([count, size_of::<i32>()])], device)?;
        let slots_of = |list: &[usize]| {
            let mut slots = memory::list(OP, "page_size", count)?;
            for page in list {
                slots.extend((page * page_size..(page + 1) * page_size).map(|slot| slot as i32));
            }
            Ok(slots)
        };
        Ok(Self {
            len: from.len(),
            end: from.iter().chain(to).max().map_or(0, |&page| page + 1),
            from: upload(slots_of(from)?, device),
            to: SlotMapping::trusted(slots_of(to)?, page_size, device),
        })
    }

    /// The number of copied pages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no page is copied.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Copies whole pages of a layer, keys and values, bit for bit.
///
/// For each `i`, `pages[to[i]] = pages[from[i]]`, with the `from` and `to` that `copies` was [made
/// of](PageCopies::new). Nothing but the pages `to` is written, and in place, as by
/// [`append_paged_kv`](crate::append_paged_kv).
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{KvLayout, KvPages, PageCopies, copy_pages};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // 8 pages of 16 tokens, 2 heads of 64 elements.
/// let random = || Tensor::<4>::random([8, 16, 2, 64], Distribution::Default, &device);
/// let mut pages = KvPages::new(random(), random(), KvLayout::Nhd)?;
///
/// let copies = PageCopies::new(&[3, 3, 0], &[7, 1, 2], 16, 8, &device)?;
/// copy_pages(&mut pages, &copies)?;
/// let page = |page: usize| pages.k().map(|k| k.clone().slice_dim(0, page..page + 1).into_data());
/// assert_eq!((page(7), page(1), page(2)), (page(3), page(3), page(0)));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If `copies` was made for another device, another page size or a larger pool, or a gradient is required.
/// Nothing has been written then.
pub fn copy_pages(pages: &mut KvPages, copies: &PageCopies) -> Result<()> {
    const OP: &str = "copy_pages";
    pages.check(OP, "pages", &pages.device())?;
    check::same_device(OP, "copies", &copies.to.tensor.device(), &pages.device())?;
    pages.check_pool(OP, "copies", copies.to.page_size(), copies.end)?;
    if copies.is_empty() {
        return Ok(());
    }
    let tokens = pages.read(copies.from.clone(), pages.dtype());
    pages.write(tokens, &copies.to);
    Ok(())
}
