//! LDS: its bytes, and who may touch them when.

use crate::decode::{D16, Transfer};
use crate::report::Cause;
use crate::wave::Wave;

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

    pub fn size(&self) -> u32 {
        self.bytes.len() as u32
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
    #[inline]
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

/// A byte or half a word as the word that it is loaded as.
#[inline]
pub(super) fn extended(transfer: &Transfer, value: u32) -> u32 {
    match (transfer.bytes, transfer.signed) {
        (1, true) => value as i8 as u32,
        (1, false) => value & 0xff,
        (2, true) => value as i16 as u32,
        (2, false) => value & 0xffff,
        _ => value,
    }
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
        let value = extended(transfer, value[0]);
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
}
