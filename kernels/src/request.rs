//! A request of a batch, and one row of its queries.

use cubecl::prelude::*;

/// A request, as the host plans it and the kernels read it.
#[derive(CubeType, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestShape {
    /// Index in the batch.
    pub index: usize,
    /// First query token.
    pub first_token: usize,
    /// Query tokens.
    pub qo_len: usize,
    /// First key (ragged), or first entry in the page table (paged).
    pub first: usize,
    /// Keys.
    pub kv_len: usize,
}

impl RequestShape {
    /// Requests one after the other, of these query tokens and keys. An entry of the page table counts
    /// `page_size` keys; without pages `page_size` is 1.
    pub fn following(lengths: impl IntoIterator<Item = (usize, usize)>, page_size: usize) -> Vec<Self> {
        let (mut first_token, mut first) = (0, 0);
        let following = |(index, (qo_len, kv_len)): (usize, (usize, usize))| {
            let request = Self { index, first_token, qo_len, first, kv_len };
            first_token += qo_len;
            first += kv_len.div_ceil(page_size.max(1));
            request
        };
        lengths.into_iter().enumerate().map(following).collect()
    }
}

/// The keys that a query can see, on the host: the same as
/// [`Variant::keys`](crate::attention::Variant::keys) on the device.
pub trait KeyRange {
    /// The keys `start..end` that query `query` of a request can see.
    fn keys(&self, request: &RequestShape, query: usize) -> (usize, usize);
}

/// A row of attention: one query token of one query head.
#[derive(CubeType)]
pub struct QueryRow {
    /// Number of the request in the batch.
    pub request: usize,
    /// Index of the query within the request.
    pub query: usize,
    /// Query head.
    pub q_head: usize,
    /// Key head.
    pub kv_head: usize,
    /// Query tokens of the request.
    pub qo_len: usize,
    /// Keys of the request.
    pub kv_len: usize,
}

#[cube]
impl QueryRow {
    /// Position of the query among the keys; the last query is at the last key. Negative where the request
    /// has more queries than keys.
    pub fn position(&self) -> i32 {
        (self.kv_len + self.query) as i32 - self.qo_len as i32
    }
}

/// The row of a query and a head.
#[cube]
pub(crate) fn query_row(request: &RequestShape, query: usize, q_head: usize, kv_head: usize) -> QueryRow {
    QueryRow {
        request: request.index,
        query,
        q_head,
        kv_head,
        qo_len: request.qo_len,
        kv_len: request.kv_len,
    }
}

/// The rows of a cube: those of a work item from `first` on, for a key head.
#[derive(CubeType)]
pub(crate) struct TileRows {
    pub request: RequestShape,
    /// First row of the cube within the request, and end of the request's rows.
    pub first: usize,
    pub end: usize,
    /// Query heads of a key head.
    pub group: usize,
    pub kv_head: usize,
    pub q_heads: usize,
}

#[cube]
impl TileRows {
    /// Row `row` of the cube; one beyond the last is clamped to it.
    pub fn at(&self, row: usize) -> QueryRow {
        let at = min(self.first + row, self.end - 1);
        let head = self.kv_head * self.group + at % self.group;
        query_row(&self.request, at / self.group, head, self.kv_head)
    }

    /// True if the cube has row `row`.
    pub fn has(&self, row: usize) -> bool {
        self.first + row < self.end
    }

    /// Token, query head, and true if the cube has row `row`; one beyond the last is clamped to it.
    pub fn place(&self, row: usize) -> (usize, usize, bool) {
        let at = self.at(row);
        (self.request.first_token + at.query, at.q_head, self.has(row))
    }

    /// Index of a row of these among those of the output.
    pub fn out_row(&self, row: &QueryRow) -> usize {
        (self.request.first_token + row.query) * self.q_heads + row.q_head
    }
}
