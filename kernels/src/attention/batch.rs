//! Which keys a query attends to, and where they lie.

use cubecl::prelude::*;
use cubecl::std::FastDivmod;

/// Where the queries and keys of each request lie: one kernel variant each.
#[derive(CubeType, CubeLaunch)]
#[expect(dead_code, reason = "launches build it from `TableArgs`")]
pub(crate) enum Table {
    /// Requests one after the other.
    Ragged(Ragged),
    /// Keys in pages.
    Paged(Paged),
}

#[derive(CubeType, CubeLaunch)]
pub(crate) struct Ragged {
    qo_indptr: Box<[i32]>,
    kv_indptr: Box<[i32]>,
    requests: usize,
}

#[derive(CubeType, CubeLaunch)]
pub(crate) struct Paged {
    qo_indptr: Box<[i32]>,
    kv_indptr: Box<[i32]>,
    indices: Box<[i32]>,
    last_page_len: Box<[i32]>,
    requests: usize,
    page_size: usize,
    /// Divides by the page size.
    paging: FastDivmod<u32>,
}

/// A request.
#[derive(CubeType)]
pub(crate) struct Request {
    /// Its first query token.
    pub first_token: usize,
    pub qo_len: usize,
    pub kv_len: usize,
    /// First key (ragged), or first entry in the page table (paged).
    pub first: usize,
}

/// The request of query `token`.
#[cube]
pub(crate) fn request_of(table: &Table, token: usize) -> Request {
    match table {
        Table::Ragged(at) => {
            let index = search(&at.qo_indptr, at.requests, token);
            let first_token = usize::cast_from(at.qo_indptr[index]);
            let first = usize::cast_from(at.kv_indptr[index]);
            Request {
                first_token,
                qo_len: usize::cast_from(at.qo_indptr[index + 1]) - first_token,
                kv_len: usize::cast_from(at.kv_indptr[index + 1]) - first,
                first,
            }
        }
        Table::Paged(at) => {
            let index = search(&at.qo_indptr, at.requests, token);
            let first_token = usize::cast_from(at.qo_indptr[index]);
            let first = usize::cast_from(at.kv_indptr[index]);
            let pages = usize::cast_from(at.kv_indptr[index + 1]) - first;
            // The length of the last page is not read where there is none.
            let mut kv_len = 0usize;
            if pages > 0 {
                kv_len = (pages - 1) * at.page_size + usize::cast_from(at.last_page_len[index]);
            }
            Request {
                first_token,
                qo_len: usize::cast_from(at.qo_indptr[index + 1]) - first_token,
                kv_len,
                first,
            }
        }
    }
}

/// The request that owns query `token`: the last `r` with `indptr[r] <= token`, so that empty requests are passed over.
#[cube]
fn search(indptr: &[i32], requests: usize, token: usize) -> usize {
    // Throughout, low is such a request and high is not.
    let mut low = 0usize;
    let mut high = requests;
    while high - low > 1 {
        let middle = (low + high) / 2;
        if usize::cast_from(indptr[middle]) <= token {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// Offset of key `key` of the request in a tensor of the given strides. Reads nothing but the request's own pages.
#[cube]
pub(crate) fn key_offset(
    table: &Table,
    request: &Request,
    key: usize,
    page_stride: usize,
    slot_stride: usize,
) -> usize {
    let (page, slot) = key_place(table, request, key);
    origin(table, request, slot_stride) + page * page_stride + slot * slot_stride
}

/// Where the keys of a request begin, if they follow one another.
#[cube]
pub(crate) fn origin(table: &Table, request: &Request, slot_stride: usize) -> usize {
    match table {
        Table::Ragged(_) => request.first * slot_stride,
        Table::Paged(_) => 0usize.runtime(),
    }
}

/// Page and slot of key `key` of the request, from its [`origin`] on.
#[cube]
pub(crate) fn key_place(table: &Table, request: &Request, key: usize) -> (usize, usize) {
    match table {
        Table::Ragged(_) => (0usize.runtime(), key),
        Table::Paged(at) => {
            let (page, slot) = at.paging.div_mod(key as u32);
            (usize::cast_from(at.indices[request.first + page as usize]), slot as usize)
        }
    }
}

/// The keys `start..end` that query `query` of a request sees. The causal mask is right-aligned: the last query sits at
/// the last key.
#[cube]
pub(crate) fn visible(request: &Request, query: usize, causal: u32, window_left: usize) -> (usize, usize) {
    // Position of the query among the keys, shifted by qo_len to stay above 0.
    let shifted = request.kv_len + query;
    let mut end = request.kv_len;
    if causal == 1 {
        end = saturating_sub(shifted + 1, request.qo_len);
    }
    (saturating_sub(shifted, request.qo_len + window_left), end)
}

#[cube]
fn saturating_sub(a: usize, b: usize) -> usize {
    select(a > b, a - min(a, b), 0usize)
}

/// Whether boxes of so many keys from key `start` on lie within a page each; they divide it.
#[cube]
pub(crate) fn fits(table: &Table, start: usize, box_rows: usize) -> bool {
    match table {
        Table::Ragged(_) => box_rows > 0,
        Table::Paged(_) => box_rows > 0 && start / max(box_rows, 1) * box_rows == start,
    }
}
