//! Integer arithmetic and bits, and 16-bit integers.

use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::wave::{LANES, Wave};

impl Wave {
    #[inline]
    fn unary(&mut self, i: &Instruction, f: impl Fn(u32) -> u32) {
        let a = self.source32(i, 0);
        self.write32(i, &a.map(f));
    }

    #[inline]
    fn binary(&mut self, i: &Instruction, f: impl Fn(u32, u32) -> u32) {
        let (a, b) = (self.source32(i, 0), self.source32(i, 1));
        self.write32(i, &std::array::from_fn(|lane| f(a[lane], b[lane])));
    }

    #[inline]
    fn ternary(&mut self, i: &Instruction, f: impl Fn(u32, u32, u32) -> u32) {
        let (a, b, c) = (self.source32(i, 0), self.source32(i, 1), self.source32(i, 2));
        self.write32(i, &std::array::from_fn(|lane| f(a[lane], b[lane], c[lane])));
    }

    #[inline]
    fn short2(&mut self, i: &Instruction, f: impl Fn(u16, u16) -> u16) {
        let (a, b) = (self.source16(i, 0), self.source16(i, 1));
        self.write16(i, &std::array::from_fn(|lane| f(a[lane] as u16, b[lane] as u16).into()));
    }

    #[inline]
    fn short3(&mut self, i: &Instruction, f: impl Fn(u16, u16, u16) -> u16) {
        let (a, b, c) = (self.source16(i, 0), self.source16(i, 1), self.source16(i, 2));
        let value = |lane: usize| f(a[lane] as u16, b[lane] as u16, c[lane] as u16).into();
        self.write16(i, &std::array::from_fn(value));
    }

    #[inline]
    fn shift64(&mut self, i: &Instruction, f: impl Fn(u64, u32) -> u64) {
        let (shift, value) = (self.source32(i, 0), self.source64(i, 1, false));
        self.write64(i, &std::array::from_fn(|lane| f(value[lane], shift[lane] & 63)));
    }

    /// A sum or difference with its carry per lane; `carry_in` comes from the third source.
    #[inline]
    fn carrying(&mut self, i: &Instruction, carry_in: bool, f: impl Fn(u64, u64, u64) -> u64) {
        let (a, b) = (self.source32(i, 0), self.source32(i, 1));
        let carries = if carry_in { self.uniform64(i.source[2]) } else { 0 };
        let wide: [u64; LANES] =
            std::array::from_fn(|lane| f(a[lane].into(), b[lane].into(), carries >> lane & 1));
        let out = (0..LANES).fold(0, |mask, lane| mask | (wide[lane] >> 32 & 1) << lane);
        let mask = self.write_mask(i);
        // Beyond the range lies a small carry of a sum, or the large one of a difference.
        let limit = |value: u64| if value >> 33 == 0 { u32::MAX } else { 0 };
        let narrow = |value: u64| if i.clamp && value >> 32 != 0 { limit(value) } else { value as u32 };
        self.write32(i, &wide.map(narrow));
        self.set_scalar64(i.scalar_destination.into(), out & mask);
    }

    pub(super) fn integer(&mut self, i: &Instruction) -> bool {
        match i.op {
            v_mov_b32 | v_accvgpr_mov_b32 => self.unary(i, |a| a),
            v_add_u32 if i.clamp => self.binary(i, u32::saturating_add),
            v_sub_u32 if i.clamp => self.binary(i, u32::saturating_sub),
            v_subrev_u32 if i.clamp => self.binary(i, |a, b| b.saturating_sub(a)),
            v_add_i32 if i.clamp => self.binary(i, |a, b| (a as i32).saturating_add(b as i32) as u32),
            v_sub_i32 if i.clamp => self.binary(i, |a, b| (a as i32).saturating_sub(b as i32) as u32),
            v_add_u32 | v_add_i32 => self.binary(i, u32::wrapping_add),
            v_sub_u32 | v_sub_i32 => self.binary(i, u32::wrapping_sub),
            v_subrev_u32 => self.binary(i, |a, b| b.wrapping_sub(a)),
            v_add_co_u32 => self.carrying(i, false, |a, b, _| a + b),
            v_sub_co_u32 => self.carrying(i, false, |a, b, _| a.wrapping_sub(b)),
            v_subrev_co_u32 => self.carrying(i, false, |a, b, _| b.wrapping_sub(a)),
            v_addc_co_u32 => self.carrying(i, true, |a, b, c| a + b + c),
            v_subb_co_u32 => self.carrying(i, true, |a, b, c| a.wrapping_sub(b).wrapping_sub(c)),
            v_subbrev_co_u32 => self.carrying(i, true, |a, b, c| b.wrapping_sub(a).wrapping_sub(c)),
            v_mul_lo_u32 => self.binary(i, u32::wrapping_mul),
            v_mul_hi_u32 => self.binary(i, |a, b| (u64::from(a) * u64::from(b) >> 32) as u32),
            v_mul_hi_i32 => {
                self.binary(i, |a, b| (i64::from(a as i32) * i64::from(b as i32) >> 32) as u32);
            }
            v_mul_u32_u24 => self.binary(i, |a, b| low24(a).wrapping_mul(low24(b))),
            v_mul_hi_u32_u24 => {
                self.binary(i, |a, b| (u64::from(low24(a)) * u64::from(low24(b)) >> 32) as u32);
            }
            v_mul_i32_i24 => self.binary(i, |a, b| signed24(a).wrapping_mul(signed24(b)) as u32),
            v_mul_hi_i32_i24 => {
                self.binary(i, |a, b| (i64::from(signed24(a)) * i64::from(signed24(b)) >> 32) as u32);
            }
            v_mad_u32_u24 | v_mad_i32_i24 | v_mad_u32_u16 | v_mad_i32_i16 if i.clamp => self.saturating(i),
            v_mad_u32_u24 => {
                self.ternary(i, |a, b, c| low24(a).wrapping_mul(low24(b)).wrapping_add(c));
            }
            v_mad_i32_i24 => {
                self.ternary(i, |a, b, c| (signed24(a).wrapping_mul(signed24(b)) as u32).wrapping_add(c));
            }
            v_min_i32 => self.binary(i, |a, b| (a as i32).min(b as i32) as u32),
            v_max_i32 => self.binary(i, |a, b| (a as i32).max(b as i32) as u32),
            v_min_u32 => self.binary(i, u32::min),
            v_max_u32 => self.binary(i, u32::max),
            v_min3_i32 => self.ternary(i, |a, b, c| (a as i32).min(b as i32).min(c as i32) as u32),
            v_max3_i32 => self.ternary(i, |a, b, c| (a as i32).max(b as i32).max(c as i32) as u32),
            v_min3_u32 => self.ternary(i, |a, b, c| a.min(b).min(c)),
            v_max3_u32 => self.ternary(i, |a, b, c| a.max(b).max(c)),
            v_med3_i32 => self.ternary(i, |a, b, c| median(a as i32, b as i32, c as i32) as u32),
            v_med3_u32 => self.ternary(i, median),
            v_lshlrev_b32 => self.binary(i, |a, b| b << (a & 31)),
            v_lshrrev_b32 => self.binary(i, |a, b| b >> (a & 31)),
            v_ashrrev_i32 => self.binary(i, |a, b| ((b as i32) >> (a & 31)) as u32),
            v_lshlrev_b64 => self.shift64(i, |value, shift| value << shift),
            v_lshrrev_b64 => self.shift64(i, |value, shift| value >> shift),
            v_ashrrev_i64 => self.shift64(i, |value, shift| (value as i64 >> shift) as u64),
            v_and_b32 => self.binary(i, |a, b| a & b),
            v_or_b32 => self.binary(i, |a, b| a | b),
            v_xor_b32 => self.binary(i, |a, b| a ^ b),
            v_xnor_b32 => self.binary(i, |a, b| !(a ^ b)),
            v_not_b32 => self.unary(i, |a| !a),
            v_bfrev_b32 => self.unary(i, u32::reverse_bits),
            v_ffbh_u32 => self.unary(i, |a| if a == 0 { u32::MAX } else { a.leading_zeros() }),
            v_ffbl_b32 => self.unary(i, |a| if a == 0 { u32::MAX } else { a.trailing_zeros() }),
            v_ffbh_i32 => self.unary(i, |a| {
                let folded = a ^ ((a as i32) >> 31) as u32;
                if folded == 0 { u32::MAX } else { folded.leading_zeros() }
            }),
            v_bfe_u32 => self.ternary(i, |a, b, c| a >> (b & 31) & ((1 << (c & 31)) - 1)),
            v_bfe_i32 => self.ternary(i, |a, b, c| {
                let (offset, width) = (b & 31, c & 31);
                let (cut, width) = (a >> offset, width.min(32 - offset));
                if width == 0 { 0 } else { ((cut << (32 - width)) as i32 >> (32 - width)) as u32 }
            }),
            v_bfi_b32 => self.ternary(i, |a, b, c| a & b | !a & c),
            v_bfm_b32 => self.binary(i, |a, b| ((1 << (a & 31)) - 1) << (b & 31)),
            v_alignbit_b32 => {
                self.ternary(i, |a, b, c| ((u64::from(a) << 32 | u64::from(b)) >> (c & 31)) as u32);
            }
            v_alignbyte_b32 => {
                self.ternary(i, |a, b, c| ((u64::from(a) << 32 | u64::from(b)) >> (8 * (c & 3))) as u32);
            }
            v_perm_b32 => self.ternary(i, permuted_bytes),
            v_bcnt_u32_b32 => self.binary(i, |a, b| a.count_ones().wrapping_add(b)),
            v_lshl_add_u32 => self.ternary(i, |a, b, c| (a << (b & 31)).wrapping_add(c)),
            v_add_lshl_u32 => self.ternary(i, |a, b, c| a.wrapping_add(b) << (c & 31)),
            v_add3_u32 => self.ternary(i, |a, b, c| a.wrapping_add(b).wrapping_add(c)),
            v_lshl_or_b32 => self.ternary(i, |a, b, c| a << (b & 31) | c),
            v_and_or_b32 => self.ternary(i, |a, b, c| a & b | c),
            v_or3_b32 => self.ternary(i, |a, b, c| a | b | c),
            v_xad_u32 => self.ternary(i, |a, b, c| (a ^ b).wrapping_add(c)),
            v_mad_u32_u16 => {
                let (a, b, c) = (self.source16(i, 0), self.source16(i, 1), self.source32(i, 2));
                self.write32(i, &std::array::from_fn(|lane| (a[lane] * b[lane]).wrapping_add(c[lane])));
            }
            v_mad_i32_i16 => {
                let (a, b, c) = (self.source16(i, 0), self.source16(i, 1), self.source32(i, 2));
                let product = |lane: usize| i32::from(a[lane] as i16) * i32::from(b[lane] as i16);
                self.write32(i, &std::array::from_fn(|lane| (product(lane) as u32).wrapping_add(c[lane])));
            }
            v_mad_u64_u32 | v_mad_i64_i32 => {
                let (a, b, c) = (self.source32(i, 0), self.source32(i, 1), self.source64(i, 2, false));
                let signed = i.op == v_mad_i64_i32;
                let (mut values, mut carries) = ([0; LANES], 0);
                for lane in 0..LANES {
                    let product = if signed {
                        (i64::from(a[lane] as i32) * i64::from(b[lane] as i32)) as u64
                    } else {
                        u64::from(a[lane]) * u64::from(b[lane])
                    };
                    let (sum, carry) = product.overflowing_add(c[lane]);
                    values[lane] = match (i.clamp, signed) {
                        (false, _) => sum,
                        (true, true) => (product as i64).saturating_add(c[lane] as i64) as u64,
                        (true, false) => product.saturating_add(c[lane]),
                    };
                    carries |= u64::from(carry) << lane;
                }
                let mask = self.write_mask(i);
                self.write64(i, &values);
                self.set_scalar64(i.scalar_destination.into(), carries & mask);
            }
            v_lshl_add_u64 => {
                let (a, b, c) = (self.source64(i, 0, false), self.source32(i, 1), self.source64(i, 2, false));
                self.write64(
                    i,
                    &std::array::from_fn(|lane| (a[lane] << (b[lane] & 7)).wrapping_add(c[lane])),
                );
            }
            v_mov_b64 => {
                let values = self.source64(i, 0, false);
                self.write64(i, &values);
            }
            _ => return self.short(i),
        }
        true
    }

    /// Products and sums that stop at the ends of the range.
    fn saturating(&mut self, i: &Instruction) {
        let source = |n: usize| match i.op {
            v_mad_u32_u24 => self.source32(i, n).map(|a| low24(a).into()),
            v_mad_i32_i24 => self.source32(i, n).map(|a| signed24(a).into()),
            v_mad_u32_u16 => self.source16(i, n).map(i64::from),
            _ => self.source16(i, n).map(|a| i64::from(a as i16)),
        };
        let (a, b, c): ([i64; LANES], [i64; LANES], _) = (source(0), source(1), self.source32(i, 2));
        let signed = matches!(i.op, v_mad_i32_i24 | v_mad_i32_i16);
        let values = std::array::from_fn(|lane| match signed {
            true => {
                (a[lane] * b[lane] + i64::from(c[lane] as i32)).clamp(i32::MIN.into(), i32::MAX.into()) as u32
            }
            false => (a[lane] * b[lane] + i64::from(c[lane])).min(u32::MAX.into()) as u32,
        });
        self.write32(i, &values);
    }

    /// 16-bit integers.
    fn short(&mut self, i: &Instruction) -> bool {
        let clamp = i.clamp;
        match i.op {
            v_add_u16 if clamp => self.short2(i, u16::saturating_add),
            v_sub_u16 if clamp => self.short2(i, u16::saturating_sub),
            v_subrev_u16 if clamp => self.short2(i, |a, b| b.saturating_sub(a)),
            v_add_i16 if clamp => self.short2(i, |a, b| (a as i16).saturating_add(b as i16) as u16),
            v_sub_i16 if clamp => self.short2(i, |a, b| (a as i16).saturating_sub(b as i16) as u16),
            v_add_u16 | v_add_i16 => self.short2(i, u16::wrapping_add),
            v_sub_u16 | v_sub_i16 => self.short2(i, u16::wrapping_sub),
            v_subrev_u16 => self.short2(i, |a, b| b.wrapping_sub(a)),
            v_mul_lo_u16 => self.short2(i, u16::wrapping_mul),
            v_lshlrev_b16 => self.short2(i, |a, b| b << (a & 15)),
            v_lshrrev_b16 => self.short2(i, |a, b| b >> (a & 15)),
            v_ashrrev_i16 => self.short2(i, |a, b| ((b as i16) >> (a & 15)) as u16),
            v_max_u16 => self.short2(i, u16::max),
            v_min_u16 => self.short2(i, u16::min),
            v_max_i16 => self.short2(i, |a, b| (a as i16).max(b as i16) as u16),
            v_min_i16 => self.short2(i, |a, b| (a as i16).min(b as i16) as u16),
            v_min3_i16 => self.short3(i, |a, b, c| (a as i16).min(b as i16).min(c as i16) as u16),
            v_max3_i16 => self.short3(i, |a, b, c| (a as i16).max(b as i16).max(c as i16) as u16),
            v_min3_u16 => self.short3(i, |a, b, c| a.min(b).min(c)),
            v_max3_u16 => self.short3(i, |a, b, c| a.max(b).max(c)),
            v_med3_i16 => self.short3(i, |a, b, c| median(a as i16, b as i16, c as i16) as u16),
            v_med3_u16 => self.short3(i, median),
            v_mad_u16 | v_mad_legacy_u16 if clamp => self.short3(i, mad_unsigned),
            v_mad_i16 | v_mad_legacy_i16 if clamp => self.short3(i, mad_signed),
            v_mad_u16 | v_mad_i16 | v_mad_legacy_u16 | v_mad_legacy_i16 => {
                self.short3(i, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
            }
            _ => return false,
        }
        true
    }
}

/// `a * b + c`, but no more than fits.
pub(super) fn mad_unsigned(a: u16, b: u16, c: u16) -> u16 {
    (u64::from(a) * u64::from(b) + u64::from(c)).min(0xffff) as u16
}

pub(super) fn mad_signed(a: u16, b: u16, c: u16) -> u16 {
    let [a, b, c] = [a, b, c].map(|value| i64::from(value as i16));
    (a * b + c).clamp(-0x8000, 0x7fff) as u16
}

fn low24(value: u32) -> u32 {
    value & 0xff_ffff
}

fn signed24(value: u32) -> i32 {
    (value << 8) as i32 >> 8
}

fn median<T: Ord + Copy>(a: T, b: T, c: T) -> T {
    a.min(b).max(a.max(b).min(c))
}

/// Each byte of the selector picks a byte of `high:low`, a sign, 0x00 or 0xff.
fn permuted_bytes(high: u32, low: u32, selector: u32) -> u32 {
    let both = u64::from(high) << 32 | u64::from(low);
    let pick = |select: u32| match select {
        0..=7 => (both >> (8 * select)) as u32 & 0xff,
        8..=11 => ((both >> (16 * (select - 8) + 15)) as u32 & 1) * 0xff,
        12 => 0,
        _ => 0xff,
    };
    (0..4).fold(0, |sum, byte| sum | pick(selector >> (8 * byte) & 0xff) << (8 * byte))
}
