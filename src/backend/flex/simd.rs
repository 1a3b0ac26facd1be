//! Loops that the compiler turns into vector instructions.
//!
//! Everything here is inlined into functions compiled once per instruction set, see [`crate::simd`].

use std::array::from_fn;
use std::hint::black_box;

use super::float::Widen;
pub(super) use crate::simd::{mul_add, per_instruction_set};

/// Floats of one step of a loop: one AVX-512 register, two of AVX2, four of NEON.
pub(super) const STEP: usize = 16;
/// Keys, or rows of a weight, in one step of [`outer`].
pub(super) const KEYS: usize = 4;

/// The sum of the lanes; a power of two of them.
#[inline(always)]
pub(super) fn sum<const LANES: usize>(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// `Σ a_i b_i`. Partial sums side by side let the compiler use vector registers, which it may not by itself: a float
/// sum in another order is another sum.
#[inline(always)]
pub(super) fn dot<E: Widen>(a: &[E], b: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut sums = [0.0_f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_blocks.remainder(), b_blocks.remainder());
    for (a, b) in a_blocks.zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] += a[lane].widen() * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a.widen() * b;
    }
    sum(sums)
}

#[inline(always)]
fn widen<E: Widen, const LANES: usize>(x: &[E; LANES]) -> [f32; LANES] {
    let mut wide = [0.0; LANES];
    for lane in 0..LANES {
        wide[lane] = x[lane].widen();
    }
    wide
}

/// Asks the processor to bring a row into its cache.
#[inline(always)]
pub(super) fn fetch<E>(row: &[E]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = 64 / size_of::<E>();
        for at in 0..row.len().div_ceil(line) {
            // SAFETY: every x86-64 has the instruction, and it never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(at * line).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// `a[i] · b[j]` of rows of equal length.
///
/// `A · B` registers of `LANES` collect the sums: 8, to keep both multipliers of a core busy.
#[inline(always)]
pub(super) fn dots<E: Widen, const FMA: bool, const LANES: usize, const A: usize, const B: usize>(
    a: [&[f32]; A],
    b: [&[E]; B],
) -> [[f32; B]; A] {
    let len = b[0].len();
    let (steps, tail) = (len / LANES, len - len % LANES);
    let mut a_steps: [&[[f32; LANES]]; A] = [&[]; A];
    for i in 0..A {
        a_steps[i] = &a[i].as_chunks().0[..steps];
    }
    let mut b_steps: [&[[E; LANES]]; B] = [&[]; B];
    for j in 0..B {
        b_steps[j] = &b[j].as_chunks().0[..steps];
    }
    let mut sums = [[[0.0; LANES]; B]; A];
    for step in 0..steps {
        for j in 0..B {
            let x = widen(&b_steps[j][step]);
            for i in 0..A {
                for lane in 0..LANES {
                    sums[i][j][lane] = mul_add::<FMA>(x[lane], a_steps[i][step][lane], sums[i][j][lane]);
                }
            }
        }
    }
    // Seen through, the sums below tempt the compiler to vectorise the loop above across rows: 4 times slower.
    let sums = black_box(sums);
    let mut dots = [[0.0; B]; A];
    for i in 0..A {
        for j in 0..B {
            dots[i][j] = sum(sums[i][j]);
        }
    }
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
///
/// `A · B` registers hold the weights: 8, which leaves registers for rows and sums.
#[inline(always)]
pub(super) fn accumulate<E: Widen, const FMA: bool, const LANES: usize, const A: usize, const B: usize>(
    sums: [&mut [f32]; A],
    rows: [&[E]; B],
    weights: [[f32; B]; A],
) {
    let len = rows[0].len();
    let (steps, tail) = (len / STEP, len - len % STEP);
    let mut row_steps: [&[[E; STEP]]; B] = [&[]; B];
    for j in 0..B {
        row_steps[j] = &rows[j].as_chunks().0[..steps];
    }
    let mut sum_steps: [&mut [[f32; STEP]]; A] = from_fn(|_| &mut [][..]);
    for (i, sums) in sums.into_iter().enumerate() {
        let (sums, rest) = sums[..len].split_at_mut(tail);
        sum_steps[i] = &mut sums.as_chunks_mut().0[..steps];
        for (at, sum) in rest.iter_mut().enumerate() {
            for j in 0..B {
                *sum = mul_add::<FMA>(rows[j][tail + at].widen(), weights[i][j], *sum);
            }
        }
    }
    // No steps of `LANES`: the compiler would interleave steps of 8, with more shuffles than products.
    for step in 0..steps {
        for part in 0..STEP / LANES {
            let mut x = [[0.0; LANES]; B];
            for j in 0..B {
                x[j] = widen(&row_steps[j][step].as_chunks().0[part]);
            }
            for i in 0..A {
                let into = &mut sum_steps[i][step].as_chunks_mut::<LANES>().0[part];
                let mut sum = *into;
                for j in 0..B {
                    for lane in 0..LANES {
                        sum[lane] = mul_add::<FMA>(x[j][lane], weights[i][j], sum[lane]);
                    }
                }
                *into = sum;
            }
        }
    }
}

/// `sums[row][lane] += Σ_i rows[row][i] · lanes[i][lane]`, where `lanes` is a transposed matrix. The lanes of
/// one instruction are contiguous, so that no sum across a register is ever taken.
#[inline(always)]
pub(super) fn outer<const FMA: bool, const WIDTH: usize, const ROWS: usize>(
    lanes: &[[[f32; WIDTH]; 2]],
    rows: [&[f32]; ROWS],
    mut sums: [[[f32; WIDTH]; 2]; ROWS],
) -> [[[f32; WIDTH]; 2]; ROWS] {
    let rows = rows.map(|row| &row[..lanes.len()]);
    for (i, lanes) in lanes.iter().enumerate() {
        for row in 0..ROWS {
            let x = rows[row][i];
            for half in 0..2 {
                for lane in 0..WIDTH {
                    sums[row][half][lane] = mul_add::<FMA>(x, lanes[half][lane], sums[row][half][lane]);
                }
            }
        }
    }
    sums
}

/// `e^x` for `x` up to 0, to 2 units in the last place and half a one for each unit of `x`.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    exp2::<FMA>(x * std::f32::consts::LOG2_E)
}

/// `2^x` for `x` up to 127, to 2 units in the last place; 0 below -127 (where f32 turns subnormal); NaN for NaN.
#[inline(always)]
fn exp2<const FMA: bool>(x: f32) -> f32 {
    /// Added to a small number, leaves its nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // A comparison instead of `max`, which would drop a NaN.
    let x = if x < -127.0 { -127.0 } else { x };
    let rounded = x + ROUND;
    let fraction = x - (rounded - ROUND);
    let mut power = 1.535_336_2e-4;
    for coefficient in [1.339_887_5e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
        power = mul_add::<FMA>(power, fraction, coefficient);
    }
    power * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
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
    fn dot_products_of_any_length() {
        for length in 0..100 {
            let a: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let expected: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot(&a, &a), expected);
        }
    }
}
