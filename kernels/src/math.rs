//! Functions CubeCL does not have, or not everywhere.

use cubecl::{
    ir::{ElemType, FloatKind},
    prelude::*,
};

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

/// `x` rounded to `F`, ties to even.
///
/// On a CPU without bf16 instructions LLVM calls a library function to round to bf16, which libgcc has only since
/// version 13; so there it is done on the bits: what is added carries into the upper half if the lower half rounds up.
#[cube]
pub(crate) fn narrow<F: Float, N: Size>(x: Vector<f32, N>) -> Vector<F, N> {
    let by_bits = narrows_by_bits::<F>();
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

#[cube]
fn narrows_by_bits<F: Float>() -> comptime_type!(bool) {
    let hardware = comptime::hardware_properties();
    let elem = elem_type::<F>();
    comptime!(hardware.num_cpu_cores.is_some() && elem == ElemType::Float(FloatKind::BF16))
}

#[cube]
#[allow(clippy::extra_unused_type_parameters, reason = "the expansion uses it")]
fn elem_type<F: Float>() -> comptime_type!(ElemType) {
    intrinsic!(|scope| F::elem_type(scope))
}
