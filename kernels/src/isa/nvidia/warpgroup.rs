//! Products by a warpgroup, four warps the first of which has a number that 4 divides: Hopper's `wgmma`.
//!
//! The product is computed while the warps go on: until [`wgmma_wait`] says that it is over, nobody may touch the
//! accumulators, nor the operands. Both are values of the operations here, so that no compiler moves a use before the wait.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, HasSideEffects,
    attributes::IndexAttr,
    cube_op,
    dialect::memory::StoreOp,
    interfaces::side_effects::{MemoryEffect, MemoryEffectsOp},
    prelude::*,
    read_value,
};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

use super::arithmetic::broadcast;
#[cfg(feature = "compilers")]
use crate::isa::lowering::{Ptx, Register};

/// Depth of one instruction.
pub(crate) const DEPTH: usize = 16;

/// A matrix of 16-bit elements in shared memory, in atoms of 8 rows of 128 bytes that are swizzled: the number of the
/// 16 bytes of a row is XORed with that of the row. An atom begins at a multiple of 1024 bytes. Comptime.
///
/// Rows are those of the operand's own index with the depth along them, or, transposed, rows are steps of the depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Operand {
    /// Rows of all atoms of 64 elements; the next 64 elements of each row follow behind them.
    pub rows: usize,
    /// Whether the rows are steps of the depth.
    pub transposed: bool,
}

impl Operand {
    /// In 16 bytes from a column of atoms to the next. Where the depth lies along rows the steps below know it.
    fn leading(self) -> usize {
        if self.transposed { self.rows * 8 } else { 1 }
    }

    /// The high half: 1024 bytes from an atom to the next in 16 bytes, and the swizzle of 128 bytes.
    #[cfg(feature = "compilers")]
    fn high(self) -> usize {
        64 | 1 << 30
    }

    /// 16 bytes from the beginning to that of step `step`.
    #[cfg(feature = "compilers")]
    fn step(self, step: usize) -> usize {
        if self.transposed {
            step * DEPTH * 8
        } else {
            // 32 bytes along the row of an atom, then to the next atom.
            step / 4 * self.rows * 8 + step % 4 * 2
        }
    }
}

/// What is multiplied. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    /// bf16, or else f16.
    pub bf16: bool,
    /// Columns of the result, a multiple of 8 up to 256.
    pub columns: usize,
    /// Steps of [`DEPTH`].
    pub steps: usize,
    /// Whether the accumulators begin at 0.
    pub fresh: bool,
    pub b: Operand,
}

/// `d = a · b` or `d += a · b`, `a` 64 x depth and `b` depth x columns of f16 or bf16, as one group:
/// `wgmma.fence`, an m64nNk16 `wgmma.mma_async` for each step, `wgmma.commit_group`. A warp has 16 rows of `d` and of `a`,
/// in the layout of [`super::mma`]: tiles of 8 columns side by side, `a` 4 registers a step.
#[cube_op(name = "flashinfer.wgmma")]
#[result_ty(same_as = d)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct WgmmaOp {
    pub d: Value,
    pub a: Value,
    pub b: Value,
    /// 1 for bf16.
    pub bf16: IndexAttr,
    pub columns: IndexAttr,
    pub steps: IndexAttr,
    /// 1 if `d` is not read.
    pub fresh: IndexAttr,
    /// Rows of `a` in shared memory; 0 if it is in registers.
    pub a_rows: IndexAttr,
    pub b_rows: IndexAttr,
    /// 1 if the rows of `b` are steps of the depth.
    pub b_transposed: IndexAttr,
}
lower!(WgmmaOp);
orders_memory!(WgmmaOp);

#[cfg(feature = "compilers")]
impl WgmmaOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let [bf16, columns, steps, fresh, a_rows, b_rows, b_transposed] = [
            self.bf16(ctx).0,
            self.columns(ctx).0,
            self.steps(ctx).0,
            self.fresh(ctx).0,
            self.a_rows(ctx).0,
            self.b_rows(ctx).0,
            self.b_transposed(ctx).0,
        ];
        let ty = if bf16 == 1 { "bf16" } else { "f16" };
        let b = Operand { rows: b_rows, transposed: b_transposed == 1 };
        let count = columns / 2;
        let d = Ptx::group(0, count);
        let a_registers = if a_rows == 0 { 4 * steps } else { 1 };
        let descriptor = |name: &str, operand: Operand, from: usize, step: usize| {
            format!(
                "add.u32 at, ${from}, {}; mov.b64 {name}, {{at, {}}}; ",
                operand.step(step),
                operand.high()
            )
        };
        let mut text = "{ .reg .b64 da, db; .reg .b32 at; wgmma.fence.sync.aligned; ".to_owned();
        for step in 0..steps {
            let a = if a_rows == 0 {
                Ptx::group(count + 4 * step, 4)
            } else {
                text += &descriptor("da", Operand { rows: a_rows, transposed: false }, count, step);
                "da".into()
            };
            text += &descriptor("db", b, count + a_registers, step);
            // In shared memory `a` may be transposed too; here it is not.
            let a_transposed = if a_rows == 0 { "" } else { "0, " };
            let add = usize::from(step > 0 || fresh == 0);
            text += &format!(
                "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{ty}.{ty} {d}, {a}, db, {add}, 1, 1, \
                 {a_transposed}{b_transposed}; "
            );
        }
        text += "wgmma.commit_group.sync.aligned; }";
        Ptx {
            text,
            output: Some((Register::F32, count)),
            updated: (fresh == 0).then(|| self.d(ctx)),
            inputs: vec![(Register::B32, a_registers, self.a(ctx)), (Register::B32, 1, self.b(ctx))],
            effect: true,
        }
    }
}

/// The low half of what the instruction is told of an operand at a [`super::shared_address`], of which only the place
/// within the cube's own memory belongs there: above it stands the cube's rank in its cluster.
///
/// All lanes have the same one. As long as that is not known, each product needs it carried over to the uniform registers,
/// 34 of the 630 instructions of a tile of attention.
#[cube]
fn low_half(at: u32, #[comptime] operand: Operand) -> u32 {
    broadcast(at % comptime!(1u32 << 18) / 16 + comptime!((operand.leading() << 16) as u32))
}

/// [`WgmmaOp`] with `a` in shared memory, of `a_rows` rows in all; `a` and `b` are [`super::shared_address`]es.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn wgmma_shared(
    d: &mut Array<Vector<f32, Const<4>>>,
    a: u32,
    b: u32,
    #[comptime] a_rows: usize,
    #[comptime] product: Product,
) {
    let a = low_half(a, comptime!(Operand { rows: a_rows, transposed: false }));
    let b = low_half(b, comptime!(product.b));
    intrinsic!(|scope| {
        let (a, b) = (a.read_value(scope), b.read_value(scope));
        let place = d.__extract_list(scope);
        let op = wgmma_op(scope, place, a, b, a_rows, product);
        update(scope, place, &op);
    })
}

/// [`WgmmaOp`] with `a` in registers; `b` is a [`super::shared_address`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn wgmma_registers(
    d: &mut Array<Vector<f32, Const<4>>>,
    a: &Array<Vector<u32, Const<4>>>,
    b: u32,
    #[comptime] product: Product,
) {
    let b = low_half(b, comptime!(product.b));
    intrinsic!(|scope| {
        let b = b.read_value(scope);
        let a = a.__extract_list(scope);
        let a = read_value(scope, a);
        let place = d.__extract_list(scope);
        let op = wgmma_op(scope, place, a, b, 0, product);
        update(scope, place, &op);
    })
}

/// The operation on the accumulators at `place`.
fn wgmma_op(scope: &Scope, place: Value, a: Value, b: Value, a_rows: usize, product: Product) -> WgmmaOp {
    let Product { bf16, columns, steps, fresh, b: of_b } = product;
    let d = read_value(scope, place);
    let ctx = scope.ctx_mut();
    let [bf16, fresh, transposed] = [bf16, fresh, of_b.transposed].map(usize::from);
    WgmmaOp::new(ctx, d, a, b, bf16, columns, steps, fresh, a_rows, of_b.rows, transposed)
}

/// Does an operation, and puts its result at `place`.
fn update(scope: &Scope, place: Value, op: &dyn OneResultInterface) {
    let result = scope.register_with_result(op);
    let store = StoreOp::new(scope.ctx_mut(), place, result);
    scope.register(&store);
}

/// Waits until all but the last `left` groups of products are over: `wgmma.wait_group`. `d` is what one of those left.
#[cube_op(name = "flashinfer.wgmma_wait")]
#[result_ty(same_as = d)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct WgmmaWaitOp {
    pub d: Value,
    pub columns: IndexAttr,
    pub left: IndexAttr,
}
lower!(WgmmaWaitOp);
orders_memory!(WgmmaWaitOp);

#[cfg(feature = "compilers")]
impl WgmmaWaitOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx {
            text: format!("wgmma.wait_group.sync.aligned {};", self.left(ctx).0),
            output: Some((Register::F32, self.columns(ctx).0 / 2)),
            updated: Some(self.d(ctx)),
            inputs: vec![],
            effect: true,
        }
    }
}

/// [`WgmmaWaitOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn wgmma_wait(
    d: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] columns: usize,
    #[comptime] left: usize,
) {
    intrinsic!(|scope| {
        let place = d.__extract_list(scope);
        let d = read_value(scope, place);
        let op = WgmmaWaitOp::new(scope.ctx_mut(), d, columns, left);
        update(scope, place, &op);
    })
}
