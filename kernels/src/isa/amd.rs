//! Instructions of AMD's CDNA, for one wave of 64 lanes.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{
    shared::{CppValue, operation::OpToCPP, ty::TypeExtCPP},
    target::Hip,
};
use cubecl_ir::{
    CanMaterialize, HasSideEffects, NoMemoryEffect, NoSideEffects, Pure, attributes::IndexAttr, cube_op,
    dialect::synchronization::SyncScope, interfaces::Synchronizes, prelude::*,
};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

#[cfg(feature = "compilers")]
use super::lowering::{amdgcn, amdgcn_half, amdgcn_hint, as_shorts};

/// `d = a · b + c` over `T x T` tiles, `T` 16 (`v_mfma_f32_16x16x16_*`) or 32 (`v_mfma_f32_32x32x8_*`), `a` and `b` of
/// f16 or bf16. With `G = 64 / T` groups of lanes, lane `l` being in column `l % T` of group `l / T`:
///
/// | operand | lane `l` holds |
/// |---|---|
/// | `a`, `T x 4G` | row `l % T`, columns `4 (l / T)` to `+ 3` |
/// | `b`, `4G x T` | column `l % T`, rows `4 (l / T)` to `+ 3` |
/// | `c`, `d`, `T x T` | column `l % T`; element `e` is row `4G (e / 4) + 4 (l / T) + e % 4` |
///
/// gfx908 has the f16 forms, gfx90a and gfx942 both.
#[cube_op(name = "flashinfer.mfma")]
#[result_ty(same_as = c)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct MfmaOp {
    pub a: Value,
    pub b: Value,
    pub c: Value,
    /// `T`.
    pub tile: IndexAttr,
    /// 1 for bf16.
    pub bf16: IndexAttr,
}

#[op_interface_impl]
impl Synchronizes for MfmaOp {
    fn minimum_scope(&self, _ctx: &Context) -> SyncScope {
        SyncScope::Plane
    }
    fn maximum_scope(&self, _ctx: &Context) -> SyncScope {
        SyncScope::Plane
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl ToLLVMDialect for MfmaOp {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let (mut a, mut b, c) = (self.a(ctx), self.b(ctx), self.c(ctx));
        let (tile, bf16) = (self.tile(ctx).0, self.bf16(ctx).0 == 1);
        if bf16 {
            // The intrinsic is older than LLVM's bf16.
            (a, b) = (as_shorts(ctx, rw, a), as_shorts(ctx, rw, b));
        }
        let intrinsic = format!("llvm.amdgcn.mfma.f32.{}", builtin_suffix(tile, bf16, "."));
        amdgcn(ctx, rw, self.get_operation(), &intrinsic, vec![a, b, c], &[0, 0, 0])
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Hip> for MfmaOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let out = self.get_result(ctx);
        let ty = out.get_type(ctx).to_cpp(ctx);
        let (tile, bf16) = (self.tile(ctx).0, self.bf16(ctx).0 == 1);
        let [a, b, c] = [self.a(ctx), self.b(ctx), self.c(ctx)].map(|v| v.name(ctx).to_string());
        let element = if bf16 { "short" } else { "_Float16" };
        format!(
            "{} = [&]{{ using operand = {element} __attribute__((ext_vector_type(4))); \
             using sum = float __attribute__((ext_vector_type({}))); \
             return __builtin_bit_cast({ty}, __builtin_amdgcn_mfma_f32_{}(__builtin_bit_cast(operand, {a}), \
             __builtin_bit_cast(operand, {b}), __builtin_bit_cast(sum, {c}), 0, 0, 0)); }}();\n",
            out.fmt_left(ctx),
            tile * tile / 64,
            builtin_suffix(tile, bf16, "_"),
        )
    }
}

#[cfg(feature = "compilers")]
fn builtin_suffix(tile: usize, bf16: bool, dot: &str) -> String {
    let depth = 256 / tile;
    if bf16 { format!("{tile}x{tile}x{depth}bf16{dot}1k") } else { format!("{tile}x{tile}x{depth}f16") }
}

/// [`MfmaOp`] on tiles of `tile` rows and columns.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn mfma<E: Float, Acc: Size>(
    a: Vector<E, Const<4>>,
    b: Vector<E, Const<4>>,
    c: Vector<f32, Acc>,
    #[comptime] tile: usize,
    #[comptime] bf16: bool,
) -> Vector<f32, Acc> {
    intrinsic!(|scope| {
        let (a, b, c) = (a.read_value(scope), b.read_value(scope), c.read_value(scope));
        let op = MfmaOp::new(scope.ctx_mut(), a, b, c, tile, bf16 as usize);
        scope.register_with_result(&op).into()
    })
}

/// `2^x` to 1 ulp, denormal results flushed: `v_exp_f32`. On every AMD GPU.
#[cube_op(name = "flashinfer.v_exp_f32")]
#[result_ty(same_as = x)]
#[op_traits(Pure, CanMaterialize)]
pub struct ExpOp {
    pub x: Value,
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl ToLLVMDialect for ExpOp {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let x = self.x(ctx);
        amdgcn(ctx, rw, self.get_operation(), "llvm.amdgcn.exp2.f32", vec![x], &[])
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Hip> for ExpOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let out = self.get_result(ctx);
        format!("{} = __builtin_amdgcn_exp2f({});\n", out.fmt_left(ctx), self.x(ctx).name(ctx))
    }
}

/// [`ExpOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn exp2(x: f32) -> f32 {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        let op = ExpOp::new(scope.ctx_mut(), x);
        scope.register_with_result(&op).into()
    })
}

/// Sets the priority of the wave, 0 to 3, among those of its SIMD: `s_setprio`. On every AMD GPU.
#[cube_op(name = "flashinfer.s_setprio")]
#[result_ty(none)]
#[op_traits(CanMaterialize, NoMemoryEffect, HasSideEffects)]
pub struct SetPriorityOp {
    pub priority: IndexAttr,
}

/// Instructions do not cross it while the compiler schedules, but for the kinds in `mask`: `sched_barrier`. No
/// instruction of its own.
#[cube_op(name = "flashinfer.sched_barrier")]
#[result_ty(none)]
#[op_traits(CanMaterialize, NoMemoryEffect, HasSideEffects)]
pub struct SchedBarrierOp {
    pub mask: IndexAttr,
}

/// The next `size` instructions of the kinds in `mask` stand together, after those of the last such group:
/// `sched_group_barrier`. No instruction of its own.
#[cube_op(name = "flashinfer.sched_group_barrier")]
#[result_ty(none)]
#[op_traits(CanMaterialize, NoMemoryEffect, HasSideEffects)]
pub struct SchedGroupBarrierOp {
    pub mask: IndexAttr,
    pub size: IndexAttr,
}

/// A hint without operands: an intrinsic with immediates on LLVM, a builtin of the same name in HIP C++.
macro_rules! hint {
    ($op:ident, $intrinsic:literal, $builtin:literal, $width:literal, [$($field:ident),*], [$($last:literal)?]) => {
        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl ToLLVMDialect for $op {
            fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
                let immediates = [$(self.$field(ctx).0 as i64,)* $($last)?];
                amdgcn_hint(ctx, rw, self.get_operation(), $intrinsic, &immediates, $width)
            }
        }

        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl OpToCPP<Hip> for $op {
            fn to_cpp(&self, ctx: &Context) -> String {
                let immediates: Vec<String> = vec![$(self.$field(ctx).0.to_string(),)* $($last.to_string())?];
                format!("{}({});\n", $builtin, immediates.join(", "))
            }
        }
    };
}

hint!(SetPriorityOp, "llvm.amdgcn.s.setprio", "__builtin_amdgcn_s_setprio", 16, [priority], []);
hint!(SchedBarrierOp, "llvm.amdgcn.sched.barrier", "__builtin_amdgcn_sched_barrier", 32, [mask], []);
hint!(
    SchedGroupBarrierOp,
    "llvm.amdgcn.sched.group.barrier",
    "__builtin_amdgcn_sched_group_barrier",
    32,
    [mask, size],
    [0]
);

/// [`SetPriorityOp`].
#[cube]
pub(crate) fn set_priority(#[comptime] priority: usize) {
    intrinsic!(|scope| {
        let op = SetPriorityOp::new(scope.ctx_mut(), priority);
        scope.register(&op);
    })
}

/// [`SchedBarrierOp`].
#[cube]
pub(crate) fn sched_barrier(#[comptime] mask: usize) {
    intrinsic!(|scope| {
        let op = SchedBarrierOp::new(scope.ctx_mut(), mask);
        scope.register(&op);
    })
}

/// [`SchedGroupBarrierOp`].
#[cube]
pub(crate) fn sched_group_barrier(#[comptime] mask: usize, #[comptime] size: usize) {
    intrinsic!(|scope| {
        let op = SchedGroupBarrierOp::new(scope.ctx_mut(), mask, size);
        scope.register(&op);
    })
}

/// Two floats rounded to 8 bits in half `half` of a word whose other half is that of `old`: `v_cvt_pk_fp8_f32`,
/// `v_cvt_pk_bf8_f32`. The encodings are FNUZ on gfx940 to gfx942, which alone of CDNA have them up to CDNA3.
#[cube_op(name = "flashinfer.v_cvt_pk_fp8_f32")]
#[result_ty(same_as = old)]
#[op_traits(Pure, CanMaterialize)]
pub struct ToFp8Op {
    pub a: Value,
    pub b: Value,
    pub old: Value,
    /// 0 for the low half.
    pub half: IndexAttr,
    /// 1 for e5m2, else e4m3.
    pub e5m2: IndexAttr,
}

/// The two numbers of 8 bits in half `half` of a word: `v_cvt_pk_f32_fp8`, `v_cvt_pk_f32_bf8`. As [`ToFp8Op`].
#[cube_op(name = "flashinfer.v_cvt_pk_f32_fp8")]
#[result_ty(argument)]
#[op_traits(Pure, CanMaterialize)]
pub struct FromFp8Op {
    pub x: Value,
    /// 0 for the low half.
    pub half: IndexAttr,
    /// 1 for e5m2, else e4m3.
    pub e5m2: IndexAttr,
}

#[cfg(feature = "compilers")]
fn fp8(e5m2: usize) -> &'static str {
    if e5m2 == 1 { "bf8" } else { "fp8" }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl ToLLVMDialect for ToFp8Op {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let (a, b, old, half) = (self.a(ctx), self.b(ctx), self.old(ctx), self.half(ctx).0);
        let intrinsic = format!("llvm.amdgcn.cvt.pk.{}.f32", fp8(self.e5m2(ctx).0));
        amdgcn_half(ctx, rw, self.get_operation(), &intrinsic, vec![a, b, old], half == 1)
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl ToLLVMDialect for FromFp8Op {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let (x, half) = (self.x(ctx), self.half(ctx).0);
        let intrinsic = format!("llvm.amdgcn.cvt.pk.f32.{}", fp8(self.e5m2(ctx).0));
        amdgcn_half(ctx, rw, self.get_operation(), &intrinsic, vec![x], half == 1)
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Hip> for ToFp8Op {
    fn to_cpp(&self, ctx: &Context) -> String {
        let out = self.get_result(ctx);
        let [a, b, old] = [self.a(ctx), self.b(ctx), self.old(ctx)].map(|v| v.name(ctx).to_string());
        let (ty, half) = (fp8(self.e5m2(ctx).0), self.half(ctx).0 == 1);
        format!("{} = __builtin_amdgcn_cvt_pk_{ty}_f32({a}, {b}, {old}, {half});\n", out.fmt_left(ctx))
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Hip> for FromFp8Op {
    fn to_cpp(&self, ctx: &Context) -> String {
        let out = self.get_result(ctx);
        let ty = out.get_type(ctx).to_cpp(ctx);
        let (format, half, x) = (fp8(self.e5m2(ctx).0), self.half(ctx).0 == 1, self.x(ctx).name(ctx));
        format!(
            "{} = __builtin_bit_cast({ty}, __builtin_amdgcn_cvt_pk_f32_{format}({x}, {half}));\n",
            out.fmt_left(ctx)
        )
    }
}

/// [`ToFp8Op`] of four floats.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn to_fp8(x: Vector<f32, Const<4>>, #[comptime] e5m2: bool) -> u32 {
    let low = to_fp8_half(x.extract(0usize), x.extract(1usize), 0u32.runtime(), 0usize, e5m2);
    to_fp8_half(x.extract(2usize), x.extract(3usize), low, 1usize, e5m2)
}

#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
fn to_fp8_half(a: f32, b: f32, old: u32, #[comptime] half: usize, #[comptime] e5m2: bool) -> u32 {
    intrinsic!(|scope| {
        let (a, b, old) = (a.read_value(scope), b.read_value(scope), old.read_value(scope));
        let op = ToFp8Op::new(scope.ctx_mut(), a, b, old, half, e5m2 as usize);
        scope.register_with_result(&op).into()
    })
}

/// [`FromFp8Op`] of two of the four numbers.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn from_fp8(x: u32, #[comptime] half: usize, #[comptime] e5m2: bool) -> Vector<f32, Const<2>> {
    intrinsic!(|scope| {
        let x = x.read_value(scope);
        let ty = <Vector<f32, Const<2>> as CubePrimitive>::__expand_as_type(scope);
        let op = FromFp8Op::new(scope.ctx_mut(), ty, x, half, e5m2 as usize);
        scope.register_with_result(&op).into()
    })
}
