//! Exponentials, conversions and shuffles.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, NoMemoryEffect, NoSideEffects, Pure, attributes::IndexAttr, cube_op,
    dialect::synchronization::SyncScope, interfaces::Synchronizes, prelude::*,
};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

#[cfg(feature = "compilers")]
use crate::isa::lowering::{Ptx, Register};

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
        Ptx::value("ex2.approx.ftz.f32 $0, $1;", (Register::F32, 1), vec![(Register::F32, 1, self.x(ctx))])
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

/// `1 / x` to 1 ulp, denormals flushed: `rcp.approx.ftz.f32`.
#[cube_op(name = "flashinfer.rcp")]
#[result_ty(same_as = x)]
#[op_traits(Pure, CanMaterialize)]
pub struct RcpOp {
    pub x: Value,
}
lower!(RcpOp);

#[cfg(feature = "compilers")]
impl RcpOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx::value("rcp.approx.ftz.f32 $0, $1;", (Register::F32, 1), vec![(Register::F32, 1, self.x(ctx))])
    }
}

/// [`RcpOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn reciprocal(x: f32) -> f32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        let op = RcpOp::new(scope.ctx_mut(), x);
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
        Ptx::value(
            format!("cvt.rn.{ty}.f32 $0, $2, $1;"),
            (Register::B32, 1),
            vec![(Register::F32, 1, self.low(ctx)), (Register::F32, 1, self.high(ctx))],
        )
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
        Ptx::value(
            format!("shfl.sync.bfly.b32 $0, $1, {}, 31, -1;", self.mask(ctx).0),
            (Register::F32, 1),
            vec![(Register::F32, 1, self.x(ctx))],
        )
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

/// The value of lane `lane`, all lanes being active: `shfl.sync.idx`.
#[cube_op(name = "flashinfer.shfl_idx")]
#[result_ty(same_as = x)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct ShuffleOp {
    pub x: Value,
    pub lane: Value,
}
plane_wide!(ShuffleOp);
lower!(ShuffleOp);

#[cfg(feature = "compilers")]
impl ShuffleOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx::value(
            "shfl.sync.idx.b32 $0, $1, $2, 31, -1;",
            (Register::B32, 1),
            vec![(Register::B32, 1, self.x(ctx)), (Register::B32, 1, self.lane(ctx))],
        )
    }
}

/// [`ShuffleOp`] of both halves of a number, if it has two.
#[cube]
pub(crate) fn shuffle(x: usize, lane: u32) -> usize {
    let x = x as u64;
    let low = shuffle_word(x as u32, lane);
    let high = shuffle_word((x >> 32u64) as u32, lane);
    usize::cast_from((high as u64) << 32u64 | low as u64)
}

/// The first lane's value, for all. What is the same in all lanes is known to be so then, and computed with once for the warp.
#[cube]
pub(super) fn broadcast(x: u32) -> u32 {
    shuffle_word(x, 0u32)
}

#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
fn shuffle_word(x: u32, lane: u32) -> u32 {
    intrinsic!(|scope| {
        let (x, lane) = (x.read_value(scope), lane.read_value(scope));
        let op = ShuffleOp::new(scope.ctx_mut(), x, lane);
        scope.register_with_result(&op).into()
    })
}

/// Four floats rounded to 8 bits, the first in the low ones, beyond the largest finite number clamped to it:
/// `cvt.rn.satfinite.e4m3x2.f32`, `cvt.rn.satfinite.e5m2x2.f32`. Since sm_89.
#[cube_op(name = "flashinfer.cvt_to_fp8")]
#[result_ty(argument)]
#[op_traits(Pure, CanMaterialize)]
pub struct ToFp8Op {
    pub x: Value,
    /// 1 for e5m2, else e4m3.
    pub e5m2: IndexAttr,
}
lower!(ToFp8Op);

#[cfg(feature = "compilers")]
impl ToFp8Op {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let ty = fp8(self.e5m2(ctx).0);
        Ptx::value(
            format!(
                "{{ .reg .b16 low, high; cvt.rn.satfinite.{ty}.f32 low, $2, $1; \
                 cvt.rn.satfinite.{ty}.f32 high, $4, $3; mov.b32 $0, {{low, high}}; }}"
            ),
            (Register::B32, 1),
            vec![(Register::F32, 4, self.x(ctx))],
        )
    }
}

/// Four numbers of 8 bits as f16, two in a register: `cvt.rn.f16x2.e4m3x2`, `cvt.rn.f16x2.e5m2x2`. Exact. Since sm_89.
#[cube_op(name = "flashinfer.cvt_from_fp8")]
#[result_ty(argument)]
#[op_traits(Pure, CanMaterialize)]
pub struct FromFp8Op {
    pub x: Value,
    /// 1 for e5m2, else e4m3.
    pub e5m2: IndexAttr,
}
lower!(FromFp8Op);

#[cfg(feature = "compilers")]
impl FromFp8Op {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let ty = fp8(self.e5m2(ctx).0);
        Ptx::value(
            format!(
                "{{ .reg .b16 low, high; mov.b32 {{low, high}}, $2; cvt.rn.f16x2.{ty} $0, low; \
                 cvt.rn.f16x2.{ty} $1, high; }}"
            ),
            (Register::B32, 2),
            vec![(Register::B32, 1, self.x(ctx))],
        )
    }
}

#[cfg(feature = "compilers")]
fn fp8(e5m2: usize) -> &'static str {
    if e5m2 == 1 { "e5m2x2" } else { "e4m3x2" }
}

/// [`ToFp8Op`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn to_fp8(x: Vector<f32, Const<4>>, #[comptime] e5m2: bool) -> u32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        let ty = <u32 as CubePrimitive>::__expand_as_type(scope);
        let op = ToFp8Op::new(scope.ctx_mut(), ty, x, e5m2 as usize);
        scope.register_with_result(&op).into()
    })
}

/// [`FromFp8Op`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn from_fp8(x: u32, #[comptime] e5m2: bool) -> Vector<u32, Const<2>> {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        let ty = <Vector<u32, Const<2>> as CubePrimitive>::__expand_as_type(scope);
        let op = FromFp8Op::new(scope.ctx_mut(), ty, x, e5m2 as usize);
        scope.register_with_result(&op).into()
    })
}
