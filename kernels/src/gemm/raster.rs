//! The order of tiles.

use cubecl::prelude::*;

/// Row and column of the tile of number `index`: `group` rows of tiles at a time, column by column. So tiles that are
/// multiplied at the same time share rows and columns, which the second-level cache then holds.
#[cube]
pub(super) fn raster(index: usize, row_tiles: usize, group: usize, column_tiles: usize) -> (usize, usize) {
    let of_group = group * column_tiles;
    let first = index / of_group * group;
    let rows = min(row_tiles - first, group);
    let within = index % of_group;
    (first + within % rows, within / rows)
}
