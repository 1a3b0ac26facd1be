//! The scales of factors of 8 bits.

use cubecl::prelude::*;

use super::tiles::WarpgroupTiles;
use crate::mma::{BLOCK, Scales};

/// `x = code · rows`, `weight = code · weight`; nothing for factors that are numbers.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct CodeScales {
    /// `[1]`, or `[rows]`.
    pub rows: ComptimeOption<Box<[f32]>>,
    /// In the shape of [`Scales`].
    pub weight: ComptimeOption<Box<[f32]>>,
    /// Rows of `x` with a scale of their own.
    pub row_count: usize,
    /// Blocks of inputs.
    pub blocks: usize,
}

#[cube]
impl CodeScales {
    /// The factor of the products of a block of inputs and of the block of an output.
    pub fn of_block(&self, output: usize, block: usize, #[comptime] tiles: WarpgroupTiles) -> f32 {
        let mut scale = 1.0f32;
        if comptime!(tiles.scales == Some(Scales::Block128)) {
            #[comptime]
            match &self.weight {
                ComptimeOption::Some(weight) => {
                    scale = weight[output / BLOCK * self.blocks + block];
                }
                ComptimeOption::None => {}
            }
        }
        scale
    }

    /// The factor of all sums of a row. Rows beyond the last one have its scale.
    pub fn of_row(&self, row: usize) -> f32 {
        #[comptime]
        match &self.rows {
            ComptimeOption::Some(rows) => rows[min(row, self.row_count - 1)],
            ComptimeOption::None => 1.0f32.runtime(),
        }
    }

    /// The sums of two adjacent outputs, times the scales of their row and of each.
    pub fn apply(
        &self,
        sums: Vector<f32, Const<2>>,
        of_row: f32,
        output: usize,
        #[comptime] tiles: WarpgroupTiles,
    ) -> Vector<f32, Const<2>> {
        let mut sums = sums;
        if comptime!(tiles.scales.is_some()) {
            sums *= Vector::new(of_row);
        }
        #[comptime]
        match &self.weight {
            ComptimeOption::Some(weight) => {
                if comptime!(tiles.scales == Some(Scales::PerTensor)) {
                    sums *= Vector::new(weight[0]);
                } else if comptime!(tiles.scales == Some(Scales::PerChannel)) {
                    let mut each = Vector::<f32, Const<2>>::empty();
                    each.insert(0usize, weight[output]);
                    each.insert(1usize, weight[output + 1]);
                    sums *= each;
                }
            }
            ComptimeOption::None => {}
        }
        sums
    }
}
