//! LDS and the DS instructions.

use super::atomic::updated;
use super::{Group, Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{D16, Detail, Direction, Instruction, Transfer};
use crate::report::{Cause, Violation};
use crate::wave::{LANES, Lanes, Wave};

/// Who touched a byte since the last barrier.
#[derive(Debug, Clone, Copy, Default)]
struct Touch {
    /// Number of barriers before the touch, plus one.
    epoch: u32,
    /// Wave plus one; `u32::MAX` for several readers.
    reader: u32,
    writer: u32,
    /// The writer was an atomic, which others may join.
    atomic: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Atomic,
}

/// The local memory of a workgroup.
pub struct Lds {
    bytes: Vec<u8>,
    touches: Option<Vec<Touch>>,
    written: Option<Vec<bool>>,
    epoch: u32,
}

impl Lds {
    pub fn new(size: usize, races: bool, unwritten: bool) -> Self {
        Self {
            bytes: vec![0; size],
            touches: races.then(|| vec![Touch::default(); size]),
            written: unwritten.then(|| vec![false; size]),
            epoch: 1,
        }
    }

    /// All waves met: what they did before is ordered before what they do next.
    pub fn barrier(&mut self) {
        self.epoch += 1;
    }

    /// The bytes at an address, if the access breaks no rule.
    #[inline]
    fn touch(&mut self, wave: u32, address: u32, bytes: u32, access: Access) -> Result<&mut [u8], Cause> {
        let size = self.bytes.len() as u32;
        if u64::from(address) + u64::from(bytes) > u64::from(size) {
            return Err(Cause::LdsOutOfBounds { address, bytes, size });
        }
        let range = address as usize..(address + bytes) as usize;
        if let Some(written) = &mut self.written {
            for index in range.clone() {
                if access == Access::Write {
                    written[index] = true;
                } else if !written[index] {
                    return Err(Cause::LdsUnwritten { address: index as u32 });
                }
            }
        }
        if let Some(touches) = &mut self.touches {
            for index in range.clone() {
                touches[index].race(wave, self.epoch, access).map_err(|(other_wave, wrote)| {
                    Cause::LdsRace { address: index as u32, other_wave, wrote }
                })?;
            }
        }
        Ok(&mut self.bytes[range])
    }

    /// All bytes, if no access is watched.
    pub fn unwatched(&mut self) -> Option<&mut [u8]> {
        (self.touches.is_none() && self.written.is_none()).then_some(&mut self.bytes)
    }

    pub fn read(&mut self, wave: u32, address: u32, bytes: u32) -> Result<[u32; 4], Cause> {
        let source = self.touch(wave, address, bytes, Access::Read)?;
        let mut raw = [0; 16];
        raw[..source.len()].copy_from_slice(source);
        Ok(words(raw))
    }

    pub fn write(&mut self, wave: u32, address: u32, bytes: u32, value: [u32; 4]) -> Result<(), Cause> {
        let raw = to_bytes(value);
        self.touch(wave, address, bytes, Access::Write)?.copy_from_slice(&raw[..bytes as usize]);
        Ok(())
    }

    /// Replaces 4 or 8 bytes; the old ones come back.
    pub fn update(
        &mut self,
        wave: u32,
        address: u32,
        bytes: u32,
        f: impl Fn(u64) -> u64,
    ) -> Result<u64, Cause> {
        let target = self.touch(wave, address, bytes, Access::Atomic)?;
        let mut raw = [0; 8];
        raw[..target.len()].copy_from_slice(target);
        let old = u64::from_le_bytes(raw);
        target.copy_from_slice(&f(old).to_le_bytes()[..bytes as usize]);
        Ok(old)
    }
}

impl Touch {
    /// Notes an access; the other wave, and whether it wrote, if no barrier orders the two.
    fn race(&mut self, wave: u32, epoch: u32, access: Access) -> Result<(), (u32, bool)> {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
        let id = wave + 1;
        let ordered_writer =
            self.writer == 0 || self.writer == id || (access == Access::Atomic && self.atomic);
        if !ordered_writer {
            return Err((self.writer - 1, true));
        }
        if access == Access::Read {
            self.reader = if self.reader == 0 || self.reader == id { id } else { u32::MAX };
            return Ok(());
        }
        if self.reader != 0 && self.reader != id {
            return Err((self.reader.wrapping_sub(1), false));
        }
        self.atomic = access == Access::Atomic && (self.writer == 0 || self.atomic);
        self.writer = id;
        Ok(())
    }
}

pub(super) fn words(raw: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|n| u32::from_le_bytes([raw[4 * n], raw[4 * n + 1], raw[4 * n + 2], raw[4 * n + 3]]))
}

pub(super) fn to_bytes(value: [u32; 4]) -> [u8; 16] {
    let mut raw = [0; 16];
    for (chunk, word) in raw.chunks_exact_mut(4).zip(value) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    raw
}

impl Wave {
    /// Puts what a lane loaded into registers.
    #[inline]
    pub(super) fn deliver(&mut self, register: usize, lane: usize, transfer: &Transfer, value: [u32; 4]) {
        if transfer.bytes >= 4 {
            for (word, value) in value.into_iter().enumerate().take(usize::from(transfer.bytes / 4)) {
                self.lanes_mut(register + word)[lane] = value;
            }
            return;
        }
        let value = match (transfer.bytes, transfer.signed) {
            (1, true) => value[0] as i8 as u32,
            (1, false) => value[0] & 0xff,
            (_, true) => value[0] as i16 as u32,
            (_, false) => value[0] & 0xffff,
        };
        let target = &mut self.lanes_mut(register)[lane];
        *target = match transfer.d16 {
            D16::No => value,
            D16::Low => *target & 0xffff_0000 | value & 0xffff,
            D16::High => *target & 0xffff | value << 16,
        };
    }

    /// What a lane stores.
    #[inline]
    pub(super) fn datum(&self, register: usize, lane: usize, transfer: &Transfer) -> [u32; 4] {
        let shift = if transfer.d16 == D16::High { 16 } else { 0 };
        let words = usize::from(transfer.bytes).div_ceil(4);
        std::array::from_fn(|word| if word < words { self.lanes(register + word)[lane] >> shift } else { 0 })
    }

    pub(super) fn ds(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        let Detail::Transfer(transfer) = i.detail else { return self.ds_lanes(i) };
        let registers = (self.register(i.source[0]), self.register(i.source[1]), self.register(i.source[2]));
        let (Some(address), Some(first), Some(second)) = registers else { return Err(unsupported("DS")) };
        let target = self.register(i.destination).unwrap_or(0);
        if i.sc0 {
            return Err(unsupported("global data share"));
        }
        let addresses = *self.lanes(address);
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
            let fail = |cause: Cause| Violation { lane: Some(lane as u32), cause };
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
                    let at = addresses[lane].wrapping_add(offsets[0]);
                    if at % bytes != 0 {
                        return Err(fail(Cause::Misaligned { address: at.into(), bytes }));
                    }
                    let wide = bytes == 8;
                    let [first, second] = [first, second].map(|register| {
                        let [low, high, ..] = self.datum(register, lane, &transfer);
                        u64::from(low) | u64::from(high) << 32
                    });
                    // A compare-and-swap of LDS has the value to compare with first.
                    let (data, compare) =
                        if op == crate::decode::AtomicOp::CompareSwap { (second, first) } else { (first, 0) };
                    let update = |old| updated(op, wide, old, data, compare);
                    let old = group.lds.update(self.index, at, bytes, update).map_err(fail)?;
                    if transfer.returns {
                        self.deliver(target, lane, &transfer, [old as u32, (old >> 32) as u32, 0, 0]);
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

    /// DS instructions that only move values between lanes.
    fn ds_lanes(&mut self, i: &Instruction) -> Outcome {
        let address = self.operand32(i.source[0]);
        let exec = self.exec();
        let on = |lane: usize| exec >> lane & 1 == 1;
        let offset = i.immediate as u32;
        let mut values: Lanes = [0; LANES];
        match i.op {
            ds_nop => return Ok(()),
            ds_permute_b32 => {
                let data = self.operand32(i.source[1]);
                for lane in Self::each(exec) {
                    values[(address[lane].wrapping_add(offset) / 4) as usize % LANES] = data[lane];
                }
            }
            ds_bpermute_b32 => {
                let data = self.operand32(i.source[1]);
                for (lane, value) in values.iter_mut().enumerate() {
                    let from = (address[lane].wrapping_add(offset) / 4) as usize % LANES;
                    *value = if on(from) { data[from] } else { 0 };
                }
            }
            ds_swizzle_b32 => {
                for (lane, value) in values.iter_mut().enumerate() {
                    let from = swizzled(offset, lane);
                    *value = if on(from) { address[from] } else { 0 };
                }
            }
            _ => return Err(unsupported("DS")),
        }
        self.write32(i, &values);
        Ok(())
    }
}

/// The lane `ds_swizzle_b32` reads from: within four lanes, or by masks within 32, or rotated.
fn swizzled(offset: u32, lane: usize) -> usize {
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
