//! Which keys a query attends to, and where they lie.

use cubecl::prelude::*;

/// Where the queries and keys of each request lie: one kernel variant each.
#[derive(CubeType, CubeLaunch)]
#[expect(dead_code, reason = "launches build it from `TableArgs`")]
pub(crate) enum Table {
    /// One request.
    Single,
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
}

/// The request of one query.
#[derive(CubeType)]
pub(crate) struct Request {
    /// The query's number within the request.
    pub query: usize,
    pub qo_len: usize,
    pub kv_len: usize,
    /// First key (ragged), or first entry in the page table (paged).
    pub first: usize,
}

/// The request of query `token`, of `tokens` in all over `keys` keys.
#[cube]
pub(crate) fn request_of(table: &Table, token: usize, tokens: usize, keys: usize) -> Request {
    match table {
        Table::Single => Request { query: token, qo_len: tokens, kv_len: keys, first: 0usize.runtime() },
        Table::Ragged(at) => {
            let request = search(&at.qo_indptr, at.requests, token);
            let query = usize::cast_from(at.qo_indptr[request]);
            let first = usize::cast_from(at.kv_indptr[request]);
            Request {
                query: token - query,
                qo_len: usize::cast_from(at.qo_indptr[request + 1]) - query,
                kv_len: usize::cast_from(at.kv_indptr[request + 1]) - first,
                first,
            }
        }
        Table::Paged(at) => {
            let request = search(&at.qo_indptr, at.requests, token);
            let query = usize::cast_from(at.qo_indptr[request]);
            let first = usize::cast_from(at.kv_indptr[request]);
            let pages = usize::cast_from(at.kv_indptr[request + 1]) - first;
            // The length of the last page is not read where there is none.
            let mut kv_len = 0usize;
            if pages > 0 {
                kv_len = (pages - 1) * at.page_size + usize::cast_from(at.last_page_len[request]);
            }
            Request {
                query: token - query,
                qo_len: usize::cast_from(at.qo_indptr[request + 1]) - query,
                kv_len,
                first,
            }
        }
    }
}

/// The request that owns `token`: the last `r` with `indptr[r] <= token`, so that empty requests are passed over.
#[cube]
fn search(indptr: &[i32], requests: usize, token: usize) -> usize {
    // Throughout, indptr[low] <= token < indptr[high].
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
    match table {
        Table::Single => key * slot_stride,
        Table::Ragged(_) => (request.first + key) * slot_stride,
        Table::Paged(at) => {
            let page = usize::cast_from(at.indices[request.first + key / at.page_size]);
            page * page_stride + (key % at.page_size) * slot_stride
        }
    }
}
