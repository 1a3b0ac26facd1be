//! PTX instructions as operations of CubeCL's IR: the table's language.
//!
//! `ptx!` declares instructions as functions of kernels. A few operations represent all of them: instructions
//! differ in their text, and operations differ in the freedom of the optimiser.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, HasSideEffects, NoMemoryEffect, NoSideEffects, Pure,
    dialect::synchronization::SyncScope,
    interfaces::{
        Synchronizes, TypedExt,
        side_effects::{MemoryEffect, MemoryEffectsOp},
    },
    prelude::*,
};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

pub(super) use super::register::Register;
#[cfg(feature = "compilers")]
use crate::isa::attributes::string;
use crate::isa::attributes::{REGISTERS, TEXT, operation};
#[cfg(feature = "compilers")]
use crate::isa::lowering::Ptx;

/// A type whose values are registers: a scalar, or a vector with one for each element.
pub(super) trait InRegisters {
    const CLASS: Register;
    const COUNT: usize;
}

impl InRegisters for f32 {
    const CLASS: Register = Register::F32;
    const COUNT: usize = 1;
}

impl InRegisters for u32 {
    const CLASS: Register = Register::B32;
    const COUNT: usize = 1;
}

impl InRegisters for u64 {
    const CLASS: Register = Register::B64;
    const COUNT: usize = 1;
}

impl<T: Scalar + InRegisters, const N: usize> InRegisters for Vector<T, Const<N>> {
    const CLASS: Register = T::CLASS;
    const COUNT: usize = N;
}

/// An operand of an instruction.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub class: Register,
    pub count: usize,
    pub value: Value,
}

/// A variable of a kernel as an operand.
pub(super) trait AsInput {
    fn input(&self, scope: &Scope) -> Input;
}

impl<T: CubePrimitive + InRegisters> AsInput for NativeExpand<T> {
    fn input(&self, scope: &Scope) -> Input {
        Input { class: T::CLASS, count: T::COUNT, value: self.read_value(scope) }
    }
}

/// The address of the first element.
impl<T: CubePrimitive> AsInput for NativeExpand<[T]> {
    fn input(&self, scope: &Scope) -> Input {
        // SAFETY: only the address is taken; the instruction accesses what the slice holds.
        let value = unsafe { *self.__expand_as_ptr_method(scope) }.value(scope);
        Input { class: Register::Global, count: 1, value }
    }
}

/// The registers of a value in the text of an instruction: `$i`, or if there are several `{$i, …}`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    first: usize,
    count: usize,
}

impl Place {
    /// That of the result.
    pub(super) fn first(count: usize) -> Self {
        Self { first: 0, count }
    }

    /// That of the next operand.
    pub(super) fn next(self, count: usize) -> Self {
        Self { first: self.first + self.count, count }
    }

    /// One of the registers.
    pub(super) fn at(self, i: usize) -> Self {
        self.part(i, 1)
    }

    /// Some of the registers.
    pub(super) fn part(self, first: usize, count: usize) -> Self {
        Self { first: self.first + first, count }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = (self.first..self.first + self.count).map(|i| format!("${i}")).collect();
        if self.count == 1 { f.write_str(&names.concat()) } else { write!(f, "{{{}}}", names.join(", ")) }
    }
}

/// One instruction, or some that stand together.
pub(super) struct Instruction {
    pub text: String,
    /// Class and number of the registers of the result.
    pub output: Option<(Register, usize)>,
    pub inputs: Vec<Input>,
    /// The value whose registers become those of the result.
    pub updated: Option<Value>,
}

impl Instruction {
    /// Classes and numbers of all registers as an attribute holds them: result, `=` or `+` if it is updated, operands.
    fn registers(&self) -> String {
        let name = |class: Register, count: usize| format!("{}{count}", class.letter());
        let output = self.output.map_or_else(String::new, |(class, count)| name(class, count));
        let inputs: Vec<String> = self.inputs.iter().map(|input| name(input.class, input.count)).collect();
        format!("{output}{}{}", if self.updated.is_some() { '+' } else { '=' }, inputs.join(","))
    }

    fn values(&self) -> Vec<Value> {
        self.inputs.iter().map(|input| input.value).chain(self.updated).collect()
    }
}

/// The instruction of an operation.
#[cfg(feature = "compilers")]
fn ptx_of(ctx: &Context, op: Ptr<Operation>, effect: bool) -> Ptx {
    let (text, registers) = (string(ctx, op, &TEXT), string(ctx, op, &REGISTERS));
    let parsed = |name: &str| (Register::of_letter(&name[..1]), name[1..].parse().unwrap_or(1));
    let (output, inputs) = registers.split_once(['=', '+']).unwrap_or_default();
    let output = (!output.is_empty()).then(|| parsed(output));
    let values: Vec<Value> = op.deref(ctx).operands().collect();
    let names = inputs.split(',').filter(|name| !name.is_empty());
    let inputs = names.zip(&values).map(|(name, &value)| {
        let (class, count) = parsed(name);
        (class, count, value)
    });
    let updated = values.last().copied().filter(|_| registers.contains('+'));
    Ptx { text, output, updated, inputs: inputs.collect(), effect }
}

/// An operation that represents instructions; `$effect` if they access memory or wait.
macro_rules! kind {
    ($(#[$doc:meta])* $op:ident = $name:literal, [$($interface:ty),*], [$($trait:ident),*], $effect:literal) => {
        $(#[$doc])*
        #[pliron_op(name = $name, format, verifier = "succ")]
        #[op_interfaces($($interface),*)]
        #[op_traits($($trait),*)]
        pub struct $op;

        impl $op {
            fn new(ctx: &mut Context, result: Vec<TypeHandle>, instruction: &Instruction) -> Self {
                let strings = [(&TEXT, instruction.text.as_str()), (&REGISTERS, &instruction.registers())];
                Self { op: operation::<Self>(ctx, result, instruction.values(), &strings) }
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
                ptx_of(ctx, self.get_operation(), $effect).to_llvm(ctx, rw, self.get_operation())
            }
        }

        #[cfg(feature = "compilers")]
        #[op_interface_impl]
        impl OpToCPP<Cuda> for $op {
            fn to_cpp(&self, ctx: &Context) -> String {
                ptx_of(ctx, self.get_operation(), $effect).to_cpp(ctx, self.get_operation())
            }
        }
    };
}

/// The kernel's side of an operation with a result.
macro_rules! with_result {
    ($($op:ident),*) => {
        $(impl $op {
            /// Puts the instruction into the kernel.
            pub(super) fn put(scope: &Scope, instruction: &Instruction, ty: TypeHandle) -> Value {
                let op = Self::new(scope.ctx_mut(), vec![ty], instruction);
                scope.register_with_result(&op)
            }
        })*
    };
}

/// The kernel's side of an operation without a result.
macro_rules! without_result {
    ($($op:ident),*) => {
        $(impl $op {
            /// Puts the instruction into the kernel.
            pub(super) fn put(scope: &Scope, instruction: &Instruction) {
                let op = Self::new(scope.ctx_mut(), vec![], instruction);
                scope.register(&op);
            }
        })*
    };
}

kind! {
    /// The result depends on the operands alone.
    PureOp = "flashinfer.ptx_pure",
    [NResultsInterface<1>, OneResultInterface], [Pure, CanMaterialize], false
}
kind! {
    /// The result depends on the operands of all lanes of the warp.
    WarpOp = "flashinfer.ptx_warp",
    [NResultsInterface<1>, OneResultInterface], [CanMaterialize, NoMemoryEffect, NoSideEffects], false
}
kind! {
    /// The warp reads memory.
    WarpLoadOp = "flashinfer.ptx_warp_load",
    [NResultsInterface<1>, OneResultInterface], [CanMaterialize, NoSideEffects], true
}
kind! {
    /// Comes after every access to memory before it, and before every one after it.
    EffectOp = "flashinfer.ptx_effect",
    [NResultsInterface<0>], [CanMaterialize, HasSideEffects], true
}
kind! {
    /// [`EffectOp`] with a result.
    UpdateOp = "flashinfer.ptx_update",
    [NResultsInterface<1>, OneResultInterface], [CanMaterialize, HasSideEffects], true
}
kind! {
    /// Copies from global memory later, or has to do with such copies.
    CopyOp = "flashinfer.ptx_copy",
    [NResultsInterface<0>], [CanMaterialize, HasSideEffects], true
}
with_result!(PureOp, WarpOp, WarpLoadOp, UpdateOp);
without_result!(EffectOp, CopyOp);

/// All lanes of the warp take part.
macro_rules! plane_wide {
    ($($op:ident),*) => {
        $(#[op_interface_impl]
        impl Synchronizes for $op {
            fn minimum_scope(&self, _ctx: &Context) -> SyncScope {
                SyncScope::Plane
            }
            fn maximum_scope(&self, _ctx: &Context) -> SyncScope {
                SyncScope::Plane
            }
        })*
    };
}

macro_rules! memory {
    ($op:ident, $this:ident, $ctx:ident, $effects:expr) => {
        #[op_interface_impl]
        impl MemoryEffectsOp for $op {
            fn memory_effects(&self, $ctx: &Context) -> Vec<MemoryEffect> {
                let $this = self;
                $effects
            }
        }
    };
}

plane_wide!(WarpOp, WarpLoadOp);
memory!(WarpLoadOp, _op, _ctx, vec![MemoryEffect::ReadAll]);
memory!(EffectOp, _op, _ctx, vec![MemoryEffect::ReadAll, MemoryEffect::WriteAll]);
memory!(UpdateOp, _op, _ctx, vec![MemoryEffect::ReadAll, MemoryEffect::WriteAll]);
memory!(CopyOp, op, ctx, {
    // The pointer that the address was taken of is the only operand in global memory.
    let operation = op.get_operation();
    let pointers = operation.deref(ctx).operands().filter(|value| value.is_ptr(ctx)).collect::<Vec<_>>();
    pointers.into_iter().map(MemoryEffect::Read).chain([MemoryEffect::WriteAll]).collect()
});

/// Declares instructions as functions of kernels:
///
/// ```text
/// ptx! {
///     /// `2^x`.
///     fn exp2(x: f32) -> y: f32 = PureOp(x) "ex2.approx.ftz.f32 {y}, {x};";
/// }
/// ```
///
/// After `=` stand the operation, the arguments that are operands, and the text as `format!` takes it: the
/// result and the operands are registers there, comptime arguments are values, and more names may follow.
/// Operands are scalars, vectors with a register for each element, and slices, of which the address in global
/// memory is meant.
macro_rules! ptx {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$t:ident>)? ($($params:tt)*) $(-> $out:ident: $ty:ty)? =
            $op:ident($($input:ident),*) $text:tt $(, $part:ident = $value:expr)*;
    )*) => {
        $(
            $(#[$meta])*
            #[cube]
            #[allow(clippy::too_many_arguments, reason = "as many as the instruction has")]
            #[allow(unused_variables, reason = "the expansion uses them")]
            $vis fn $name $(<$t: CubePrimitive>)? ($($params)*) $(-> $ty)? {
                intrinsic!(|scope| {
                    use $crate::isa::nvidia::instruction as table;
                    #[allow(unused_imports, reason = "not every instruction has operands or a result")]
                    use table::{AsInput as _, InRegisters as _};
                    let place = table::Place::first(0);
                    let output: Option<(table::Register, usize)> = None;
                    $(
                        let place = table::Place::first(<$ty>::COUNT);
                        let ($out, output) = (place, Some((<$ty>::CLASS, <$ty>::COUNT)));
                    )?
                    let mut inputs: Vec<table::Input> = vec![];
                    $(
                        inputs.push($input.input(scope));
                        let place = place.next(inputs[inputs.len() - 1].count);
                        let $input = place;
                    )*
                    let text = format!($text $(, $part = $value)*);
                    let instruction = table::Instruction { text, output, inputs, updated: None };
                    ptx!(@put $op, scope, instruction $(, $ty)?)
                })
            }
        )*
    };
    (@put $op:ident, $scope:ident, $instruction:ident) => {
        table::$op::put($scope, &$instruction)
    };
    (@put $op:ident, $scope:ident, $instruction:ident, $ty:ty) => {
        table::$op::put($scope, &$instruction, <$ty as CubePrimitive>::__expand_as_type($scope)).into()
    };
}
pub(super) use ptx;
