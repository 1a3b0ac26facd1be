//! The one device, and the driver.

use std::ffi::{c_char, c_int, c_uint};

use cubecl_hip_sys::*;

use crate::device::{call, call_even_failed, write};
use crate::error::{Error, Result};
use crate::properties::{GLOBAL_MEMORY, NAME, PCI_BUS_ID, check_device, properties, set_text};

/// Of the ROCm whose interface this is.
const VERSION: c_int = HIP_VERSION as c_int;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipInit(flags: c_uint) -> hipError_t {
    call(|_| if flags == 0 { Ok(()) } else { Err(Error::INVALID_VALUE) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDriverGetVersion(version: *mut c_int) -> hipError_t {
    // SAFETY: the caller's pointer.
    call(|_| unsafe { write(version, VERSION) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipRuntimeGetVersion(version: *mut c_int) -> hipError_t {
    // SAFETY: the caller's pointer.
    call(|_| unsafe { write(version, VERSION) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetDeviceCount(count: *mut c_int) -> hipError_t {
    // SAFETY: the caller's pointer.
    call(|_| unsafe { write(count, 1) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipSetDevice(device: c_int) -> hipError_t {
    call(|_| check_device(device))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetDevice(device: *mut c_int) -> hipError_t {
    // SAFETY: the caller's pointer.
    call(|_| unsafe { write(device, 0) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipSetDeviceFlags(_flags: c_uint) -> hipError_t {
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceGet(device: *mut hipDevice_t, ordinal: c_int) -> hipError_t {
    call(|_| {
        check_device(ordinal)?;
        // SAFETY: the caller's pointer.
        unsafe { write(device, 0) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGetDevicePropertiesR0600(
    target: *mut hipDeviceProp_tR0600,
    device: c_int,
) -> hipError_t {
    call(|_| {
        check_device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { write(target, properties()) }
    })
}

/// Writes a text for the caller.
///
/// # Safety
/// `target` is null or has room for `len` bytes.
unsafe fn write_text(target: *mut c_char, len: c_int, text: &str) -> Result {
    let len = usize::try_from(len).map_err(|_| Error::INVALID_VALUE)?;
    if target.is_null() || len == 0 {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null, so there is room by the caller's promise. Zeroed first: it may be uninitialised.
    let target = unsafe {
        target.write_bytes(0, len);
        std::slice::from_raw_parts_mut(target, len)
    };
    set_text(target, text);
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceGetPCIBusId(target: *mut c_char, len: c_int, device: c_int) -> hipError_t {
    call(|_| {
        check_device(device)?;
        if usize::try_from(len).is_ok_and(|len| len <= PCI_BUS_ID.len()) {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller's buffer.
        unsafe { write_text(target, len, PCI_BUS_ID) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceGetName(
    target: *mut c_char,
    len: c_int,
    device: hipDevice_t,
) -> hipError_t {
    call(|_| {
        check_device(device)?;
        // SAFETY: the caller's buffer.
        unsafe { write_text(target, len, NAME) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceTotalMem(bytes: *mut usize, device: hipDevice_t) -> hipError_t {
    call(|_| {
        check_device(device)?;
        // SAFETY: the caller's pointer.
        unsafe { write(bytes, GLOBAL_MEMORY) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceGetAttribute(
    value: *mut c_int,
    attribute: hipDeviceAttribute_t,
    device: c_int,
) -> hipError_t {
    call(|_| {
        check_device(device)?;
        let p = properties();
        let result = match attribute {
            hipDeviceAttribute_t_hipDeviceAttributeWarpSize => p.warpSize,
            hipDeviceAttribute_t_hipDeviceAttributeMultiprocessorCount => p.multiProcessorCount,
            hipDeviceAttribute_t_hipDeviceAttributeMaxThreadsPerBlock => p.maxThreadsPerBlock,
            hipDeviceAttribute_t_hipDeviceAttributeMaxThreadsPerMultiProcessor => {
                p.maxThreadsPerMultiProcessor
            }
            hipDeviceAttribute_t_hipDeviceAttributeMaxBlockDimX => p.maxThreadsDim[0],
            hipDeviceAttribute_t_hipDeviceAttributeMaxBlockDimY => p.maxThreadsDim[1],
            hipDeviceAttribute_t_hipDeviceAttributeMaxBlockDimZ => p.maxThreadsDim[2],
            hipDeviceAttribute_t_hipDeviceAttributeMaxGridDimX => p.maxGridSize[0],
            hipDeviceAttribute_t_hipDeviceAttributeMaxGridDimY => p.maxGridSize[1],
            hipDeviceAttribute_t_hipDeviceAttributeMaxGridDimZ => p.maxGridSize[2],
            hipDeviceAttribute_t_hipDeviceAttributeMaxSharedMemoryPerBlock => p.sharedMemPerBlock as c_int,
            hipDeviceAttribute_t_hipDeviceAttributeMaxSharedMemoryPerMultiprocessor => {
                p.sharedMemPerMultiprocessor as c_int
            }
            hipDeviceAttribute_t_hipDeviceAttributeMaxRegistersPerBlock => p.regsPerBlock,
            hipDeviceAttribute_t_hipDeviceAttributeComputeCapabilityMajor => p.major,
            hipDeviceAttribute_t_hipDeviceAttributeComputeCapabilityMinor => p.minor,
            hipDeviceAttribute_t_hipDeviceAttributeClockRate => p.clockRate,
            hipDeviceAttribute_t_hipDeviceAttributeMemoryClockRate => p.memoryClockRate,
            hipDeviceAttribute_t_hipDeviceAttributeMemoryBusWidth => p.memoryBusWidth,
            hipDeviceAttribute_t_hipDeviceAttributeL2CacheSize => p.l2CacheSize,
            hipDeviceAttribute_t_hipDeviceAttributeIntegrated => p.integrated,
            hipDeviceAttribute_t_hipDeviceAttributeCanMapHostMemory => p.canMapHostMemory,
            hipDeviceAttribute_t_hipDeviceAttributeConcurrentKernels => p.concurrentKernels,
            hipDeviceAttribute_t_hipDeviceAttributeCooperativeLaunch => p.cooperativeLaunch,
            hipDeviceAttribute_t_hipDeviceAttributeManagedMemory => p.managedMemory,
            hipDeviceAttribute_t_hipDeviceAttributeMemoryPoolsSupported => p.memoryPoolsSupported,
            hipDeviceAttribute_t_hipDeviceAttributePciBusId => p.pciBusID,
            hipDeviceAttribute_t_hipDeviceAttributePciDeviceId => p.pciDeviceID,
            hipDeviceAttribute_t_hipDeviceAttributeTextureAlignment => p.textureAlignment as c_int,
            hipDeviceAttribute_t_hipDeviceAttributeSurfaceAlignment => p.surfaceAlignment as c_int,
            hipDeviceAttribute_t_hipDeviceAttributeUnifiedAddressing => p.unifiedAddressing,
            _ => return Err(Error::INVALID_VALUE),
        };
        // SAFETY: the caller's pointer.
        unsafe { write(value, result) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceSynchronize() -> hipError_t {
    call(|device| device.forbid_during_capture())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceReset() -> hipError_t {
    call_even_failed(|device| {
        device.reset();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int) -> hipError_t {
    call(|_| {
        check_device(device)?;
        check_device(peer)?;
        // SAFETY: the caller's pointer.
        unsafe { write(can, 0) }
    })
}
