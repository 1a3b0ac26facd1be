//! Copies of boxes of a tensor to shared memory, by a unit of their own: Hopper's tensor maps.
//!
//! The descriptor of a tensor is made on the device, since CubeCL passes buffers and numbers alone: its fields are set in
//! shared memory ([`map_rows`]), and it is published to global memory ([`publish_map`]), where copies look for it
//! ([`acquire_map`]).
//!
//! Source: PTX ISA, `tensormap.replace` and `cp.async.bulk.tensor`.

use cubecl::prelude::*;
#[cfg(feature = "compilers")]
use cubecl_cpp::{shared::operation::OpToCPP, target::Cuda};
use cubecl_ir::{
    CanMaterialize, HasSideEffects,
    attributes::IndexAttr,
    cube_op,
    interfaces::side_effects::{MemoryEffect, MemoryEffectsOp},
    prelude::*,
};
#[cfg(feature = "compilers")]
use cubecl_llvm::shared::to_llvm::ToLLVMDialect;

#[cfg(feature = "compilers")]
use crate::isa::lowering::{Ptx, Register};

/// Bytes of a descriptor.
pub(crate) const MAP_BYTES: usize = 128;

/// Sets all fields of a descriptor in shared memory: rows of `columns` elements of 16 bits, by slot, page and head, in
/// boxes of 64 columns and `box_rows` slots, which a copy swizzles as [`super::Operand`] says. One lane.
#[cube_op(name = "flashinfer.map_rows")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct MapRowsOp {
    pub map: Value,
    pub from: Value,
    pub box_rows: Value,
    pub slots: Value,
    pub pages: Value,
    pub heads: Value,
    /// Strides in 16 bytes.
    pub slot_stride: Value,
    pub page_stride: Value,
    pub head_stride: Value,
    pub columns: IndexAttr,
}
lower!(MapRowsOp);
orders_memory!(MapRowsOp);

#[cfg(feature = "compilers")]
impl MapRowsOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let mut text = "{ .reg .b64 bytes; ".to_owned();
        for at in (0..MAP_BYTES).step_by(8) {
            text += &format!("st.shared.b64 [$0+{at}], 0; ");
        }
        let mut set = |field: &str, bits: usize, value: &str| {
            text += &format!("tensormap.replace.tile.{field}.shared::cta.b1024.b{bits} [$0], {value}; ");
        };
        set("global_address", 64, "$1");
        // Four dimensions, counted from 0.
        set("rank", 32, "3");
        for (dim, (size, rows)) in
            [(self.columns(ctx).0.to_string().as_str(), "64"), ("$3", "$2"), ("$4", "1"), ("$5", "1")]
                .into_iter()
                .enumerate()
        {
            set("global_dim", 32, &format!("{dim}, {size}"));
            set("box_dim", 32, &format!("{dim}, {rows}"));
            set("element_stride", 32, &format!("{dim}, 1"));
        }
        // Of 16 bits, not interleaved, 128 bytes swizzled, zeros outside.
        for (field, value) in
            [("elemtype", "1"), ("interleave_layout", "0"), ("swizzle_mode", "3"), ("fill_mode", "0")]
        {
            set(field, 32, value);
        }
        for (dim, stride) in ["$6", "$7", "$8"].into_iter().enumerate() {
            text += &format!(
                "mul.wide.u32 bytes, {stride}, 16; \
                 tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [$0], {dim}, bytes; "
            );
        }
        text += "}";
        let numbers = [
            self.box_rows(ctx),
            self.slots(ctx),
            self.pages(ctx),
            self.heads(ctx),
            self.slot_stride(ctx),
            self.page_stride(ctx),
            self.head_stride(ctx),
        ];
        Ptx::transfer(text, self.map(ctx), self.from(ctx), &numbers)
    }
}

/// [`MapRowsOp`] of `[pages, slots, heads, columns]` at this [`super::shared_address`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn map_rows<T: CubePrimitive>(
    map: u32,
    from: &Tensor<T>,
    box_rows: u32,
    #[comptime] columns: usize,
) {
    let (pages, slots, heads) = (from.shape(0) as u32, from.shape(1) as u32, from.shape(2) as u32);
    let page_stride = (from.stride(0) / 8) as u32;
    let slot_stride = (from.stride(1) / 8) as u32;
    let head_stride = (from.stride(2) / 8) as u32;
    let first = &from[0..1];
    intrinsic!(|scope| {
        let [map, box_rows, slots, pages, heads, slot_stride, page_stride, head_stride] =
            [map, box_rows, slots, pages, heads, slot_stride, page_stride, head_stride]
                .map(|number| number.read_value(scope));
        // SAFETY: only the address is taken. Copies read what the tensor has.
        let from = unsafe { *first.__expand_as_ptr_method(scope) }.value(scope);
        let ctx = scope.ctx_mut();
        let op = MapRowsOp::new(
            ctx,
            map,
            from,
            box_rows,
            slots,
            pages,
            heads,
            slot_stride,
            page_stride,
            head_stride,
            columns,
        );
        scope.register(&op);
    })
}

/// Copies a descriptor from shared to global memory, for those that [`acquire_map`]: `tensormap.cp_fenceproxy`. All lanes of
/// the warp.
#[cube_op(name = "flashinfer.publish_map")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct PublishMapOp {
    pub map: Value,
    pub to: Value,
}
lower!(PublishMapOp);
orders_memory!(PublishMapOp);

#[cfg(feature = "compilers")]
impl PublishMapOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let text = format!(
            "bar.warp.sync 0xffffffff; \
             tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned \
             [$1], [$0], {MAP_BYTES};"
        );
        Ptx::transfer(text, self.map(ctx), self.to(ctx), &[])
    }
}

/// [`PublishMapOp`] to the first [`MAP_BYTES`] of the slice, which begins at a multiple of them.
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn publish_map<T: CubePrimitive>(map: u32, to: &mut [T]) {
    intrinsic!(|scope| {
        let map = map.read_value(scope);
        // SAFETY: the instruction writes what the slice holds.
        let to = unsafe { *to.__expand_as_ptr_method(scope) }.value(scope);
        let op = PublishMapOp::new(scope.ctx_mut(), map, to);
        scope.register(&op);
    })
}

/// Makes a descriptor that was published, by this warp or by a kernel before this one, known to the unit that copies:
/// `fence.proxy.tensormap`.
#[cube_op(name = "flashinfer.acquire_map")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct AcquireMapOp {
    pub map: Value,
}
lower!(AcquireMapOp);
orders_memory!(AcquireMapOp);

#[cfg(feature = "compilers")]
impl AcquireMapOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        Ptx {
            text: format!("fence.proxy.tensormap::generic.acquire.gpu [$0], {MAP_BYTES};"),
            output: None,
            updated: None,
            inputs: vec![(Register::Global, 1, self.map(ctx))],
            effect: true,
        }
    }
}

/// [`AcquireMapOp`].
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn acquire_map<T: CubePrimitive>(map: &[T]) {
    intrinsic!(|scope| {
        // SAFETY: only the address is taken.
        let map = unsafe { *map.__expand_as_ptr_method(scope) }.value(scope);
        let op = AcquireMapOp::new(scope.ctx_mut(), map);
        scope.register(&op);
    })
}

/// Copies one box to the same place in shared memory of each cube of a cluster; its bytes count as arrivals at the same
/// barrier of each: `cp.async.bulk.tensor`. All lanes of a warp of one of the cubes, which elect the one that copies: behind a
/// condition of one's own, what the lanes have in common is not known to be so, and 230 cycles go by between two copies.
#[cube_op(name = "flashinfer.copy_box")]
#[result_ty(none)]
#[op_traits(CanMaterialize, HasSideEffects)]
pub struct CopyBoxOp {
    pub to: Value,
    pub map: Value,
    pub slot: Value,
    pub page: Value,
    pub head: Value,
    pub barrier: Value,
    /// Bytes beyond `to`.
    pub offset: IndexAttr,
    /// First column.
    pub column: IndexAttr,
    /// Cubes of the cluster.
    pub cubes: IndexAttr,
}
lower!(CopyBoxOp);
orders_memory!(CopyBoxOp);

#[cfg(feature = "compilers")]
impl CopyBoxOp {
    fn ptx(&self, ctx: &Context) -> Ptx {
        let cubes = self.cubes(ctx).0;
        let all = format!("0x{:x}", (1 << cubes) - 1);
        let (multicast, mask) = match cubes {
            1 => ("", "".into()),
            _ => (".multicast::cluster", format!(", {all}")),
        };
        let text = format!(
            "{{ .reg .pred elected; .reg .b32 to, column; elect.sync _|elected, -1; \
             add.u32 to, $0, {}; mov.b32 column, {}; \
             @elected cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes{multicast} \
             [to], [$1, {{column, $2, $3, $4}}], [$5]{mask}; }}",
            self.offset(ctx).0,
            self.column(ctx).0,
        );
        let numbers = [self.slot(ctx), self.page(ctx), self.head(ctx), self.barrier(ctx)];
        Ptx::transfer(text, self.to(ctx), self.map(ctx), &numbers)
    }
}

/// [`CopyBoxOp`] by the descriptor that was published to `map`.
#[allow(clippy::too_many_arguments, reason = "two places")]
#[cube]
#[allow(unused_variables, reason = "the expansion uses them")]
pub(crate) fn copy_box<T: CubePrimitive>(
    to: u32,
    #[comptime] offset: usize,
    map: &[T],
    #[comptime] column: usize,
    slot: u32,
    page: u32,
    head: u32,
    barrier: u32,
    #[comptime] cubes: usize,
) {
    intrinsic!(|scope| {
        let [to, slot, page, head, barrier] =
            [to, slot, page, head, barrier].map(|number| number.read_value(scope));
        // SAFETY: only the address is taken.
        let map = unsafe { *map.__expand_as_ptr_method(scope) }.value(scope);
        let op = CopyBoxOp::new(scope.ctx_mut(), to, map, slot, page, head, barrier, offset, column, cubes);
        scope.register(&op);
    })
}
