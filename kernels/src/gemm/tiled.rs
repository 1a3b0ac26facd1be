//! Tiles of `y` on every matrix unit whose planes multiply alone, and by plain multiplications.

use cubecl::{ir::ElemType, prelude::*};

use super::raster::raster;
use super::stage::Place;
use super::tile::gemm_tile;
use crate::mma::{GemmMma, GemmTileShape};
use crate::staging::Vec16;

/// `x`: `[rows, d_in]`, `weight`: `[1, d_out, d_in]`, in vec16s but with strides in elements; `y`: `[rows, d_out]`. A cube
/// has one tile; `group` rows of tiles are side by side.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn tiled<U: GemmMma, E: Float>(
    x: &Tensor<Vec16>,
    weight: &Tensor<Vec16>,
    y: &mut [Vector<E, U::Run>],
    d_in: usize,
    group: usize,
    #[comptime] tiles: GemmTileShape,
    #[define(E)] _dtype: ElemType,
) {
    let (rows, d_out) = (x.shape(0), weight.shape(1));
    let row_tiles = rows.div_ceil(comptime!(tiles.rows::<U>()));
    let column_tiles = d_out.div_ceil(comptime!(tiles.columns::<U>()));
    if CUBE_POS >= row_tiles * column_tiles {
        terminate!();
    }
    let (row_tile, column_tile) = raster(CUBE_POS, row_tiles, group, column_tiles);
    let place = Place {
        first_row: row_tile * comptime!(tiles.rows::<U>()),
        end_row: rows,
        first_column: column_tile * comptime!(tiles.columns::<U>()),
        matrix: 0usize.runtime(),
        d_in,
        d_out,
    };
    gemm_tile::<U, E>(x, weight, y, &place, tiles);
}
