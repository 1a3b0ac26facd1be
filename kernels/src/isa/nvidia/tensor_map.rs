//! TMA: asynchronous copies of boxes of a tensor to shared memory, by Hopper's tensor maps.
//!
//! The descriptor of a tensor is made on the device, since CubeCL passes buffers and scalars alone: its
//! fields are set in shared memory ([`map_rows`]), and it is published to global memory ([`publish_map`]),
//! where copies look for it ([`acquire_map`]).
//!
//! Source: PTX ISA, `tensormap.replace` and `cp.async.bulk.tensor`.

use std::fmt::Display;

use cubecl::prelude::*;

use super::instruction::{Place, ptx};

/// Bytes of a descriptor.
pub(crate) const MAP_BYTES: usize = 128;

ptx! {
    /// Sets all fields of a TMA descriptor in shared memory, at this [`super::shared_address`]: rows of
    /// `columns` elements of 16 bits, by slot, page and head, in boxes of 64 columns and `box_rows` slots. A
    /// copy swizzles them as in [`super::Operand`]. Strides are in 16 bytes. One lane.
    fn set_map<T>(
        map: u32,
        from: &[T],
        box_rows: u32,
        slots: u32,
        pages: u32,
        heads: u32,
        slot_stride: u32,
        page_stride: u32,
        head_stride: u32,
        #[comptime] columns: usize,
    ) = EffectOp(map, from, box_rows, slots, pages, heads, slot_stride, page_stride, head_stride)
        "{{ .reg .b64 bytes; {fields}}}",
        fields = map_fields(
            [map, from],
            &[(&columns, &64), (&slots, &box_rows), (&pages, &1), (&heads, &1)],
            &[slot_stride, page_stride, head_stride]
        );

    /// [`set_map`] of a matrix: rows of `columns` elements, in boxes of 64 columns and `box_rows` rows.
    fn set_matrix_map<T>(map: u32, from: &[T], box_rows: u32, rows: u32, columns: u32, stride: u32) =
        EffectOp(map, from, box_rows, rows, columns, stride)
        "{{ .reg .b64 bytes; {fields}}}",
        fields = map_fields([map, from], &[(&columns, &64), (&rows, &box_rows)], &[stride]);

    /// Copies a descriptor from shared to global memory, for those that [`acquire_map`]: `tensormap.cp_fenceproxy`. It
    /// takes the first [`MAP_BYTES`] of the slice, which begins at a multiple of them. All lanes of the warp.
    pub(crate) fn publish_map<T>(map: u32, to: &mut [T]) = EffectOp(map, to)
        "bar.warp.sync 0xffffffff; \
         tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned \
         [{to}], [{map}], {MAP_BYTES};";

    /// Makes a descriptor that was published, by this warp or by a kernel before this one, known to the unit
    /// that copies: `fence.proxy.tensormap`.
    pub(crate) fn acquire_map<T>(map: &[T]) =
        EffectOp(map) "fence.proxy.tensormap::generic.acquire.gpu [{map}], {MAP_BYTES};";

    /// Copies one box with the descriptor published to `map`, to the same place plus `offset` bytes in the
    /// shared memory of each of the `cubes` cubes of a cluster. Its bytes count as arrivals at the same
    /// barrier of each: `cp.async.bulk.tensor`. All lanes of a warp of one cube call it and elect the one
    /// that copies. With a condition in the kernel instead, the compiler does not know the uniform values of
    /// the lanes, and 230 cycles pass between two copies.
    pub(crate) fn copy_box<T>(
        to: u32,
        #[comptime] offset: usize,
        map: &[T],
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

    /// [`copy_box`] of a matrix, to this cube alone.
    pub(crate) fn copy_matrix_box<T>(
        to: u32,
        map: &[T],
        column: u32,
        row: u32,
        barrier: u32,
    ) = EffectOp(to, map, column, row, barrier)
        "{{ .reg .pred elected; elect.sync _|elected, -1; \
         @elected cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
         [{to}], [{map}, {{{column}, {row}}}], [{barrier}]; }}";
}

/// The instructions that set the fields of a descriptor: for each dimension its size and that of a box, and for each
/// but the first the stride in 16 bytes.
fn map_fields([map, from]: [Place; 2], dims: &[(&dyn Display, &dyn Display)], strides: &[Place]) -> String {
    let mut text = String::new();
    for at in (0..MAP_BYTES).step_by(8) {
        text += &format!("st.shared.b64 [{map}+{at}], 0; ");
    }
    let mut set = |field: &str, bits: usize, value: &str| {
        text += &format!("tensormap.replace.tile.{field}.shared::cta.b1024.b{bits} [{map}], {value}; ");
    };
    set("global_address", 64, &from.to_string());
    // Dimensions are counted from 0.
    set("rank", 32, &(dims.len() - 1).to_string());
    for (dim, (size, rows)) in dims.iter().enumerate() {
        set("global_dim", 32, &format!("{dim}, {size}"));
        set("box_dim", 32, &format!("{dim}, {rows}"));
        set("element_stride", 32, &format!("{dim}, 1"));
    }
    // Elements of 16 bits, not interleaved, 128 bytes swizzled, zeros outside.
    for (field, value) in
        [("elemtype", "1"), ("interleave_layout", "0"), ("swizzle_mode", "3"), ("fill_mode", "0")]
    {
        set(field, 32, value);
    }
    for (dim, stride) in strides.iter().enumerate() {
        text += &format!(
            "mul.wide.u32 bytes, {stride}, 16; \
             tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [{map}], {dim}, bytes; "
        );
    }
    text
}

/// [`set_map`] of `[pages, slots, heads, columns]`.
#[cube]
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
    set_map::<T>(map, first, box_rows, slots, pages, heads, slot_stride, page_stride, head_stride, columns);
}

/// [`set_matrix_map`] of `[rows, columns]`.
#[cube]
pub(crate) fn map_matrix<T: CubePrimitive>(
    map: u32,
    from: &Tensor<T>,
    box_rows: u32,
    rows: usize,
    columns: usize,
) {
    let stride = (from.stride(0) / 8) as u32;
    set_matrix_map::<T>(map, &from[0..1], box_rows, rows as u32, columns as u32, stride);
}
