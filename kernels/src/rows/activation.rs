//! Gated activations of a feed-forward layer.

use cubecl::{client::Client, ir::ElemType, prelude::*, std::FastDivmod};

use crate::code8::{Code, Quantized, divisor, element_type, encode, scale_of};
use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, alignment, contiguous, rows, shape, vector};
use crate::device::{DeviceProfile, Machine};
use crate::math::{erfc, exp, reciprocal};

const KERNEL: &str = "act_and_mul";

/// The function of one half of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `a / (1 + exp(-a))`.
    Silu,
    /// `a · Φ(a)`, `Φ` the distribution function of the normal distribution.
    Gelu,
    /// [`Gelu`](Self::Gelu) by `tanh`: `a/2 · (1 + tanh(sqrt(2/π) · (a + 0.044715 a³)))`.
    GeluTanh,
}

/// `y = act(a) · b` for the halves `a` and `b` of a row of `x`, divided by `scale`, if there is one. A unit
/// computes one vector of `y`. `stride` and `half` of a row of `x` are in vectors.
#[cube(launch_unchecked, address_type = "dynamic")]
fn act_and_mul<F: Float, Y: Numeric, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<Y, N>],
    scale: &ComptimeOption<Box<[f32]>>,
    columns: FastDivmod<usize>,
    half: usize,
    stride: usize,
    total: usize,
    #[comptime] activation: Activation,
    #[comptime] machine: Machine,
    #[comptime] code: Option<Code>,
    #[define(F, Y)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (row, column) = columns.div_mod(ABSOLUTE_POS);
    let at = row * stride + column;
    let a = Vector::<f32, N>::cast_from(x[at]);
    let b = Vector::<f32, N>::cast_from(x[at + half]);
    let product = act::<N>(a, activation, machine) * b;
    y[ABSOLUTE_POS] = encode::<Y, N>(product, &divisor(scale_of(scale, 0usize, code)), code);
}

/// The function of each element.
#[cube]
pub(crate) fn act<N: Size>(
    a: Vector<f32, N>,
    #[comptime] activation: Activation,
    #[comptime] machine: Machine,
) -> Vector<f32, N> {
    #[comptime]
    match activation {
        Activation::Silu => swish::<N>(a, a, machine),
        Activation::Gelu => {
            let above = erfc::<N>(a.abs() * Vector::new(std::f32::consts::FRAC_1_SQRT_2), machine)
                * Vector::new(0.5f32);
            let is_negative = a.less_than(&Vector::new(0.0f32));
            a * select_many(is_negative, above, Vector::new(1.0f32) - above)
        }
        // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u))
        Activation::GeluTanh => {
            let cubic = a + Vector::new(0.044_715_f32) * a * a * a;
            swish::<N>(a, Vector::new(1.595_769_f32) * cubic, machine)
        }
    }
}

/// `a / (1 + exp(-u))`.
#[cube]
fn swish<N: Size>(a: Vector<f32, N>, u: Vector<f32, N>, #[comptime] machine: Machine) -> Vector<f32, N> {
    a * reciprocal::<N>(Vector::new(1.0f32) + exp::<N>(-u, machine), machine)
}

/// Rows of two halves, and the tensor for their products.
pub struct ActAndMul {
    /// `[rows, 2 · width]`.
    pub x: TensorBinding,
    /// `[rows, width]`, contiguous.
    pub y: TensorBinding,
    /// The scale if `y` is fp8: one for all of it.
    pub quantized: Option<Quantized>,
    /// The function of the first half.
    pub activation: Activation,
}

/// Multiplies the second half of each row with the activated first one, in f32, rounded once.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, act: ActAndMul, dtype: ElemType) -> Result<()> {
    let ActAndMul { x, y, quantized, activation } = act;
    rows(KERNEL, "x", &x, 2)?;
    if !x.shape[1].is_multiple_of(2) {
        return Err(shape(KERNEL, "x", &x, "rows of an even number of elements"));
    }
    let width = x.shape[1] / 2;
    contiguous(KERNEL, "y", &y, &[x.shape[0], width])?;
    Quantized::check_one(quantized.as_ref(), KERNEL)?;
    if y.size() == 0 {
        return Ok(());
    }

    let lanes = vector(client, dtype, &[width], alignment(&x));
    let total = y.size() / lanes;
    let (count, dim) = elementwise(KERNEL, client, total)?;
    let address = addresses(&[(&x, dtype.size()), (&y, dtype.size())]);
    let y_dtype = element_type(quantized.is_some(), dtype);
    let (code, scale) = Quantized::unzip(quantized, client);
    let (half, stride) = (width / lanes, x.strides[0] / lanes);
    // SAFETY: a unit beyond `total` stops; below it row and column are within y, and twice as many columns within x.
    unsafe {
        act_and_mul::launch_unchecked(
            client,
            count,
            dim,
            address,
            lanes,
            x.into_buffer_arg(),
            y.into_buffer_arg(),
            scale.into(),
            half,
            half,
            stride,
            total,
            activation,
            Machine::of(DeviceProfile::of(client).arch),
            code,
            [dtype, y_dtype],
        );
    }
    Ok(())
}
