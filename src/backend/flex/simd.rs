//! Loops that the compiler turns into vector instructions.
//!
//! Everything here is inlined into functions that `multiversion` compiles once per instruction set and selects at run
//! time. `FMA` says whether that set fuses multiply and add: without one, `mul_add` would be a library call.

use std::array::from_fn;
use std::hint::black_box;

use super::float::Float;

/// Elements that one step of a loop works on: one AVX-512 register, two of AVX2, four of NEON.
pub(super) const STEP: usize = 16;
/// Keys, or rows of a weight, that [`outer`] works on at once.
pub(super) const KEYS: usize = 4;

#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
pub(super) fn sum(x: [f32; STEP]) -> f32 {
    let eight: [f32; 8] = from_fn(|i| x[i] + x[i + 8]);
    let four: [f32; 4] = from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[inline(always)]
fn widen<E: Float>(x: &[E; STEP]) -> [f32; STEP] {
    let mut wide = [0.0; STEP];
    for (wide, x) in wide.iter_mut().zip(x) {
        *wide = x.widen();
    }
    wide
}

/// `a[i] · b[j]` of rows of equal length, each element of `b` read and widened once.
#[inline(always)]
pub(super) fn dots<E: Float, const FMA: bool, const A: usize, const B: usize>(
    a: [&[f32]; A],
    b: [&[E]; B],
) -> [[f32; B]; A] {
    let len = b[0].len();
    let (steps, tail) = (len / STEP, len - len % STEP);
    let a_steps: [&[[f32; STEP]]; A] = from_fn(|i| &a[i].as_chunks().0[..steps]);
    let b_steps: [&[[E; STEP]]; B] = from_fn(|j| &b[j].as_chunks().0[..steps]);
    let mut sums = [[[0.0; STEP]; B]; A];
    for step in 0..steps {
        for j in 0..B {
            let x = widen(&b_steps[j][step]);
            for i in 0..A {
                for lane in 0..STEP {
                    sums[i][j][lane] = mul_add::<FMA>(x[lane], a_steps[i][step][lane], sums[i][j][lane]);
                }
            }
        }
    }
    // Seen through, the sums below tempt the compiler to vectorise the loop above across rows: 4 times slower.
    let sums = black_box(sums);
    let mut dots = from_fn(|i| from_fn(|j| sum(sums[i][j])));
    if tail < len {
        for i in 0..A {
            for j in 0..B {
                for (x, y) in a[i][tail..len].iter().zip(&b[j][tail..]) {
                    dots[i][j] = mul_add::<FMA>(*x, y.widen(), dots[i][j]);
                }
            }
        }
    }
    dots
}

/// `sums[i] += Σ_j weights[i][j] · rows[j]`, rows of equal length.
#[inline(always)]
pub(super) fn accumulate<E: Float, const FMA: bool, const A: usize, const B: usize>(
    mut sums: [&mut [f32]; A],
    rows: [&[E]; B],
    weights: [[f32; B]; A],
) {
    let len = rows[0].len();
    let (steps, tail) = (len / STEP, len - len % STEP);
    {
        let row_steps: [&[[E; STEP]]; B] = from_fn(|j| &rows[j].as_chunks().0[..steps]);
        let sum_steps = sums.each_mut().map(|sums| &mut sums.as_chunks_mut::<STEP>().0[..steps]);
        for step in 0..steps {
            let x: [[f32; STEP]; B] = from_fn(|j| widen(&row_steps[j][step]));
            for i in 0..A {
                let mut sum = sum_steps[i][step];
                for j in 0..B {
                    for lane in 0..STEP {
                        sum[lane] = mul_add::<FMA>(x[j][lane], weights[i][j], sum[lane]);
                    }
                }
                sum_steps[i][step] = sum;
            }
        }
    }
    if tail < len {
        for i in 0..A {
            for (at, sum) in sums[i][tail..len].iter_mut().enumerate() {
                for j in 0..B {
                    *sum = mul_add::<FMA>(rows[j][tail + at].widen(), weights[i][j], *sum);
                }
            }
        }
    }
}

/// `sums[key][lane] += Σ_i rows[key][i] · lanes[i][lane]`, where `lanes` is a matrix transposed so that what one
/// instruction multiplies lies side by side: no sum across a register is ever taken.
#[inline(always)]
pub(super) fn outer<const FMA: bool, const WIDTH: usize>(
    lanes: &[[[f32; WIDTH]; 2]],
    rows: [&[f32]; KEYS],
    mut sums: [[[f32; WIDTH]; 2]; KEYS],
) -> [[[f32; WIDTH]; 2]; KEYS] {
    let rows = rows.map(|row| &row[..lanes.len()]);
    for (i, lanes) in lanes.iter().enumerate() {
        for key in 0..KEYS {
            let x = rows[key][i];
            for half in 0..2 {
                for lane in 0..WIDTH {
                    sums[key][half][lane] = mul_add::<FMA>(x, lanes[half][lane], sums[key][half][lane]);
                }
            }
        }
    }
    sums
}

/// `2^x` for `x` up to 127, to 2 units in the last place; 0 below -127 (where f32 turns subnormal); NaN for NaN.
#[inline(always)]
pub(super) fn exp2<const FMA: bool>(x: f32) -> f32 {
    /// Added to a small number, leaves its nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `max`, which would swallow a NaN.
    let x = if x < -127.0 { -127.0 } else { x };
    let rounded = x + ROUND;
    let fraction = x - (rounded - ROUND);
    let mut power = 1.535_336_2e-4;
    for coefficient in [1.339_887_5e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
        power = mul_add::<FMA>(power, fraction, coefficient);
    }
    power * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

/// `tanh(x)` to 4 units in the last place, by a rational function; NaN for NaN.
#[inline(always)]
pub(super) fn tanh<const FMA: bool>(x: f32) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * want.abs().log2().floor().exp2();
        (f64::from(got) - want).abs() / unit
    }

    #[test]
    fn exp2_is_accurate_and_keeps_the_special_values() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -126.0 * (i as f32 / 2_000_000.0);
            worst = worst.max(ulps(exp2::<true>(x), f64::from(x).exp2()));
            worst = worst.max(ulps(exp2::<false>(x), f64::from(x).exp2()));
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!(exp2::<true>(0.0), 1.0);
        assert_eq!(exp2::<true>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2::<true>(-3e5), 0.0);
        assert!(exp2::<true>(f32::NAN).is_nan());
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
