//! Products of codes on matrix units whose tiles have 16 outputs.

use cubecl::prelude::*;

use super::super::fragment::FragmentLayout;
use super::super::gemm::GemmMma;
use super::super::mfma::Mfma16;
use super::super::mma_sync::MmaSync;
use super::super::operands::Operands;
use crate::isa::amd::mfma;
use crate::isa::nvidia::{OperandType, mma};

/// A unit that multiplies codes. A tile's rows are outputs, its columns rows of `x`. All lanes of a plane call together.
#[cube]
pub(crate) trait CodeMma: GemmMma {
    /// Number of the lane among the four with the same outputs.
    fn quarter() -> usize;
    /// The lane's row of `x` in a tile.
    fn x_row() -> usize;
    /// Place of vec16 `vec` of a row of codes, in rows of `vecs` that begin at `first`.
    fn code_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize;
    /// Place of vec16 `vec` of a row of `x`; a lane's vec16s are `stride` apart, or the lanes' are.
    fn x_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize, #[comptime] side: bool) -> usize;
    /// `sum + codes · x` over four inputs of each lane. The lane's outputs are in `codes` from `first` on.
    fn multiply_codes<E: Float>(
        codes: &Array<Vector<u32, Const<2>>>,
        x: Vector<u32, Const<2>>,
        sum: Vector<f32, Self::Acc>,
        #[comptime] first: usize,
        #[comptime] bf16: bool,
    ) -> Vector<f32, Self::Acc>;
}

/// Place of a vec16 such that two rows, which eight lanes read together, differ in banks: by the vec16s of `flip`.
#[cube]
fn paired(first: usize, row: usize, vec: usize, #[comptime] vecs: usize, #[comptime] flip: usize) -> usize {
    if comptime!(vecs.is_multiple_of(8)) {
        first + row * vecs + (vec ^ (row % 2 * flip))
    } else {
        first + row * vecs + vec
    }
}

#[cube]
impl CodeMma for MmaSync {
    fn quarter() -> usize {
        UNIT_POS_X as usize % 4
    }

    fn x_row() -> usize {
        UNIT_POS_X as usize / 4
    }

    fn code_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        paired(first, row, vec, vecs, 4usize)
    }

    fn x_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize, #[comptime] side: bool) -> usize {
        paired(first, row, vec, vecs, comptime!(if side { 4usize } else { 1usize }))
    }

    fn multiply_codes<E: Float>(
        codes: &Array<Vector<u32, Const<2>>>,
        x: Vector<u32, Const<2>>,
        sum: Vector<f32, Const<4>>,
        #[comptime] first: usize,
        #[comptime] bf16: bool,
    ) -> Vector<f32, Const<4>> {
        // Outputs g and g + 8. What the instruction calls 2t and 2t + 8 are the first and the last two of four inputs.
        let (low, high) = (codes[first], codes[comptime!(first + 1)]);
        let mut a = Vector::<u32, Const<4>>::empty();
        a.insert(0usize, low.extract(0usize));
        a.insert(1usize, high.extract(0usize));
        a.insert(2usize, low.extract(1usize));
        a.insert(3usize, high.extract(1usize));
        mma(
            a,
            x.extract(0usize),
            x.extract(1usize),
            sum,
            comptime!(if bf16 { OperandType::Bf16 } else { OperandType::F16 }),
        )
    }
}

#[cube]
impl CodeMma for Mfma16 {
    fn quarter() -> usize {
        UNIT_POS_X as usize / 16
    }

    fn x_row() -> usize {
        UNIT_POS_X as usize % 16
    }

    fn code_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
        Self::key_at(first, row, vec, vecs)
    }

    fn x_at(first: usize, row: usize, vec: usize, #[comptime] vecs: usize, #[comptime] _side: bool) -> usize {
        Self::query_at(first, row, vec, vecs)
    }

    fn multiply_codes<E: Float>(
        codes: &Array<Vector<u32, Const<2>>>,
        x: Vector<u32, Const<2>>,
        sum: Vector<f32, Self::Acc>,
        #[comptime] first: usize,
        #[comptime] bf16: bool,
    ) -> Vector<f32, Self::Acc> {
        let (x, codes) = (Vector::<E, Const<4>>::reinterpret(x), Vector::reinterpret(codes[first]));
        mfma::<E, Self::Acc>(x, codes, sum, comptime!(Mfma16::ROWS), bf16)
    }
}
