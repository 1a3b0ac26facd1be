//! Products by a warpgroup, four warps the first of which has a number that 4 divides: Hopper's `wgmma`.
//!
//! The product is computed while the warps go on. Until [`wgmma_wait`] returns, no warp may access the
//! accumulators or the operands. Both are values of the operations here, so that no compiler moves a use
//! before the wait.

use cubecl::prelude::*;
use cubecl_ir::{dialect::memory::StoreOp, prelude::*, read_value};

use super::arithmetic::broadcast;
use super::instruction::{Input, Instruction, Place, Register, UpdateOp};
use super::matrix::OperandType;

/// A matrix in shared memory, in atoms of 8 rows of 128 bytes that are swizzled: the number of the 16 bytes of a row is
/// XORed with that of the row. An atom begins at a multiple of 1024 bytes. Comptime.
///
/// Rows are those of the operand's own index with the depth along them, or, transposed, rows are steps of the depth. Only
/// matrices of f16 and bf16 can be transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Operand {
    /// Rows of all atoms; the next 128 bytes of each row follow behind them.
    pub rows: usize,
    /// The rows are steps of the depth.
    pub transposed: bool,
}

impl Operand {
    /// In 16 bytes from a column of atoms to the next. Where the depth lies along rows the steps below know it.
    fn leading(self) -> usize {
        if self.transposed { self.rows * 8 } else { 1 }
    }

    /// The high half: 1024 bytes from an atom to the next in 16 bytes, and the swizzle of 128 bytes.
    fn high(self) -> usize {
        64 | 1 << 30
    }

    /// 16 bytes from the beginning to that of step `step`.
    fn step(self, step: usize) -> usize {
        if self.transposed {
            // 16 rows.
            step * 16 * 8
        } else {
            // 32 bytes along the row of an atom, then to the next atom.
            step / 4 * self.rows * 8 + step % 4 * 2
        }
    }
}

/// The shape of a product. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub ty: OperandType,
    /// Columns of the result, a multiple of 8 up to 256.
    pub columns: usize,
    /// Steps of [`OperandType::depth`].
    pub steps: usize,
    /// The accumulators begin at 0.
    pub fresh: bool,
    pub b: Operand,
}

/// The low half of what the instruction is told of an operand at a [`super::shared_address`], of which only the place
/// within the cube's own memory belongs there: above it stands the cube's rank in its cluster.
///
/// All lanes have the same one. As long as that is not known, each product needs it carried over to the
/// uniform registers, 34 of the 630 instructions of a tile of attention.
#[cube]
fn low_half(at: u32, #[comptime] operand: Operand) -> u32 {
    broadcast(at % comptime!(1u32 << 18) / 16 + comptime!((operand.leading() << 16) as u32))
}

/// `d = a · b` or `d += a · b`, `a` 64 x depth and `b` depth x columns, as one group:
/// `wgmma.fence`, a `wgmma.mma_async` for each step, `wgmma.commit_group`. A warp has 16 rows of
/// `d` and of `a`, in the layout of [`super::mma`]: tiles of 8 columns side by side.
///
/// `a` is in shared memory, of `a_rows` rows in all; `a` and `b` are [`super::shared_address`]es.
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
        wgmma(scope, d.__extract_list(scope), [a, b], a_rows, None, product);
    })
}

/// [`wgmma_shared`] with `a` in registers, 4 for a step.
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
        wgmma(scope, d.__extract_list(scope), [a, b], 0, None, product);
    })
}

/// [`wgmma_registers`] if `condition` is not 0, which is the same in all lanes of the warpgroup; else an empty group.
///
/// The branch is within the instruction. Around it, it would make the accumulators one thing or another, which a compiler
/// copies to one place: while the product is being computed.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn wgmma_registers_if(
    condition: u32,
    d: &mut Array<Vector<f32, Const<4>>>,
    a: &Array<Vector<u32, Const<4>>>,
    b: u32,
    #[comptime] product: Product,
) {
    let b = low_half(b, comptime!(product.b));
    intrinsic!(|scope| {
        let (b, condition) = (b.read_value(scope), condition.read_value(scope));
        let a = a.__extract_list(scope);
        let a = read_value(scope, a);
        wgmma(scope, d.__extract_list(scope), [a, b], 0, Some(condition), product);
    })
}

/// The product on the accumulators at `place`, with `a` in registers if it has no rows in shared memory; an empty group if
/// there is a condition and it is 0.
fn wgmma(
    scope: &Scope,
    place: Value,
    [a, b]: [Value; 2],
    a_rows: usize,
    condition: Option<Value>,
    product: Product,
) {
    let Product { ty, columns, steps, fresh, b: of_b } = product;
    let in_registers = a_rows == 0;
    let (depth, name) = (ty.depth(), ty.name());
    let a = Input { class: Register::B32, count: if in_registers { 4 * steps } else { 1 }, value: a };
    let d = Place::first(columns / 2);
    let a_place = d.next(a.count);
    let b_place = a_place.next(1);
    let descriptor = |name: &str, operand: Operand, from: Place, step: usize| {
        let (step, high) = (operand.step(step), operand.high());
        format!("add.u32 at, {from}, {step}; mov.b64 {name}, {{at, {high}}}; ")
    };
    let mut text = "{ .reg .b64 da, db; .reg .b32 at; ".to_owned();
    if condition.is_some() {
        let condition = b_place.next(1);
        // By the vote ptxas knows that the warp does not diverge; else it lets products wait for each other (C7520).
        text += &format!(
            ".reg .pred no; setp.eq.u32 no, {condition}, 0; vote.sync.all.pred no, no, 0xffffffff; \
             @no bra.uni done; "
        );
    }
    text += "wgmma.fence.sync.aligned; ";
    for step in 0..steps {
        let a = if in_registers {
            a_place.part(4 * step, 4).to_string()
        } else {
            text += &descriptor("da", Operand { rows: a_rows, transposed: false }, a_place, step);
            "da".into()
        };
        text += &descriptor("db", of_b, b_place, step);
        // In shared memory `a` may be transposed too; here it is not.
        let transposed = match (ty.size(), in_registers) {
            (2, true) => format!(", {}", usize::from(of_b.transposed)),
            (2, false) => format!(", 0, {}", usize::from(of_b.transposed)),
            _ => String::new(),
        };
        let add = usize::from(step > 0 || !fresh);
        text += &format!(
            "wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.f32.{name}.{name} {d}, {a}, db, {add}, 1, 1{transposed}; "
        );
    }
    text += if condition.is_some() { "done: " } else { "" };
    text += "wgmma.commit_group.sync.aligned; }";
    let word = |value| Input { class: Register::B32, count: 1, value };
    let inputs = [a, word(b)].into_iter().chain(condition.map(word)).collect();
    update(scope, place, columns, text, inputs, !fresh);
}

/// Replaces the accumulators at `place` by the result of an instruction, which reads them first or not.
fn update(scope: &Scope, place: Value, columns: usize, text: String, inputs: Vec<Input>, reads: bool) {
    let old = read_value(scope, place);
    let ty = old.get_type(scope.ctx());
    let output = Some((Register::F32, columns / 2));
    let instruction = Instruction { text, output, inputs, updated: reads.then_some(old) };
    let result = UpdateOp::put(scope, &instruction, ty);
    let store = StoreOp::new(scope.ctx_mut(), place, result);
    scope.register(&store);
}

/// Waits until all but the last `left` groups of products are complete: `wgmma.wait_group`. `d` is the
/// accumulator of a complete one.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn wgmma_wait(
    d: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] columns: usize,
    #[comptime] left: usize,
) {
    intrinsic!(|scope| {
        let text = format!("wgmma.wait_group.sync.aligned {left};");
        update(scope, d.__extract_list(scope), columns, text, vec![], true);
    })
}
