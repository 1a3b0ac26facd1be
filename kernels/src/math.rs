//! Functions CubeCL does not have, or not everywhere.

use cubecl::prelude::*;

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
