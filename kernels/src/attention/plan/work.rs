//! The lists that tell each cube what to do, as the host writes and the kernels read them.

use cubecl::prelude::*;

use super::super::batch::Request;
use crate::unit::Rows;

/// Numbers of a work, and of a merge.
pub const WORDS: usize = 8;

/// Rows that a [`Merge`] has at most.
pub(crate) const MERGE_ROWS: usize = 16;

/// What one cube computes for a key head: a tile of rows of a request over a range of keys.
#[derive(CubeType)]
pub(crate) struct Work {
    pub request: Request,
    /// First row of the tile within the request. A work without rows is padding.
    pub first_row: usize,
    /// Keys: what any row of the tile sees, or a chunk of it.
    pub start: usize,
    pub end: usize,
    /// Where the partial results of the first key head go, in rows of the workspace; -1 if there is nothing to merge.
    pub partial: i32,
}

#[cube]
pub(crate) fn work_at(works: &[i32], index: usize) -> Work {
    let at = index * WORDS;
    Work {
        request: Request {
            first_token: usize::cast_from(works[at]),
            qo_len: usize::cast_from(works[at + 1]),
            kv_len: usize::cast_from(works[at + 2]),
            first: usize::cast_from(works[at + 3]),
        },
        first_row: usize::cast_from(works[at + 4]),
        start: usize::cast_from(works[at + 5]),
        end: usize::cast_from(works[at + 6]),
        partial: works[at + 7],
    }
}

/// The rows of a work for a key head, of which `group` query heads share it.
#[cube]
pub(crate) fn rows_of(work: &Work, kv_head: usize, group: usize) -> Rows {
    Rows {
        first_token: work.request.first_token,
        first: work.first_row,
        end: work.request.qo_len * group,
        group,
        first_head: kv_head * group,
    }
}

/// Rows of a request whose chunks of keys have to be merged.
#[derive(CubeType)]
pub(crate) struct Merge {
    pub first_token: usize,
    /// First of the rows within the request.
    pub first_row: usize,
    /// At most [`MERGE_ROWS`]; 0 is padding.
    pub rows: usize,
    pub chunks: usize,
    /// Where the first row of the first chunk and key head is, in rows of the workspace.
    pub partial: usize,
    /// Rows from a key head to the next.
    pub per_head: usize,
}

#[cube]
pub(crate) fn merge_at(merges: &[i32], index: usize) -> Merge {
    let at = index * WORDS;
    Merge {
        first_token: usize::cast_from(merges[at]),
        first_row: usize::cast_from(merges[at + 1]),
        rows: usize::cast_from(merges[at + 2]),
        chunks: usize::cast_from(merges[at + 3]),
        partial: usize::cast_from(merges[at + 4]),
        per_head: usize::cast_from(merges[at + 5]),
    }
}
