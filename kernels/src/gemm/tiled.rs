//! Tiles of `y` on every matrix unit whose planes multiply alone, and by plain multiplications.

use cubecl::{ir::ElemType, prelude::*};

use super::epilogue::{EpilogueArgs, Steps};
use super::raster::raster;
use super::stage::Place;
use super::tile::gemm_tile;
use crate::mma::{GemmMma, GemmTileShape};
use crate::staging::Vec16;

/// `x`: `[rows, d_in]`, `weight`: `[1, d_out, d_in]`, in vec16s but with strides in elements; `y`: `[rows, d_out]`. A cube
/// has one tile; `group` rows of tiles are side by side.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn tiled<U: GemmMma, E: Float, Y: Float>(
    x: &Tensor<Vec16>,
    weight: &Tensor<Vec16>,
    y: &mut [Vector<Y, U::Run>],
    epilogue: &EpilogueArgs<E>,
    d_in: usize,
    group: usize,
    #[comptime] tiles: GemmTileShape,
    #[comptime] steps: Steps,
    #[define(E, Y)] _dtypes: [ElemType; 2],
) {
    let (rows, d_out) = (x.shape(0), epilogue.d_out);
    let columns = comptime!(tiles.columns::<U>() / steps.halves());
    let row_tiles = rows.div_ceil(comptime!(tiles.rows::<U>()));
    let column_tiles = d_out.div_ceil(columns);
    if CUBE_POS >= row_tiles * column_tiles {
        terminate!();
    }
    let (row_tile, column_tile) = raster(CUBE_POS, row_tiles, group, column_tiles);
    let place = Place {
        first_row: row_tile * comptime!(tiles.rows::<U>()),
        end_row: rows,
        first_column: column_tile * columns,
        matrix: 0usize.runtime(),
        d_in,
        d_out,
    };
    gemm_tile::<U, E, Y>(x, weight, y, epilogue, &place, tiles, steps);
}
