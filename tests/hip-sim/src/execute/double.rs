//! f64 arithmetic.

use super::single::{frexp, ldexp};
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::wave::Wave;

impl Wave {
    pub(super) fn unary64(&mut self, i: &Instruction, f: impl Fn(f64) -> f64) {
        let a = self.float64(i, 0);
        self.finish64(i, a.map(f));
    }

    pub(super) fn binary64(&mut self, i: &Instruction, f: impl Fn(f64, f64) -> f64) {
        let (a, b) = (self.float64(i, 0), self.float64(i, 1));
        self.finish64(i, std::array::from_fn(|lane| f(a[lane], b[lane])));
    }

    pub(super) fn ternary64(&mut self, i: &Instruction, f: impl Fn(f64, f64, f64) -> f64) {
        let (a, b, c) = (self.float64(i, 0), self.float64(i, 1), self.float64(i, 2));
        self.finish64(i, std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])));
    }

    /// A function of two sources and the old destination.
    pub(super) fn accumulate64(&mut self, i: &Instruction, f: impl Fn(f64, f64, f64) -> f64) {
        let (a, b) = (self.float64(i, 0), self.float64(i, 1));
        let old = Instruction { source: [i.destination; 3], negate: 0, absolute: 0, ..*i };
        let c = self.float64(&old, 2);
        self.finish64(i, std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])));
    }

    pub(super) fn scaled64(&mut self, i: &Instruction, f: impl Fn(f64, i32) -> f64) {
        let (a, exponent) = (self.float64(i, 0), self.source32(i, 1));
        self.finish64(i, std::array::from_fn(|lane| f(a[lane], exponent[lane] as i32)));
    }

    pub(super) fn double(&mut self, i: &Instruction) -> bool {
        let ieee = self.ieee();
        match i.op {
            v_add_f64 => self.binary64(i, |a, b| a + b),
            v_mul_f64 => self.binary64(i, |a, b| a * b),
            v_min_f64 => self.binary64(i, |a, b| minimum(ieee, a, b)),
            v_max_f64 => self.binary64(i, |a, b| maximum(ieee, a, b)),
            v_fma_f64 => self.ternary64(i, f64::mul_add),
            v_fmac_f64 => self.accumulate64(i, f64::mul_add),
            v_trunc_f64 => self.unary64(i, f64::trunc),
            v_ceil_f64 => self.unary64(i, f64::ceil),
            v_floor_f64 => self.unary64(i, f64::floor),
            v_rndne_f64 => self.unary64(i, f64::round_ties_even),
            v_fract_f64 => self.unary64(i, |a| (a - a.floor()).min(1.0 - f64::EPSILON / 2.0)),
            v_frexp_mant_f64 => self.unary64(i, |a| frexp(a).0),
            v_frexp_exp_i32_f64 => {
                let exponents = self.float64(i, 0).map(|a| frexp(a).1 as u32);
                self.write32(i, &exponents);
            }
            v_rcp_f64 => self.unary64(i, |a| 1.0 / a),
            v_rsq_f64 => self.unary64(i, |a| 1.0 / a.sqrt()),
            v_sqrt_f64 => self.unary64(i, f64::sqrt),
            v_ldexp_f64 => self.scaled64(i, ldexp),
            v_trig_preop_f64 => {
                let (a, segment) = (self.source64(i, 0, true), self.source32(i, 1));
                let values = std::array::from_fn(|lane| two_over_pi(a[lane], segment[lane] & 31));
                self.finish64(i, values);
            }
            _ => return false,
        }
        true
    }
}

/// 2/pi after the binary point, as many digits as the instruction has.
const TWO_OVER_PI: [u64; 19] = [
    0xa2f9_836e_4e44_1529,
    0xfc27_57d1_f534_ddc0,
    0xdb62_9599_3c43_9041,
    0xfe51_63ab_debb_c561,
    0xb724_6e3a_424d_d2e0,
    0x0649_2eea_09d1_921c,
    0xfe1d_eb1c_b129_a73e,
    0xe882_35f5_2ebb_4484,
    0xe99c_7026_b45f_7e41,
    0x3991_d639_8353_39f4,
    0x9c84_5f8b_bdf9_283b,
    0x1ff8_97ff_de05_980f,
    0xef2f_118b_5a0a_6d1f,
    0x6d36_7ecf_27cb_09b7,
    0x4f46_3f66_9e5f_ea2d,
    0x7527_bac7_ebe5_f17b,
    0x3d07_39f7_8a52_92ea,
    0x6bfb_5fb1_1f8d_5d08,
    // 1201 digits.
    0x5603_3046_fc7b_0000,
];

/// The 53 digits of 2/pi in a segment: those before the first matter only for whole turns of `angle`.
fn two_over_pi(angle: u64, segment: u32) -> f64 {
    let exponent = (angle >> 52 & 0x7ff) as u32;
    let shift = 53 * segment + exponent.saturating_sub(1077);
    let word = |n: u32| u128::from(TWO_OVER_PI.get(n as usize).copied().unwrap_or(0));
    let digits = (word(shift / 64) << 64 | word(shift / 64 + 1)) << (shift % 64) >> (128 - 53);
    // A large angle would leave digits too small for f64.
    let scale = if exponent >= 1968 { 128 } else { 0 };
    ldexp(digits as f64, scale - 53 - shift as i32)
}

/// As for f32.
pub(super) fn minimum(ieee: bool, a: f64, b: f64) -> f64 {
    if ieee && (signals(a) || signals(b)) {
        return quieted(if signals(a) { a } else { b });
    }
    if a.is_nan() || b < a || (b == a && b.is_sign_negative()) { b } else { a }
}

pub(super) fn maximum(ieee: bool, a: f64, b: f64) -> f64 {
    if ieee && (signals(a) || signals(b)) {
        return quieted(if signals(a) { a } else { b });
    }
    if a.is_nan() || b > a || (b == a && b.is_sign_positive()) { b } else { a }
}

fn signals(value: f64) -> bool {
    value.is_nan() && value.to_bits() & 1 << 51 == 0
}

fn quieted(nan: f64) -> f64 {
    f64::from_bits(nan.to_bits() | 1 << 51)
}
