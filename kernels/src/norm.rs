//! Root-mean-square normalisation.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::DeviceProfile;
use crate::grid::cover;
use crate::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};

const KERNEL: &str = "rms_norm";

/// `y = x / sqrt(mean(x²) + epsilon) · weight`. `U` units own a row: unit `u` squares and scales the vectors `u, u +
/// U, ..`, and every unit adds the partial sums in the same order. A cube is one row, or `rows` rows of one unit each.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rms_norm<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] rows: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize % units;
    let row = CUBE_POS * rows + UNIT_POS as usize / units;
    if row >= x.shape(0) {
        terminate!();
    }
    let width = x.shape(1);
    let vectors = width / N::value();
    let start = row * x.stride(0) / N::value();

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = unit;
    while i < vectors {
        let value = Vector::<f32, N>::cast_from(x[start + i]);
        squares += value * value;
        i += units;
    }
    let mut sum = squares.vector_sum();
    if comptime!(units > 1) {
        let mut partial = Shared::<[f32]>::new_slice(units);
        partial[unit] = sum;
        sync_cube();
        sum = 0.0f32;
        for u in 0..units {
            sum += partial[u];
        }
    }
    let scale = Vector::<f32, N>::new(1.0f32 / (sum / f32::cast_from(width) + epsilon).sqrt());
    let mut i = unit;
    while i < vectors {
        let value = Vector::<f32, N>::cast_from(x[start + i]);
        y[row * vectors + i] = Vector::cast_from(value * scale * Vector::cast_from(weight[i]));
        i += units;
    }
}

/// Rows, their weight, and where their norms go.
pub struct RmsNorm {
    /// `[rows, width]`.
    pub x: TensorBinding,
    /// `[width]`.
    pub weight: TensorBinding,
    /// As `x`, contiguous.
    pub y: TensorBinding,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// Normalises every row, in f32, rounded once.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, norm: RmsNorm, dtype: ElemType) -> Result<()> {
    let RmsNorm { x, weight, y, epsilon } = norm;
    rows(KERNEL, "x", &x, 2)?;
    let [row_count, width] = [x.shape[0], x.shape[1]];
    contiguous(KERNEL, "weight", &weight, &[width])?;
    contiguous(KERNEL, "y", &y, &[row_count, width])?;
    if width == 0 {
        return Err(shape(KERNEL, "x", &x, "rows that are not empty"));
    }
    if row_count == 0 {
        return Ok(());
    }

    let device = DeviceProfile::of(client);
    let lanes = vector(client, dtype, &[width], alignment(&x));
    let (units, cube_rows) = match device.cpu_cores {
        // Units are threads here: a row each.
        Some(cores) => (1, cores),
        None => {
            let units = ((width / lanes) as u32).next_multiple_of(device.plane);
            (units.min(256).min(device.max_units), 1)
        }
    };
    let count = cover(KERNEL, row_count.div_ceil(cube_rows as usize), device.max_cubes)?;
    let address = addresses(&[(&x, dtype.size()), (&weight, dtype.size()), (&y, dtype.size())]);
    // SAFETY: a unit beyond the last row stops; columns stay below the width that x, weight and y share, which the
    // vectors divide. The partial sums have one place per unit.
    unsafe {
        rms_norm::launch_unchecked(
            client,
            count,
            CubeDim::new_1d(units * cube_rows),
            address,
            lanes,
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            y.into_tensor_arg(),
            epsilon,
            cube_rows as usize,
            units as usize,
            dtype,
        );
    }
    Ok(())
}
