//! Buffer accesses that convert: memory holds elements of a format, registers words or halves of them.

use super::buffer::Buffer;
use super::{Group, Outcome, unsupported};
use crate::decode::{D16, Format, Formatted, Instruction};
use crate::float::{F10, F11, F16, Rounding, f16_to_f32, f32_to_f16};
use crate::report::Cause;
use crate::wave::Wave;

/// How the bits of a component are a number.
#[derive(Clone, Copy, PartialEq)]
enum Number {
    Unorm,
    Snorm,
    Uscaled,
    Sscaled,
    Uint,
    Sint,
    Float,
}

/// The format of an element: bits of each component from the lowest on.
struct Element {
    widths: &'static [u32],
    number: Number,
    /// Which component each register gets: 0 and 1 are these constants, 4 to 7 components.
    select: [u32; 4],
}

impl Element {
    fn of(i: &Instruction, buffer: &Buffer) -> Option<Self> {
        let control = buffer.control;
        let (data, number, select) = if i.format == Format::Mtbuf {
            (u32::from(i.element & 15), u32::from(i.element >> 4), [4, 5, 6, 7])
        } else {
            (control >> 15 & 15, control >> 12 & 7, [0, 3, 6, 9].map(|shift| control >> shift & 7))
        };
        let widths: &[u32] = match data {
            1 => &[8],
            2 => &[16],
            3 => &[8; 2],
            4 => &[32],
            5 => &[16; 2],
            6 => &[11, 11, 10],
            7 => &[10, 11, 11],
            8 => &[2, 10, 10, 10],
            9 => &[10, 10, 10, 2],
            10 => &[8; 4],
            11 => &[32; 2],
            12 => &[16; 4],
            13 => &[32; 3],
            14 => &[32; 4],
            _ => return None,
        };
        let number = match number {
            0 => Number::Unorm,
            1 => Number::Snorm,
            2 => Number::Uscaled,
            3 => Number::Sscaled,
            4 => Number::Uint,
            5 => Number::Sint,
            7 if widths.iter().all(|&width| width >= 10) && data != 8 && data != 9 => Number::Float,
            _ => return None,
        };
        Some(Self { widths, number, select })
    }

    fn bytes(&self) -> usize {
        self.widths.iter().sum::<u32>() as usize / 8
    }

    fn is_integer(&self) -> bool {
        matches!(self.number, Number::Uint | Number::Sint)
    }

    /// The components of an element, as words.
    fn components(&self, mut bits: u128) -> [u32; 4] {
        let mut components = [0; 4];
        for (component, &width) in components.iter_mut().zip(self.widths) {
            *component = self.number.read(bits as u32 & u32::MAX >> (32 - width), width);
            bits >>= width;
        }
        components
    }

    /// What the registers get of the components.
    fn selected(&self, components: [u32; 4]) -> [u32; 4] {
        self.select.map(|select| match select {
            1 if self.is_integer() => 1,
            1 => 1f32.to_bits(),
            4..=7 => components[select as usize - 4],
            _ => 0,
        })
    }

    /// The element of what registers hold.
    fn element(&self, registers: [u32; 4]) -> u128 {
        let (mut bits, mut shift) = (0, 0);
        for (component, &width) in (4..).zip(self.widths) {
            let from = self.select.iter().position(|&select| select == component);
            let value = from.map_or(0, |from| self.number.write(registers[from], width));
            bits |= u128::from(value) << shift;
            shift += width;
        }
        bits
    }
}

impl Number {
    fn read(self, bits: u32, width: u32) -> u32 {
        // Whole words are not converted.
        if width == 32 {
            return bits;
        }
        let signed = (bits << (32 - width)) as i32 >> (32 - width);
        let value = match self {
            Self::Uint => return bits,
            Self::Sint => return signed as u32,
            Self::Unorm => (f64::from(bits) / self.largest(width)) as f32,
            Self::Snorm => (f64::from(signed) / self.largest(width)).max(-1.0) as f32,
            Self::Uscaled => bits as f32,
            Self::Sscaled => signed as f32,
            Self::Float => match width {
                16 => F16.decode(bits) as f32,
                11 => F11.decode(bits) as f32,
                _ => F10.decode(bits) as f32,
            },
        };
        value.to_bits()
    }

    fn write(self, word: u32, width: u32) -> u32 {
        if width == 32 {
            return word;
        }
        let (mask, value, largest) = (u32::MAX >> (32 - width), f32::from_bits(word), self.largest(width));
        // NaN converts to 0.
        let nearest = |value: f64| value.round_ties_even() as i64 as u32 & mask;
        match self {
            Self::Uint => word.min(mask),
            Self::Sint => (word as i32).clamp(-(largest as i32) - 1, largest as i32) as u32 & mask,
            Self::Unorm => nearest(f64::from(value.clamp(0.0, 1.0)) * largest),
            Self::Snorm => nearest(f64::from(value.clamp(-1.0, 1.0)) * largest),
            Self::Uscaled => nearest(f64::from(value).clamp(0.0, largest)),
            Self::Sscaled => nearest(f64::from(value).clamp(-largest - 1.0, largest)),
            Self::Float if width == 16 => f32_to_f16(value).into(),
            Self::Float => {
                let format = if width == 11 { F11 } else { F10 };
                // There is no sign: what is negative becomes 0.
                let value = if value < 0.0 { 0.0 } else { value.abs() };
                format.encode(value.into(), Rounding::NearestEven, false)
            }
        }
    }

    /// The largest integer of a width.
    fn largest(self, width: u32) -> f64 {
        let signed = matches!(self, Self::Snorm | Self::Sscaled | Self::Sint);
        ((1u64 << (width - u32::from(signed))) - 1) as f64
    }
}

impl Wave {
    pub(super) fn formatted(
        &mut self,
        group: &mut Group,
        i: &Instruction,
        buffer: &Buffer,
        formatted: Formatted,
    ) -> Outcome {
        let Some(element) = Element::of(i, buffer) else {
            return Err(unsupported("a buffer format that does not exist"));
        };
        let register = self.register(i.destination).unwrap_or(0);
        for lane in Self::each(self.exec()) {
            let fail = |cause: Cause| cause.in_lane(lane);
            // Elements are inside or outside as a whole.
            let inside = buffer.holds(lane, 0, element.bytes() as u64);
            if formatted.store {
                let bits = element.element(self.format_source(register, lane, &element, formatted));
                if inside {
                    write(group, buffer, lane, &bits.to_le_bytes()[..element.bytes()]).map_err(fail)?;
                }
                continue;
            }
            let mut raw = [0; 16];
            if inside {
                read(group, buffer, lane, &mut raw[..element.bytes()]).map_err(fail)?;
            }
            let values = if inside { element.components(u128::from_le_bytes(raw)) } else { [0; 4] };
            let values = element.selected(values);
            if i.lds {
                self.bypass(group, i, lane, values[0]).map_err(fail)?;
            } else {
                self.format_target(register, lane, &element, formatted, values);
            }
        }
        Ok(())
    }

    /// The registers of a store as words.
    fn format_source(
        &self,
        register: usize,
        lane: usize,
        element: &Element,
        formatted: Formatted,
    ) -> [u32; 4] {
        let half = |n: usize| {
            let high = n % 2 == 1 || formatted.d16 == D16::High;
            let bits = (self.lanes(register + n / 2)[lane] >> if high { 16 } else { 0 }) as u16;
            match element.number {
                Number::Uint => bits.into(),
                Number::Sint => bits as i16 as u32,
                _ => f16_to_f32(bits).to_bits(),
            }
        };
        std::array::from_fn(|n| match formatted.d16 {
            _ if n >= usize::from(formatted.components) => 0,
            D16::No => self.lanes(register + n)[lane],
            _ => half(n),
        })
    }

    fn format_target(
        &mut self,
        register: usize,
        lane: usize,
        element: &Element,
        formatted: Formatted,
        values: [u32; 4],
    ) {
        for (n, value) in values.into_iter().enumerate().take(formatted.components.into()) {
            let high = n % 2 == 1 || formatted.d16 == D16::High;
            let half = match element.is_integer() {
                true => value & 0xffff,
                false => f32_to_f16(f32::from_bits(value)).into(),
            };
            match (formatted.d16, high) {
                (D16::No, _) => self.lanes_mut(register + n)[lane] = value,
                (_, false) => {
                    let target = &mut self.lanes_mut(register + n / 2)[lane];
                    *target = *target & 0xffff_0000 | half;
                }
                (_, true) => {
                    let target = &mut self.lanes_mut(register + n / 2)[lane];
                    *target = *target & 0xffff | half << 16;
                }
            }
        }
    }
}

/// Reads what a lane asks for, word by word: swizzling may tear them apart.
fn read(group: &Group, buffer: &Buffer, lane: usize, bytes: &mut [u8]) -> Result<(), Cause> {
    for (n, word) in bytes.chunks_mut(4).enumerate() {
        let address = buffer.address(lane, 4 * n as u64);
        let pointer = resolve(group, address, word.len(), false)?;
        if let Some(address) = group.memory.unwritten(address, word.len()) {
            return Err(Cause::MemoryUnwritten { address });
        }
        // SAFETY: the memory vouches for this many bytes.
        unsafe { std::ptr::copy_nonoverlapping(pointer, word.as_mut_ptr(), word.len()) };
    }
    Ok(())
}

fn write(group: &Group, buffer: &Buffer, lane: usize, bytes: &[u8]) -> Result<(), Cause> {
    for (n, word) in bytes.chunks(4).enumerate() {
        let address = buffer.address(lane, 4 * n as u64);
        let pointer = resolve(group, address, word.len(), true)?;
        // SAFETY: the memory vouches for this many bytes.
        unsafe { std::ptr::copy_nonoverlapping(word.as_ptr(), pointer, word.len()) };
        group.memory.mark_written(address, word.len());
    }
    Ok(())
}

fn resolve(group: &Group, address: u64, bytes: usize, write: bool) -> Result<*mut u8, Cause> {
    group.memory.resolve(address, bytes).map_err(|error| Cause::Memory {
        address,
        bytes: bytes as u32,
        write,
        error,
    })
}
