//! Gumbel noise, to the same bits as on the other devices.

use super::draw::Draw;
use super::float::Float;
use super::simd::per_instruction_set;

/// Elements that one step of the loops works on.
const STEP: usize = 64;

/// The first largest of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    /// Nothing where all are `-inf`.
    pub id: Option<usize>,
    pub has_nan: bool,
}

per_instruction_set! {
    /// `argmax(logit / temperature + gumbel)`; `argmax(logit)` at temperature 0.
    ///
    /// `mul_add` is a library call where the processor has no fused operation: slow there, but the same.
    pub(super) fn best<E: Float>(logits: &[E], temperature: f32, draw: &Draw) -> Best {
        let inverse = 1.0 / temperature;
        let mut best = Best { id: None, has_nan: false };
        let mut highest = f32::NEG_INFINITY;
        for (step, logits) in logits.chunks(STEP).enumerate() {
            let mut scores = [f32::NEG_INFINITY; STEP];
            for (score, logit) in scores.iter_mut().zip(logits) {
                *score = logit.widen();
                best.has_nan |= score.is_nan();
            }
            if temperature != 0.0 {
                let first = (step * STEP / 4) as u32;
                let mut words = [0; STEP];
                for (block, words) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *words = draw.words(first + block as u32);
                }
                for (score, word) in scores.iter_mut().zip(words) {
                    *score = score.mul_add(inverse, gumbel(word));
                }
            }
            for (at, &score) in scores.iter().enumerate() {
                if score > highest {
                    highest = score;
                    best.id = Some(step * STEP + at);
                }
            }
        }
        best
    }
}

/// `-ln(-ln(u))` for `u = (random + 1/2) / 2^32`.
#[inline(always)]
fn gumbel(random: u32) -> f32 {
    const UNIT: f32 = 1.0 / (1_u64 << 32) as f32;
    // Near 1 it is `1 - u` that f32 holds exactly, and on which the largest values depend.
    let complement = !random;
    let near = ln_near((complement as f32 + 0.5) * -UNIT, 0.0);
    let far = ln((random as f32 + 0.5) * UNIT);
    -ln(-if complement < 0x4afb_0ccc { near } else { far })
}

/// `ln(x)` of a normal number.
#[inline(always)]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let half_to_one = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let exponent = (bits >> 23) as i32 - 126;
    let is_low = half_to_one < std::f32::consts::FRAC_1_SQRT_2;
    let f = if is_low { half_to_one + half_to_one } else { half_to_one } - 1.0;
    ln_near(f, if is_low { exponent - 1 } else { exponent } as f32)
}

/// `ln((1 + f) · 2^exponent)` for `1 + f` between `sqrt(1/2)` and `sqrt(2)`. The coefficients are those of Cephes.
#[inline(always)]
fn ln_near(f: f32, exponent: f32) -> f32 {
    let square = f * f;
    let mut p = 0.070_376_836;
    for coefficient in [
        -0.115_146_1_f32,
        0.116_769_99,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_57,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ] {
        p = f32::mul_add(p, f, coefficient);
    }
    let y = f * square * p;
    // ln(2) in two parts, the first of which times any exponent is exact.
    let y = f32::mul_add(-2.121_944_4e-4, exponent, y);
    let y = f32::mul_add(-0.5, square, y);
    f32::mul_add(0.693_359_4, exponent, f + y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gumbel_is_accurate_over_all_words() {
        let mut worst = 0.0_f64;
        let words = (0..=u32::MAX).step_by(9973).chain(0..1000).chain((0..1000).map(|i| u32::MAX - i));
        for word in words {
            let v = (f64::from(!word) + 0.5) / 4_294_967_296.0;
            let want = -(-(-v).ln_1p()).ln();
            let error = (f64::from(gumbel(word)) - want).abs();
            worst = worst.max(error);
        }
        assert!(worst < 3e-6, "{worst}");
    }
}
