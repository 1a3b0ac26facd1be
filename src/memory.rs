//! Refusals of sizes beyond all memory, before an allocator aborts the process.
//!
//! Linux overcommits memory, and ends the process that uses it. So a size is compared with the memory of the
//! machine as well. It is not compared with the free memory, which changes at any moment.

use std::hint::black_box;
use std::sync::OnceLock;

use burn::tensor::Device;
use sysinfo::System;

#[cfg(feature = "cube")]
use burn::backend::DispatchDevice;

use crate::error::{Error, Result};

/// The product of `extents`, or `usize::MAX` if it is more than that.
pub(crate) fn bytes<const N: usize>(extents: [usize; N]) -> usize {
    // A factor of 0 may come last.
    if extents.contains(&0) { 0 } else { extents.into_iter().fold(1, usize::saturating_mul) }
}

/// An empty list with room for `len` elements.
///
/// # Errors
///
/// If the host has not so much memory.
pub(crate) fn list<T>(op: &'static str, argument: &'static str, len: usize) -> Result<Vec<T>> {
    let bytes = bytes([len, size_of::<T>()]);
    at_most(op, argument, bytes, of_host(), "the memory of this machine")?;
    let mut list = Vec::new();
    list.try_reserve_exact(len).map_err(|error| Error::OutOfMemory {
        op,
        argument,
        bytes,
        expected: format!("what the host can allocate ({error})"),
    })?;
    Ok(list)
}

/// Refuses a size that the host cannot allocate. Small sizes are not tried: a decoding step allocates only outputs.
pub(crate) fn on_host(op: &'static str, argument: &'static str, bytes: usize) -> Result<()> {
    /// An allocator takes larger ones from the system, one by one.
    const LARGE: usize = 32 << 20;
    if bytes <= LARGE {
        return Ok(());
    }
    list::<u8>(op, argument, bytes).map(|list| drop(black_box(list)))
}

/// Refuses `tensors` tensors of `bytes` bytes each that `device` cannot hold, even if it held nothing else.
pub(crate) fn on_device(
    op: &'static str,
    argument: &'static str,
    [tensors, bytes]: [usize; 2],
    device: &Device,
) -> Result<()> {
    let all = self::bytes([tensors, bytes]);
    #[cfg(feature = "cube")]
    if let DispatchDevice::Cube(inner) = device.clone().inner().as_dispatch() {
        let memory = crate::backend::memory(inner);
        let most = memory.all.unwrap_or(u64::MAX);
        at_most(op, argument, all, most, "the memory of the device")?;
        return at_most(op, argument, bytes, memory.largest, "what the device can allocate at a time");
    }
    let _ = device;
    on_host(op, argument, all)
}

fn at_most(op: &'static str, argument: &'static str, bytes: usize, most: u64, of: &str) -> Result<()> {
    if bytes as u64 <= most && bytes <= isize::MAX as usize {
        return Ok(());
    }
    let expected = format!("at most {}, {of}", most.min(isize::MAX as u64));
    Err(Error::OutOfMemory { op, argument, bytes, expected })
}

/// Bytes that the process may use, or the largest number if that is not known.
fn of_host() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let mut system = System::new();
        system.refresh_memory();
        let machine = system.total_memory().saturating_add(system.total_swap());
        let container = system.cgroup_limits().map_or(0, |limits| limits.total_memory);
        [machine, container].into_iter().filter(|&bytes| bytes > 0).min().unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products() {
        assert_eq!(bytes([3, 5]), 15);
        assert_eq!(bytes([usize::MAX, 2, 1]), usize::MAX);
        assert_eq!(bytes([usize::MAX, 2, 0]), 0);
    }

    /// Sizes beyond the address space are refused as well, whatever the machine has.
    #[test]
    fn too_much_is_refused() {
        assert!(of_host() > 1 << 20, "{}", of_host());
        for bytes in [usize::MAX, isize::MAX as usize, 1 << 60, of_host() as usize + 1] {
            for refused in [on_host("op", "x", bytes), list::<u8>("op", "x", bytes).map(|_| ())] {
                assert!(
                    matches!(refused, Err(Error::OutOfMemory { bytes: got, .. }) if got == bytes),
                    "{bytes}: {refused:?}"
                );
            }
        }
        assert_eq!(on_host("op", "x", 1 << 20), Ok(()));
        assert_eq!(list::<u64>("op", "x", 3).map(|list| list.capacity()), Ok(3));
    }
}
