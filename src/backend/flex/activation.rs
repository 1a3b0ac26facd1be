//! Gated activations, by functions that become vector instructions.

use burn_flex::FlexTensor;
use multiversion::target::match_target;

use super::float::Float;
use super::output::by_rows;
use super::simd::{self, mul_add, per_instruction_set};
use super::view::{Rows, dims, with_rows};
use crate::types::Activation;

/// Elements below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 15;

/// `act(a) · b` for the halves `a` and `b` of the rows of `x`.
pub(super) fn act_and_mul<E: Float, Y: Float>(x: FlexTensor, activation: Activation) -> FlexTensor {
    let x = with_rows(x);
    let [rows, width] = dims(&x);
    let width = width / 2;
    let source: Rows<'_, E, 1> = Rows::of(&x);
    by_rows([rows, width], PARALLEL, |row, y: &mut [Y]| {
        let (a, b) = source.row([row]).split_at(width);
        gated(a, b, activation, y);
    })
}

per_instruction_set! {
    /// `y = act(a) · b`.
    pub(super) fn gated<E: Float, Y: Float>(a: &[E], b: &[E], activation: Activation, y: &mut [Y]) {
        match_target! {
            "x86_64+avx512f" => gated_body::<E, Y, true>(a, b, activation, y),
            "x86_64+avx2+fma" => gated_body::<E, Y, true>(a, b, activation, y),
            "aarch64+neon" => gated_body::<E, Y, true>(a, b, activation, y),
            _ => gated_body::<E, Y, false>(a, b, activation, y),
        }
    }
}

#[inline(always)]
fn gated_body<E: Float, Y: Float, const FMA: bool>(a: &[E], b: &[E], activation: Activation, y: &mut [Y]) {
    match activation {
        Activation::Silu => each(a, b, y, |a| swish::<FMA>(a, a)),
        Activation::Gelu => each(a, b, y, gelu::<FMA>),
        // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u))
        Activation::GeluTanh => each(a, b, y, |a| {
            let cubic = mul_add::<FMA>(0.044_715 * a * a, a, a);
            swish::<FMA>(a, 1.595_769 * cubic)
        }),
    }
}

#[inline(always)]
fn each<E: Float, Y: Float>(a: &[E], b: &[E], y: &mut [Y], act: impl Fn(f32) -> f32) {
    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
        *y = Y::narrow(act(a.widen()) * b.widen());
    }
}

/// `a / (1 + exp(-u))`, by an exponential that is at most 1.
#[inline(always)]
fn swish<const FMA: bool>(a: f32, u: f32) -> f32 {
    let power = simd::exp::<FMA>(-u.abs());
    let numerator = if u < 0.0 { power } else { 1.0 };
    a * (numerator / (1.0 + power))
}

/// `a · Φ(a)`.
#[inline(always)]
fn gelu<const FMA: bool>(a: f32) -> f32 {
    let above = 0.5 * erfc::<FMA>(a.abs() * std::f32::consts::FRAC_1_SQRT_2);
    a * if a < 0.0 { above } else { 1.0 - above }
}

/// `erfc(x)` for `x` from 0, to about 1e-7 relative but for the error of `x²`: with `t = 1 / (1 + x/2)` it is
/// `t·exp(p(t) - x²)`, `p` interpolating at Chebyshev nodes on `0 <= x <= 10`.
#[inline(always)]
fn erfc<const FMA: bool>(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.5 * x);
    let mut p = 0.148_046_05;
    for coefficient in [
        -0.697_536_6,
        1.195_327_6,
        -0.746_469_9,
        -0.039_866_325,
        -0.019_507_999,
        0.041_395_962,
        0.385_283_62,
        0.998_782_46,
        -1.265_454_9,
    ] {
        p = mul_add::<FMA>(p, t, coefficient);
    }
    t * simd::exp::<FMA>(p - x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_at_known_places() {
        for (x, want) in [
            (0.0, 1.0),
            (0.25, 0.723_673_609_831_763_1),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (4.0, 1.541_725_790_028_002e-8),
            (8.0, 1.122_429_717_298_292_8e-29),
        ] {
            for got in [erfc::<true>(x), erfc::<false>(x)] {
                let error = (f64::from(got) - want).abs() / want;
                assert!(error < 3e-7 + f64::from(x * x) * 1.2e-7, "erfc({x}) = {got:e}, off by {error:e}");
            }
        }
        assert_eq!(erfc::<true>(f32::INFINITY), 0.0);
        assert!(erfc::<true>(f32::NAN).is_nan());
    }
}
