//! Places of the queries and keys of each request.

use cubecl::prelude::*;
use cubecl::std::FastDivmod;

use crate::request::RequestShape;

/// Places of the queries and keys of each request: one kernel variant each.
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

/// The request of query `token`.
#[cube]
pub(crate) fn request_of(table: &Table, token: usize) -> RequestShape {
    match table {
        Table::Ragged(at) => {
            let index = search(&at.qo_indptr, at.requests, token);
            let first_token = usize::cast_from(at.qo_indptr[index]);
            let first = usize::cast_from(at.kv_indptr[index]);
            RequestShape {
                index,
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
            // The length of the last page is not read for a request without pages.
            let mut kv_len = 0usize;
            if pages > 0 {
                kv_len = (pages - 1) * at.page_size + usize::cast_from(at.last_page_len[index]);
            }
            RequestShape {
                index,
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
    // Invariant: `indptr[low] <= token`, and `high` is beyond it.
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
    request: &RequestShape,
    key: usize,
    page_stride: usize,
    slot_stride: usize,
) -> usize {
    let (page, slot) = key_place(table, request, key);
    origin(table, request, slot_stride) + page * page_stride + slot * slot_stride
}

/// Offset of the first key of a request, if its keys follow one another.
#[cube]
pub(crate) fn origin(table: &Table, request: &RequestShape, slot_stride: usize) -> usize {
    match table {
        Table::Ragged(_) => request.first * slot_stride,
        Table::Paged(_) => 0usize.runtime(),
    }
}

/// Page and slot of key `key` of the request, from its [`origin`] on.
#[cube]
pub(crate) fn key_place(table: &Table, request: &RequestShape, key: usize) -> (usize, usize) {
    match table {
        Table::Ragged(_) => (0usize.runtime(), key),
        Table::Paged(at) => {
            let (page, slot) = at.paging.div_mod(key as u32);
            (usize::cast_from(at.indices[request.first + page as usize]), slot as usize)
        }
    }
}

/// True if every TMA box of `box_rows` keys from key `start` on lies within a page. A box divides a page.
#[cube]
pub(crate) fn fits(table: &Table, start: usize, box_rows: usize) -> bool {
    match table {
        Table::Ragged(_) => box_rows > 0,
        Table::Paged(_) => box_rows > 0 && start / max(box_rows, 1) * box_rows == start,
    }
}
