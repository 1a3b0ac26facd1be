//! Bytes: sums of absolute differences, averages and conversions.

use crate::decode::Instruction;
use crate::decode::Op::*;
use crate::wave::{LANES, Wave};

impl Wave {
    pub(super) fn media(&mut self, i: &Instruction) -> bool {
        match i.op {
            v_sad_u8 => self.difference(i, |a, b| byte_difference(a, b, false)),
            v_msad_u8 => self.difference(i, |a, b| byte_difference(a, b, true)),
            v_sad_hi_u8 => self.difference(i, |a, b| byte_difference(a, b, false) << 16),
            v_sad_u16 => {
                self.difference(i, |a, b| (a & 0xffff).abs_diff(b & 0xffff) + (a >> 16).abs_diff(b >> 16))
            }
            v_sad_u32 => self.difference(i, u32::abs_diff),
            v_qsad_pk_u16_u8 => self.differences16(i, false),
            v_mqsad_pk_u16_u8 => self.differences16(i, true),
            v_mqsad_u32_u8 => self.differences32(i),
            v_lerp_u8 => {
                // The lowest bit of each byte of the third source rounds up.
                let (a, b, c) = (self.source32(i, 0), self.source32(i, 1), self.source32(i, 2));
                let average = |lane: usize, shift: u32| {
                    let [a, b] = [a[lane], b[lane]].map(|bytes| bytes >> shift & 0xff);
                    (a + b + (c[lane] >> shift & 1)) >> 1 << shift
                };
                self.write32(
                    i,
                    &std::array::from_fn(|lane| (0..4).map(|byte| average(lane, 8 * byte)).sum()),
                );
            }
            v_cvt_pkaccum_u8_f32 => {
                let (a, byte, old) = (self.float32(i, 0), self.source32(i, 1), self.operand32(i.destination));
                let values = std::array::from_fn(|lane| with_byte(old[lane], byte[lane], a[lane]));
                self.write32(i, &values);
            }
            v_cvt_pk_u8_f32 => {
                let (a, byte, old) = (self.float32(i, 0), self.source32(i, 1), self.source32(i, 2));
                let values = std::array::from_fn(|lane| with_byte(old[lane], byte[lane], a[lane]));
                self.write32(i, &values);
            }
            v_sat_pk_u8_i16 => {
                let clamp = |a: u32| (a as i16).clamp(0, 255) as u32;
                let values = self.source32(i, 0).map(|a| clamp(a) | clamp(a >> 16) << 8);
                self.write32(i, &values);
            }
            _ => return false,
        }
        true
    }

    fn difference(&mut self, i: &Instruction, f: impl Fn(u32, u32) -> u32) {
        let (a, b, sum) = (self.source32(i, 0), self.source32(i, 1), self.source32(i, 2));
        let values = std::array::from_fn(|lane| {
            let difference = f(a[lane], b[lane]);
            match i.clamp {
                true => sum[lane].saturating_add(difference),
                false => sum[lane].wrapping_add(difference),
            }
        });
        self.write32(i, &values);
    }

    /// The four differences of a word from the words that start at each byte of the first source.
    fn windows(&self, i: &Instruction, masked: bool) -> [[u32; 4]; LANES] {
        let (a, b) = (self.source64(i, 0, false), self.source32(i, 1));
        std::array::from_fn(|lane| {
            [0, 1, 2, 3].map(|byte| byte_difference((a[lane] >> (8 * byte)) as u32, b[lane], masked))
        })
    }

    fn differences16(&mut self, i: &Instruction, masked: bool) {
        let (windows, sums) = (self.windows(i, masked), self.source64(i, 2, false));
        let values = std::array::from_fn(|lane| {
            (0..4).fold(0, |packed, n| {
                let sum = (sums[lane] >> (16 * n)) as u16;
                let difference = windows[lane][n] as u16;
                let sum = if i.clamp { sum.saturating_add(difference) } else { sum.wrapping_add(difference) };
                packed | u64::from(sum) << (16 * n)
            })
        });
        self.write64(i, &values);
    }

    fn differences32(&mut self, i: &Instruction) {
        let windows = self.windows(i, true);
        let [Some(target), Some(sums)] = [i.destination, i.source[2]].map(|operand| self.register(operand))
        else {
            return;
        };
        let sums = [0, 1, 2, 3].map(|n| *self.lanes(sums + n));
        let mask = self.exec();
        for lane in Self::each(mask) {
            for n in 0..4 {
                let (sum, difference) = (sums[n][lane], windows[lane][n]);
                self.lanes_mut(target + n)[lane] = match i.clamp {
                    true => sum.saturating_add(difference),
                    false => sum.wrapping_add(difference),
                };
            }
        }
    }
}

/// `masked` leaves out the bytes where the reference, `b`, is 0.
fn byte_difference(a: u32, b: u32, masked: bool) -> u32 {
    let bytes = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    bytes.filter(|(_, b)| !masked || *b != 0).map(|(a, b)| u32::from(a.abs_diff(b))).sum()
}

fn with_byte(old: u32, byte: u32, value: f32) -> u32 {
    let shift = 8 * (byte & 3);
    old & !(0xff << shift) | u32::from(value.round_ties_even() as u8) << shift
}
