//! Every value of the small formats, and the general rounding against the CPU's.

use super::*;

#[test]
fn every_f16_survives_a_round_trip() {
    for bits in 0..=u16::MAX {
        let value = f16_to_f32(bits);
        let general = F16.decode(bits.into());
        assert!(f64::from(value) == general || value.is_nan() && general.is_nan(), "{bits:#x}");
        if !value.is_nan() {
            assert_eq!(f32_to_f16(value), bits);
            assert_eq!(F16.encode(value.into(), Rounding::NearestEven, false), bits.into());
        }
    }
}

#[test]
fn f16_rounding_agrees_with_the_general_one() {
    for high in 0..=u16::MAX {
        for low in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000, 0xffff] {
            let value = f32::from_bits(u32::from(high) << 16 | low);
            if !value.is_nan() {
                let general = F16.encode(value.into(), Rounding::NearestEven, false);
                assert_eq!(u32::from(f32_to_f16(value)), general, "{value:e}");
            }
        }
    }
}

#[test]
fn every_fp8_survives_a_round_trip() {
    for format in [FP8, BF8, BF16] {
        for bits in 0..2 * format.sign() as u32 {
            let value = format.decode(bits);
            if !value.is_nan() {
                assert_eq!(format.encode(value, Rounding::NearestEven, false), bits);
            }
        }
    }
    assert_eq!(FP8.decode(0x7f), 240.0);
    assert_eq!(BF8.decode(0x7f), 57344.0);
    assert_eq!(FP8.decode(0x40), 1.0);
    assert!(FP8.decode(0x80).is_nan());
    assert_eq!(FP8.encode(1000.0, Rounding::NearestEven, false), 0x80);
    assert_eq!(FP8.encode(-1000.0, Rounding::NearestEven, true), 0xff);
}

#[test]
fn fused_multiply_add_rounds_once() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f32::from_bits((state >> 32) as u32)
    };
    for _ in 0..1_000_000 {
        let (a, b, c) = (next(), next(), next());
        let close = -a * b * (1.0 + f32::EPSILON);
        for c in [c, close] {
            let (ours, theirs) = (fma_f32(a, b, c), a.mul_add(b, c));
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{a:e} {b:e} {c:e}"
            );
        }
    }
}

/// Values of all magnitudes, and those where something special happens.
fn values(count: usize) -> impl Iterator<Item = f64> {
    let special = [0.0, 1.0, f64::INFINITY, f64::NAN, f64::MAX, f64::MIN_POSITIVE, 5e-324, 1.5, 3e-310];
    let mut state = 1u64;
    (0..count).map(move |n| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let random = f64::from_bits(state >> 11 ^ state << 40);
        let near_one = f64::from_bits(state & !(0x7fe << 52) | 1020 << 52);
        let value = if n % 4 == 0 {
            special[n / 4 % 9]
        } else if n % 2 == 0 {
            random
        } else {
            near_one
        };
        if state >> 40 & 1 == 1 { -value } else { value }
    })
}

#[test]
fn the_general_rounding_agrees_with_the_cpu() {
    let same =
        |ours: f64, theirs: f64| ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
    let values: Vec<f64> = values(3_000).collect();
    for (n, &a) in values.iter().enumerate() {
        let single = f32::from_bits(F32.encode(a, Rounding::NearestEven, false));
        assert!(same(single.into(), f64::from(a as f32)), "{a:e}");
        for (&b, &c) in values.iter().zip(&values[n..]).step_by(7) {
            for c in [c, -a * b, 0.0] {
                let ours = f64::from_bits(F64.fused(a, b, c, Rounding::NearestEven, false));
                assert!(same(ours, a.mul_add(b, c)), "{a:e} {b:e} {c:e}: {ours:e} {:e}", a.mul_add(b, c));
            }
        }
    }
}

#[test]
fn directed_roundings_enclose_the_value() {
    let of = |bits: u64| F16.decode(bits as u32);
    for (a, b) in values(100_000).zip(values(100_001).skip(1)) {
        // Exact in f64: 11 bits each.
        let [a, b] = [a, b].map(|x| F16.decode(F16.encode(x, Rounding::NearestEven, true)));
        let exact = a * b;
        let [down, up, zero] = [Rounding::Down, Rounding::Up, Rounding::TowardZero]
            .map(|rounding| of(F16.fused(a, b, if exact < 0.0 { -0.0 } else { 0.0 }, rounding, false)));
        if !exact.is_finite() || exact == 0.0 {
            continue;
        }
        assert!(down <= exact && exact <= up, "{a:e} {b:e}");
        assert_eq!(zero, if exact > 0.0 { down } else { up });
        assert_eq!(down == up, f64::from(f16_to_f32(f32_to_f16(exact as f32))) == exact);
        if down != up && up.is_finite() && down.is_finite() {
            let next = if up == 0.0 {
                -2f64.powi(-24)
            } else {
                of(F16.encode(up - up.abs() * 1e-9, Rounding::Down, false).into())
            };
            assert_eq!(down, next, "neighbours");
        }
    }
    assert_eq!(F32.fused(1.0, 1.0, -1.0, Rounding::Down, false), 1 << 31);
    assert_eq!(F16.encode(1e6, Rounding::NearestEven, true), 0x7bff);
    assert_eq!(F16.encode(1e6, Rounding::Down, false), 0x7bff);
    assert_eq!(F16.encode(-1e6, Rounding::Down, false), 0xfc00);
    assert_eq!(F32.scale(f64::from(f32::MAX), -277, Rounding::Up, false), 1);
}
