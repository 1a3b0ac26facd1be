//! Page tables: the pages of each request's keys and values.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Device;

use super::clock::Stamp;
use crate::error::{Error, Result};
use crate::indptr::{index, row_pointer};
use crate::memory;

/// The pages of each request of a batch, in compressed sparse rows.
///
/// Request `r` owns the pages `indices[indptr[r]..indptr[r + 1]]`, in the order of its tokens. All of them are full
/// but the last, which holds `last_page_len[r]` tokens. Several requests may share a page.
///
/// It is checked once, when it is made, and trusted from then on.
///
/// ```
/// use burn::tensor::Device;
/// use burn_flashinfer::PageTable;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// // Pages of 4 tokens in a pool of 8: request 0 has 4 + 4 + 2 tokens, request 1 has 1.
/// let table = PageTable::new(&[0, 3, 4], &[7, 0, 2, 5], &[2, 1], 4, 8, &Device::default())?;
/// assert_eq!(table.kv_lengths(), [10, 1]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PageTable {
    indptr: Vec<usize>,
    indices: Vec<usize>,
    kv_lengths: Vec<usize>,
    /// The first key of each request that is in its pages, 0 for all behind the list: page 0 stands in for those before.
    first_keys: Vec<usize>,
    page_size: usize,
    /// One past the largest page: how many pages a pool must have.
    end: usize,
    device: Device,
    /// The moment of the table, if a cache made it.
    stamp: Option<Arc<Stamp>>,
}

impl PageTable {
    /// Checks a page table of `indptr` `[requests + 1]`, `indices` `[indptr[requests]]` and `last_page_len`
    /// `[requests]` against a pool of `pages` pages of `page_size` tokens on `device`.
    ///
    /// # Errors
    ///
    /// If `indptr` does not start at 0, falls, or does not end at the length of `indices`; if there is no request; if
    /// a page is outside the pool; if `last_page_len` is outside `1..=page_size`, or not 0 for a request without
    /// pages; if a request owns a page twice.
    pub fn new(
        indptr: &[usize],
        indices: &[usize],
        last_page_len: &[usize],
        page_size: usize,
        pages: usize,
        device: &Device,
    ) -> Result<Self> {
        const OP: &str = "PageTable::new";
        if page_size == 0 {
            return Err(Error::Value {
                op: OP,
                argument: "page_size",
                got: "0".into(),
                expected: "at least 1".into(),
            });
        }
        row_pointer(OP, "indptr", indptr)?;
        let requests = indptr.len() - 1;
        if indptr[requests] != indices.len() {
            return Err(Error::Index {
                op: OP,
                argument: "indptr",
                at: requests,
                got: indptr[requests].to_string(),
                expected: format!("{}, the length of `indices`", indices.len()),
            });
        }
        if last_page_len.len() != requests {
            return Err(Error::Value {
                op: OP,
                argument: "last_page_len",
                got: format!("of length {}", last_page_len.len()),
                expected: format!("one entry for each of {requests} requests"),
            });
        }
        for (at, &page) in indices.iter().enumerate() {
            if page >= pages {
                return Err(Error::Index {
                    op: OP,
                    argument: "indices",
                    at,
                    got: page.to_string(),
                    expected: format!("a page of the pool, below {pages}"),
                });
            }
        }
        // The last request that named each page: one pass finds a page that a request names twice.
        let mut named_by = HashMap::with_capacity(indices.len());
        for (request, (rows, &last)) in indptr.windows(2).zip(last_page_len).enumerate() {
            let owned = rows[1] - rows[0];
            let valid = if owned == 0 { 0..=0 } else { 1..=page_size };
            if !valid.contains(&last) {
                return Err(Error::Index {
                    op: OP,
                    argument: "last_page_len",
                    at: request,
                    got: last.to_string(),
                    expected: if owned == 0 {
                        "0 for a request without pages".into()
                    } else {
                        format!("within 1..={page_size}, the page size")
                    },
                });
            }
            for (at, &page) in indices.iter().enumerate().take(rows[1]).skip(rows[0]) {
                if named_by.insert(page, request) == Some(request) {
                    return Err(Error::Index {
                        op: OP,
                        argument: "indices",
                        at,
                        got: page.to_string(),
                        expected: format!("a page that request {request} does not own already"),
                    });
                }
            }
        }
        Self::trusted(OP, indptr.to_vec(), indices.to_vec(), last_page_len, page_size, device)
    }

    /// A page table that is right, but for numbers that may be too large.
    ///
    /// # Errors
    ///
    /// If a number does not fit the `i32` of the kernels.
    pub(crate) fn trusted(
        op: &'static str,
        indptr: Vec<usize>,
        indices: Vec<usize>,
        last_page_len: &[usize],
        page_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let owned = indptr.windows(2).map(|rows| rows[1] - rows[0]);
        let kv_lengths: Vec<usize> = owned
            .zip(last_page_len)
            .map(|(owned, last)| owned.saturating_sub(1).saturating_mul(page_size).saturating_add(*last))
            .collect();
        for (request, &length) in kv_lengths.iter().enumerate() {
            // Kernels count tokens in i32.
            index(op, "last_page_len", request, length)?;
        }
        index(op, "indptr", kv_lengths.len(), indices.len())?;
        let last_page = indices.iter().enumerate().max_by_key(|&(_, &page)| page);
        let end = match last_page {
            None => 0,
            // Kernels read the number of a page; how many there are, the host alone.
            Some((at, &page)) => {
                index(op, "indices", at, page)?;
                page + 1
            }
        };
        let (first_keys, device) = (Vec::new(), device.clone());
        Ok(Self { page_size, end, indptr, indices, kv_lengths, first_keys, device, stamp: None })
    }

    /// The keys before these were given back.
    pub(super) fn with_first_keys(self, first_keys: Vec<usize>) -> Self {
        Self { first_keys, ..self }
    }

    /// The first key of a request that is in its pages.
    pub(crate) fn first_key(&self, request: usize) -> usize {
        self.first_keys.get(request).copied().unwrap_or(0)
    }

    /// True if no request gave back keys.
    pub(crate) fn is_complete(&self) -> bool {
        self.first_keys.is_empty()
    }

    /// Refuses a table of a request that [gave back](crate::PagedKvCache::release_before) keys.
    pub(crate) fn check_complete(&self, op: &'static str) -> Result<()> {
        let Some(request) = self.first_keys.iter().position(|&first| first > 0) else { return Ok(()) };
        let got = format!("of request {request} without its first {} keys", self.first_key(request));
        Err(Error::Value { op, argument: "table", got, expected: "of requests with all their keys".into() })
    }

    pub(crate) fn stamped(self, stamp: Arc<Stamp>) -> Self {
        Self { stamp: Some(stamp), ..self }
    }

    /// Pads the table to `requests` requests: the added ones have no keys.
    pub(crate) fn padded(mut self, requests: usize) -> Self {
        let end = self.indices.len();
        self.indptr.resize(requests + 1, end);
        self.kv_lengths.resize(requests, 0);
        self
    }

    /// Adds a request without keys behind each request.
    pub(crate) fn spaced(mut self) -> Self {
        self.indptr = self.indptr.iter().flat_map(|&row| [row; 2]).skip(1).collect();
        self.kv_lengths = self.kv_lengths.iter().flat_map(|&length| [length, 0]).collect();
        self.first_keys = self.first_keys.iter().flat_map(|&first| [first, 0]).collect();
        self
    }

    /// Sets the moment of `other`.
    pub(crate) fn of_the_time_of(mut self, other: &Self) -> Self {
        self.stamp.clone_from(&other.stamp);
        self
    }

    pub(crate) fn stamp(&self) -> Option<&Arc<Stamp>> {
        self.stamp.as_ref()
    }

    /// The number of requests.
    pub fn requests(&self) -> usize {
        self.kv_lengths.len()
    }

    /// The number of tokens of each request.
    pub fn kv_lengths(&self) -> &[usize] {
        &self.kv_lengths
    }

    /// Tokens a page holds.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The device of the pages.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// The pages of `request`, in the order of its tokens; none if there is no such request. Page 0 stands in for those that
    /// were [given back](crate::PagedKvCache::release_before).
    pub fn pages(&self, request: usize) -> &[usize] {
        self.indptr
            .get(request..request + 2)
            .and_then(|rows| self.indices.get(rows[0]..rows[1]))
            .unwrap_or_default()
    }

    /// The begin of each request's pages in [`indices`](Self::indices).
    pub(crate) fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// The pages of all requests.
    pub(crate) fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// The least number of pages of a pool for this table.
    pub(crate) fn pages_needed(&self) -> usize {
        self.end
    }

    /// The number of tokens of all requests together.
    pub(crate) fn tokens(&self) -> usize {
        self.kv_lengths.iter().fold(0, |all, &length| all.saturating_add(length))
    }

    /// The slots of all tokens, one request after the other.
    ///
    /// # Errors
    ///
    /// If keys were given back, a slot does not fit the `i32` of the kernels, or the host has no memory for all of them.
    pub(crate) fn slots(&self, op: &'static str) -> Result<Vec<i32>> {
        self.check_complete(op)?;
        let mut slots = memory::list(op, "table", self.tokens())?;
        for (request, &length) in self.kv_lengths.iter().enumerate() {
            for (page, &number) in self.pages(request).iter().enumerate() {
                let tokens = self.page_size.min(length - page * self.page_size);
                let first = number.saturating_mul(self.page_size);
                for offset in 0..tokens {
                    slots.push(index(op, "table", request, first.saturating_add(offset))?);
                }
            }
        }
        Ok(slots)
    }

    /// The slot of token `position` of `request`: `page * page_size + offset in the page`.
    pub(super) fn slot(&self, request: usize, position: usize) -> Option<usize> {
        if position >= *self.kv_lengths.get(request)? || position < self.first_key(request) {
            return None;
        }
        let page = self.pages(request).get(position / self.page_size)?;
        Some(page.saturating_mul(self.page_size).saturating_add(position % self.page_size))
    }
}
