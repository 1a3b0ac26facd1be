//! A linear bias of the logits, `slope · (key - position)`, on the registers that hold the scores.
//!
//! It is two terms: `slope · step` within the keys of a lane, whose steps are comptime, is one fused multiply-add for each
//! score; `slope · (first key - position)` is one number for each row, lane and tile.

use cubecl::prelude::*;

use super::super::variant::Variant;
use super::lane_rows::row_of;
use crate::mma::Mma;
use crate::request::TileRows;

/// The linear bias of a lane's rows, or none.
#[derive(CubeType)]
pub(in super::super) struct LinearBias {
    slopes: Array<f32>,
    positions: Array<i32>,
    /// The term of the lane's first key of the last tile.
    shifts: Array<f32>,
    #[cube(comptime)]
    is_some: bool,
}

#[cube]
pub(super) fn linear_bias<M: Mma, V: Variant>(
    args: &V::Args,
    rows: &TileRows,
    first_row: usize,
    #[comptime] lane_rows: usize,
) -> LinearBias {
    let mut slopes = Array::<f32>::new(lane_rows);
    let mut positions = Array::<i32>::new(lane_rows);
    let shifts = Array::<f32>::new(lane_rows);
    let first = V::slope(args, &rows.at(first_row));
    let is_some = comptime!(first.is_some());
    if comptime!(is_some) {
        #[unroll]
        for r in 0..lane_rows {
            let row = rows.at(first_row + row_of::<M>(r));
            let slope = V::slope(args, &row);
            #[comptime]
            match slope {
                ComptimeOption::Some(slope) => slopes[r] = slope,
                ComptimeOption::None => {}
            }
            positions[r] = row.position();
        }
    }
    LinearBias { slopes, positions, shifts, is_some }
}

#[cube]
impl LinearBias {
    /// Begins a tile, in which `key` is the lane's first.
    pub fn begin(&mut self, #[comptime] r: usize, key: u32) {
        if comptime!(self.is_some) {
            self.shifts[r] = self.slopes[r] * f32::cast_from(key as i32 - self.positions[r]);
        }
    }

    /// `x` with the bias of the key `step` after the lane's first, but for the shift.
    pub fn add(&self, x: f32, #[comptime] r: usize, #[comptime] step: u32) -> f32 {
        let mut biased = x;
        if comptime!(self.is_some && step > 0) {
            biased = fma(self.slopes[r], comptime!(step as f32).runtime(), x);
        }
        biased
    }

    /// `x` with the shift of row `r`.
    pub fn shifted(&self, x: f32, #[comptime] r: usize) -> f32 {
        let mut shifted = x;
        if comptime!(self.is_some) {
            shifted = x + self.shifts[r];
        }
        shifted
    }

    /// `x` without the shift of row `r`.
    pub fn unshifted(&self, x: f32, #[comptime] r: usize) -> f32 {
        let mut unshifted = x;
        if comptime!(self.is_some) {
            unshifted = x - self.shifts[r];
        }
        unshifted
    }
}
