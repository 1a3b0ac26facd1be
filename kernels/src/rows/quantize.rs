//! Rows rounded to 8 bits, each with a scale of its own.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::code8::{Code, divisor, encode};
use crate::device::tensor::{
    Result, addresses, alignment, contiguous, offset_alignment, rows, shape, vector,
};
use crate::fp8::Fp8;
use crate::rows::row_group::{RowGroup, row_max};

const KERNEL: &str = "quantize_rows";

/// `scale = max |x| / largest code`, `y = x / scale` to the nearest code. `U` units own a row: unit `u` takes the vectors
/// `u, u + U, ..`, twice. Rows of `x` begin `stride` vectors apart.
#[cube(launch_unchecked, address_type = "dynamic")]
fn quantize_rows<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<u8, N>],
    scales: &mut [f32],
    row_count: usize,
    vectors: usize,
    stride: usize,
    #[comptime] row_group: RowGroup,
    #[comptime] code: Option<Code>,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize % row_group.units;
    let row = CUBE_POS * row_group.rows + UNIT_POS as usize / row_group.units;
    if row >= row_count {
        terminate!();
    }
    let turns = vectors.div_ceil(row_group.units);
    let mut largest = 0u32.runtime();
    for turn in 0..turns {
        let i = unit + turn * row_group.units;
        if i < vectors {
            largest = largest_of::<N>(Vector::<f32, N>::cast_from(x[row * stride + i]), largest);
        }
    }
    let scale = scale_of_largest(row_max(largest, unit, row_group), code);
    if unit == 0 {
        scales[row] = scale;
    }
    let by = divisor(scale);
    for turn in 0..turns {
        let i = unit + turn * row_group.units;
        if i < vectors {
            let wide = Vector::<f32, N>::cast_from(x[row * stride + i]);
            y[row * vectors + i] = encode::<u8, N>(wide, &by, code);
        }
    }
}

/// The bits of the largest size of these numbers, or of `so_far`.
///
/// They are in the order of the sizes; a NaN is the largest, and makes all of its row NaN.
#[cube]
pub(crate) fn largest_of<N: Size>(numbers: Vector<f32, N>, so_far: u32) -> u32 {
    let mut largest = so_far;
    let width = N::value();
    #[unroll]
    for lane in 0..width {
        largest = max(largest, u32::reinterpret(numbers.extract(lane)) & 0x7fff_ffffu32);
    }
    largest
}

/// The scale of a row whose largest size has these bits.
#[cube]
pub(crate) fn scale_of_largest(bits: u32, #[comptime] code: Option<Code>) -> f32 {
    let scale = f32::reinterpret(bits) / comptime!(code.map_or(1.0, Code::max));
    // No scale is 0 or subnormal, so that numbers can be divided by it.
    select(scale < comptime!(f32::MIN_POSITIVE), 1.0f32, scale)
}

/// Rows, and the tensors for their codes and scales.
pub struct Quantize {
    /// `[rows, width]`.
    pub x: TensorBinding,
    /// As `x`, of `u8`, contiguous.
    pub y: TensorBinding,
    /// `[rows]` of f32, contiguous.
    pub scales: TensorBinding,
    /// The format of the codes.
    pub format: Fp8,
}

/// Rounds every row of `dtype` to codes, with the least scale that reaches its largest number; 1 for a row of zeros.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, quantize: Quantize, dtype: ElemType) -> Result<()> {
    let Quantize { x, y, scales, format } = quantize;
    rows(KERNEL, "x", &x, 2)?;
    let [row_count, width] = [x.shape[0], x.shape[1]];
    contiguous(KERNEL, "y", &y, &[row_count, width])?;
    contiguous(KERNEL, "scales", &scales, &[row_count])?;
    if width == 0 {
        return Err(shape(KERNEL, "x", &x, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }
    let align = alignment(&x).min(offset_alignment(&y, 1));
    let lanes = vector(client, dtype, &[width], align);
    let vectors = width / lanes;
    let (row_group, count, dim) = RowGroup::of(KERNEL, client, row_count, vectors, 256)?;
    let address = addresses(&[(&x, dtype.size()), (&y, 1)]);
    let stride = x.strides[0] / lanes;
    // SAFETY: a unit beyond the last row stops; vectors stay below the width of a row, which they divide, as they do the
    // strides. There is a scale for each row. The partial results have one place per unit.
    unsafe {
        quantize_rows::launch_unchecked(
            client,
            count,
            dim,
            address,
            lanes,
            x.into_buffer_arg(),
            y.into_buffer_arg(),
            scales.into_buffer_arg(),
            row_count,
            vectors,
            stride,
            row_group,
            Some(Code::of_all(format, client)),
            dtype,
        );
    }
    Ok(())
}
