//! Ranges of addresses from the system.

use std::ffi::{c_int, c_long, c_void};
use std::ptr;

// Of the system's C library, which the standard library links; the values are those of Linux.
unsafe extern "C" {
    fn mmap(
        address: *mut c_void,
        len: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: c_long,
    ) -> *mut c_void;
    fn munmap(address: *mut c_void, len: usize) -> c_int;
    fn mprotect(address: *mut c_void, len: usize, protection: c_int) -> c_int;
    fn madvise(address: *mut c_void, len: usize, advice: c_int) -> c_int;
}

const PROT_NONE: c_int = 0;
const PROT_READ_WRITE: c_int = 1 | 2;
const MAP_PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x2 | 0x20 | 0x4000;
const MADV_DONTNEED: c_int = 4;
const MADV_DONTDUMP: c_int = 16;

/// Addresses of this process, given back on drop. Pages take memory once they are touched.
pub(super) struct Mapping {
    start: *mut c_void,
    len: usize,
}

// SAFETY: an owned range of addresses; what lies in it is accessed through atomics or raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Addresses without access.
    pub(super) fn reserve(len: u64) -> Self {
        Self::map(len, PROT_NONE)
    }

    /// Zeroed memory.
    pub(super) fn zeroed(len: u64) -> Self {
        Self::map(len, PROT_READ_WRITE)
    }

    fn map(len: u64, protection: c_int) -> Self {
        let len = len as usize;
        // SAFETY: a new mapping at an address of the system's choice.
        let start = unsafe { mmap(ptr::null_mut(), len, protection, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1, 0) };
        assert!(start.addr() != usize::MAX, "{}", std::io::Error::last_os_error());
        // SAFETY: the range just mapped. A core dump has no use for what is mostly holes.
        unsafe { madvise(start, len, MADV_DONTDUMP) };
        Self { start, len }
    }

    pub(super) fn address(&self) -> u64 {
        self.start.expose_provenance() as u64
    }

    /// Allows access to pages; whether the system could.
    pub(super) fn open(&self, address: u64, len: u64) -> bool {
        // SAFETY: pages of this mapping.
        unsafe { mprotect(self.pages(address, len), len as usize, PROT_READ_WRITE) == 0 }
    }

    /// Gives pages back and forbids access to them.
    pub(super) fn close(&self, address: u64, len: u64) {
        let pages = self.pages(address, len);
        // SAFETY: pages of this mapping, which the caller no longer uses.
        unsafe {
            madvise(pages, len as usize, MADV_DONTNEED);
            mprotect(pages, len as usize, PROT_NONE);
        }
    }

    /// Zeroes pages by giving them back.
    pub(super) fn discard(&self, offset: u64, len: u64) {
        // SAFETY: pages of this mapping; their users only see them turn zero.
        unsafe { madvise(self.pages(self.address() + offset, len), len as usize, MADV_DONTNEED) };
    }

    fn pages(&self, address: u64, len: u64) -> *mut c_void {
        let offset = (address - self.address()) as usize;
        assert!(offset + len as usize <= self.len);
        self.start.wrapping_byte_add(offset)
    }

    /// The mapping as `len` values.
    ///
    /// # Safety
    /// The mapping is accessible and used for nothing else, `len` values fit, all zeros is one, and they
    /// change only through shared references.
    pub(super) unsafe fn slice<T>(&self, len: usize) -> &[T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.cast(), len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nothing outlives `self`.
        unsafe { munmap(self.start, self.len) };
    }
}
