//! Functions that CubeCL lacks, or lacks on some devices.

use cubecl::{
    ir::{ElemType, FloatKind},
    prelude::*,
};

use crate::device::Machine;
use crate::isa::{amd, nvidia};

/// `log2(e)`: turns natural logarithms into base 2.
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// `tanh(x)`, to about 1e-7 relative.
///
/// Built from `exp`, because the library function is missing on ROCm without its device libraries. Near 0 the
/// exponentials cancel, so there it is `x + x³·p(x²)`, `p` interpolating at Chebyshev nodes on `|x| < 0.55`.
#[cube]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = 0.021_309_389_f32 - 0.006_610_228_f32 * z;
    let p = p * z - 0.053_909_43_f32;
    let p = p * z + 0.133_331_13_f32;
    let p = p * z - 0.333_333_3_f32;
    let near = x + x * z * p;

    let a = x.abs();
    let e = (-2.0f32 * a).exp();
    let far = (1.0f32 - e) / (1.0f32 + e);
    let far = select(x < 0.0f32, -far, far);

    // A NaN is not near 0 and passes through `exp`.
    select(a < 0.55f32, near, far)
}

/// Functions of single elements, by the instructions of a matrix unit. A variant's hooks are generic over it.
#[allow(missing_docs, reason = "the expansions have none")]
#[cube]
pub trait Math: Send + Sync + 'static {
    /// `2^x`.
    fn exp2(x: f32) -> f32;
    /// `1 / x`, to 1 ulp.
    fn reciprocal(x: f32) -> f32;
    /// `tanh(x)`: for products of 16 bits to their precision, a relative error of at most 2^-11, else to about 1e-7.
    fn tanh(x: f32) -> f32;
}

/// [`Math`] of every device, to a few ulp.
pub(crate) enum Exact {}

#[cube]
impl Math for Exact {
    fn exp2(x: f32) -> f32 {
        (x * std::f32::consts::LN_2).exp()
    }

    fn reciprocal(x: f32) -> f32 {
        1.0f32 / x
    }

    fn tanh(x: f32) -> f32 {
        tanh(x)
    }
}

/// `tanh(x) = 1 - 2 / (1 + e^2x)`, which saturates at ±1 where the exponential does.
#[cube]
pub(crate) fn tanh_by_exp2<M: Math>(x: f32) -> f32 {
    fma(-2.0f32, M::reciprocal(M::exp2(x * (2.0f32 * LOG2_E)) + 1.0f32), 1.0f32)
}

/// `exp(x)` and `1 / x` to a few ulp, by the instructions of a device. They serve functions of every element,
/// where the exact ones would take longer than the memory.
#[cube]
pub(crate) fn exp<N: Size>(x: Vector<f32, N>, #[comptime] machine: Machine) -> Vector<f32, N> {
    let lanes = N::value();
    match machine {
        Machine::Portable => x.exp(),
        _ => {
            let mut power = x * Vector::new(LOG2_E);
            #[unroll]
            for lane in 0..lanes {
                let of_two = match machine {
                    Machine::Nvidia => nvidia::exp2(power.extract(lane)),
                    _ => amd::exp2(power.extract(lane)),
                };
                power.insert(lane, of_two);
            }
            power
        }
    }
}

/// The reciprocal, see [`exp`].
#[cube]
pub(crate) fn reciprocal<N: Size>(x: Vector<f32, N>, #[comptime] machine: Machine) -> Vector<f32, N> {
    let lanes = N::value();
    if comptime!(machine == Machine::Nvidia) {
        let mut inverse = x;
        #[unroll]
        for lane in 0..lanes {
            inverse.insert(lane, nvidia::reciprocal(x.extract(lane)));
        }
        inverse
    } else {
        Vector::new(1.0f32) / x
    }
}

/// Twice the upper tail of a normal distribution for `x >= 0`: `erfc(x)`, to about 1e-7 relative, besides the
/// error of `x²`.
///
/// With `t = 1 / (1 + x/2)` it is `t·exp(p(t) - x²)`; `p` interpolates at Chebyshev nodes on `0 <= x <= 10`.
/// The library function is missing on ROCm without its device libraries.
#[cube]
pub(crate) fn erfc<N: Size>(x: Vector<f32, N>, #[comptime] machine: Machine) -> Vector<f32, N> {
    let t = reciprocal::<N>(Vector::new(1.0f32) + Vector::new(0.5f32) * x, machine);
    let p = Vector::new(0.148_046_05_f32) * t - Vector::new(0.697_536_6_f32);
    let p = p * t + Vector::new(1.195_327_6_f32);
    let p = p * t - Vector::new(0.746_469_9_f32);
    let p = p * t - Vector::new(0.039_866_325_f32);
    let p = p * t - Vector::new(0.019_507_999_f32);
    let p = p * t + Vector::new(0.041_395_962_f32);
    let p = p * t + Vector::new(0.385_283_62_f32);
    let p = p * t + Vector::new(0.998_782_46_f32);
    let p = p * t - Vector::new(1.265_454_9_f32);
    t * exp::<N>(p - x * x, machine)
}

/// `x` in f32, exactly.
///
/// On a CPU without bf16 instructions this is done on the bits. Where LLVM sees that floats come from bf16,
/// it may compute with them in bf16, and calls the function that [`narrow`] avoids.
#[cube]
pub(crate) fn widen<E: Numeric, N: Size>(x: Vector<E, N>) -> Vector<f32, N> {
    let by_bits = narrows_by_bits::<E>();
    if comptime!(by_bits) {
        let bits = Vector::<u32, N>::cast_from(Vector::<u16, N>::reinterpret(x));
        Vector::reinterpret(bits << Vector::new(16u32))
    } else {
        Vector::cast_from(x)
    }
}

/// `x` rounded to the float type `E`, ties to even.
///
/// On a CPU without bf16 instructions LLVM calls a library function to round to bf16, which libgcc has only
/// since version 13. So there it is done on the bits: the addend carries into the upper half if the lower
/// half rounds up.
#[cube]
pub(crate) fn narrow<E: Numeric, N: Size>(x: Vector<f32, N>) -> Vector<E, N> {
    let by_bits = narrows_by_bits::<E>();
    if comptime!(by_bits) {
        let bits = Vector::<u32, N>::reinterpret(x);
        let upper = bits >> Vector::new(16u32);
        let carried = bits + Vector::new(0x7fffu32) + (upper & Vector::new(1u32));
        // A NaN could carry into the sign.
        let is_nan = x.is_nan();
        let rounded = select_many(is_nan, upper | Vector::new(0x40u32), carried >> Vector::new(16u32));
        Vector::reinterpret(Vector::<u16, N>::cast_from(rounded))
    } else {
        Vector::cast_from(x)
    }
}

/// [`narrow`] for one element.
#[cube]
pub(crate) fn narrow_one<F: Float>(x: f32) -> F {
    narrow::<F, Const<1>>(Vector::new(x)).extract(0usize)
}

/// The two 16-bit numbers of a word, in f32.
#[cube]
pub(crate) fn unpack<E: Float>(word: u32) -> Vector<f32, Const<2>> {
    Vector::cast_from(Vector::<E, Const<2>>::reinterpret(Vector::<u32, Const<1>>::new(word)))
}

/// Waits for the other units of the row, if there are any.
#[cube]
pub(crate) fn sync_row(#[comptime] units: usize) {
    if comptime!(units > 1) {
        sync_cube();
    }
}

#[cube]
fn narrows_by_bits<E: Numeric>() -> comptime_type!(bool) {
    let hardware = comptime::hardware_properties();
    let elem = elem_type::<E>();
    comptime!(hardware.num_cpu_cores.is_some() && elem == ElemType::Float(FloatKind::BF16))
}

#[cube]
#[allow(clippy::extra_unused_type_parameters, reason = "the expansion uses it")]
fn elem_type<E: Numeric>() -> comptime_type!(ElemType) {
    intrinsic!(|scope| E::elem_type(scope))
}
