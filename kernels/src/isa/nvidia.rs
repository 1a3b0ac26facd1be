//! Instructions of NVIDIA's GPUs since Ampere (sm_80), for one warp of 32 lanes.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, HasSideEffects, NoMemoryEffect, NoSideEffects, Pure,
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
use super::lowering::{Ptx, Register, shared_address_to_llvm};

/// Lowers an operation to the one instruction that its `ptx` describes.
macro_rules! lower {
    ($op:ident) => {
        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl ToLLVMDialect for $op {
            fn rewrite(
                &self,
                ctx: &mut Context,
                rw: &mut DialectConversionRewriter,
                _: &OperandsInfo,
            ) -> Result<()> {
                self.ptx(ctx).to_llvm(ctx, rw, self.get_operation())
            }
        }

        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl OpToCPP<Cuda> for $op {
            fn to_cpp(&self, ctx: &Context) -> String {
                self.ptx(ctx).to_cpp(ctx, self.get_operation())
            }
        }
    };
}

/// All lanes of the warp take part.
macro_rules! plane_wide {
    ($op:ident) => {
        #[op_interface_impl]
        impl Synchronizes for $op {
            fn minimum_scope(&self, _ctx: &Context) -> SyncScope {
                SyncScope::Plane
            }
            fn maximum_scope(&self, _ctx: &Context) -> SyncScope {
                SyncScope::Plane
            }
        }
    };
}

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
        Ptx {
            text: format!(
                "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {}, {}, {}, {};",
                Ptx::group(0, 4),
                Ptx::group(4, 4),
                Ptx::group(8, 2),
                Ptx::group(10, 4),
            ),
            output: Some((Register::F32, 4)),
            inputs: vec![
                (Register::B32, 4, self.a(ctx)),
                (Register::B32, 1, self.b0(ctx)),
                (Register::B32, 1, self.b1(ctx)),
                (Register::F32, 4, self.c(ctx)),
            ],
            effect: false,
        }
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

/// The address of shared memory as the instructions want it: a 32-bit number of the shared window.
#[cube_op(name = "flashinfer.shared_address")]
#[result_ty(argument)]
#[op_traits(Pure, CanMaterialize)]
pub struct SharedAddressOp {
    pub pointer: Value,
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl ToLLVMDialect for SharedAddressOp {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let pointer = self.pointer(ctx);
        shared_address_to_llvm(ctx, rw, self.get_operation(), pointer)
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Cuda> for SharedAddressOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        use cubecl_cpp::shared::CppValue;
        let out = self.get_result(ctx);
        let pointer = self.pointer(ctx).name(ctx);
        format!("{} = static_cast<unsigned>(__cvta_generic_to_shared({pointer}));\n", out.fmt_left(ctx))
    }
}

/// [`SharedAddressOp`] of the first element.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn shared_address<T: CubePrimitive>(slice: &[T]) -> u32 {
    intrinsic!(|scope| {
        // SAFETY: only the address is taken.
        let pointer = unsafe { *slice.__expand_as_ptr_method(scope) }.value(scope);
        let ty = <u32 as CubePrimitive>::__expand_as_type(scope);
        let op = SharedAddressOp::new(scope.ctx_mut(), ty, pointer);
        scope.register_with_result(&op).into()
    })
}

/// 16 bytes from global to shared memory without waiting, zeros if `bytes` is 0 (then nothing is read): `cp.async.cg`.
#[cube_op(name = "flashinfer.cp_async")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct CpAsyncOp {
    pub to: Value,
    pub from: Value,
    pub bytes: Value,
    /// Bytes beyond `to`.
    pub offset: IndexAttr,
}
lower!(CpAsyncOp);

#[op_interface_impl]
impl MemoryEffectsOp for CpAsyncOp {
    fn memory_effects(&self, ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::Read(self.from(ctx)), MemoryEffect::WriteAll]
    }
}

#[cfg(feature = "compilers")]
impl CpAsyncOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx {
            text: format!("cp.async.cg.shared.global.L2::128B [$0+{}], [$1], 16, $2;", self.offset(ctx).0),
            output: None,
            inputs: vec![
                (Register::B32, 1, self.to(ctx)),
                (Register::Global, 1, self.from(ctx)),
                (Register::B32, 1, self.bytes(ctx)),
            ],
            effect: true,
        }
    }
}

/// [`CpAsyncOp`] from the first element of `from`, 16 bytes if `whole`, else zeros.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn cp_async<T: CubePrimitive>(to: u32, #[comptime] offset: usize, from: &[T], whole: bool) {
    let bytes = select(whole, 16u32, 0u32);
    intrinsic!(|scope| {
        let (to, bytes) = (to.read_value(scope), bytes.read_value(scope));
        // SAFETY: the instruction reads what the slice holds, or nothing.
        let from = unsafe { *from.__expand_as_ptr_method(scope) }.value(scope);
        let op = CpAsyncOp::new(scope.ctx_mut(), to, from, bytes, offset);
        scope.register(&op);
    })
}

/// Closes a group of [`CpAsyncOp`]s: `cp.async.commit_group`.
#[cube_op(name = "flashinfer.cp_async_commit")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct CpAsyncCommitOp {}
lower!(CpAsyncCommitOp);

#[op_interface_impl]
impl MemoryEffectsOp for CpAsyncCommitOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::WriteAll]
    }
}

#[cfg(feature = "compilers")]
impl CpAsyncCommitOp {
    fn ptx(&self, _ctx: &Context) -> Ptx {
        Ptx { text: "cp.async.commit_group;".into(), output: None, inputs: vec![], effect: true }
    }
}

/// [`CpAsyncCommitOp`].
#[cube]
pub(crate) fn cp_async_commit() {
    intrinsic!(|scope| {
        let op = CpAsyncCommitOp::new(scope.ctx_mut());
        scope.register(&op);
    })
}

/// Waits until all but the last `left` groups of this lane have arrived: `cp.async.wait_group`.
#[cube_op(name = "flashinfer.cp_async_wait")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct CpAsyncWaitOp {
    pub left: IndexAttr,
}
lower!(CpAsyncWaitOp);

#[op_interface_impl]
impl MemoryEffectsOp for CpAsyncWaitOp {
    fn memory_effects(&self, _ctx: &Context) -> Vec<MemoryEffect> {
        vec![MemoryEffect::ReadAll, MemoryEffect::WriteAll]
    }
}

#[cfg(feature = "compilers")]
impl CpAsyncWaitOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let text = format!("cp.async.wait_group {};", self.left(ctx).0);
        Ptx { text, output: None, inputs: vec![], effect: true }
    }
}

/// [`CpAsyncWaitOp`].
#[cube]
pub(crate) fn cp_async_wait(#[comptime] left: usize) {
    intrinsic!(|scope| {
        let op = CpAsyncWaitOp::new(scope.ctx_mut(), left);
        scope.register(&op);
    })
}

/// `2^x` to 2 ulp, denormals flushed: `ex2.approx.ftz.f32`.
#[cube_op(name = "flashinfer.ex2")]
#[result_ty(same_as = x)]
#[op_traits(Pure, CanMaterialize)]
pub struct Ex2Op {
    pub x: Value,
}
lower!(Ex2Op);

#[cfg(feature = "compilers")]
impl Ex2Op {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx {
            text: "ex2.approx.ftz.f32 $0, $1;".into(),
            output: Some((Register::F32, 1)),
            inputs: vec![(Register::F32, 1, self.x(ctx))],
            effect: false,
        }
    }
}

/// [`Ex2Op`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn exp2(x: f32) -> f32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        let op = Ex2Op::new(scope.ctx_mut(), x);
        scope.register_with_result(&op).into()
    })
}

/// Two floats rounded to f16 or bf16, `low` in the low bits: `cvt.rn.f16x2.f32`, `cvt.rn.bf16x2.f32`.
#[cube_op(name = "flashinfer.cvt_pack")]
#[result_ty(argument)]
#[op_traits(Pure, CanMaterialize)]
pub struct PackOp {
    pub low: Value,
    pub high: Value,
    /// 1 for bf16.
    pub bf16: IndexAttr,
}
lower!(PackOp);

#[cfg(feature = "compilers")]
impl PackOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let ty = if self.bf16(ctx).0 == 1 { "bf16x2" } else { "f16x2" };
        Ptx {
            text: format!("cvt.rn.{ty}.f32 $0, $2, $1;"),
            output: Some((Register::B32, 1)),
            inputs: vec![(Register::F32, 1, self.low(ctx)), (Register::F32, 1, self.high(ctx))],
            effect: false,
        }
    }
}

/// [`PackOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn pack(low: f32, high: f32, #[comptime] bf16: bool) -> u32 {
    intrinsic!(|scope| {
        let (low, high) = (low.read_value(scope), high.read_value(scope));
        let ty = <u32 as CubePrimitive>::__expand_as_type(scope);
        let op = PackOp::new(scope.ctx_mut(), ty, low, high, bf16 as usize);
        scope.register_with_result(&op).into()
    })
}

/// The value of lane `l ^ mask`, all lanes being active: `shfl.sync.bfly`. CubeCL's asks which lanes are active first.
#[cube_op(name = "flashinfer.shfl_bfly")]
#[result_ty(same_as = x)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct ShuffleXorOp {
    pub x: Value,
    pub mask: IndexAttr,
}
plane_wide!(ShuffleXorOp);
lower!(ShuffleXorOp);

#[cfg(feature = "compilers")]
impl ShuffleXorOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx {
            text: format!("shfl.sync.bfly.b32 $0, $1, {}, 31, -1;", self.mask(ctx).0),
            output: Some((Register::F32, 1)),
            inputs: vec![(Register::F32, 1, self.x(ctx))],
            effect: false,
        }
    }
}

/// [`ShuffleXorOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn shuffle_xor(x: f32, #[comptime] mask: usize) -> f32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        let op = ShuffleXorOp::new(scope.ctx_mut(), x, mask);
        scope.register_with_result(&op).into()
    })
}
