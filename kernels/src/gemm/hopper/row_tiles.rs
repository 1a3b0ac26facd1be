//! The tiles of rows, and the matrix of each.

use cubecl::prelude::*;

use super::store::TilePlace;
use super::tiles::ROWS;

/// Tiles of up to [`ROWS`] rows: of all rows, with the first matrix, or those of work items.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct RowTiles {
    pub count: usize,
    /// Rows of `x`.
    pub rows: usize,
    /// First row, end of the rows, and matrix of each tile.
    pub work_items: ComptimeOption<Box<[i32]>>,
}

/// Words of a work item: its first row, the end of its rows, and the index of its matrix.
pub const WORK_WORDS: usize = 3;

#[cube]
impl RowTiles {
    /// The place of the tile of number `tile` whose first output is `column`.
    pub fn place(&self, tile: usize, column: usize) -> TilePlace {
        #[comptime]
        match &self.work_items {
            ComptimeOption::Some(items) => TilePlace {
                row: usize::cast_from(items[WORK_WORDS * tile]),
                end: usize::cast_from(items[WORK_WORDS * tile + 1]),
                matrix: usize::cast_from(items[WORK_WORDS * tile + 2]),
                column,
            },
            ComptimeOption::None => {
                TilePlace { row: tile * ROWS, end: self.rows, matrix: 0usize.runtime(), column }
            }
        }
    }
}
