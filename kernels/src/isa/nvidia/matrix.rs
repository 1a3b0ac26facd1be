//! Products of small matrices, and their operands.

use cubecl::prelude::*;

use super::instruction::ptx;

ptx! {
    /// `d = a · b + c`, `a` 16 x 16 and `b` 16 x 8 of f16 or bf16, two elements in a register: `mma.sync`
    /// m16n8k16. With `g = lane / 4` and `t = lane % 4`, the elements of a register from the low bits on:
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
        #[comptime] bf16: bool,
    ) -> d: Vector<f32, Const<4>> = WarpOp(a, b0, b1, c)
        "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {d}, {a}, {{{b0}, {b1}}}, {c};",
        ty = if bf16 { "bf16" } else { "f16" };

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
