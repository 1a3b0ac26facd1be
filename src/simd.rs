//! Loops that the compiler turns into vector instructions, for several instruction sets.
//!
//! Functions of `FMA` are inlined into functions that `multiversion` compiles once per instruction set and
//! selects at run time. `FMA` says whether that set fuses multiply and add: without one, `mul_add` would be a
//! library call.

use multiversion::target::match_target;

/// Compiles a function once for each instruction set worth having, and calls the best that the processor has.
macro_rules! per_instruction_set {
    ($($function:tt)*) => {
        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2+fma",
            "x86_64+avx2+fma",
            "aarch64+neon"
        ))]
        $($function)*
    };
}
pub(crate) use per_instruction_set;

#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `tanh(x)` to 4 units in the last place, by a rational function; NaN for NaN.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    const BOUND: f32 = 7.905_311;
    let x = if x > BOUND { BOUND } else { x };
    let x = if x < -BOUND { -BOUND } else { x };
    let square = x * x;
    let mut above = -2.760_768_5e-16;
    for coefficient in
        [2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619_3e-4, 4.893_524_6e-3]
    {
        above = mul_add::<FMA>(above, square, coefficient);
    }
    let mut below = 1.198_258_4e-6;
    for coefficient in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3] {
        below = mul_add::<FMA>(below, square, coefficient);
    }
    x * above / below
}

per_instruction_set! {
    /// `cap tanh(inner x)` of every number.
    pub(crate) fn soft_cap(numbers: &mut [f32], inner: f32, cap: f32) {
        match_target! {
            "x86_64+avx2+fma" => soft_cap_by::<true>(numbers, inner, cap),
            "aarch64+neon" => soft_cap_by::<true>(numbers, inner, cap),
            _ => soft_cap_by::<false>(numbers, inner, cap),
        }
    }
}

#[inline(always)]
fn soft_cap_by<const FMA: bool>(numbers: &mut [f32], inner: f32, cap: f32) {
    numbers.iter_mut().for_each(|x| *x = cap * tanh::<FMA>(inner * *x));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * want.abs().log2().floor().exp2();
        (f64::from(got) - want).abs() / unit
    }

    #[test]
    fn tanh_is_accurate_and_keeps_the_special_values() {
        let mut worst = 0.0f64;
        for i in 1..2_000_000 {
            let x = 12.0 * (i as f32 / 2_000_000.0);
            for x in [x, -x, x * 1e-4] {
                worst = worst.max(ulps(tanh::<true>(x), f64::from(x).tanh()));
            }
        }
        assert!(worst < 8.0, "{worst}");
        assert_eq!(tanh::<true>(f32::INFINITY), tanh::<true>(9.0));
        assert!(tanh::<true>(f32::NAN).is_nan());
    }
}
