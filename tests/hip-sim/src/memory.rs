//! The device's address space.
//!
//! Addresses of the device are addresses of this process, cut from one reserved range, so that device
//! memory and pinned host memory are the same thing and a copy is a copy. Pages are committed by the
//! first touch: a program may allocate the 192 GB of the real device on a small machine. Between two
//! allocations lies at least one page group that belongs to none, and addresses are handed out in
//! rising order, so that a freed range stays recognisable for as long as possible.
//!
//! Every lane of every load and store asks [`Memory::resolve`], from many threads at once. It takes no
//! lock: a flat table holds one pointer per page group to a record that is never dropped.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

mod mapping;
use mapping::Mapping;

/// Allocations start on multiples of this and are followed by at least this much of nothing.
const GRANULE: u64 = 1 << 16;
/// Addresses reserved: several times what the device has, so that they are not soon used again.
const SPACE: u64 = 1 << 40;
const GRANULES: u64 = SPACE / GRANULE;

/// Why an access is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessError {
    /// No allocation was ever at this address.
    Unmapped,
    /// The access starts in or right after a live allocation and leaves it.
    OutOfBounds { allocation: u64, size: usize },
    /// The allocation that was here has been freed.
    Freed { allocation: u64, size: usize },
    /// The null pointer, or a small offset from it.
    Null,
}

impl std::fmt::Display for AccessError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unmapped => write!(f, "nothing is allocated there"),
            Self::OutOfBounds { allocation, size } => {
                write!(f, "out of the bounds of the allocation of {size} bytes at {allocation:#x}")
            }
            Self::Freed { allocation, size } => {
                write!(f, "the allocation of {size} bytes at {allocation:#x} has been freed")
            }
            Self::Null => write!(f, "null pointer"),
        }
    }
}

impl std::error::Error for AccessError {}

/// A range that was handed out, live or freed.
struct Allocation {
    start: u64,
    size: usize,
    freed: AtomicBool,
}

/// What is allocated where; only changes take its lock.
#[derive(Default)]
struct Ranges {
    /// First granule and number of granules, guard included, of each live allocation.
    live: BTreeMap<u64, u64>,
    /// End of the latest allocation, where the search for the next one starts.
    cursor: u64,
    /// Bytes in live allocations.
    used: usize,
    /// Every allocation there ever was: the table points into these boxes.
    #[expect(clippy::vec_box, reason = "the records must not move when the list grows")]
    records: Vec<Box<Allocation>>,
}

impl Ranges {
    /// The next gap of `granules`, from the cursor on, then from the start.
    fn take(&mut self, granules: u64) -> Option<u64> {
        let first = self.gap(self.cursor, granules).or_else(|| self.gap(0, granules))?;
        self.live.insert(first, granules);
        self.cursor = first + granules;
        Some(first)
    }

    fn gap(&self, from: u64, granules: u64) -> Option<u64> {
        let mut start = from;
        for (&first, &count) in self.live.range(from..) {
            if first - start >= granules {
                return Some(start);
            }
            start = first + count;
        }
        (GRANULES - start >= granules).then_some(start)
    }
}

/// The address space of one device.
pub struct Memory {
    space: Mapping,
    /// First address, a multiple of [`GRANULE`].
    base: u64,
    /// One pointer to an [`Allocation`] per granule of the space, null where none ever was.
    table: Mapping,
    /// One bit per byte of the space, set once the byte is written, if that is watched.
    written: Option<Mapping>,
    /// Ranges of host memory made known by [`Memory::register`].
    registered: RwLock<Vec<(u64, usize)>>,
    ranges: Mutex<Ranges>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty address space.
    ///
    /// # Panics
    /// If the system refuses to reserve the addresses.
    #[must_use]
    pub fn new() -> Self {
        let space = Mapping::reserve(SPACE + GRANULE);
        let table = Mapping::zeroed(GRANULES * size_of::<AtomicPtr<Allocation>>() as u64);
        let base = space.address().next_multiple_of(GRANULE);
        Self { space, base, table, written: None, registered: RwLock::default(), ranges: Mutex::default() }
    }

    /// An empty address space that remembers which bytes were written, so that a read of a byte that
    /// never was can be told: see [`Memory::mark_written`] and [`Memory::unwritten`].
    #[must_use]
    pub fn watching_writes() -> Self {
        Self { written: Some(Mapping::zeroed(SPACE / 8)), ..Self::new() }
    }

    /// Address of a new allocation of `size` bytes, zeroed and aligned to 64 KiB; 0 if the addresses or
    /// the system's mappings have run out.
    pub fn allocate(&self, size: usize) -> u64 {
        let pages = (size as u64).div_ceil(GRANULE).max(1);
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = ranges.take(pages + 1) else { return 0 };
        let start = self.base + first * GRANULE;
        if !self.space.open(start, pages * GRANULE) {
            ranges.live.remove(&first);
            return 0;
        }
        let record = Box::new(Allocation { start, size, freed: AtomicBool::new(false) });
        // The guard behind it points to the allocation too: an access there ran over its end.
        for entry in &self.entries()[first as usize..=(first + pages) as usize] {
            entry.store(ptr::from_ref(&*record).cast_mut(), Ordering::Release);
        }
        ranges.records.push(record);
        ranges.used += size;
        start
    }

    /// Frees the allocation that starts at `address`; its pages go back to the system.
    pub fn free(&self, address: u64) -> Result<(), AccessError> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let allocation = self.find(address).ok_or(self.nothing_at(address))?;
        let Allocation { start, size, .. } = *allocation;
        if allocation.freed.load(Ordering::Acquire) {
            return Err(AccessError::Freed { allocation: start, size });
        }
        if start != address {
            return Err(AccessError::OutOfBounds { allocation: start, size });
        }
        allocation.freed.store(true, Ordering::Release);
        if let Some(granules) = ranges.live.remove(&((start - self.base) / GRANULE)) {
            self.space.close(start, (granules - 1) * GRANULE);
            if let Some(written) = &self.written {
                written.discard((start - self.base) / 8, (granules - 1) * GRANULE / 8);
            }
        }
        ranges.used -= size;
        Ok(())
    }

    /// Host pointer to `len` bytes at a device address if they lie in one live allocation.
    #[inline]
    pub fn resolve(&self, address: u64, len: usize) -> Result<*mut u8, AccessError> {
        let Some(&Allocation { start, size, ref freed }) = self.find(address) else {
            return self.resolve_registered(address, len);
        };
        if freed.load(Ordering::Acquire) {
            return Err(AccessError::Freed { allocation: start, size });
        }
        // The table's entries lie at or after the start of their allocation.
        if len > size || (address - start) as usize > size - len {
            return Err(AccessError::OutOfBounds { allocation: start, size });
        }
        Ok(ptr::with_exposed_provenance_mut(address as usize))
    }

    #[cold]
    fn resolve_registered(&self, address: u64, len: usize) -> Result<*mut u8, AccessError> {
        let registered = self.registered.read().unwrap_or_else(PoisonError::into_inner);
        let Some(&(allocation, size)) =
            registered.iter().find(|&&(start, size)| (start..start + size as u64).contains(&address))
        else {
            return Err(self.nothing_at(address));
        };
        if len > size || (address - allocation) as usize > size - len {
            return Err(AccessError::OutOfBounds { allocation, size });
        }
        Ok(ptr::with_exposed_provenance_mut(address as usize))
    }

    fn nothing_at(&self, address: u64) -> AccessError {
        if address < GRANULE { AccessError::Null } else { AccessError::Unmapped }
    }

    /// Makes host memory of the caller accessible to kernels, at its own address.
    pub fn register(&self, host: *mut u8, len: usize) {
        let start = host.expose_provenance() as u64;
        self.registered.write().unwrap_or_else(PoisonError::into_inner).push((start, len));
    }

    /// Takes back a [`Memory::register`]; whether the range was registered.
    pub fn unregister(&self, host: *mut u8) -> bool {
        let mut registered = self.registered.write().unwrap_or_else(PoisonError::into_inner);
        let before = registered.len();
        registered.retain(|&(start, _)| start != host.addr() as u64);
        registered.len() < before
    }

    /// Start and size of the live allocation around an address.
    pub fn allocation(&self, address: u64) -> Option<(u64, usize)> {
        self.resolve(address, 1).ok()?;
        self.find(address).map(|allocation| (allocation.start, allocation.size))
    }

    /// Whether the address is one that this address space hands out, allocated or not.
    pub fn owns(&self, address: u64) -> bool {
        (self.base..self.base + SPACE).contains(&address)
    }

    /// Bytes in live allocations.
    pub fn used(&self) -> usize {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).used
    }

    /// Notes that bytes were written; does nothing unless writes are watched.
    #[inline]
    pub fn mark_written(&self, address: u64, len: usize) {
        let Some(bits) = self.written_bits() else { return };
        self.each_written_byte(address, len, |index, mask| {
            if mask == 0xff {
                bits[index].store(0xff, Ordering::Relaxed);
            } else {
                bits[index].fetch_or(mask, Ordering::Relaxed);
            }
        });
    }

    /// Address of the first of these bytes that was never written, if writes are watched. Memory that
    /// was registered counts as written.
    #[inline]
    pub fn unwritten(&self, address: u64, len: usize) -> Option<u64> {
        let bits = self.written_bits()?;
        let mut first = None;
        self.each_written_byte(address, len, |index, mask| {
            let missing = mask & !bits[index].load(Ordering::Relaxed);
            if missing != 0 && first.is_none() {
                first = Some(self.base + index as u64 * 8 + u64::from(missing.trailing_zeros()));
            }
        });
        first
    }

    /// Calls with the index and the mask of each byte of the bitmap that stands for some of `len` bytes.
    fn each_written_byte(&self, address: u64, len: usize, mut visit: impl FnMut(usize, u8)) {
        if !self.owns(address) {
            return;
        }
        let start = (address - self.base) as usize;
        let end = (start + len).min(SPACE as usize);
        for index in start / 8..end.div_ceil(8) {
            let low = start.saturating_sub(index * 8);
            let high = (end - index * 8).min(8);
            visit(index, (0xff_u8 << low) & (0xff_u8 >> (8 - high)));
        }
    }

    fn written_bits(&self) -> Option<&[AtomicU8]> {
        // SAFETY: zeroed memory of this size, which lives as long as `self`.
        self.written.as_ref().map(|bits| unsafe { bits.slice(SPACE as usize / 8) })
    }

    #[inline]
    fn entries(&self) -> &[AtomicPtr<Allocation>] {
        // SAFETY: zeroed memory of this size, which lives as long as `self`; zero is the null pointer.
        unsafe { self.table.slice(GRANULES as usize) }
    }

    /// The latest allocation whose granules, guard included, hold the address.
    #[inline]
    fn find(&self, address: u64) -> Option<&Allocation> {
        let granule = address.wrapping_sub(self.base) / GRANULE;
        let record = self.entries().get(granule as usize)?.load(Ordering::Acquire);
        // SAFETY: null, or a record that lives as long as `self`.
        unsafe { record.as_ref() }
    }
}

#[cfg(test)]
mod tests;
