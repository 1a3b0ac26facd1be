//! Instructions that move values between lanes or to scalars.

use crate::decode::Op::*;
use crate::decode::{Instruction, Operand};
use crate::wave::{LANES, M0, Wave};

impl Wave {
    pub(super) fn lane(&mut self, i: &Instruction) -> bool {
        match i.op {
            v_nop | v_clrexcp => {}
            v_readfirstlane_b32 => {
                // With no lane on it is lane 0.
                let lane = self.exec().trailing_zeros() as usize & 63;
                self.write_scalar(i, lane);
            }
            v_readlane_b32 => {
                let lane = self.uniform32(i.source[1]) as usize & 63;
                self.write_scalar(i, lane);
            }
            v_writelane_b32 => {
                let (value, lane) = (self.uniform32(i.source[0]), self.uniform32(i.source[1]));
                if let Some(register) = self.register(i.destination) {
                    self.lanes_mut(register)[lane as usize & 63] = value;
                }
            }
            v_mbcnt_lo_u32_b32 | v_mbcnt_hi_u32_b32 => {
                let (mask, sum) = (self.source32(i, 0), self.source32(i, 1));
                let first = if i.op == v_mbcnt_lo_u32_b32 { 0 } else { 32 };
                let counts = std::array::from_fn(|lane| {
                    let below = lane.saturating_sub(first).min(32);
                    let below = ((1u64 << below) - 1) as u32;
                    sum[lane].wrapping_add((mask[lane] & below).count_ones())
                });
                self.write32(i, &counts);
            }
            v_swap_b32 => {
                let (a, b) = (self.operand32(i.destination), self.source32(i, 0));
                self.write32(i, &b);
                self.write32(&Instruction { destination: i.source[0], ..*i }, &a);
            }
            _ => return false,
        }
        true
    }

    fn write_scalar(&mut self, i: &Instruction, lane: usize) {
        let value = match self.register(i.source[0]) {
            Some(register) => self.lanes(register)[lane],
            None => self.uniform32(i.source[0]),
        };
        if let Operand::Scalar(target) = i.destination {
            self.scalars[usize::from(target & 127)] = value;
        }
    }

    /// The LDS address of M0 for transfers that bypass registers.
    #[inline]
    pub(super) fn lds_base(&self) -> u32 {
        self.scalars[M0] & 0xffff
    }

    /// The lanes in a mask, in order.
    #[inline]
    pub(super) fn each(mask: u64) -> impl Iterator<Item = usize> {
        (0..LANES).filter(move |lane| mask >> lane & 1 == 1)
    }
}
