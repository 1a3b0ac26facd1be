//! TMA: asynchronous copies of boxes of a tensor to shared memory, by Hopper's tensor maps.
//!
//! CubeCL's server encodes a tensor map at the launch, and CUDA copies it to the parameters of the kernel. CubeCL's LLVM
//! compiler knows buffers and scalars alone: [`TensorMapOp`] declares the parameter. A map that a cube makes itself and
//! publishes to global memory takes it 2.3 us.
//!
//! Source: PTX ISA, `cp.async.bulk.tensor`; CUDA driver API, `cuTensorMapEncodeTiled`.

use cubecl::{
    ir::ElemType,
    prelude::*,
    zspace::{Shape, Strides},
};
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::AddressSpace;
use cubecl_ir::{CanMaterialize, Pure, attributes::IndexAttr, cube_op, prelude::*, types::PointerType};
use pliron::builtin::types::{IntegerType, Signedness};

use super::instruction::ptx;
#[cfg(feature = "compilers")]
use crate::isa::lowering::parameter_address;

/// The address of the parameter `binding` of the kernel, a tensor map. It is lowered when functions are LLVM's, as
/// [`LaunchBoundOp`](super::cluster::LaunchBoundOp) is.
#[cube_op(name = "flashinfer.tensor_map")]
#[result_ty(fixed = IntegerType::get(ctx, 64, Signedness::Unsigned).into())]
#[op_traits(CanMaterialize, Pure)]
pub struct TensorMapOp {
    pub binding: IndexAttr,
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl pliron_llvm::ToLLVMDialect for TensorMapOp {
    fn rewrite(&self, ctx: &mut Context, rw: &mut DialectConversionRewriter, _: &OperandsInfo) -> Result<()> {
        let binding = self.binding(ctx).0;
        parameter_address(ctx, rw, self.get_operation(), binding)
    }
}

#[cfg(feature = "compilers")]
#[op_interface_impl]
impl OpToCPP<Cuda> for TensorMapOp {
    fn to_cpp(&self, _ctx: &Context) -> String {
        "static_assert(false, \"tensor maps are for CubeCL's LLVM compiler\");\n".into()
    }
}

/// A tensor map, an argument of a kernel.
#[derive(CubeType)]
pub(crate) struct TensorMap {
    #[cube(comptime)]
    #[allow(dead_code, reason = "the expansion reads it")]
    binding: usize,
}

#[cube]
impl TensorMap {
    /// Where copies find it.
    pub fn address(&self) -> u64 {
        intrinsic!(|scope| {
            let op = TensorMapOp::new(scope.ctx_mut(), self.binding);
            scope.register_with_result(&op).into()
        })
    }
}

impl LaunchArg for TensorMap {
    type RuntimeArg = TensorMapArg<Tiled>;
    type CompilationArg = ();

    fn register(map: Self::RuntimeArg, launcher: &mut KernelLauncher) {
        launcher.register_tensor_map(map, size_of::<[u32; 4]>());
    }

    fn expand((): &(), builder: &mut KernelBuilder) -> TensorMapExpand {
        // As `register` has it: 16 bytes.
        let element = Vector::<u32, Const<4>>::__expand_as_type(&builder.scope);
        let parameter = builder.tensor(element);
        let ty = parameter.get_type(builder.scope.ctx());
        let ty = ty.deref(builder.scope.ctx());
        match ty.downcast_ref::<PointerType>().map(|pointer| pointer.address_space) {
            Some(AddressSpace::Global(binding)) => TensorMapExpand { binding },
            _ => unreachable!("a tensor is a pointer to global memory"),
        }
    }
}

/// The tensor map of `tensor`, contiguous in the last axis. A copy is of a box of this shape, and
/// swizzles rows of 128 bytes as in [`super::Operand`]. Elements outside of the tensor are zeros.
pub(crate) fn tensor_map(tensor: TensorBinding, dtype: ElemType, boxes: &[usize]) -> TensorMapArg<Tiled> {
    // An extent is at least 1. The stride of one element means nothing, and is often 0; the driver wants whole 16 bytes.
    let shape: Vec<usize> = tensor.shape.iter().map(|&extent| extent.max(1)).collect();
    let strides = shape.iter().zip(tensor.strides.iter());
    let strides: Vec<usize> =
        strides.map(|(&extent, &stride)| if extent == 1 { 16 } else { stride }).collect();
    let tensor = TensorBinding { shape: Shape::from(shape), strides: Strides::from(strides), ..tensor };
    let args = TiledArgs { tile_size: Shape::from(boxes) };
    TensorMapArg::new(args, tensor.into_tensor_arg(), dtype)
        .with_swizzle(TensorMapSwizzle::B128)
        .with_prefetch(TensorMapPrefetch::B256)
}

ptx! {
    /// Fetches a tensor map ahead of the first copy: `prefetch.tensormap`. One lane.
    pub(crate) fn prefetch_map(map: u64) = EffectOp(map) "prefetch.tensormap [{map}];";

    /// Copies one box with the tensor map at `map`, to the same place plus `offset` bytes in the
    /// shared memory of each of the `cubes` cubes of a cluster. Its bytes count as arrivals at the same
    /// barrier of each: `cp.async.bulk.tensor`. All lanes of a warp of one cube call it and elect the one
    /// that copies. With a condition in the kernel instead, the compiler does not know the uniform values of
    /// the lanes, and 230 cycles pass between two copies.
    pub(crate) fn copy_box(
        to: u32,
        #[comptime] offset: usize,
        map: u64,
        #[comptime] column: usize,
        slot: u32,
        page: u32,
        head: u32,
        barrier: u32,
        #[comptime] cubes: usize,
    ) = EffectOp(to, map, slot, page, head, barrier)
        "{{ .reg .pred elected; .reg .b32 to, column; elect.sync _|elected, -1; \
         add.u32 to, {to}, {offset}; mov.b32 column, {column}; \
         @elected cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes{multicast} \
         [to], [{map}, {{column, {slot}, {page}, {head}}}], [{barrier}]{mask}; }}",
        multicast = if cubes == 1 { "" } else { ".multicast::cluster" },
        mask = if cubes == 1 { String::new() } else { format!(", 0x{:x}", (1 << cubes) - 1) };

    /// [`copy_box`] of matrices, to this cube alone.
    pub(crate) fn copy_matrix_box(
        to: u32,
        map: u64,
        column: u32,
        row: u32,
        matrix: u32,
        barrier: u32,
    ) = EffectOp(to, map, column, row, matrix, barrier)
        "{{ .reg .pred elected; elect.sync _|elected, -1; \
         @elected cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
         [{to}], [{map}, {{{column}, {row}, {matrix}}}], [{barrier}]; }}";
}
