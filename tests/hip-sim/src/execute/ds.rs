//! DS instructions.

use super::atomic::updated;
use super::{Group, Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{AtomicOp, Detail, Direction, Instruction, Transfer};
use crate::report::{Cause, Violation};
use crate::wave::{LANES, Lanes, Wave};

impl Wave {
    pub(super) fn ds(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        let Detail::Transfer(transfer) = i.detail else { return self.ds_lanes(group, i) };
        let registers = (self.register(i.source[0]), self.register(i.source[1]), self.register(i.source[2]));
        let (Some(address), Some(first), Some(second)) = registers else { return Err(unsupported("DS")) };
        let target = self.register(i.destination).unwrap_or(0);
        if i.sc0 {
            return Err(unsupported("global data share"));
        }
        let mut addresses = *self.lanes(address);
        if matches!(i.op, ds_read_addtid_b32 | ds_write_addtid_b32) {
            addresses = std::array::from_fn(|lane| self.lds_base() + 4 * lane as u32);
        }
        let bytes = u32::from(transfer.bytes);
        // One offset of 16 bits, or two of 8 in units of the stride.
        let offsets = match u32::from(transfer.pair_stride) {
            0 => [i.immediate as u32, 0],
            stride => [(i.immediate as u32 & 0xff) * stride, (i.immediate as u32 >> 8) * stride],
        };
        let offsets = &offsets[..if transfer.pair_stride == 0 { 1 } else { 2 }];
        let exec = self.exec();
        if group.checks.profile {
            for &offset in offsets {
                group.profile.lds_accesses += 1;
                group.profile.lds_conflicts += conflicts(&addresses, offset, bytes, exec);
            }
        }
        if let Some(memory) = group.lds.unwatched()
            && self.whole_lds_words(memory, &transfer, [target, first, second], &addresses, offsets)
        {
            return Ok(());
        }
        for lane in Self::each(exec) {
            let fail = |cause: Cause| cause.in_lane(lane);
            match transfer.direction {
                Direction::Load => {
                    let mut values = [[0; 4]; 2];
                    for (value, &offset) in values.iter_mut().zip(offsets) {
                        let at = addresses[lane].wrapping_add(offset);
                        *value = group.lds.read(self.index, at, bytes).map_err(fail)?;
                    }
                    for (n, value) in values.into_iter().enumerate().take(offsets.len()) {
                        self.deliver(target + n * (bytes as usize).div_ceil(4), lane, &transfer, value);
                    }
                }
                Direction::Store => {
                    for (&offset, data) in offsets.iter().zip([first, second]) {
                        let at = addresses[lane].wrapping_add(offset);
                        let value = self.datum(data, lane, &transfer);
                        group.lds.write(self.index, at, bytes, value).map_err(fail)?;
                    }
                }
                Direction::Atomic(op) => {
                    let wide = bytes == 8;
                    let [first, second] = [first, second].map(|register| {
                        let [low, high, ..] = self.datum(register, lane, &transfer);
                        u64::from(low) | u64::from(high) << 32
                    });
                    for (n, &offset) in offsets.iter().enumerate() {
                        let at = addresses[lane].wrapping_add(offset);
                        if at % bytes != 0 {
                            return Err(fail(Cause::Misaligned { address: at.into(), bytes }));
                        }
                        // A compare-and-swap of LDS has the value to compare with first, and the second of
                        // two swaps has its own value.
                        let (data, other) = match op {
                            AtomicOp::CompareSwap | AtomicOp::CompareSwapFloat => (second, first),
                            _ if n == 1 => (second, first),
                            _ => (first, second),
                        };
                        let update = |old| updated(op, wide, old, data, other);
                        let old = group.lds.update(self.index, at, bytes, update).map_err(fail)?;
                        if transfer.returns {
                            let target = target + n * bytes as usize / 4;
                            self.deliver(target, lane, &transfer, [old as u32, (old >> 32) as u32, 0, 0]);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves whole words where no access is watched and none is out of bounds; whether it did.
    fn whole_lds_words(
        &mut self,
        memory: &mut [u8],
        transfer: &Transfer,
        [target, first, second]: [usize; 3],
        addresses: &Lanes,
        offsets: &[u32],
    ) -> bool {
        let (bytes, exec) = (usize::from(transfer.bytes), self.exec());
        let last = offsets.iter().copied().max().unwrap_or(0) as usize + bytes;
        let inside = Self::each(exec).all(|lane| addresses[lane] as usize + last <= memory.len());
        if !bytes.is_multiple_of(4) || matches!(transfer.direction, Direction::Atomic(_)) || !inside {
            return false;
        }
        let words = bytes / 4;
        for (n, (&offset, data)) in offsets.iter().zip([first, second]).enumerate() {
            for word in 0..words {
                let at = |lane: usize| (addresses[lane] + offset) as usize + 4 * word;
                if transfer.direction == Direction::Store {
                    let values = self.lanes(data + word);
                    for lane in Self::each(exec) {
                        memory[at(lane)..][..4].copy_from_slice(&values[lane].to_le_bytes());
                    }
                } else {
                    let values = self.lanes_mut(target + n * words + word);
                    for lane in Self::each(exec) {
                        let bytes = &memory[at(lane)..][..4];
                        values[lane] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    }
                }
            }
        }
        true
    }

    /// DS instructions that move values between lanes, or count them.
    fn ds_lanes(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        let address = self.operand32(i.source[0]);
        let exec = self.exec();
        let offset = i.immediate as u32;
        let values = match i.op {
            ds_nop => return Ok(()),
            ds_permute_b32 => {
                let (data, mut values) = (self.operand32(i.source[1]), [0; LANES]);
                for lane in Self::each(exec) {
                    values[(address[lane].wrapping_add(offset) / 4) as usize % LANES] = data[lane];
                }
                values
            }
            ds_bpermute_b32 => {
                let from = |lane: usize| (address[lane].wrapping_add(offset) / 4) as usize % LANES;
                self.pulled(group, &self.operand32(i.source[1]), from)?
            }
            ds_swizzle_b32 => self.pulled(group, &address, |lane| swizzled(offset, lane))?,
            ds_append | ds_consume if !i.sc0 => {
                let at = self.lds_base() + offset;
                let count = u64::from(exec.count_ones());
                let op = if i.op == ds_append { AtomicOp::Add } else { AtomicOp::Sub };
                let update = |old| updated(op, false, old, count, 0);
                [group.lds.update(self.index, at, 4, update).map_err(Violation::from)? as u32; LANES]
            }
            _ => return Err(unsupported("global data share and global wave sync")),
        };
        self.write32(i, &values);
        Ok(())
    }

    /// Values of other lanes; those that are off give 0.
    fn pulled(
        &self,
        group: &Group,
        values: &Lanes,
        from: impl Fn(usize) -> usize,
    ) -> Result<Lanes, Violation> {
        let exec = self.exec();
        let off = |lane: usize| exec >> from(lane) & 1 == 0;
        if group.checks.lanes
            && let Some(lane) = Self::each(exec).find(|&lane| off(lane))
        {
            let cause = Cause::InactiveLane { lane: from(lane) as u32 };
            return Err(cause.in_lane(lane));
        }
        Ok(std::array::from_fn(|lane| if off(lane) { 0 } else { values[from(lane)] }))
    }
}

/// The lane `ds_swizzle_b32` reads from: within four lanes, or by masks within 32, or rotated, or as a
/// Fourier transform needs it.
fn swizzled(offset: u32, lane: usize) -> usize {
    if offset >> 13 == 7 {
        let mask = offset & 31;
        let reversed = (lane as u32 & 31).reverse_bits() >> 27;
        return lane & 32 | (reversed >> mask.count_ones() | lane as u32 & mask) as usize;
    }
    if offset >> 15 == 1 && offset >> 14 & 1 == 0 {
        return lane & !3 | (offset >> (2 * (lane & 3)) & 3) as usize;
    }
    if offset >> 14 == 3 {
        // Rotation within 32 lanes; bit 10 says which way, the mask which lane bits take part.
        let (amount, mask) = (offset >> 5 & 31, (offset & 31) as usize);
        let amount = if offset >> 10 & 1 == 1 { 32 - amount } else { amount } as usize;
        return lane & 32 | (lane & mask) | ((lane + amount) & 31 & !mask);
    }
    let [and, or, xor] = [0, 5, 10].map(|shift| (offset >> shift & 31) as usize);
    lane & 32 | ((lane & 31 & and) | or) ^ xor
}

/// Passes beyond the first that 32 banks of 4 bytes need: of the lanes that go together, as many as are
/// needed for 128 bytes, each bank serves one word.
fn conflicts(addresses: &Lanes, offset: u32, bytes: u32, exec: u64) -> u64 {
    let together = (128 / bytes.max(4)).next_power_of_two() as usize;
    let mut extra = 0;
    for start in (0..LANES).step_by(together) {
        let mut words: [Vec<u32>; 32] = Default::default();
        for lane in (start..(start + together).min(LANES)).filter(|lane| exec >> lane & 1 == 1) {
            let first = addresses[lane].wrapping_add(offset) / 4;
            for word in first..first + bytes.div_ceil(4) {
                let bank = &mut words[word as usize % 32];
                if !bank.contains(&word) {
                    bank.push(word);
                }
            }
        }
        extra += words.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1) as u64;
    }
    extra
}
