//! Copies to shared memory that nobody waits for.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, HasSideEffects, Pure,
    attributes::IndexAttr,
    cube_op,
    interfaces::side_effects::{MemoryEffect, MemoryEffectsOp},
    prelude::*,
};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

#[cfg(feature = "compilers")]
use crate::isa::lowering::{Ptx, shared_address_to_llvm};

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

/// [`SharedAddressOp`] of the first element: above 18 bits of place, the rank of the cube in its cluster.
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
    /// Bytes beyond `from`.
    pub from_offset: IndexAttr,
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
        let text = format!(
            "cp.async.cg.shared.global.L2::128B [$0+{}], [$1+{}], 16, $2;",
            self.offset(ctx).0,
            self.from_offset(ctx).0
        );
        Ptx::transfer(text, self.to(ctx), self.from(ctx), &[self.bytes(ctx)])
    }
}

/// [`CpAsyncOp`] from the first element of `from`, 16 bytes if `whole`, else zeros.
#[cube]
pub(crate) fn cp_async<T: CubePrimitive>(to: u32, #[comptime] offset: usize, from: &[T], whole: bool) {
    cp_async_at::<T>(to, offset, from, 0usize, whole);
}

/// [`cp_async`] from so many bytes beyond the first element, which is why the slice must reach that far.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn cp_async_at<T: CubePrimitive>(
    to: u32,
    #[comptime] offset: usize,
    from: &[T],
    #[comptime] from_offset: usize,
    whole: bool,
) {
    let bytes = select(whole, 16u32, 0u32);
    intrinsic!(|scope| {
        let (to, bytes) = (to.read_value(scope), bytes.read_value(scope));
        // SAFETY: the instruction reads what the slice holds, or nothing.
        let from = unsafe { *from.__expand_as_ptr_method(scope) }.value(scope);
        let op = CpAsyncOp::new(scope.ctx_mut(), to, from, bytes, offset, from_offset);
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
        Ptx::effect("cp.async.commit_group;", &[])
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
orders_memory!(CpAsyncWaitOp);

#[cfg(feature = "compilers")]
impl CpAsyncWaitOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx::effect(&format!("cp.async.wait_group {};", self.left(ctx).0), &[])
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
