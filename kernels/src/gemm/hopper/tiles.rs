use cubecl::ir::{ElemType, FloatKind};

use super::super::epilogue::Steps;
use crate::isa::nvidia::{Operand, OperandType};

/// Producer warps, one of which copies: registers are assigned to warpgroups.
pub(super) const PRODUCERS: usize = 4;
/// Consumer warps: two warpgroups.
pub(super) const CONSUMERS: usize = 8;
/// Rows of `x` of a cube: 64 for each consumer warpgroup.
pub(crate) const ROWS: usize = CONSUMERS * 16;
/// Bytes of a row of a stage.
pub(super) const ROW_BYTES: usize = 128;

/// The tile of a cube and its ring. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct WarpgroupTiles {
    /// Rows of the weight of a tile: a multiple of 32 up to 256.
    pub outputs: usize,
    /// Stages of the ring.
    pub stages: usize,
    /// Cubes of a cluster, with different parts of the inputs of a tile.
    pub cluster: usize,
    /// Type of `x` and the matrices.
    pub operands: OperandType,
    /// Type of `y`.
    pub y: ElemType,
    /// The rows of a matrix are its inputs.
    pub by_input: bool,
    /// The epilogue.
    pub steps: Steps,
}

impl WarpgroupTiles {
    /// `y` is bf16.
    pub fn bf16(&self) -> bool {
        self.y == ElemType::Float(FloatKind::BF16)
    }

    /// `y` is f32.
    pub fn wide(&self) -> bool {
        self.y == ElemType::Float(FloatKind::F32)
    }

    /// Inputs of a stage.
    pub fn inputs(&self) -> usize {
        ROW_BYTES / self.operands.size()
    }

    /// Columns of `y` of a tile.
    pub fn columns(&self) -> usize {
        self.outputs / self.steps.halves()
    }

    /// The matrix in a stage, for the instruction.
    pub fn weights(&self) -> Operand {
        let rows = if self.by_input { self.inputs() } else { self.outputs };
        Operand { rows, transposed: self.by_input }
    }

    /// The box of the matrices of a copy, `[1, rows, elements]`, and the number of copies for a stage.
    pub fn weight_boxes(&self) -> ([usize; 3], usize) {
        match self.by_input {
            true => ([1, self.inputs(), self.inputs()], self.outputs / self.inputs()),
            false => ([1, self.columns(), self.inputs()], self.steps.halves()),
        }
    }

    /// Bytes of `x` in a stage; those of `weight` follow.
    pub fn x_bytes(&self) -> usize {
        ROWS * ROW_BYTES
    }

    /// Bytes of a stage.
    pub fn stage_bytes(&self) -> usize {
        self.x_bytes() + self.outputs * ROW_BYTES
    }

    /// Offset of the barriers, in bytes: a full one and an empty one for each stage.
    pub fn barriers_at(&self) -> usize {
        self.stages * self.stage_bytes()
    }

    /// Words between two rows of a part, so that the lanes of a plane write to different banks.
    pub fn part_words(&self) -> usize {
        self.outputs + 4
    }

    /// Shared memory of so many stages, in vectors of 16 bytes. A part takes the place of the stages, which it does not
    /// exceed.
    pub fn shared_vecs(outputs: usize, stages: usize) -> usize {
        stages * ((ROWS + outputs) * ROW_BYTES / 16 + 1)
    }
}
