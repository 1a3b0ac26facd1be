//! `y = x · weightᵀ` for a few rows of `x`: most of the time of decoding, bound by one read of the weights.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::device::DeviceProfile;
use crate::device::grid::cover;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};
use crate::math::narrow_one;

const KERNEL: &str = "linear";

/// Largest number of rows of `x`: with more of them a matrix unit is faster.
pub const MAX_ROWS: usize = 8;
/// Planes of a cube, which share only the cache that holds `x`.
const PLANES: u32 = 4;
/// Least number of loads of weights that a lane has in flight, where a row is long enough.
const IN_FLIGHT: usize = 4;

/// A plane reads one row of the weight and multiplies it with every row of `x`: lane `l` of `L` takes the
/// vectors `l, l + L, ..` of both. Sums are f32, of the same products in the same order whatever the other
/// rows of `x` are.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn linear<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<F, N>>,
    y: &mut [F],
    vectors: usize,
    #[comptime] most_rows: usize,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, outputs) = (x.shape(0), weight.shape(0));
    let lane = UNIT_POS_X as usize;
    let output = CUBE_POS * comptime!(PLANES as usize) + UNIT_POS_Y as usize;
    if output >= outputs {
        terminate!();
    }
    let at = output * weight.stride(0) / N::value();
    let stride = x.stride(0) / N::value();
    let mut sums = Array::<Vector<f32, N>>::new(most_rows);
    #[unroll]
    for r in 0..most_rows {
        sums[r] = Vector::new(0.0f32);
    }
    let mut i = lane;
    while i + comptime!((IN_FLIGHT - 1) * lanes) < vectors {
        let mut read = Array::<Vector<F, N>>::new(IN_FLIGHT);
        #[unroll]
        for f in 0..IN_FLIGHT {
            read[f] = weight[at + i + comptime!(f * lanes)];
        }
        #[unroll]
        for f in 0..IN_FLIGHT {
            let w = Vector::<f32, N>::cast_from(read[f]);
            #[unroll]
            for r in 0..most_rows {
                let row = min(r, rows - 1);
                sums[r] += w * Vector::<f32, N>::cast_from(x[row * stride + i + comptime!(f * lanes)]);
            }
        }
        i += comptime!(IN_FLIGHT * lanes);
    }
    while i < vectors {
        let w = Vector::<f32, N>::cast_from(weight[at + i]);
        #[unroll]
        for r in 0..most_rows {
            sums[r] += w * Vector::<f32, N>::cast_from(x[min(r, rows - 1) * stride + i]);
        }
        i += lanes;
    }
    #[unroll]
    for r in 0..most_rows {
        let mut sum = sums[r].vector_sum();
        #[unroll]
        for step in 0..comptime!(lanes.trailing_zeros()) {
            sum += plane_shuffle_xor(sum, comptime!(1u32 << step));
        }
        if lane == 0 && r < rows {
            y[r * outputs + output] = narrow_one::<F>(sum);
        }
    }
}

/// A few rows, and a weight in the order of checkpoints.
pub struct Linear {
    /// `[rows, in]`, at most [`MAX_ROWS`] rows.
    pub x: TensorBinding,
    /// `[out, in]`.
    pub weight: TensorBinding,
    /// `[rows, out]`, contiguous.
    pub y: TensorBinding,
}

/// True if this kernel is the one for a product: few rows, on a device whose units run in planes.
pub fn is_for(client: &Client, rows: usize) -> bool {
    (1..=MAX_ROWS).contains(&rows) && DeviceProfile::of(client).plane > 1
}

/// `y = x · weightᵀ`, summed in f32 and rounded once.
///
/// # Errors
///
/// If the shapes do not fit each other, or there are too many rows. Nothing is launched then.
pub fn launch(client: &Client, linear: Linear, dtype: ElemType) -> Result<()> {
    let Linear { x, weight, y } = linear;
    rows(KERNEL, "x", &x, 2)?;
    rows(KERNEL, "weight", &weight, 2)?;
    let [x_rows, width] = [x.shape[0], x.shape[1]];
    if x_rows > MAX_ROWS {
        return Err(shape(KERNEL, "x", &x, format!("at most {MAX_ROWS} rows")));
    }
    if weight.shape[1] != width {
        return Err(shape(KERNEL, "weight", &weight, format!("rows of {width}, as `x`")));
    }
    contiguous(KERNEL, "y", &y, &[x_rows, weight.shape[0]])?;
    if y.size() == 0 {
        return Ok(());
    }
    let device = DeviceProfile::of(client);
    let lanes = device.plane;
    let elements = vector(client, dtype, &[width], alignment(&x).min(alignment(&weight)));
    let size = dtype.size();
    let address = addresses(&[(&x, size), (&weight, size), (&y, size)]);
    let cubes = cover(KERNEL, weight.shape[0].div_ceil(PLANES as usize), device.max_cubes)?;
    // SAFETY: a plane beyond the last row of the weight stops. Vectors are below `width / N`, which `N`
    // divides, in rows below those of the weight and of `x`; results go to `y` at rows and outputs within its
    // shape.
    unsafe {
        linear::launch_unchecked(
            client,
            cubes,
            CubeDim::new_2d(lanes, PLANES),
            address,
            elements,
            x.into_tensor_arg(),
            weight.into_tensor_arg(),
            y.into_buffer_arg(),
            width / elements,
            x_rows.next_power_of_two(),
            lanes as usize,
            dtype,
        );
    }
    Ok(())
}
