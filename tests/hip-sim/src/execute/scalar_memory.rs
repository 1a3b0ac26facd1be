//! SMEM.

use super::atomic::updated;
use super::global::exchange;
use super::{Group, Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{AtomicOp, Detail, Direction, Instruction, Operand, ScalarTransfer, Space};
use crate::report::{Cause, Violation};
use crate::wave::Wave;

impl Wave {
    pub(super) fn smem(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        let (Operand::Scalar(target), Operand::Scalar(base)) = (i.destination, i.source[0]) else {
            return Err(unsupported("SMEM"));
        };
        let (target, base) = (usize::from(target), usize::from(base));
        if let Detail::Scalar(transfer) = i.detail {
            return self.scalar_transfer(group, i, &transfer, target, base);
        }
        match i.op {
            // A clock that advances with every instruction of the workgroup.
            s_memtime | s_memrealtime => self.set_scalar64(target, group.profile.total()),
            // Caches and translations have no effect where there are none.
            s_dcache_inv | s_dcache_wb | s_dcache_inv_vol | s_dcache_wb_vol | s_dcache_discard
            | s_dcache_discard_x2 | s_atc_probe | s_atc_probe_buffer => {}
            _ => return Err(unsupported("SMEM")),
        }
        Ok(())
    }

    fn scalar_transfer(
        &mut self,
        group: &mut Group,
        i: &Instruction,
        transfer: &ScalarTransfer,
        target: usize,
        base: usize,
    ) -> Outcome {
        let words = usize::from(transfer.words);
        let from_register = i64::from(self.uniform32(i.source[1]));
        let scale = if transfer.space == Space::Scratch { 64 } else { 1 };
        let offset = i64::from(i.immediate) + from_register * scale;
        let mut address = self.scalar64(base);
        let mut inside = words;
        if transfer.space == Space::Buffer {
            let [high, records] = [1, 2].map(|n| self.scalars[(base + n) & 127]);
            let stride = u64::from(high >> 16 & 0x3fff);
            let size = if stride == 0 { records.into() } else { u64::from(records) * stride };
            // Beyond the end a buffer reads zero and drops what is written.
            inside = inside.min((size.saturating_sub(offset as u64) / 4) as usize);
            address &= 0xffff_ffff_ffff;
        }
        let address = address.wrapping_add_signed(offset) & !3;
        match transfer.direction {
            Direction::Load => {
                let mut values = [0u32; 16];
                if inside > 0 {
                    let pointer = pointer(group, address, inside, false)?;
                    if let Some(address) = group.memory.unwritten(address, 4 * inside) {
                        return Err(Cause::MemoryUnwritten { address }.into());
                    }
                    // SAFETY: the memory vouches for `inside` words, and there are at most 16.
                    unsafe { std::ptr::copy_nonoverlapping(pointer, values.as_mut_ptr().cast(), 4 * inside) };
                }
                for (word, value) in values.into_iter().enumerate().take(words) {
                    self.scalars[(target + word) & 127] = value;
                }
            }
            Direction::Store if inside > 0 => {
                let values: [u32; 4] = std::array::from_fn(|word| self.scalars[(target + word) & 127]);
                let pointer = pointer(group, address, inside, true)?;
                // SAFETY: the memory vouches for `inside` words, and stores have at most 4.
                unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), pointer, 4 * inside) };
                group.memory.mark_written(address, 4 * inside);
            }
            Direction::Atomic(op) if inside == words => {
                if !address.is_multiple_of(4 * words as u64) {
                    return Err(Cause::Misaligned { address, bytes: 4 * words as u32 }.into());
                }
                let wide = words == 2;
                let value = |at: usize| {
                    let value = self.scalar64(at & 127);
                    if wide { value } else { value & 0xffff_ffff }
                };
                let compare = if op == AtomicOp::CompareSwap { value(target + words) } else { 0 };
                let data = value(target);
                let pointer = pointer(group, address, words, true)?;
                let update = |old| updated(op, wide, old, data, compare);
                // SAFETY: the memory vouches for the words, and the address is aligned to them.
                let old = unsafe { exchange(pointer, wide, update) };
                self.scalar_return(i, target, words, old);
            }
            Direction::Atomic(_) => self.scalar_return(i, target, words, 0),
            Direction::Store => {}
        }
        Ok(())
    }

    /// Puts the value before an atomic into its registers if it asks for that.
    fn scalar_return(&mut self, i: &Instruction, target: usize, words: usize, old: u64) {
        if i.sc0 {
            for word in 0..words {
                self.scalars[(target + word) & 127] = (old >> (32 * word)) as u32;
            }
        }
    }
}

fn pointer(group: &Group, address: u64, words: usize, write: bool) -> Result<*mut u8, Violation> {
    let bytes = 4 * words as u32;
    let resolved = group.memory.resolve(address, bytes as usize);
    resolved.map_err(|error| Cause::Memory { address, bytes, write, error }.into())
}
