//! MUBUF and MTBUF: memory behind a resource of four SGPRs.

use super::{Group, Outcome, unsupported};
use crate::decode::Op::*;
use crate::decode::{Detail, Direction, Instruction, Operand, Transfer};
use crate::report::Cause;
use crate::wave::{LANES, Lanes, Wave, WideLanes};

/// Bytes of an element of a record that swizzling keeps together.
const ELEMENT: u64 = 4;

/// A resource and the addresses an instruction makes of it.
pub(super) struct Buffer {
    base: u64,
    stride: u64,
    records: u64,
    /// Records of which equal elements lie together.
    swizzle: Option<u64>,
    check: Check,
    index: Lanes,
    offset: WideLanes,
    /// Word 3: formats and selects.
    pub control: u32,
}

/// What has to be below the number of records.
#[derive(PartialEq)]
enum Check {
    Nothing,
    Bytes,
    Index,
}

impl Buffer {
    fn new(wave: &Wave, i: &Instruction) -> Self {
        let resource = usize::from(i.scalar_destination);
        let [low, high, records, control] = [0, 1, 2, 3].map(|n| wave.scalars[(resource + n) & 127]);
        let add_lane = control >> 23 & 1 == 1;
        let plain = matches!(i.detail, Detail::Transfer(_));
        // Where lanes are added, the data format is more of the stride.
        let wider = if add_lane && plain { u64::from(control >> 15 & 15) << 14 } else { 0 };
        let scalar_offset = u64::from(wave.uniform32(i.source[2]));
        let register = wave.register(i.source[0]).unwrap_or(0);
        let mut index = if i.indexed { *wave.lanes(register) } else { [0; LANES] };
        if add_lane {
            index = std::array::from_fn(|lane| index[lane].wrapping_add(lane as u32));
        }
        let second = register + usize::from(i.indexed);
        let offset = if i.offset_enable { *wave.lanes(second) } else { [0; LANES] };
        let stride = u64::from(high >> 16 & 0x3fff) | wider;
        Self {
            base: (u64::from(low) | u64::from(high & 0xffff) << 32) + scalar_offset,
            stride,
            records: records.into(),
            swizzle: (high >> 31 == 1).then_some(8 << (control >> 21 & 3)),
            check: match (i.indexed, add_lane) {
                (true, _) if stride != 0 => Check::Index,
                (false, true) => Check::Nothing,
                _ => Check::Bytes,
            },
            index,
            offset: offset.map(|offset| u64::from(offset) + i.immediate as u64),
            control,
        }
    }

    /// Whether `bytes` bytes from byte `from` of what a lane asks for are inside of the buffer.
    pub(super) fn holds(&self, lane: usize, from: u64, bytes: u64) -> bool {
        match self.check {
            Check::Nothing => true,
            Check::Index => u64::from(self.index[lane]) < self.records,
            Check::Bytes => {
                u64::from(self.index[lane]) * self.stride + self.offset[lane] + from + bytes <= self.records
            }
        }
    }

    /// The address of byte `from` of what a lane asks for.
    pub(super) fn address(&self, lane: usize, from: u64) -> u64 {
        let (index, offset) = (u64::from(self.index[lane]), self.offset[lane] + from);
        let Some(together) = self.swizzle else { return self.base + self.stride * index + offset };
        let element = index / together * self.stride + offset / ELEMENT * ELEMENT;
        self.base + element * together + index % together * ELEMENT + offset % ELEMENT
    }
}

impl Wave {
    pub(super) fn buffer(&mut self, group: &mut Group, i: &Instruction) -> Outcome {
        // Writing back or dropping caches has no effect where there are none.
        if matches!(i.op, buffer_wbl2 | buffer_inv | buffer_wbinvl1 | buffer_wbinvl1_vol) {
            return Ok(());
        }
        let buffer = Buffer::new(self, i);
        let transfer = match i.detail {
            Detail::Transfer(transfer) => transfer,
            Detail::Formatted(formatted) => return self.formatted(group, i, &buffer, formatted),
            _ => return Err(unsupported("buffers")),
        };
        let exec = self.exec();
        let bytes = u64::from(transfer.bytes);
        let inside = |from: u64, bytes: u64| {
            Self::each(exec)
                .filter(|&lane| buffer.holds(lane, from, bytes))
                .fold(0u64, |mask, lane| mask | 1 << lane)
        };
        let addresses = |from: u64| std::array::from_fn(|lane| buffer.address(lane, from));
        let whole = inside(0, bytes);
        let data = Instruction { source: [Operand::None, i.destination, Operand::None], ..*i };
        // Words are inside or outside each for itself, and swizzling may tear them apart.
        let apart = bytes > ELEMENT && (buffer.swizzle.is_some() || inside(0, ELEMENT) != whole);
        if !apart || matches!(transfer.direction, Direction::Atomic(_)) {
            self.zero(group, i, &transfer, exec & !whole)?;
            return self.transfer(group, &data, &transfer, &addresses(0), whole);
        }
        let transfer = Transfer { bytes: ELEMENT as u8, ..transfer };
        for word in 0..bytes / ELEMENT {
            let register = i.destination.after(word as u8);
            let data = Instruction { source: [Operand::None, register, Operand::None], ..data };
            let data = Instruction { destination: register, ..data };
            let mask = inside(ELEMENT * word, ELEMENT);
            self.zero(group, &data, &transfer, exec & !mask)?;
            self.transfer(group, &data, &transfer, &addresses(ELEMENT * word), mask)?;
        }
        Ok(())
    }

    /// Outside of the buffer loads give zero; stores and atomics are dropped.
    fn zero(&mut self, group: &mut Group, i: &Instruction, transfer: &Transfer, outside: u64) -> Outcome {
        let returns = matches!(transfer.direction, Direction::Atomic(_)) && i.sc0;
        if transfer.direction != Direction::Load && !returns {
            return Ok(());
        }
        let target = self.register(i.destination).unwrap_or(0);
        for lane in Self::each(outside) {
            if i.lds {
                let fail = |cause: Cause| cause.in_lane(lane);
                self.bypass(group, i, lane, 0).map_err(fail)?;
            } else {
                self.deliver(target, lane, transfer, [0; 4]);
            }
        }
        Ok(())
    }
}
