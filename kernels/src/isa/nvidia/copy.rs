//! Asynchronous copies to shared memory.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{CanMaterialize, Pure, cube_op, prelude::*};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

use super::instruction::ptx;
#[cfg(feature = "compilers")]
use crate::isa::lowering::shared_address_to_llvm;

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

ptx! {
    /// Copies 16 bytes from global to shared memory without waiting, zeros if `bytes` is 0 (then nothing is
    /// read): `cp.async.cg`. Both places have offsets in bytes.
    fn cp_async_16<T>(
        to: u32,
        from: &[T],
        bytes: u32,
        #[comptime] offset: usize,
        #[comptime] from_offset: usize,
    ) = CopyOp(to, from, bytes) "cp.async.cg.shared.global.L2::128B [{to}+{offset}], [{from}+{from_offset}], 16, {bytes};";

    /// Closes a group of [`cp_async`]s: `cp.async.commit_group`.
    pub(crate) fn cp_async_commit() = CopyOp() "cp.async.commit_group;";

    /// Waits until all but the last `left` groups of this lane have arrived: `cp.async.wait_group`.
    pub(crate) fn cp_async_wait(#[comptime] left: usize) = EffectOp() "cp.async.wait_group {left};";
}

/// Copies 16 bytes from the first element of `from` without waiting if `whole`, else zeros.
#[cube]
pub(crate) fn cp_async<T: CubePrimitive>(to: u32, #[comptime] offset: usize, from: &[T], whole: bool) {
    cp_async_at::<T>(to, offset, from, 0usize, whole);
}

/// [`cp_async`] from so many bytes beyond the first element, which is why the slice must reach that far.
#[cube]
pub(crate) fn cp_async_at<T: CubePrimitive>(
    to: u32,
    #[comptime] offset: usize,
    from: &[T],
    #[comptime] from_offset: usize,
    whole: bool,
) {
    cp_async_16::<T>(to, from, select(whole, 16u32, 0u32), offset, from_offset);
}
