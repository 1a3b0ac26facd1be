//! FLAT, GLOBAL and SCRATCH.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::atomic::updated;
use super::lds::{extended, to_bytes, words};
use super::{Group, Outcome, unsupported};
use crate::decode::{AtomicOp, Detail, Direction, Format, Instruction, Transfer};
use crate::report::Cause;
use crate::wave::{LANES, PRIVATE_APERTURE, SHARED_APERTURE, Wave, WideLanes};

/// Bytes that one request to memory brings.
const SEGMENT: u64 = 64;

/// The memory behind the addresses of one instruction: all in one allocation, or each for itself.
struct Span {
    lowest: u64,
    base: Option<*mut u8>,
}

impl Span {
    /// Asks once for all lanes, which mostly touch one allocation.
    fn new(group: &Group, addresses: &WideLanes, bytes: u64, mask: u64) -> Self {
        let (mut lowest, mut highest) = (u64::MAX, 0);
        for lane in Wave::each(mask) {
            lowest = lowest.min(addresses[lane]);
            highest = highest.max(addresses[lane]);
        }
        let length = highest.saturating_sub(lowest).checked_add(bytes).filter(|_| mask != 0);
        let base = length.and_then(|length| group.memory.resolve(lowest, length as usize).ok());
        Self { lowest, base }
    }

    #[inline]
    fn pointer(&self, group: &Group, address: u64, bytes: u32, write: bool) -> Result<*mut u8, Cause> {
        match self.base {
            Some(base) => Ok(base.wrapping_add((address - self.lowest) as usize)),
            None => group.memory.resolve(address, bytes as usize).map_err(|error| Cause::Memory {
                address,
                bytes,
                write,
                error,
            }),
        }
    }
}

impl Wave {
    pub(super) fn flat(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        let Detail::Transfer(transfer) = i.detail else { return Err(unsupported("FLAT")) };
        if i.format == Format::Scratch {
            return self.scratch(group, i, &transfer);
        }
        let exec = self.exec();
        let offset = i.immediate as i64 as u64;
        let addresses: WideLanes = if matches!(i.source[2], crate::decode::Operand::Scalar(_)) {
            let base = self.uniform64(i.source[2]).wrapping_add(offset);
            self.operand32(i.source[0]).map(|address| base.wrapping_add(address.into()))
        } else {
            self.source64(i, 0, false).map(|address| address.wrapping_add(offset))
        };
        if i.format == Format::Global {
            return self.transfer(group, i, &transfer, &addresses, exec);
        }
        // FLAT: the high half of the address says which memory.
        let aperture = |high: u32| {
            Self::each(exec)
                .filter(|&lane| (addresses[lane] >> 32) as u32 == high)
                .fold(0u64, |mask, lane| mask | 1 << lane)
        };
        let (shared, private) = (aperture(SHARED_APERTURE), aperture(PRIVATE_APERTURE));
        let low = addresses.map(|address| address as u32);
        self.shared(group, i, &transfer, &low, shared)?;
        self.private(group, i, &transfer, &low, private)?;
        self.transfer(group, i, &transfer, &addresses, exec & !shared & !private)
    }

    /// Register of the first word stored.
    fn data(&self, i: &Instruction) -> usize {
        self.register(i.source[1]).unwrap_or(0)
    }

    /// Moves data between registers and device memory.
    pub(super) fn transfer(
        &mut self,
        group: &mut Group,
        i: &Instruction,
        transfer: &Transfer,
        addresses: &WideLanes,
        mask: u64,
    ) -> Outcome {
        if mask == 0 {
            return Ok(());
        }
        let bytes = u32::from(transfer.bytes);
        let moved = u64::from(mask.count_ones() * bytes);
        group.profile.global_bytes += moved;
        if group.checks.profile {
            let segments = segments(addresses, bytes.into(), mask);
            group.profile.global_segments += segments;
            // One more than the bytes fill, for a start in the middle of a segment.
            if segments <= moved.div_ceil(SEGMENT) + 1 {
                group.profile.coalesced_bytes += moved;
            }
        }
        let span = Span::new(group, addresses, bytes.into(), mask);
        let (target, data) = (self.register(i.destination).unwrap_or(0), self.data(i));
        let to_registers = !transfer.to_lds && !i.lds;
        if let Some(base) = span.base
            && bytes.is_multiple_of(4)
            && to_registers
            && !(transfer.direction == Direction::Load
                && Self::each(mask)
                    .any(|lane| group.memory.unwritten(addresses[lane], bytes as usize).is_some()))
            && self.whole_words(transfer, target, data, mask, |lane| {
                base.wrapping_add((addresses[lane] - span.lowest) as usize)
            })
        {
            if transfer.direction == Direction::Store {
                Self::each(mask).for_each(|lane| group.memory.mark_written(addresses[lane], bytes as usize));
            }
            return Ok(());
        }
        for lane in Self::each(mask) {
            let fail = |cause: Cause| cause.in_lane(lane);
            let address = addresses[lane];
            match transfer.direction {
                Direction::Load => {
                    let pointer = span.pointer(group, address, bytes, false).map_err(fail)?;
                    if let Some(address) = group.memory.unwritten(address, bytes as usize) {
                        return Err(fail(Cause::MemoryUnwritten { address }));
                    }
                    let mut raw = [0; 16];
                    // SAFETY: the memory vouches for `bytes` bytes at the address; at most 16.
                    unsafe { std::ptr::copy_nonoverlapping(pointer, raw.as_mut_ptr(), bytes as usize) };
                    if transfer.to_lds || i.lds {
                        self.bypass(group, i, lane, extended(transfer, words(raw)[0])).map_err(fail)?;
                    } else {
                        self.deliver(target, lane, transfer, words(raw));
                    }
                }
                Direction::Store => {
                    let pointer = span.pointer(group, address, bytes, true).map_err(fail)?;
                    let value = if transfer.to_lds {
                        let at = self.bypass_address(i, lane);
                        group.lds.read(self.index, at, bytes).map_err(fail)?
                    } else {
                        self.datum(data, lane, transfer)
                    };
                    let raw = to_bytes(value);
                    // SAFETY: the memory vouches for `bytes` bytes at the address; at most 16.
                    unsafe { std::ptr::copy_nonoverlapping(raw.as_ptr(), pointer, bytes as usize) };
                    group.memory.mark_written(address, bytes as usize);
                }
                Direction::Atomic(op) => {
                    if !address.is_multiple_of(bytes.into()) {
                        return Err(fail(Cause::Misaligned { address, bytes }));
                    }
                    let pointer = span.pointer(group, address, bytes, true).map_err(fail)?;
                    let step = self.step(op, transfer, data, lane);
                    // SAFETY: the memory vouches for the bytes, and the address is aligned to them.
                    let old = unsafe { exchange(pointer, bytes == 8, step) };
                    if i.sc0 {
                        self.deliver(target, lane, transfer, [old as u32, (old >> 32) as u32, 0, 0]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves whole words of lanes whose memory was resolved at once; whether it did.
    #[inline]
    fn whole_words(
        &mut self,
        transfer: &Transfer,
        target: usize,
        data: usize,
        mask: u64,
        pointer: impl Fn(usize) -> *mut u8,
    ) -> bool {
        for word in 0..usize::from(transfer.bytes / 4) {
            match transfer.direction {
                Direction::Load => {
                    let values = self.lanes_mut(target + word);
                    for lane in Self::each(mask) {
                        // SAFETY: the memory vouches for all bytes between the lowest and the highest
                        // address of the lanes, this word included.
                        values[lane] = unsafe { pointer(lane).cast::<u32>().add(word).read_unaligned() };
                    }
                }
                Direction::Store => {
                    let values = self.lanes(data + word);
                    for lane in Self::each(mask) {
                        // SAFETY: as above.
                        unsafe { pointer(lane).cast::<u32>().add(word).write_unaligned(values[lane]) };
                    }
                }
                Direction::Atomic(_) => return false,
            }
        }
        true
    }

    /// What an atomic of FLAT, GLOBAL or MUBUF does to a value. A compare-and-swap has the value to
    /// compare with after the new one.
    fn step(
        &self,
        op: AtomicOp,
        transfer: &Transfer,
        data: usize,
        lane: usize,
    ) -> impl Fn(u64) -> u64 + use<> {
        let words = usize::from(transfer.bytes / 4);
        let wide = words == 2;
        let value = |register: usize| {
            let high = if wide { self.lanes(register + 1)[lane] } else { 0 };
            u64::from(self.lanes(register)[lane]) | u64::from(high) << 32
        };
        let compare = if op == AtomicOp::CompareSwap { value(data + words) } else { 0 };
        let data = value(data);
        move |old| updated(op, wide, old, data, compare)
    }

    /// FLAT into LDS.
    fn shared(
        &mut self,
        group: &mut Group,
        i: &Instruction,
        transfer: &Transfer,
        addresses: &[u32; LANES],
        mask: u64,
    ) -> Outcome {
        let bytes = u32::from(transfer.bytes);
        let (target, data) = (self.register(i.destination).unwrap_or(0), self.data(i));
        for lane in Self::each(mask) {
            let fail = |cause: Cause| cause.in_lane(lane);
            match transfer.direction {
                Direction::Load => {
                    let value = group.lds.read(self.index, addresses[lane], bytes).map_err(fail)?;
                    self.deliver(target, lane, transfer, value);
                }
                Direction::Store => {
                    let value = self.datum(data, lane, transfer);
                    group.lds.write(self.index, addresses[lane], bytes, value).map_err(fail)?;
                }
                Direction::Atomic(op) => {
                    let step = self.step(op, transfer, data, lane);
                    let old = group.lds.update(self.index, addresses[lane], bytes, step).map_err(fail)?;
                    if i.sc0 {
                        self.deliver(target, lane, transfer, [old as u32, (old >> 32) as u32, 0, 0]);
                    }
                }
            }
        }
        Ok(())
    }

    /// Where in LDS the word of a lane is that bypasses the registers: one after the other, from M0 on.
    fn bypass_address(&self, i: &Instruction, lane: usize) -> u32 {
        self.lds_base().wrapping_add(i.immediate as u32).wrapping_add(4 * lane as u32)
    }

    /// A load of a word that goes to LDS.
    pub(super) fn bypass(
        &self,
        group: &mut Group,
        i: &Instruction,
        lane: usize,
        value: u32,
    ) -> Result<(), Cause> {
        let at = self.bypass_address(i, lane);
        group.lds.write(self.index, at, 4, [value, 0, 0, 0])
    }

    fn scratch(&mut self, group: &mut Group, i: &Instruction, transfer: &Transfer) -> Outcome {
        let base = self.uniform32(i.source[2]).wrapping_add(i.immediate as u32);
        let addresses = self.operand32(i.source[0]).map(|address| address.wrapping_add(base));
        let exec = self.exec();
        self.private(group, i, transfer, &addresses, exec)
    }

    /// SCRATCH, or FLAT into the private segment.
    fn private(
        &mut self,
        group: &mut Group,
        i: &Instruction,
        transfer: &Transfer,
        addresses: &[u32; LANES],
        mask: u64,
    ) -> Outcome {
        let bytes = u32::from(transfer.bytes);
        let (target, data) = (self.register(i.destination).unwrap_or(0), self.data(i));
        for lane in Self::each(mask) {
            let address = addresses[lane];
            let size = self.scratch_size;
            if address as usize + bytes as usize > size {
                let cause = Cause::ScratchOutOfBounds { address: address.into(), bytes, size: size as u32 };
                return Err(cause.in_lane(lane));
            }
            let start = lane * size + address as usize;
            let range = start..start + bytes as usize;
            let mut raw = [0; 16];
            match transfer.direction {
                Direction::Load => {
                    raw[..bytes as usize].copy_from_slice(&self.scratch[range]);
                    if transfer.to_lds {
                        let fail = |cause: Cause| cause.in_lane(lane);
                        self.bypass(group, i, lane, extended(transfer, words(raw)[0])).map_err(fail)?;
                    } else {
                        self.deliver(target, lane, transfer, words(raw));
                    }
                }
                Direction::Store => {
                    raw = to_bytes(self.datum(data, lane, transfer));
                    self.scratch[range].copy_from_slice(&raw[..bytes as usize]);
                }
                Direction::Atomic(op) => {
                    raw[..bytes as usize].copy_from_slice(&self.scratch[range.clone()]);
                    let [low, high, ..] = words(raw);
                    let old = u64::from(low) | u64::from(high) << 32;
                    let new = self.step(op, transfer, data, lane)(old).to_le_bytes();
                    self.scratch[range].copy_from_slice(&new[..bytes as usize]);
                    if i.sc0 {
                        self.deliver(target, lane, transfer, [low, high, 0, 0]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Replaces 4 or 8 bytes in one step as other threads see it; the old ones come back.
///
/// # Safety
/// The bytes may be read and written, and the pointer is aligned to them.
pub(super) unsafe fn exchange(pointer: *mut u8, wide: bool, f: impl Fn(u64) -> u64) -> u64 {
    if wide {
        // SAFETY: promised by the caller.
        let atomic = unsafe { AtomicU64::from_ptr(pointer.cast()) };
        let step = |old| Some(f(old));
        atomic.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).unwrap_or_else(|old| old)
    } else {
        // SAFETY: promised by the caller.
        let atomic = unsafe { AtomicU32::from_ptr(pointer.cast()) };
        let step = |old: u32| Some(f(old.into()) as u32);
        atomic.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).unwrap_or_else(|old| old).into()
    }
}

/// How many segments the lanes touch together.
fn segments(addresses: &WideLanes, bytes: u64, mask: u64) -> u64 {
    // No access is longer than a segment.
    let mut touched = [0; 2 * LANES];
    let mut count = 0;
    for lane in Wave::each(mask) {
        let (first, last) = (addresses[lane] / SEGMENT, (addresses[lane] + bytes - 1) / SEGMENT);
        touched[count..count + 2].copy_from_slice(&[first, last]);
        count += 2;
    }
    let touched = &mut touched[..count];
    touched.sort_unstable();
    1 + touched.windows(2).filter(|pair| pair[0] != pair[1]).count() as u64
}
