//! Scales of single tokens: a factor on a column of `S`, and on one of `P` after its sum.
//!
//! So they are outside of the products, whatever unit multiplies and wherever codes become numbers, and codes stay exact
//! numbers of 16 bits. A column of `S` has as many elements as the tile has rows, a key has as many as the head: with few rows
//! it is less work as well.
//!
//! Each lane loads the scales of other keys of its plane, before it waits for the tile, and gets those of its columns by
//! shuffles.
//!
//! A scale is a token's largest number divided by the largest code, and so is far below 1. `P` times it would be subnormal in
//! f16: it is multiplied by a power of two near the largest code as well, and `O` divided by that at the end.

use cubecl::prelude::*;

use super::super::buffers::QkvVecs;
use super::super::plan::WorkTile;
use crate::mma::{Fragment, Mma, TileShape, column_step, first_key};

/// The scales of keys and of values of a plane's tile: of key `lane + i · lanes` at `i`.
#[derive(CubeType)]
pub(super) struct ColumnScales {
    k: Array<f32>,
    v: Array<f32>,
}

/// The scales of the tile of the work item from key `at` on, if tokens have scales.
#[cube]
pub(super) fn column_scales<M: Mma>(
    qkv: &QkvVecs,
    work: &WorkTile,
    at: usize,
    #[comptime] tiles: TileShape,
) -> ComptimeOption<ColumnScales> {
    #[comptime]
    match &qkv.token_scales {
        ComptimeOption::Some(scales) => {
            let loads = comptime!(tiles.keys.div_ceil(M::PLANE));
            let power = comptime!(tiles.kv_dtype.power());
            let mut k = Array::<f32>::new(loads);
            let mut v = Array::<f32>::new(loads);
            #[unroll]
            for i in 0..loads {
                let key = at + first_key(tiles) + UNIT_POS_X as usize + comptime!(i * M::PLANE);
                let rows = &work.rows;
                // The scores of keys beyond the end are masked.
                let (of_key, of_value) =
                    scales.of(&qkv.table, &rows.request, min(key, work.end - 1), rows.kv_head);
                k[i] = of_key;
                v[i] = of_value * power;
            }
            ComptimeOption::new_Some(ColumnScales { k, v })
        }
        ComptimeOption::None => ComptimeOption::new_None(),
    }
}

/// The factor on the complete `O`, if tokens have scales.
#[cube]
pub(super) fn last_factor(qkv: &QkvVecs, #[comptime] tiles: TileShape) -> ComptimeOption<f32> {
    #[comptime]
    match &qkv.token_scales {
        ComptimeOption::Some(_) => {
            ComptimeOption::new_Some(comptime!(1.0 / tiles.kv_dtype.power()).runtime())
        }
        ComptimeOption::None => ComptimeOption::new_None(),
    }
}

/// Multiplies each score by the scale of its key.
#[cube]
pub(super) fn scale_keys<M: Mma>(s: &mut Fragment<M>, scales: &ComptimeOption<ColumnScales>) {
    #[comptime]
    match scales {
        ComptimeOption::Some(scales) => scale_columns::<M>(s, &scales.k),
        ComptimeOption::None => {}
    }
}

/// Multiplies each weight by the scale of its value.
#[cube]
pub(super) fn scale_values<M: Mma>(p: &mut Fragment<M>, scales: &ComptimeOption<ColumnScales>) {
    #[comptime]
    match scales {
        ComptimeOption::Some(scales) => scale_columns::<M>(p, &scales.v),
        ComptimeOption::None => {}
    }
}

#[cube]
fn scale_columns<M: Mma>(x: &mut Fragment<M>, scales: &Array<f32>) {
    #[unroll]
    for c in 0..x.lane_columns() {
        let step = comptime!(column_step::<M>(c));
        let scale = if comptime!(M::PLANE == 1) {
            scales[step]
        } else {
            // A tile has no more columns than there are lanes, and divides them.
            let column = (M::column() + step) % M::PLANE;
            plane_shuffle(scales[comptime!(step / M::COLUMNS * M::COLUMNS / M::PLANE)], column as u32)
        };
        #[unroll]
        for r in 0..x.lane_rows() {
            x.set(r, c, x.get(r, c) * scale);
        }
    }
}
