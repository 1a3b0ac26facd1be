//! Allocation on the device and of pinned host memory.

use std::ffi::{c_int, c_uint, c_void};

use cubecl_hip_sys::*;
use hip_sim::memory::AccessError;

use crate::device::{Device, address, call, pointer, write};
use crate::error::{Error, Result};
use crate::properties::GLOBAL_MEMORY;

impl Device {
    /// Bytes that the device has left.
    fn free_memory(&self) -> usize {
        let pinned: usize = self.pinned.values().sum();
        GLOBAL_MEMORY.saturating_sub(self.memory.used() - pinned)
    }

    fn allocate(&mut self, size: usize) -> Result<u64> {
        self.forbid_during_capture()?;
        if size == 0 {
            return Ok(0);
        }
        let address = if size > self.free_memory() { 0 } else { self.memory.allocate(size) };
        if address == 0 { Err(Error::OUT_OF_MEMORY) } else { Ok(address) }
    }

    fn allocate_pinned(&mut self, size: usize) -> Result<u64> {
        self.forbid_during_capture()?;
        if size == 0 {
            return Ok(0);
        }
        let address = self.memory.allocate(size);
        if address == 0 {
            return Err(Error::OUT_OF_MEMORY);
        }
        // The host writes it without saying so.
        self.memory.mark_written(address, size);
        self.pinned.insert(address, size);
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Result {
        self.forbid_during_capture()?;
        if address == 0 {
            return Ok(());
        }
        if self.pinned.contains_key(&address) {
            return Err(Error::INVALID_DEVICE_POINTER);
        }
        self.release_memory(address).map_err(|_| Error::INVALID_DEVICE_POINTER)
    }

    fn free_pinned(&mut self, address: u64) -> Result {
        self.forbid_during_capture()?;
        if address == 0 {
            return Ok(());
        }
        self.pinned.remove(&address).ok_or(Error::INVALID_VALUE)?;
        self.release_memory(address).map_err(|_| Error::INVALID_VALUE)
    }

    fn release_memory(&self, address: u64) -> Result<(), AccessError> {
        self.memory.free(address).inspect_err(|error| eprintln!("hip-sim: free of {address:#x}: {error}"))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemGetInfo(free: *mut usize, total: *mut usize) -> hipError_t {
    // SAFETY: the caller's pointers.
    call(|device| unsafe {
        write(free, device.free_memory())?;
        write(total, GLOBAL_MEMORY)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMalloc(target: *mut *mut c_void, size: usize) -> hipError_t {
    // SAFETY: the caller's pointer.
    call(|device| unsafe {
        write(target, std::ptr::null_mut())?;
        write(target, pointer(device.allocate(size)?))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMallocManaged(
    target: *mut *mut c_void,
    size: usize,
    _flags: c_uint,
) -> hipError_t {
    // SAFETY: the caller's promise. All memory here is accessible to both sides.
    unsafe { hipMalloc(target, size) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMallocPitch(
    target: *mut *mut c_void,
    pitch: *mut usize,
    width: usize,
    height: usize,
) -> hipError_t {
    /// As the real device aligns rows.
    const PITCH: usize = 256;
    // SAFETY: the caller's pointers.
    call(|device| unsafe {
        write(target, std::ptr::null_mut())?;
        let row = width.checked_next_multiple_of(PITCH).ok_or(Error::INVALID_VALUE)?;
        write(pitch, row)?;
        let size = row.checked_mul(height).ok_or(Error::INVALID_VALUE)?;
        write(target, pointer(device.allocate(size)?))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipFree(target: *mut c_void) -> hipError_t {
    call(|device| device.free(address(target)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostMalloc(target: *mut *mut c_void, size: usize, _flags: c_uint) -> hipError_t {
    // SAFETY: the caller's pointer.
    call(|device| unsafe {
        write(target, std::ptr::null_mut())?;
        write(target, pointer(device.allocate_pinned(size)?))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostAlloc(target: *mut *mut c_void, size: usize, flags: c_uint) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipHostMalloc(target, size, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMallocHost(target: *mut *mut c_void, size: usize) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipHostMalloc(target, size, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostFree(target: *mut c_void) -> hipError_t {
    call(|device| device.free_pinned(address(target)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipFreeHost(target: *mut c_void) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipHostFree(target) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostRegister(host: *mut c_void, size: usize, _flags: c_uint) -> hipError_t {
    call(|device| {
        if host.is_null() || size == 0 {
            return Err(Error::INVALID_VALUE);
        }
        device.memory.register(host.cast(), size);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostUnregister(host: *mut c_void) -> hipError_t {
    call(
        |device| {
            if device.memory.unregister(host.cast()) {
                Ok(())
            } else {
                Err(Error::HOST_MEMORY_NOT_REGISTERED)
            }
        },
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipHostGetDevicePointer(
    target: *mut *mut c_void,
    host: *mut c_void,
    flags: c_uint,
) -> hipError_t {
    call(|device| {
        if flags != 0 || device.memory.resolve(address(host), 1).is_err() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller's pointer.
        unsafe { write(target, host) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemGetAddressRange(
    base: *mut hipDeviceptr_t,
    size: *mut usize,
    within: hipDeviceptr_t,
) -> hipError_t {
    call(|device| {
        let (start, len) = device.memory.allocation(address(within)).ok_or(Error::INVALID_VALUE)?;
        // SAFETY: the caller's pointers.
        unsafe {
            write(base, pointer(start))?;
            write(size, len)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipPointerGetAttributes(
    attributes: *mut hipPointerAttribute_t,
    within: *const c_void,
) -> hipError_t {
    call(|device| {
        let known = device.memory.resolve(address(within), 1).is_ok();
        let start = device.memory.allocation(address(within)).map(|(start, _)| start);
        let on_device = start.is_some_and(|start| !device.pinned.contains_key(&start));
        let value = hipPointerAttribute_t {
            type_: match (known, on_device) {
                (false, _) => hipMemoryType_hipMemoryTypeUnregistered,
                (true, false) => hipMemoryType_hipMemoryTypeHost,
                (true, true) => hipMemoryType_hipMemoryTypeDevice,
            },
            device: if known { 0 } else { -1 },
            devicePointer: if known { within.cast_mut() } else { std::ptr::null_mut() },
            hostPointer: if on_device { std::ptr::null_mut() } else { within.cast_mut() },
            isManaged: 0,
            allocationFlags: 0,
        };
        // SAFETY: the caller's pointer.
        unsafe { write(attributes, value) }
    })
}

// One pool, which holds nothing: memory is given back when it is freed.

const POOL: hipMemPool_t = std::ptr::without_provenance_mut(16);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceGetDefaultMemPool(pool: *mut hipMemPool_t, device: c_int) -> hipError_t {
    call(|_| {
        crate::properties::check_device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { write(pool, POOL) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceGetMemPool(pool: *mut hipMemPool_t, device: c_int) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipDeviceGetDefaultMemPool(pool, device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemPoolTrimTo(pool: hipMemPool_t, _keep: usize) -> hipError_t {
    call(|_| if pool == POOL { Ok(()) } else { Err(Error::INVALID_VALUE) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemPoolSetAttribute(
    pool: hipMemPool_t,
    _attribute: hipMemPoolAttr,
    _value: *mut c_void,
) -> hipError_t {
    call(|_| if pool == POOL { Ok(()) } else { Err(Error::INVALID_VALUE) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMallocAsync(
    target: *mut *mut c_void,
    size: usize,
    stream: hipStream_t,
) -> hipError_t {
    // SAFETY: the caller's pointer.
    call(|device| unsafe {
        device.forbid_capturing(stream)?;
        write(target, pointer(device.allocate(size)?))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipFreeAsync(target: *mut c_void, stream: hipStream_t) -> hipError_t {
    call(|device| {
        device.forbid_capturing(stream)?;
        device.free(address(target))
    })
}
