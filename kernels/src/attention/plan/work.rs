//! The work items and merges of a plan, as the host writes and the kernels read them.

use bytemuck::{Pod, Zeroable};
use cubecl::prelude::*;

use super::super::mask::CustomMask;
use crate::request::{RequestShape, TileRows};

/// Largest number of rows of a [`Merge`].
pub(crate) const MERGE_ROWS: usize = 16;

/// A work item as the host writes it: a tile of rows of a request over a range of its keys, for every key head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WorkItem {
    /// First query token of the request.
    pub first_token: i32,
    /// Query tokens of the request.
    pub qo_len: i32,
    /// Keys of the request.
    pub kv_len: i32,
    /// First key, or first entry in the page table.
    pub first: i32,
    /// First row of the tile within the request. A work item without rows is padding.
    pub first_row: i32,
    /// First key of the range.
    pub start: i32,
    /// End of the range.
    pub end: i32,
    /// Row of the workspace for the partial results of the first key head; -1 if there is nothing to merge.
    pub partial: i32,
    /// Number of the request in the batch.
    pub request: i32,
    /// [`Self::FIRST_CHUNK`].
    pub flags: i32,
    /// First entry in the tile map of a custom mask, low and high half.
    pub mask_tiles: [u32; 2],
}

impl WorkItem {
    /// Words of a work item.
    pub const WORDS: usize = size_of::<Self>() / size_of::<i32>();
    /// Flag: the range begins at the tile's first key, so the initial `(m, l)` of its rows counts in this
    /// chunk only.
    pub const FIRST_CHUNK: i32 = 1;
}

/// A merge as the host writes it: rows of a request whose keys were split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct MergeItem {
    /// First query token of the request.
    pub first_token: i32,
    /// First of the rows within the request.
    pub first_row: i32,
    /// At most 16; 0 is padding.
    pub rows: i32,
    /// Chunks of keys.
    pub chunks: i32,
    /// Row of the workspace where the first chunk of the first key head begins.
    pub partial: i32,
    /// Rows of the workspace from a key head to the next.
    pub per_head: i32,
    /// Number of the request in the batch.
    pub request: i32,
    /// Query tokens of the request.
    pub qo_len: i32,
    /// Keys of the request.
    pub kv_len: i32,
    /// Unused.
    pub unused: [i32; 3],
}

impl MergeItem {
    /// Words of a merge.
    pub const WORDS: usize = size_of::<Self>() / size_of::<i32>();
}

/// The work items of a launch, and the mask of their rows.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct WorkList {
    /// [`WorkItem`]s.
    pub items: Box<[i32]>,
    /// Work items of a key head.
    pub count: usize,
    /// Query heads of a key head.
    pub group: usize,
    pub mask: ComptimeOption<CustomMask>,
}

/// A [`WorkItem`] of a key head in a kernel.
#[derive(CubeType)]
pub(crate) struct WorkTile {
    /// The rows of the cube.
    pub rows: TileRows,
    /// First row of the work item, of which a cube of a cluster has a part.
    pub first_row: usize,
    pub start: usize,
    pub end: usize,
    pub partial: i32,
    pub flags: i32,
    /// First entry in the tile map.
    pub mask_tiles: usize,
}

#[cube]
impl WorkList {
    /// Work item `index` of a key head.
    pub fn at(&self, index: usize, kv_head: usize, kv_heads: usize) -> WorkTile {
        let at = index * WorkItem::WORDS;
        let request = RequestShape {
            first_token: usize::cast_from(self.items[at]),
            qo_len: usize::cast_from(self.items[at + 1]),
            kv_len: usize::cast_from(self.items[at + 2]),
            first: usize::cast_from(self.items[at + 3]),
            index: usize::cast_from(self.items[at + 8]),
        };
        let first_row = usize::cast_from(self.items[at + 4]);
        let group = self.group;
        let end = request.qo_len * group;
        WorkTile {
            rows: TileRows { request, first: first_row, end, group, kv_head, q_heads: kv_heads * group },
            first_row,
            start: usize::cast_from(self.items[at + 5]),
            end: usize::cast_from(self.items[at + 6]),
            partial: self.items[at + 7],
            flags: self.items[at + 9],
            mask_tiles: wide(self.items[at + 10], self.items[at + 11]),
        }
    }
}

/// A number in two halves.
#[cube]
fn wide(low: i32, high: i32) -> usize {
    let high = u64::cast_from(u32::reinterpret(high)) << 32u64;
    usize::cast_from(high + u64::cast_from(u32::reinterpret(low)))
}

#[cube]
impl WorkTile {
    /// True in the chunk that the initial `(m, l)` of the rows belongs to.
    pub fn is_first_chunk(&self) -> bool {
        self.flags % 2 == WorkItem::FIRST_CHUNK
    }
}

/// A [`MergeItem`] in a kernel.
#[derive(CubeType)]
pub(crate) struct Merge {
    pub request: RequestShape,
    pub first_row: usize,
    pub rows: usize,
    pub chunks: usize,
    pub partial: usize,
    pub per_head: usize,
}

#[cube]
pub(crate) fn merge_at(merges: &[i32], index: usize) -> Merge {
    let at = index * MergeItem::WORDS;
    Merge {
        request: RequestShape {
            first_token: usize::cast_from(merges[at]),
            index: usize::cast_from(merges[at + 6]),
            qo_len: usize::cast_from(merges[at + 7]),
            kv_len: usize::cast_from(merges[at + 8]),
            // A merge reads no key.
            first: 0usize.runtime(),
        },
        first_row: usize::cast_from(merges[at + 1]),
        rows: usize::cast_from(merges[at + 2]),
        chunks: usize::cast_from(merges[at + 3]),
        partial: usize::cast_from(merges[at + 4]),
        per_head: usize::cast_from(merges[at + 5]),
    }
}
