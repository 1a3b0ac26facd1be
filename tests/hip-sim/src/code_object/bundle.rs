//! Bundles of code objects for several targets, as `clang` wraps them by default.

use super::LoadError;
use super::elf::{bytes, word8};

const MAGIC: &[u8] = b"__CLANG_OFFLOAD_BUNDLE__";
const COUNT: u64 = MAGIC.len() as u64;
const ENTRIES: u64 = COUNT + 8;

pub(super) fn is_bundle(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// The code object for gfx942 of a bundle; anything else is returned as it is.
pub(super) fn unpack(image: &[u8]) -> Result<&[u8], LoadError> {
    if !is_bundle(image) {
        return Ok(image);
    }
    let mut entry = ENTRIES;
    for _ in 0..word8(image, COUNT)? {
        let [offset, size, name_size] =
            [word8(image, entry)?, word8(image, entry + 8)?, word8(image, entry + 16)?];
        let name = bytes(image, entry + 24, name_size)?;
        // As in `hipv4-amdgcn-amd-amdhsa--gfx942:sramecc+:xnack-`; the ELF header has the features too.
        let target = name.windows(2).position(|two| two == b"--").map_or(name, |at| &name[at + 2..]);
        if name.starts_with(b"hip") && target.split(|&byte| byte == b':').next() == Some(b"gfx942") {
            return bytes(image, offset, size);
        }
        entry = entry.saturating_add(24 + name_size);
    }
    Err(LoadError::NotInBundle)
}

/// Size of the bundle that starts at an address.
///
/// # Safety
/// There is a whole bundle.
pub(super) unsafe fn file_size(start: *const u8) -> u64 {
    // SAFETY: every read lies in the table of the bundle, by the caller's promise.
    let word = |offset: u64| unsafe { start.add(offset as usize).cast::<u64>().read_unaligned() };
    let mut entry = ENTRIES;
    let mut size = ENTRIES;
    for _ in 0..word(COUNT) {
        size = size.max(word(entry) + word(entry + 8));
        entry += 24 + word(entry + 16);
        size = size.max(entry);
    }
    size
}
