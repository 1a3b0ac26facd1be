//! Normalisation of rows: by their root mean square, after adding a residual or not, and by mean and variance.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::math::narrow;
use crate::team::{Team, total};
use crate::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};

const KERNEL: &str = "norm";

/// Who works on a row, and what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Blueprint {
    team: Team,
    /// Whether the mean is subtracted first.
    centred: bool,
    /// Whether what scales is 1 more than the weight.
    one_more: bool,
}

/// With `t = x + residual`, or `x` alone, and `m` the mean of `t`, or 0:
///
/// ```text
/// y = (t - m) / sqrt(mean((t - m)²) + epsilon) · weight + bias
/// ```
/// `U` units own a row: unit `u` takes the vectors `u, u + U, ..`, and every unit adds the partial sums in the same order.
/// A cube is one row, or `rows` rows of one unit each.
///
/// `y` may be `x`, and `sum` the residual: a unit writes an element after the last time that it reads it, and no other
/// unit reads it. Hence `t` is computed again in each pass instead of being kept in `sum`, whose type would round it.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn norm<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    residual: &ComptimeOption<Box<[Vector<F, N>]>>,
    weight: &Tensor<Vector<W, N>>,
    bias: &ComptimeOption<Box<[Vector<W, N>]>>,
    y: &mut Tensor<Vector<F, N>>,
    sum: &mut ComptimeOption<Box<[Vector<F, N>]>>,
    epsilon: f32,
    #[comptime] blueprint: Blueprint,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let (rows, units) = comptime!((blueprint.team.rows, blueprint.team.units));
    let unit = UNIT_POS as usize % units;
    let row = CUBE_POS * rows + UNIT_POS as usize / units;
    if row >= x.shape(0) {
        terminate!();
    }
    let width = x.shape(1);
    let vectors = width / N::value();
    let start = row * x.stride(0) / N::value();
    let dense = row * vectors;

    let mut mean = Vector::<f32, N>::new(0.0f32);
    if comptime!(blueprint.centred) {
        let mut part = Vector::<f32, N>::new(0.0f32);
        let mut i = unit;
        while i < vectors {
            part += added::<F, N>(x, residual, start + i, dense + i);
            i += units;
        }
        mean = Vector::new(total(part.vector_sum(), unit, units) / f32::cast_from(width));
    }

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut distances = Vector::<f32, N>::new(0.0f32);
    let mut i = unit;
    while i < vectors {
        let value = added::<F, N>(x, residual, start + i, dense + i) - mean;
        squares += value * value;
        if comptime!(blueprint.centred) {
            distances += value;
        }
        i += units;
    }
    let mut variance = total(squares.vector_sum(), unit, units) / f32::cast_from(width);
    // By how much the mean was rounded: beside a small deviation it is not little.
    let mut rest = Vector::<f32, N>::new(0.0f32);
    if comptime!(blueprint.centred) {
        let off = total(distances.vector_sum(), unit, units) / f32::cast_from(width);
        variance = max(variance - off * off, 0.0f32);
        rest = Vector::new(off);
    }
    let scale = Vector::<f32, N>::new(1.0f32 / (variance + epsilon).sqrt());

    let mut i = unit;
    while i < vectors {
        let value = added::<F, N>(x, residual, start + i, dense + i);
        #[comptime]
        match sum {
            ComptimeOption::Some(sum) => {
                sum[dense + i] = narrow::<F, N>(value);
            }
            ComptimeOption::None => {}
        }
        let mut factor = Vector::<f32, N>::cast_from(weight[i]);
        if comptime!(blueprint.one_more) {
            factor += Vector::new(1.0f32);
        }
        let mut normed = (value - mean - rest) * scale * factor;
        #[comptime]
        match bias {
            ComptimeOption::Some(bias) => {
                normed += Vector::cast_from(bias[i]);
            }
            ComptimeOption::None => {}
        }
        y[dense + i] = narrow::<F, N>(normed);
        i += units;
    }
}

/// `x[at] + residual[dense]`, in f32.
#[cube]
fn added<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
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

/// Rows, what scales them, and where their norms go.
pub struct Norm {
    /// `[rows, width]`.
    pub x: TensorBinding,
    /// Added to the rows first.
    pub add: Option<Add>,
    /// The norm.
    pub scaling: Scaling,
    /// As `x`, contiguous. Without it the norms replace `x`, which is contiguous then.
    pub y: Option<TensorBinding>,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// What is added to the rows before they are normalised.
pub struct Add {
    /// As `x`, contiguous.
    pub residual: TensorBinding,
    /// `x + residual`: as `x`, contiguous. Without it the sums replace `residual`.
    pub sum: Option<TensorBinding>,
}

/// Which norm, and what each column is multiplied by: `[width]`.
pub enum Scaling {
    /// Root mean square, times the weight.
    Rms(TensorBinding),
    /// Root mean square, times 1 more than the weight.
    GemmaRms(TensorBinding),
    /// Mean and variance.
    Layer {
        /// Multiplied with.
        gamma: TensorBinding,
        /// Added at last.
        beta: TensorBinding,
    },
}

/// Normalises every row, in f32, rounded once. `x` is of `dtype`, what scales it of `weight_dtype`.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, norm: Norm, dtype: ElemType, weight_dtype: ElemType) -> Result<()> {
    let Norm { x, add, scaling, y, epsilon } = norm;
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
    if width == 0 {
        return Err(shape(KERNEL, "x", &x, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }

    let narrowest = if dtype.size() >= weight_dtype.size() { dtype } else { weight_dtype };
    let lanes = vector(client, narrowest, &[width], alignment(&x));
    let (team, count, dim) = Team::of(KERNEL, client, row_count, width / lanes, 256)?;
    // All that is contiguous is as large as `y`, `x` with its gaps may be larger, and repeated rows smaller.
    let dense = y.as_ref().unwrap_or(&x);
    let address = addresses(&[(&x, dtype.size()), (dense, dtype.size()), (&weight, weight_dtype.size())]);
    let blueprint = Blueprint { team, centred, one_more };
    // Places of `x` and `residual` among the buffers.
    let y = y.map_or_else(|| x.as_alias(0), TensorBinding::into_tensor_arg);
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
            x.into_tensor_arg(),
            residual.into(),
            weight.into_tensor_arg(),
            beta.map(TensorBinding::into_buffer_arg).into(),
            y,
            sum.into(),
            epsilon,
            blueprint,
            [dtype, weight_dtype],
        );
    }
    Ok(())
}
