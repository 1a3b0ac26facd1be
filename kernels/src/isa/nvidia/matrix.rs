//! Products of small matrices, and their operands.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, NoMemoryEffect, NoSideEffects,
    attributes::IndexAttr,
    cube_op,
    dialect::synchronization::SyncScope,
    interfaces::{
        Synchronizes,
        side_effects::{MemoryEffect, MemoryEffectsOp},
    },
    prelude::*,
};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

#[cfg(feature = "compilers")]
use crate::isa::lowering::{Ptx, Register};

/// `d = a · b + c`, `a` 16 x 16 and `b` 16 x 8 of f16 or bf16, two elements in a register: `mma.sync` m16n8k16. With
/// `g = lane / 4` and `t = lane % 4`, the elements of a register from the low bits on:
///
/// | operand | registers of a lane |
/// |---|---|
/// | `a` | (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..) |
/// | `b` | (2t.., g), (2t + 8.., g) |
/// | `c`, `d` | (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) |
#[cube_op(name = "flashinfer.mma_sync")]
#[result_ty(same_as = c)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct MmaOp {
    pub a: Value,
    pub b0: Value,
    pub b1: Value,
    pub c: Value,
    /// 1 for bf16.
    pub bf16: IndexAttr,
}
plane_wide!(MmaOp);
lower!(MmaOp);

#[cfg(feature = "compilers")]
impl MmaOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let ty = if self.bf16(ctx).0 == 1 { "bf16" } else { "f16" };
        Ptx::value(
            format!(
                "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {}, {}, {}, {};",
                Ptx::group(0, 4),
                Ptx::group(4, 4),
                Ptx::group(8, 2),
                Ptx::group(10, 4),
            ),
            (Register::F32, 4),
            vec![
                (Register::B32, 4, self.a(ctx)),
                (Register::B32, 1, self.b0(ctx)),
                (Register::B32, 1, self.b1(ctx)),
                (Register::F32, 4, self.c(ctx)),
            ],
        )
    }
}

/// [`MmaOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn mma(
    a: Vector<u32, Const<4>>,
    b0: u32,
    b1: u32,
    c: Vector<f32, Const<4>>,
    #[comptime] bf16: bool,
) -> Vector<f32, Const<4>> {
    intrinsic!(|scope| {
        let (a, c) = (a.read_value(scope), c.read_value(scope));
        let (b0, b1) = (b0.read_value(scope), b1.read_value(scope));
        let op = MmaOp::new(scope.ctx_mut(), a, b0, b1, c, bf16 as usize);
        scope.register_with_result(&op).into()
    })
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory: `ldmatrix`. Lane `l` names the address of row `l % 8` of
/// matrix `l / 8`; register `i` holds of matrix `i` the elements (g, 2t), (g, 2t + 1), or if it is transposed (2t, g),
/// (2t + 1, g).
#[cube_op(name = "flashinfer.ldmatrix")]
#[result_ty(argument)]
#[op_traits(CanMaterialize, NoSideEffects)]
pub struct LdMatrixOp {
    pub address: Value,
    /// Bytes beyond `address`.
    pub offset: IndexAttr,
    /// 1 if so.
    pub transposed: IndexAttr,
}
plane_wide!(LdMatrixOp);
lower!(LdMatrixOp);

#[op_interface_impl]
impl MemoryEffectsOp for LdMatrixOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::ReadAll]
    }
}

#[cfg(feature = "compilers")]
impl LdMatrixOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let transposed = if self.transposed(ctx).0 == 1 { ".trans" } else { "" };
        Ptx {
            text: format!(
                "ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {}, [$4+{}];",
                Ptx::group(0, 4),
                self.offset(ctx).0
            ),
            output: Some((Register::B32, 4)),
            updated: None,
            inputs: vec![(Register::B32, 1, self.address(ctx))],
            effect: true,
        }
    }
}

/// [`LdMatrixOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn ldmatrix(
    address: u32,
    #[comptime] offset: usize,
    #[comptime] transposed: bool,
) -> Vector<u32, Const<4>> {
    intrinsic!(|scope| {
        let address = address.read_value(scope);
        let ty = <Vector<u32, Const<4>> as CubePrimitive>::__expand_as_type(scope);
        let op = LdMatrixOp::new(scope.ctx_mut(), ty, address, offset, transposed as usize);
        scope.register_with_result(&op).into()
    })
}
