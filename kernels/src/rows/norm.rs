//! Normalisation of rows: by their root mean square, after adding a residual or not, and by mean and variance.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::code8::{Code, Quantized, divisor, element_type, encode, scale_of};
use crate::device::DeviceProfile;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};
use crate::math::narrow;
use crate::rows::row_group::{RowGroup, row_sum, row_sums};

const KERNEL: &str = "norm";

/// Largest number of vectors of a row that a unit keeps in registers.
const HELD: usize = 8;

/// The comptime settings of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Blueprint {
    row_group: RowGroup,
    /// Vectors of a row that each unit keeps in registers; if 0, it reads them again in each pass.
    held: usize,
    /// The mean is subtracted first.
    centred: bool,
    /// The factor is 1 more than the weight.
    one_more: bool,
    /// The fp8 format of `y`, if not the type of `x`.
    code: Option<Code>,
}

/// With `t = x + residual`, or `x` alone, and `m` the mean of `t`, or 0:
///
/// ```text
/// y = (t - m) / sqrt(mean((t - m)²) + epsilon) · weight + bias
/// ```
/// divided by `scale`, if there is one. `U` units own a row: unit `u` takes the vectors `u, u + U, ..`. A
/// cube is one row, or `rows` rows of one unit each. Rows have `vectors` vectors, and those of `x` begin
/// `stride` vectors apart.
///
/// `y` may be `x`, and `sum` the residual: a unit writes an element after the last time that it reads it, and no other
/// unit reads it. Hence `t` is not kept in `sum`, whose type would round it, but in registers or computed again.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn norm<F: Float, W: Float, Y: Numeric, N: Size>(
    x: &[Vector<F, N>],
    residual: &ComptimeOption<Box<[Vector<F, N>]>>,
    weight: &[Vector<W, N>],
    bias: &ComptimeOption<Box<[Vector<W, N>]>>,
    scale: &ComptimeOption<Box<[f32]>>,
    y: &mut [Vector<Y, N>],
    sum: &mut ComptimeOption<Box<[Vector<F, N>]>>,
    epsilon: f32,
    row_count: usize,
    vectors: usize,
    stride: usize,
    #[comptime] blueprint: Blueprint,
    #[define(F, W, Y)] _dtypes: [ElemType; 3],
) {
    let (rows, units) = comptime!((blueprint.row_group.rows, blueprint.row_group.units));
    let held = comptime!(blueprint.held);
    let unit = UNIT_POS as usize % units;
    let row = CUBE_POS * rows + UNIT_POS as usize / units;
    if row >= row_count {
        terminate!();
    }
    let width = vectors * N::value();
    let start = row * stride;
    let dense = row * vectors;
    let turns = if comptime!(held > 0) { held.runtime() } else { vectors.div_ceil(units) };

    // All loads of a row are in flight before the first wait. Hence they are not in branches; units without a
    // vector load the last one again.
    let kept_turns = comptime!(if held > 0 { held } else { 1 });
    let mut kept = Array::<Vector<f32, N>>::new(kept_turns);
    // The weights fit into registers as well, but not those of a long row and its bias.
    let keeps_gains = comptime!(held > 0 && (!blueprint.centred || held <= HELD / 4));
    let mut gains = Array::<Vector<W, N>>::new(kept_turns);
    let mut shifts = Array::<Vector<W, N>>::new(kept_turns);
    if comptime!(held > 0) {
        let mut read = Array::<Vector<F, N>>::new(held);
        let mut others = Array::<Vector<F, N>>::new(held);
        #[unroll]
        for turn in 0..held {
            let i = min(unit + turn * units, vectors - 1);
            read[turn] = x[start + i];
            #[comptime]
            match residual {
                ComptimeOption::Some(residual) => {
                    others[turn] = residual[dense + i];
                }
                ComptimeOption::None => {}
            }
            if comptime!(keeps_gains) {
                gains[turn] = weight[i];
                #[comptime]
                match bias {
                    ComptimeOption::Some(bias) => {
                        shifts[turn] = bias[i];
                    }
                    ComptimeOption::None => {}
                }
            }
        }
        #[unroll]
        for turn in 0..held {
            let mut value = Vector::<f32, N>::cast_from(read[turn]);
            if comptime!(residual.is_some()) {
                value += Vector::cast_from(others[turn]);
            }
            kept[turn] = value;
        }
    }

    let by = divisor(scale_of(scale, 0usize, blueprint.code));
    let mut mean = Vector::<f32, N>::new(0.0f32);
    if comptime!(blueprint.centred) {
        let mut part = Vector::<f32, N>::new(0.0f32);
        #[unroll(held > 0)]
        for turn in 0..turns {
            let i = unit + turn * units;
            if i < vectors {
                part += again::<F, N>(&kept, turn, x, residual, start + i, dense + i, held);
            }
        }
        mean = Vector::new(row_sum(part.vector_sum(), unit, blueprint.row_group) / f32::cast_from(width));
    }

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut distances = Vector::<f32, N>::new(0.0f32);
    #[unroll(held > 0)]
    for turn in 0..turns {
        let i = unit + turn * units;
        if i < vectors {
            let value = again::<F, N>(&kept, turn, x, residual, start + i, dense + i, held) - mean;
            squares += value * value;
            if comptime!(blueprint.centred) {
                distances += value;
            }
        }
    }
    let mut sums = Array::<f32>::new(2usize);
    sums[0] = squares.vector_sum();
    sums[1] = distances.vector_sum();
    row_sums(&mut sums, comptime!(if blueprint.centred { 2usize } else { 1 }), unit, blueprint.row_group);
    let mut variance = sums[0] / f32::cast_from(width);
    // The rounding error of the mean: beside a small deviation it is not small.
    let mut rest = Vector::<f32, N>::new(0.0f32);
    if comptime!(blueprint.centred) {
        let off = sums[1] / f32::cast_from(width);
        variance = max(variance - off * off, 0.0f32);
        rest = Vector::new(off);
    }
    let factor = Vector::<f32, N>::new(1.0f32 / (variance + epsilon).sqrt());

    #[unroll(held > 0)]
    for turn in 0..turns {
        let i = unit + turn * units;
        if i < vectors {
            let value = again::<F, N>(&kept, turn, x, residual, start + i, dense + i, held);
            #[comptime]
            match sum {
                ComptimeOption::Some(sum) => {
                    sum[dense + i] = narrow::<F, N>(value);
                }
                ComptimeOption::None => {}
            }
            let gain = if comptime!(keeps_gains) { gains[turn] } else { weight[i] };
            let mut gain = Vector::<f32, N>::cast_from(gain);
            if comptime!(blueprint.one_more) {
                gain += Vector::new(1.0f32);
            }
            let mut normed = (value - mean - rest) * factor * gain;
            #[comptime]
            match bias {
                ComptimeOption::Some(bias) => {
                    normed += Vector::cast_from(if comptime!(keeps_gains) { shifts[turn] } else { bias[i] });
                }
                ComptimeOption::None => {}
            }
            y[dense + i] = encode::<Y, N>(normed, &by, blueprint.code);
        }
    }
}

/// The vector that a unit has kept, or reads again.
#[allow(clippy::too_many_arguments, reason = "it stands for a line of a kernel")]
#[cube]
fn again<F: Float, N: Size>(
    kept: &Array<Vector<f32, N>>,
    turn: usize,
    x: &[Vector<F, N>],
    residual: &ComptimeOption<Box<[Vector<F, N>]>>,
    at: usize,
    dense: usize,
    #[comptime] held: usize,
) -> Vector<f32, N> {
    if comptime!(held > 0) { kept[turn] } else { added::<F, N>(x, residual, at, dense) }
}

/// `x[at] + residual[dense]`, in f32.
#[cube]
fn added<F: Float, N: Size>(
    x: &[Vector<F, N>],
    residual: &ComptimeOption<Box<[Vector<F, N>]>>,
    at: usize,
    dense: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::cast_from(x[at]);
    #[comptime]
    match residual {
        ComptimeOption::Some(residual) => {
            value += Vector::cast_from(residual[dense]);
        }
        ComptimeOption::None => {}
    }
    value
}

/// Rows, the factors of the norm, and the tensors for the results.
pub struct Norm {
    /// `[rows, width]`.
    pub x: TensorBinding,
    /// Added to the rows first.
    pub add: Option<Add>,
    /// The norm.
    pub scaling: Scaling,
    /// As `x`, contiguous. Without it the norms replace `x`, which is contiguous then.
    pub y: Option<TensorBinding>,
    /// The scale if `y` is fp8: one for all of it.
    pub quantized: Option<Quantized>,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// The residual of the rows, added before the norm.
pub struct Add {
    /// As `x`, contiguous.
    pub residual: TensorBinding,
    /// `x + residual`: as `x`, contiguous. Without it the sums replace `residual`.
    pub sum: Option<TensorBinding>,
}

/// The norm, and the factors of each column: `[width]`.
pub enum Scaling {
    /// Root mean square, times the weight.
    Rms(TensorBinding),
    /// Root mean square, times 1 more than the weight.
    GemmaRms(TensorBinding),
    /// Mean and variance.
    Layer {
        /// The factor.
        gamma: TensorBinding,
        /// The addend.
        beta: TensorBinding,
    },
}

/// Normalises every row, in f32, rounded once. `x` is of `dtype`, its weight of `weight_dtype`.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, norm: Norm, dtype: ElemType, weight_dtype: ElemType) -> Result<()> {
    let Norm { x, add, scaling, y, quantized, epsilon } = norm;
    rows(KERNEL, "x", &x, 2)?;
    let [row_count, width] = [x.shape[0], x.shape[1]];
    let like_x = [row_count, width];
    let (weight, beta, [centred, one_more]) = match scaling {
        Scaling::Rms(weight) => (weight, None, [false, false]),
        Scaling::GemmaRms(weight) => (weight, None, [false, true]),
        Scaling::Layer { gamma, beta } => (gamma, Some(beta), [true, false]),
    };
    contiguous(KERNEL, "weight", &weight, &[width])?;
    if let Some(beta) = &beta {
        contiguous(KERNEL, "beta", beta, &[width])?;
    }
    contiguous(KERNEL, "y", y.as_ref().unwrap_or(&x), &like_x)?;
    if let Some(Add { residual, sum }) = &add {
        contiguous(KERNEL, "residual", residual, &like_x)?;
        contiguous(KERNEL, "sum", sum.as_ref().unwrap_or(residual), &like_x)?;
    }
    Quantized::check_one(quantized.as_ref(), KERNEL)?;
    if quantized.is_some() && y.is_none() {
        return Err(shape(KERNEL, "y", &x, "a tensor of fp8 values"));
    }
    if width == 0 {
        return Err(shape(KERNEL, "x", &x, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }

    let narrowest = if dtype.size() >= weight_dtype.size() { dtype } else { weight_dtype };
    let lanes = vector(client, narrowest, &[width], alignment(&x));
    let vectors = width / lanes;
    // More units than these serve two cases. One is a row too long for their registers. The other is a layer
    // norm of a few rows: a core has no other row to go on with, so all weights are loaded at once.
    let is_few = DeviceProfile::of(client).cores.is_some_and(|cores| row_count <= cores);
    let each = if centred && is_few { HELD / 4 } else { HELD };
    let most = vectors.div_ceil(each).next_multiple_of(256);
    let (row_group, count, dim) =
        RowGroup::of(KERNEL, client, row_count, vectors, u32::try_from(most).unwrap_or(u32::MAX))?;
    let turns = vectors.div_ceil(row_group.units);
    let held = if row_group.units > 1 && turns <= HELD { turns } else { 0 };
    // Contiguous tensors are as large as `y`; `x` with its gaps may be larger, and repeated rows smaller.
    let dense = y.as_ref().unwrap_or(&x);
    let address = addresses(&[(&x, dtype.size()), (dense, dtype.size()), (&weight, weight_dtype.size())]);
    let y_dtype = element_type(quantized.is_some(), dtype);
    let (code, scale) = Quantized::unzip(quantized, client);
    let blueprint = Blueprint { row_group, held, centred, one_more, code };
    // Places of `x` and `residual` among the buffers.
    let stride = x.strides[0] / lanes;
    let y = y.map_or_else(|| BufferArg::alias(0, x.size()), TensorBinding::into_buffer_arg);
    let (residual, sum) = match add {
        None => (None, None),
        Some(Add { residual, sum: Some(sum) }) => {
            (Some(residual.into_buffer_arg()), Some(sum.into_buffer_arg()))
        }
        Some(Add { residual, sum: None }) => {
            let sum = BufferArg::alias(1, residual.size());
            (Some(residual.into_buffer_arg()), Some(sum))
        }
    };
    // SAFETY: a unit beyond the last row stops; columns stay below the width that x, residual, weight, bias, y and sum
    // share, which the vectors divide. The partial sums have one place per unit. Where outputs are inputs, the kernel
    // reads an element before it writes it.
    unsafe {
        norm::launch_unchecked(
            client,
            count,
            dim,
            address,
            lanes,
            x.into_buffer_arg(),
            residual.into(),
            weight.into_buffer_arg(),
            beta.map(TensorBinding::into_buffer_arg).into(),
            scale.into(),
            y,
            sum.into(),
            epsilon,
            row_count,
            vectors,
            stride,
            blueprint,
            [dtype, weight_dtype, y_dtype],
        );
    }
    Ok(())
}
