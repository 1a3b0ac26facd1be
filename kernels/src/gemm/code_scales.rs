//! The scales of factors of 8 bits.

use cubecl::prelude::*;

use crate::device::Machine;
use crate::mma::{BLOCK, Scales};

/// The scales of two factors of e4m3.
pub(crate) struct Codes {
    /// `[1]` or `[rows]` of f32, contiguous.
    pub rows: TensorBinding,
    /// f32, contiguous, in the shape that [`Scales`] says.
    pub weight: TensorBinding,
    /// The scales of the weight.
    pub scales: Scales,
}

impl Codes {
    pub(super) fn into_args(self) -> CodeScalesLaunch {
        let (rows, blocks) = (self.rows.size(), self.weight.shape.last().copied().unwrap_or(1));
        CodeScalesLaunch::new(self.rows.into_buffer_arg(), self.weight.into_buffer_arg(), rows, blocks)
    }
}

/// `x = code · rows`, `weight = code · weight`.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct CodeScales {
    /// `[1]`, or `[rows]`.
    pub rows: Box<[f32]>,
    /// In the shape of [`Scales`].
    pub weight: Box<[f32]>,
    /// Rows of `x` with a scale of their own.
    pub row_count: usize,
    /// Blocks of inputs.
    pub blocks: usize,
}

#[cube]
impl CodeScales {
    /// The factor of the products of a block of inputs and of the block of an output.
    pub fn of_block(&self, output: usize, block: usize) -> f32 {
        self.weight[output / BLOCK * self.blocks + block]
    }

    /// The factor of all sums of a row. Rows beyond the last one have its scale.
    pub fn of_row(&self, row: usize) -> f32 {
        self.rows[min(row, self.row_count - 1)]
    }

    /// The sums of adjacent outputs of a row, times its scale and those of each. Those of blocks are in the sums.
    pub fn apply<N: Size>(
        &self,
        sums: Vector<f32, N>,
        of_row: f32,
        output: usize,
        #[comptime] of_weight: Scales,
        #[comptime] machine: Machine,
    ) -> Vector<f32, N> {
        let mut sums = sums;
        if comptime!(machine == Machine::Amd) {
            // Both factors are half of what they mean to the OCP.
            sums *= Vector::new(4.0f32);
        }
        sums *= Vector::new(of_row);
        if comptime!(of_weight == Scales::PerTensor) {
            sums *= Vector::new(self.weight[0]);
        } else if comptime!(of_weight == Scales::PerChannel) {
            let mut each = Vector::<f32, N>::empty();
            let width = N::value();
            #[unroll]
            for i in 0..width {
                each.insert(i, self.weight[output + i]);
            }
            sums *= each;
        }
        sums
    }
}
