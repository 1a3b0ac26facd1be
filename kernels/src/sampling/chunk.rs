//! Rows in chunks, so that one long row keeps a whole device busy.

use cubecl::prelude::*;

use super::radix_select::Row;
use crate::rows::row_group::RowGroup;

/// Logits of a chunk: 8 cubes of them are in flight on a core, and in its first cache.
pub(super) const CHUNK: usize = 4096;

/// A chunk among those of all rows.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Chunk {
    /// Its row.
    pub row: usize,
    /// Vectors of a row.
    pub vectors: usize,
    /// Chunks of a row.
    pub chunks: usize,
    /// Its number among the chunks of all rows.
    at: usize,
}

/// The place of this unit in its row group, and the number of the chunk that is theirs. It may be beyond the last.
#[cube]
pub(super) fn unit_and_chunk(#[comptime] row_group: RowGroup) -> (usize, usize) {
    let units = comptime!(row_group.units);
    (UNIT_POS as usize % units, CUBE_POS * comptime!(row_group.rows) + UNIT_POS as usize / units)
}

#[cube]
impl Chunk {
    /// Chunk `at` of all rows, of `vectors` vectors each.
    pub(super) fn new(at: usize, vectors: usize, #[comptime] lanes: usize) -> Chunk {
        let chunks = chunks_of(vectors, lanes);
        Chunk { row: at / chunks, vectors, chunks, at }
    }

    /// The vectors of the chunk, if those of its row begin at `start`.
    pub(super) fn vectors_from(&self, start: usize, #[comptime] lanes: usize) -> Row {
        chunk_of(start, self.vectors, self.at % self.chunks, lanes)
    }
}

/// Chunks of a row of `vectors` vectors.
#[cube]
pub(super) fn chunks_of(vectors: usize, #[comptime] lanes: usize) -> usize {
    vectors.div_ceil(comptime!(CHUNK / lanes))
}

/// The vectors of chunk `at` of a row of `vectors` from `start` on.
#[cube]
pub(super) fn chunk_of(start: usize, vectors: usize, at: usize, #[comptime] lanes: usize) -> Row {
    let size = comptime!(CHUNK / lanes);
    Row::new(start + at * size, min(size.runtime(), vectors - at * size))
}
