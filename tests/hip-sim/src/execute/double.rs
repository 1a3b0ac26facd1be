//! f64 arithmetic.

use super::single::{frexp, ldexp};
use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::wave::Wave;

impl Wave {
    fn unary64(&mut self, i: &Instruction, f: impl Fn(f64) -> f64) {
        let a = self.float64(i, 0);
        self.finish64(i, a.map(f));
    }

    fn binary64(&mut self, i: &Instruction, f: impl Fn(f64, f64) -> f64) {
        let (a, b) = (self.float64(i, 0), self.float64(i, 1));
        self.finish64(i, std::array::from_fn(|lane| f(a[lane], b[lane])));
    }

    pub(super) fn double(&mut self, i: &Instruction) -> bool {
        match i.op {
            v_add_f64 => self.binary64(i, |a, b| a + b),
            v_mul_f64 => self.binary64(i, |a, b| a * b),
            v_min_f64 => self.binary64(i, minimum),
            v_max_f64 => self.binary64(i, maximum),
            v_fma_f64 => {
                let (a, b, c) = (self.float64(i, 0), self.float64(i, 1), self.float64(i, 2));
                self.finish64(i, std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane])));
            }
            v_fmac_f64 => {
                let (a, b) = (self.float64(i, 0), self.float64(i, 1));
                let old = Instruction { source: [i.destination; 3], negate: 0, absolute: 0, ..*i };
                let c = self.float64(&old, 2);
                self.finish64(i, std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane])));
            }
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
            v_ldexp_f64 => {
                let (a, exponent) = (self.float64(i, 0), self.source32(i, 1));
                self.finish64(i, std::array::from_fn(|lane| ldexp(a[lane], exponent[lane] as i32)));
            }
            _ => return false,
        }
        true
    }
}

pub(super) fn minimum(a: f64, b: f64) -> f64 {
    if a.is_nan() || b < a || (b == a && b.is_sign_negative()) { b } else { a }
}

pub(super) fn maximum(a: f64, b: f64) -> f64 {
    if a.is_nan() || b > a || (b == a && b.is_sign_positive()) { b } else { a }
}
