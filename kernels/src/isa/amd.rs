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
use super::attributes::string;
use super::attributes::{BUILTIN, IMMEDIATES, TEXT, operation};
#[cfg(feature = "compilers")]
use super::lowering::{amdgcn, as_long, as_shorts};

/// `d = a · b + c` over `T x T` tiles, `T` 16 (`v_mfma_f32_16x16x16_*`) or 32 (`v_mfma_f32_32x32x8_*`), `a` and `b` of
/// f16 or bf16. With `G = 64 / T` groups of lanes, lane `l` being in column `l % T` of group `l / T`:
///
/// | operand | lane `l` holds |
/// |---|---|
/// | `a`, `T x 4G` | row `l % T`, columns `4 (l / T)` to `+ 3` |
/// | `b`, `4G x T` | column `l % T`, rows `4 (l / T)` to `+ 3` |
/// | `c`, `d`, `T x T` | column `l % T`; element `e` is row `4G (e / 4) + 4 (l / T) + e % 4` |
///
/// With e4m3 FNUZ (`v_mfma_f32_16x16x32_fp8_fp8`, `v_mfma_f32_32x32x16_fp8_fp8`) `a` and `b` have twice the depth: 8 for each 4.
///
/// gfx908 has the f16 forms, gfx90a those of bf16 too, gfx942 all.
#[cube_op(name = "flashinfer.mfma")]
#[result_ty(same_as = c)]
#[op_traits(CanMaterialize, NoMemoryEffect, NoSideEffects)]
pub struct MfmaOp {
    pub a: Value,
    pub b: Value,
    pub c: Value,
    /// `T`.
    pub tile: IndexAttr,
    /// A [`MfmaType`].
    pub ty: IndexAttr,
}

/// The type of the factors of [`MfmaOp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MfmaType {
    F16,
    Bf16,
    /// FNUZ, 8 codes in two words.
    E4m3,
}

#[cfg(feature = "compilers")]
impl MfmaType {
    fn of(op: &MfmaOp, ctx: &Context) -> Self {
        let is = |ty: &Self| op.ty(ctx).0 == *ty as usize;
        [Self::Bf16, Self::E4m3].into_iter().find(is).unwrap_or(Self::F16)
    }

    /// The name of the instruction after `mfma_f32_`, with dots or underscores.
    fn suffix(self, tile: usize, dot: &str) -> String {
        let depth = 256 / tile;
        match self {
            Self::F16 => format!("{tile}x{tile}x{depth}f16"),
            Self::Bf16 => format!("{tile}x{tile}x{depth}bf16{dot}1k"),
            Self::E4m3 => format!("{tile}x{tile}x{}{dot}fp8{dot}fp8", 2 * depth),
        }
    }
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
        let (tile, ty) = (self.tile(ctx).0, MfmaType::of(self, ctx));
        match ty {
            MfmaType::F16 => {}
            // The intrinsic is older than LLVM's bf16.
            MfmaType::Bf16 => (a, b) = (as_shorts(ctx, rw, a), as_shorts(ctx, rw, b)),
            MfmaType::E4m3 => (a, b) = (as_long(ctx, rw, a), as_long(ctx, rw, b)),
        }
        let intrinsic = format!("llvm.amdgcn.mfma.f32.{}", ty.suffix(tile, "."));
        amdgcn(ctx, rw, self.get_operation(), &intrinsic, vec![a, b, c], &[(0, 32); 3])
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Hip> for MfmaOp {
    fn to_cpp(&self, ctx: &Context) -> String {
        let out = self.get_result(ctx);
        let ty = out.get_type(ctx).to_cpp(ctx);
        let (tile, mfma) = (self.tile(ctx).0, MfmaType::of(self, ctx));
        let [a, b, c] = [self.a(ctx), self.b(ctx), self.c(ctx)].map(|v| v.name(ctx).to_string());
        let operand = match mfma {
            MfmaType::F16 => "_Float16 __attribute__((ext_vector_type(4)))",
            MfmaType::Bf16 => "short __attribute__((ext_vector_type(4)))",
            MfmaType::E4m3 => "long",
        };
        format!(
            "{} = [&]{{ using operand = {operand}; \
             using sum = float __attribute__((ext_vector_type({}))); \
             return __builtin_bit_cast({ty}, __builtin_amdgcn_mfma_f32_{}(__builtin_bit_cast(operand, {a}), \
             __builtin_bit_cast(operand, {b}), __builtin_bit_cast(sum, {c}), 0, 0, 0)); }}();\n",
            out.fmt_left(ctx),
            tile * tile / 64,
            mfma.suffix(tile, "_"),
        )
    }
}

/// [`MfmaOp`] of f16 or bf16 on tiles of `tile` rows and columns.
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
        let ty = if bf16 { MfmaType::Bf16 } else { MfmaType::F16 };
        let op = MfmaOp::new(scope.ctx_mut(), a, b, c, tile, ty as usize);
        scope.register_with_result(&op).into()
    })
}

/// [`MfmaOp`] of e4m3 FNUZ on tiles of `tile` rows and columns.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn mfma_e4m3<Acc: Size>(
    a: Vector<u32, Const<2>>,
    b: Vector<u32, Const<2>>,
    c: Vector<f32, Acc>,
    #[comptime] tile: usize,
) -> Vector<f32, Acc> {
    intrinsic!(|scope| {
        let (a, b, c) = (a.read_value(scope), b.read_value(scope), c.read_value(scope));
        let op = MfmaOp::new(scope.ctx_mut(), a, b, c, tile, MfmaType::E4m3 as usize);
        scope.register_with_result(&op).into()
    })
}

/// An intrinsic of LLVM and a builtin of clang with the same operands, of which immediates are the last.
struct Intrinsic {
    /// Without `llvm.amdgcn.`.
    intrinsic: String,
    /// Without `__builtin_amdgcn_`.
    builtin: String,
    operands: Vec<Value>,
    /// Each with its bits.
    immediates: Vec<(usize, usize)>,
}

impl Intrinsic {
    fn operation<O: Op>(self, ctx: &mut Context, result: Vec<TypeHandle>) -> Ptr<Operation> {
        let immediates: Vec<_> = self.immediates.iter().map(|(n, bits)| format!("{n}:{bits}")).collect();
        let immediates = immediates.join(",");
        let strings =
            [(&TEXT, self.intrinsic.as_str()), (&BUILTIN, &self.builtin), (&IMMEDIATES, &immediates)];
        operation::<O>(ctx, result, self.operands, &strings)
    }

    #[cfg(feature = "compilers")]
    fn of(ctx: &Context, op: Ptr<Operation>) -> Self {
        let immediates = string(ctx, op, &IMMEDIATES);
        let immediates = immediates.split(',').filter_map(|immediate| {
            let (n, bits) = immediate.split_once(':')?;
            Some((n.parse().ok()?, bits.parse().ok()?))
        });
        Self {
            intrinsic: string(ctx, op, &TEXT),
            builtin: string(ctx, op, &BUILTIN),
            operands: op.deref(ctx).operands().collect(),
            immediates: immediates.collect(),
        }
    }
}

/// Declares an operation that represents intrinsics.
macro_rules! kind {
    ($(#[$doc:meta])* $op:ident = $name:literal, [$($interface:ty),*], [$($trait:ident),*]) => {
        $(#[$doc])*
        #[pliron_op(name = $name, format, verifier = "succ")]
        #[op_interfaces($($interface),*)]
        #[op_traits($($trait),*)]
        pub struct $op;

        impl $op {
            fn new(ctx: &mut Context, result: Vec<TypeHandle>, call: Intrinsic) -> Self {
                Self { op: call.operation::<Self>(ctx, result) }
            }
        }

        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl ToLLVMDialect for $op {
            fn rewrite(
                &self,
                ctx: &mut Context,
                rw: &mut DialectConversionRewriter,
                _: &OperandsInfo,
            ) -> Result<()> {
                let Intrinsic { intrinsic, operands, immediates, .. } = Intrinsic::of(ctx, self.get_operation());
                let intrinsic = format!("llvm.amdgcn.{intrinsic}");
                amdgcn(ctx, rw, self.get_operation(), &intrinsic, operands, &immediates)
            }
        }

        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl OpToCPP<Hip> for $op {
            fn to_cpp(&self, ctx: &Context) -> String {
                let Intrinsic { builtin, operands, immediates, .. } = Intrinsic::of(ctx, self.get_operation());
                let operands = operands.iter().map(|value| value.name(ctx).to_string());
                let immediates = immediates.iter().map(|(n, _)| n.to_string());
                let arguments: Vec<String> = operands.chain(immediates).collect();
                let call = format!("__builtin_amdgcn_{builtin}({})", arguments.join(", "));
                let operation = self.get_operation();
                if operation.deref(ctx).get_num_results() == 0 {
                    return format!("{call};\n");
                }
                let out = operation.deref(ctx).get_result(0);
                let ty = out.get_type(ctx).to_cpp(ctx);
                format!("{} = __builtin_bit_cast({ty}, {call});\n", out.fmt_left(ctx))
            }
        }
    };
}

kind! {
    /// The result depends on the operands alone.
    PureOp = "flashinfer.amdgcn_pure", [NResultsInterface<1>, OneResultInterface], [Pure, CanMaterialize]
}
kind! {
    /// Tells the hardware or the compiler something.
    HintOp = "flashinfer.amdgcn_hint", [NResultsInterface<0>], [CanMaterialize, NoMemoryEffect, HasSideEffects]
}

/// Declares intrinsics as functions of kernels. After `=` stand the operation, the arguments that are
/// operands, the name of the intrinsic as `format!` takes it, if it is another one the name of the builtin,
/// the immediates with their bits, and more names for the first.
macro_rules! amdgcn {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($params:tt)*) $(-> $ty:ty)? =
            $op:ident($($operand:ident),*) $intrinsic:tt $(or $builtin:literal)? [$($immediate:expr; $bits:literal),*]
            $(, $part:ident = $value:expr)*;
    )*) => {
        $(
            $(#[$meta])*
            #[cube]
            #[allow(unused_variables, reason = "the expansion uses them")]
            $vis fn $name($($params)*) $(-> $ty)? {
                intrinsic!(|scope| {
                    let intrinsic = format!($intrinsic $(, $part = $value)*);
                    let builtin = intrinsic.replace('.', "_");
                    $(let builtin = String::from($builtin);)?
                    let operands = vec![$($operand.read_value(scope)),*];
                    let immediates = vec![$(($immediate as usize, $bits)),*];
                    let call = Intrinsic { intrinsic, builtin, operands, immediates };
                    amdgcn!(@put $op, scope, call $(, $ty)?)
                })
            }
        )*
    };
    (@put $op:ident, $scope:ident, $call:ident) => {{
        let op = $op::new($scope.ctx_mut(), vec![], $call);
        $scope.register(&op);
    }};
    (@put $op:ident, $scope:ident, $call:ident, $ty:ty) => {{
        let ty = <$ty as CubePrimitive>::__expand_as_type($scope);
        let op = $op::new($scope.ctx_mut(), vec![ty], $call);
        $scope.register_with_result(&op).into()
    }};
}

amdgcn! {
    /// `2^x` to 1 ulp, denormal results flushed: `v_exp_f32`. On every AMD GPU.
    pub(crate) fn exp2(x: f32) -> f32 = PureOp(x) "exp2.f32" or "exp2f" [];

    /// `1 / x` to 1 ulp: `v_rcp_f32`. On every AMD GPU.
    pub(crate) fn reciprocal(x: f32) -> f32 = PureOp(x) "rcp.f32" or "rcpf" [];

    /// `(a + b + c % 2) / 2` for each byte, which has no carry into the next: `v_lerp_u8`. On every AMD GPU.
    pub(crate) fn average_bytes(a: u32, b: u32, c: u32) -> u32 = PureOp(a, b, c) "lerp" [];

    /// Sets the priority of the wave, 0 to 3, among those of its SIMD: `s_setprio`. On every AMD GPU.
    pub(crate) fn set_priority(#[comptime] priority: usize) = HintOp() "s.setprio" [priority; 16];

    /// Instructions do not cross it while the compiler schedules, but for the kinds in `mask`: `sched_barrier`. No
    /// instruction of its own.
    pub(crate) fn sched_barrier(#[comptime] mask: usize) = HintOp() "sched.barrier" [mask; 32];

    /// The next `size` instructions of the kinds in `mask` stand together, after those of the last such group:
    /// `sched_group_barrier`. No instruction of its own.
    pub(crate) fn sched_group_barrier(#[comptime] mask: usize, #[comptime] size: usize) =
        HintOp() "sched.group.barrier" [mask; 32, size; 32, 0; 32];

    /// Two floats rounded to 8 bits in half `half`, 0 for the low one, of a word whose other half is that of
    /// `old`: `v_cvt_pk_fp8_f32`, `v_cvt_pk_bf8_f32`. The encodings are FNUZ on gfx940 to gfx942, which alone
    /// of CDNA have them up to CDNA3.
    fn to_fp8_half(a: f32, b: f32, old: u32, #[comptime] half: usize, #[comptime] e5m2: bool) -> u32 =
        PureOp(a, b, old) "cvt.pk.{ty}.f32" [half; 1], ty = if e5m2 { "bf8" } else { "fp8" };

    /// The two fp8 values in half `half` of a word: `v_cvt_pk_f32_fp8`, `v_cvt_pk_f32_bf8`. As
    /// [`to_fp8_half`].
    pub(crate) fn from_fp8(x: u32, #[comptime] half: usize, #[comptime] e5m2: bool) -> Vector<f32, Const<2>> =
        PureOp(x) "cvt.pk.f32.{ty}" [half; 1], ty = if e5m2 { "bf8" } else { "fp8" };
}

/// [`to_fp8_half`] of four floats.
#[cube]
pub(crate) fn to_fp8(x: Vector<f32, Const<4>>, #[comptime] e5m2: bool) -> u32 {
    let low = to_fp8_half(x.extract(0usize), x.extract(1usize), 0u32.runtime(), 0usize, e5m2);
    to_fp8_half(x.extract(2usize), x.extract(3usize), low, 1usize, e5m2)
}
