//! MUBUF: memory behind a resource of four SGPRs.

use super::{Group, Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{Detail, Direction, Instruction, Operand};
use crate::wave::{LANES, Wave, WideLanes};

impl Wave {
    pub(super) fn buffer(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        // Writing back or dropping caches has no effect where there are none.
        if matches!(i.op, buffer_wbl2 | buffer_inv | buffer_wbinvl1 | buffer_wbinvl1_vol) {
            return Ok(());
        }
        let Detail::Transfer(transfer) = i.detail else { return Err(unsupported("formatted buffers")) };
        let resource = usize::from(i.scalar_destination);
        let base = self.scalar64(resource) & 0xffff_ffff_ffff;
        let high = self.scalars[(resource + 1) & 127];
        let records = u64::from(self.scalars[(resource + 2) & 127]);
        let control = self.scalars[(resource + 3) & 127];
        let stride = u64::from(high >> 16 & 0x3fff);
        // Bit 31 of word 1 swizzles, bit 23 of word 3 adds the lane.
        if high >> 31 == 1 || control >> 23 & 1 == 1 {
            return Err(unsupported("swizzled buffers"));
        }
        let scalar_offset = u64::from(self.uniform32(i.source[2]));
        let register = self.register(i.source[0]).unwrap_or(0);
        let zeros = [0; LANES];
        let index = if i.indexed { *self.lanes(register) } else { zeros };
        let second = register + usize::from(i.indexed);
        let offsets = if i.offset_enable { *self.lanes(second) } else { zeros };
        let bytes = u64::from(transfer.bytes);
        let mut addresses: WideLanes = [0; LANES];
        let mut inside = 0;
        for lane in Self::each(self.exec()) {
            let offset = u64::from(offsets[lane]) + i.immediate as u64;
            let fits = if stride == 0 {
                scalar_offset + offset + bytes <= records
            } else if i.indexed {
                u64::from(index[lane]) < records && offset + bytes <= stride
            } else {
                offset + bytes <= records * stride
            };
            addresses[lane] = base + scalar_offset + stride * u64::from(index[lane]) + offset;
            inside |= u64::from(fits) << lane;
        }
        let outside = self.exec() & !inside;
        // Outside of the buffer loads give zero, stores and atomics are dropped.
        if transfer.direction == Direction::Load && !i.lds {
            let target = self.register(i.destination).unwrap_or(0);
            for lane in Self::each(outside) {
                self.deliver(target, lane, &transfer, [0; 4]);
            }
        }
        let data = Instruction { source: [Operand::None, i.destination, Operand::None], ..*i };
        self.transfer(group, &data, &transfer, &addresses, inside)
    }
}
