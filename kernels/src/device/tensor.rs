//! Checks and views of tensors for the launchers.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::profile::DeviceProfile;
use super::refusal::Refusal;

/// A launch, or the reason there was none.
pub type Result<T> = std::result::Result<T, Refusal>;

/// The order of the axes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// `[pages, page_size, kv_heads, head_dim]`.
    Nhd,
    /// `[pages, kv_heads, page_size, head_dim]`.
    Hnd,
}

/// Keys or values as `[pages, slots, kv_heads, head_dim]`, from either order of axes. The kernels use
/// strides, so the layout costs nothing and needs no variant.
pub(crate) fn by_slot(mut pages: TensorBinding, layout: KvLayout) -> TensorBinding {
    if layout == KvLayout::Hnd {
        pages.shape.swap(1, 2);
        pages.strides.swap(1, 2);
    }
    pages
}

/// Contiguous `[tokens, heads, head_dim]` as one page.
pub(crate) fn one_page(tokens: TensorBinding) -> TensorBinding {
    with_axis(tokens, 0)
}

/// The tensor with an axis of one element before axis `at`.
pub(crate) fn with_axis(tensor: TensorBinding, at: usize) -> TensorBinding {
    let (mut shape, mut strides) = (tensor.shape.to_vec(), tensor.strides.to_vec());
    shape.insert(at, 1);
    strides.insert(at, 0);
    TensorBinding { shape: shape.into(), strides: strides.into(), ..tensor }
}

/// Refuses a tensor unless it has `rank` axes and the elements of the last axis are contiguous.
pub(crate) fn rows(
    kernel: &'static str,
    argument: &'static str,
    tensor: &TensorBinding,
    rank: usize,
) -> Result<()> {
    if tensor.shape.len() != rank || tensor.tiling.is_tiled() {
        return Err(shape(kernel, argument, tensor, format!("{rank} axes in rows")));
    }
    if tensor.shape[rank - 1] > 1 && tensor.strides[rank - 1] != 1 {
        return Err(shape(kernel, argument, tensor, "a contiguous last axis"));
    }
    Ok(())
}

/// Refuses a tensor unless it has the shape `wanted` and is contiguous.
pub(crate) fn contiguous(
    kernel: &'static str,
    argument: &'static str,
    tensor: &TensorBinding,
    wanted: &[usize],
) -> Result<()> {
    let mut stride = 1;
    let mut dense = tensor.shape.len() == wanted.len() && !tensor.tiling.is_tiled();
    for (axis, &extent) in wanted.iter().enumerate().rev() {
        dense = dense && tensor.shape[axis] == extent && (extent <= 1 || tensor.strides[axis] == stride);
        stride *= extent;
    }
    if dense { Ok(()) } else { Err(shape(kernel, argument, tensor, format!("{wanted:?}, contiguous"))) }
}

pub(crate) fn shape(
    kernel: &'static str,
    argument: &'static str,
    tensor: &TensorBinding,
    expected: impl Into<String>,
) -> Refusal {
    Refusal::Shape {
        kernel,
        argument,
        shape: tensor.shape.to_vec(),
        strides: tensor.strides.to_vec(),
        expected: expected.into(),
    }
}

/// A buffer of `len` elements of `size` bytes, not initialised.
pub(crate) fn buffer(client: &Client, len: usize, size: usize) -> TensorBinding {
    let handle = client.empty(len * size);
    // SAFETY: the buffer is as long as the shape.
    unsafe { TensorBinding::from_raw_parts(handle, [1].into(), [len].into()) }
}

/// A contiguous tensor as `[rows, width]`.
pub(crate) fn with_shape(tensor: TensorBinding, [rows, width]: [usize; 2]) -> TensorBinding {
    TensorBinding { shape: [rows, width].into(), strides: [width, 1].into(), ..tensor }
}

/// The address type that reaches every element of every tensor.
pub(crate) fn addresses(tensors: &[(&TensorBinding, usize)]) -> AddressType {
    tensors.iter().map(|(tensor, size)| tensor.required_address_type(*size)).max().unwrap_or(AddressType::U32)
}

/// The largest power of 2 that divides the offset of every row.
pub(crate) fn alignment(tensor: &TensorBinding) -> usize {
    let last = tensor.shape.len() - 1;
    (0..last)
        .filter(|&axis| tensor.shape[axis] > 1)
        .map(|axis| tensor.strides[axis])
        .fold(64, |align, stride| if stride == 0 { align } else { align.min(1 << stride.trailing_zeros()) })
}

/// Elements to which the first is aligned.
pub(crate) fn offset_alignment(tensor: &TensorBinding, elem_size: usize) -> usize {
    match tensor.handle.offset_start {
        None | Some(0) => 64,
        Some(offset) => (1 << offset.trailing_zeros().min(8)) / elem_size,
    }
}

/// The largest power of 2 up to `limit` that divides `n`.
pub(crate) fn divisor(n: usize, limit: usize) -> usize {
    let mut power = 1;
    while 2 * power <= limit && n.is_multiple_of(2 * power) {
        power *= 2;
    }
    power
}

/// Elements of one load or store: all `extents` and the alignment of rows are multiples.
pub(crate) fn vector(client: &Client, dtype: ElemType, extents: &[usize], align: usize) -> usize {
    let widest = DeviceProfile::of(client).widest(dtype.size()).min(align);
    extents.iter().fold(widest, |width, &extent| divisor(extent, width))
}
