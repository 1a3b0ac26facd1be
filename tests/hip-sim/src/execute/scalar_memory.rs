//! SMEM.

use super::{Group, Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{Instruction, Operand};
use crate::report::Cause;
use crate::wave::Wave;

impl Wave {
    pub(super) fn smem(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        let (Operand::Scalar(target), Operand::Scalar(base)) = (i.destination, i.source[0]) else {
            return Err(unsupported("SMEM"));
        };
        let (target, base) = (usize::from(target), usize::from(base));
        let (words, buffer) = match i.op {
            s_load_dword => (1, false),
            s_load_dwordx2 => (2, false),
            s_load_dwordx4 => (4, false),
            s_load_dwordx8 => (8, false),
            s_load_dwordx16 => (16, false),
            s_buffer_load_dword => (1, true),
            s_buffer_load_dwordx2 => (2, true),
            s_buffer_load_dwordx4 => (4, true),
            s_buffer_load_dwordx8 => (8, true),
            s_buffer_load_dwordx16 => (16, true),
            s_memtime | s_memrealtime => {
                // A clock that advances with every instruction of the workgroup.
                self.set_scalar64(target, group.profile.total());
                return Ok(());
            }
            s_dcache_inv | s_dcache_wb | s_dcache_inv_vol | s_dcache_wb_vol => return Ok(()),
            _ => return Err(unsupported("SMEM")),
        };
        let offset = i64::from(i.immediate) + i64::from(self.uniform32(i.source[1]));
        let mut values = [0u32; 16];
        if buffer {
            let address = self.scalar64(base) & 0xffff_ffff_ffff;
            let records = self.scalars[base + 2];
            let stride = self.scalars[base + 1] >> 16 & 0x3fff;
            let size = if stride == 0 { u64::from(records) } else { u64::from(records) * u64::from(stride) };
            for (word, value) in values.iter_mut().enumerate().take(words) {
                let at = offset as u64 + 4 * word as u64;
                // Beyond the end a buffer reads zero.
                if at + 4 <= size {
                    *value = read(group, (address + at) & !3, 1)?[0];
                }
            }
        } else {
            let address = self.scalar64(base).wrapping_add_signed(offset) & !3;
            values = read(group, address, words)?;
        }
        for (word, value) in values.into_iter().enumerate().take(words) {
            self.scalars[(target + word) & 127] = value;
        }
        Ok(())
    }
}

fn read(group: &Group, address: u64, words: usize) -> Result<[u32; 16], crate::report::Violation> {
    let bytes = 4 * words as u32;
    let pointer = group.memory.resolve(address, bytes as usize).map_err(|error| Cause::Memory {
        address,
        bytes,
        write: false,
        error,
    })?;
    if let Some(address) = group.memory.unwritten(address, bytes as usize) {
        return Err(Cause::MemoryUnwritten { address }.into());
    }
    let mut values = [0; 16];
    // SAFETY: `resolve` vouches for `bytes` bytes, and `words` is at most 16.
    unsafe { std::ptr::copy_nonoverlapping(pointer, values.as_mut_ptr().cast::<u8>(), bytes as usize) };
    Ok(values)
}
