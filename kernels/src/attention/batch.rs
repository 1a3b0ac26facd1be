//! Which keys a query attends to, and where they lie.

use cubecl::prelude::*;
use cubecl::std::FastDivmod;

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

/// Request `index`; a single one has `tokens` over `keys` keys.
#[cube]
fn request_at(table: &Table, index: usize, tokens: usize, keys: usize) -> Request {
    match table {
        Table::Single => {
            Request { first_token: 0usize.runtime(), qo_len: tokens, kv_len: keys, first: 0usize.runtime() }
        }
        Table::Ragged(at) => {
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

/// The request of query `token`, of `tokens` in all over `keys` keys.
#[cube]
pub(crate) fn request_of(table: &Table, token: usize, tokens: usize, keys: usize) -> Request {
    let index = match table {
        Table::Single => 0usize.runtime(),
        Table::Ragged(at) => search(&at.qo_indptr, at.requests, token, 1usize, 1usize, 0usize),
        Table::Paged(at) => search(&at.qo_indptr, at.requests, token, 1usize, 1usize, 0usize),
    };
    request_at(table, index, tokens, keys)
}

/// Pieces of work of requests, and which of them one is.
#[derive(CubeType)]
pub(crate) struct Piece {
    pub request: Request,
    /// Its number among those of the request. There may be more pieces than there is work.
    pub number: usize,
}

/// Piece `piece` of all requests' queries in tiles of `rows`, each query being `group` rows.
///
/// Request `r` has the pieces from `indptr[r] * group / rows + r` on: never fewer than it needs, one too many at most,
/// and found without a list of lengths.
#[cube]
pub(crate) fn query_piece(
    table: &Table,
    piece: usize,
    group: usize,
    rows: usize,
    tokens: usize,
    keys: usize,
) -> Piece {
    let mut index = 0usize;
    let mut start = 0usize;
    match table {
        Table::Single => {}
        Table::Ragged(at) => {
            index = search(&at.qo_indptr, at.requests, piece, group, rows, 1usize);
            start = usize::cast_from(at.qo_indptr[index]) * group / rows + index;
        }
        Table::Paged(at) => {
            index = search(&at.qo_indptr, at.requests, piece, group, rows, 1usize);
            start = usize::cast_from(at.qo_indptr[index]) * group / rows + index;
        }
    }
    Piece { request: request_at(table, index, tokens, keys), number: piece - start }
}

/// First piece of request `index`'s keys in chunks of `chunk`, as [`query_piece`] counts them.
#[cube]
fn first_chunk(table: &Table, index: usize, chunk: usize) -> usize {
    match table {
        Table::Single => 0usize.runtime(),
        Table::Ragged(at) => usize::cast_from(at.kv_indptr[index]) / chunk + index,
        Table::Paged(at) => usize::cast_from(at.kv_indptr[index]) * at.page_size / chunk + index,
    }
}

/// Piece `piece` of all requests' keys in chunks of `chunk`.
#[cube]
pub(crate) fn key_piece(table: &Table, piece: usize, chunk: usize, tokens: usize, keys: usize) -> Piece {
    let index = match table {
        Table::Single => 0usize.runtime(),
        Table::Ragged(at) => search(&at.kv_indptr, at.requests, piece, 1usize, chunk, 1usize),
        Table::Paged(at) => search(&at.kv_indptr, at.requests, piece, at.page_size, chunk, 1usize),
    };
    let start = first_chunk(table, index, chunk);
    Piece { request: request_at(table, index, tokens, keys), number: piece - start }
}

/// The request of `token`, and where the pieces of its keys begin.
#[cube]
pub(crate) fn pieces_of(table: &Table, token: usize, chunk: usize, tokens: usize, keys: usize) -> Piece {
    let index = match table {
        Table::Single => 0usize.runtime(),
        Table::Ragged(at) => search(&at.qo_indptr, at.requests, token, 1usize, 1usize, 0usize),
        Table::Paged(at) => search(&at.qo_indptr, at.requests, token, 1usize, 1usize, 0usize),
    };
    Piece { request: request_at(table, index, tokens, keys), number: first_chunk(table, index, chunk) }
}

/// The request that owns `target`: the last `r` with `indptr[r] * factor / divisor + r * step <= target`, so that with
/// a step of 0 empty requests are passed over.
#[cube]
fn search(
    indptr: &[i32],
    requests: usize,
    target: usize,
    factor: usize,
    divisor: usize,
    step: usize,
) -> usize {
    // Throughout, low is such a request and high is not.
    let mut low = 0usize;
    let mut high = requests;
    while high - low > 1 {
        let middle = (low + high) / 2;
        if usize::cast_from(indptr[middle]) * factor / divisor + middle * step <= target {
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
    page * page_stride + slot * slot_stride
}

/// Page and slot of key `key` of the request.
#[cube]
pub(crate) fn key_place(table: &Table, request: &Request, key: usize) -> (usize, usize) {
    match table {
        Table::Single => (0usize.runtime(), key),
        Table::Ragged(_) => (0usize.runtime(), request.first + key),
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
