//! Products of small matrices, and their operands.

use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::instruction::ptx;

/// The type of the factors of a product, whose sums are f32. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OperandType {
    F16,
    Bf16,
    /// f32 of which the upper 19 bits count.
    Tf32,
    E4m3,
}

impl OperandType {
    /// That of elements of this type; f16 for all others.
    pub fn of(dtype: ElemType) -> Self {
        match dtype {
            ElemType::Float(FloatKind::BF16) => Self::Bf16,
            ElemType::Float(FloatKind::F32 | FloatKind::TF32) => Self::Tf32,
            ElemType::Float(FloatKind::E4M3) => Self::E4m3,
            _ => Self::F16,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
            Self::E4m3 => "e4m3",
        }
    }

    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Tf32 => 4,
            Self::E4m3 => 1,
        }
    }

    /// Depth of one instruction: 32 bytes.
    pub const fn depth(self) -> usize {
        32 / self.size()
    }
}

ptx! {
    /// `d = a · b + c`, `a` 16 x 16 and `b` 16 x 8 of f16 or bf16, two elements in a register: `mma.sync`
    /// m16n8k16. Of other types the depth is as many bytes. With `g = lane / 4` and `t = lane % 4`, the elements of a
    /// register from the low bits on:
    ///
    /// | operand | registers of a lane |
    /// |---|---|
    /// | `a` | (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..) |
    /// | `b` | (2t.., g), (2t + 8.., g) |
    /// | `c`, `d` | (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) |
    pub(crate) fn mma(
        a: Vector<u32, Const<4>>,
        b0: u32,
        b1: u32,
        c: Vector<f32, Const<4>>,
        #[comptime] ty: OperandType,
    ) -> d: Vector<f32, Const<4>> = WarpOp(a, b0, b1, c)
        "mma.sync.aligned.m16n8k{depth}.row.col.f32.{ty}.{ty}.f32 {d}, {a}, {{{b0}, {b1}}}, {c};",
        depth = ty.depth(),
        ty = ty.name();

    /// Four 8 x 8 matrices of 16-bit elements from shared memory, `offset` bytes beyond `address`: `ldmatrix`. Lane `l`
    /// names the address of row `l % 8` of matrix `l / 8`; register `i` holds of matrix `i` the elements (g, 2t),
    /// (g, 2t + 1), or if it is transposed (2t, g), (2t + 1, g).
    pub(crate) fn ldmatrix(
        address: u32,
        #[comptime] offset: usize,
        #[comptime] transposed: bool,
    ) -> rows: Vector<u32, Const<4>> = WarpLoadOp(address)
        "ldmatrix.sync.aligned.m8n8.x4{way}.shared.b16 {rows}, [{address}+{offset}];",
        way = if transposed { ".trans" } else { "" };
}
