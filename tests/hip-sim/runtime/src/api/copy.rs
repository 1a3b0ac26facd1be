//! Copies and fills.

use std::ffi::{c_int, c_uchar, c_ushort, c_void};

use cubecl_hip_sys::*;

use crate::device::{address, call};
use crate::error::Error;
use crate::operation::{Copy, Fill, Operation, Rows};

const DEFAULT_STREAM: hipStream_t = std::ptr::null_mut();

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpy2DAsync(
    target: *mut c_void,
    target_pitch: usize,
    source: *const c_void,
    source_pitch: usize,
    width: usize,
    height: usize,
    kind: hipMemcpyKind,
    stream: hipStream_t,
) -> hipError_t {
    call(|device| {
        let (to_device, from_device) = match kind {
            hipMemcpyKind_hipMemcpyHostToDevice => (true, false),
            hipMemcpyKind_hipMemcpyDeviceToHost => (false, true),
            hipMemcpyKind_hipMemcpyDeviceToDevice | hipMemcpyKind_hipMemcpyDeviceToDeviceNoCU => (true, true),
            hipMemcpyKind_hipMemcpyHostToHost | hipMemcpyKind_hipMemcpyDefault => (false, false),
            _ => return Err(Error::INVALID_MEMCPY_DIRECTION),
        };
        let rows = |pointer, pitch, on_device| Rows { address: address(pointer), pitch, on_device };
        let copy = Copy {
            target: rows(target, target_pitch, to_device),
            source: rows(source, source_pitch, from_device),
            width,
            height,
        };
        copy.check(&device.memory)?;
        device.submit(stream, Operation::Copy(copy))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpy2D(
    target: *mut c_void,
    target_pitch: usize,
    source: *const c_void,
    source_pitch: usize,
    width: usize,
    height: usize,
    kind: hipMemcpyKind,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe {
        hipMemcpy2DAsync(target, target_pitch, source, source_pitch, width, height, kind, DEFAULT_STREAM)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpyAsync(
    target: *mut c_void,
    source: *const c_void,
    size: usize,
    kind: hipMemcpyKind,
    stream: hipStream_t,
) -> hipError_t {
    // SAFETY: the caller's promise; one row.
    unsafe { hipMemcpy2DAsync(target, size, source, size, size, 1, kind, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpy(
    target: *mut c_void,
    source: *const c_void,
    size: usize,
    kind: hipMemcpyKind,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemcpyAsync(target, source, size, kind, DEFAULT_STREAM) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpyHtoDAsync(
    target: hipDeviceptr_t,
    source: *const c_void,
    size: usize,
    stream: hipStream_t,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemcpyAsync(target, source, size, hipMemcpyKind_hipMemcpyHostToDevice, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpyDtoHAsync(
    target: *mut c_void,
    source: hipDeviceptr_t,
    size: usize,
    stream: hipStream_t,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemcpyAsync(target, source, size, hipMemcpyKind_hipMemcpyDeviceToHost, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpyDtoDAsync(
    target: hipDeviceptr_t,
    source: hipDeviceptr_t,
    size: usize,
    stream: hipStream_t,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemcpyAsync(target, source, size, hipMemcpyKind_hipMemcpyDeviceToDevice, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpyHtoD(
    target: hipDeviceptr_t,
    source: *const c_void,
    size: usize,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemcpyHtoDAsync(target, source, size, DEFAULT_STREAM) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpyDtoH(
    target: *mut c_void,
    source: hipDeviceptr_t,
    size: usize,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemcpyDtoHAsync(target, source, size, DEFAULT_STREAM) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemcpyDtoD(
    target: hipDeviceptr_t,
    source: hipDeviceptr_t,
    size: usize,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemcpyDtoDAsync(target, source, size, DEFAULT_STREAM) }
}

/// Fills rows with a value of the first `value_size` bytes of `value`.
fn fill(
    target: Rows,
    value: u32,
    value_size: usize,
    width: usize,
    height: usize,
    stream: hipStream_t,
) -> hipError_t {
    call(|device| {
        let fill = Fill { target, value: value.to_le_bytes(), value_size, width, height };
        fill.check(&device.memory)?;
        device.submit(stream, Operation::Fill(fill))
    })
}

/// Fills `count` values in a row.
fn fill_values(
    target: *mut c_void,
    value: u32,
    value_size: usize,
    count: usize,
    stream: hipStream_t,
) -> hipError_t {
    // Too many to count is also too many to fit.
    let width = count.saturating_mul(value_size);
    let target = Rows { address: address(target), pitch: width, on_device: true };
    fill(target, value, value_size, width, 1, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemset2DAsync(
    target: *mut c_void,
    pitch: usize,
    value: c_int,
    width: usize,
    height: usize,
    stream: hipStream_t,
) -> hipError_t {
    let target = Rows { address: address(target), pitch, on_device: true };
    fill(target, value.cast_unsigned(), 1, width, height, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemset2D(
    target: *mut c_void,
    pitch: usize,
    value: c_int,
    width: usize,
    height: usize,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipMemset2DAsync(target, pitch, value, width, height, DEFAULT_STREAM) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemsetAsync(
    target: *mut c_void,
    value: c_int,
    size: usize,
    stream: hipStream_t,
) -> hipError_t {
    fill_values(target, value.cast_unsigned(), 1, size, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemset(target: *mut c_void, value: c_int, size: usize) -> hipError_t {
    fill_values(target, value.cast_unsigned(), 1, size, DEFAULT_STREAM)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemsetD8(target: hipDeviceptr_t, value: c_uchar, count: usize) -> hipError_t {
    fill_values(target, value.into(), 1, count, DEFAULT_STREAM)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemsetD8Async(
    target: hipDeviceptr_t,
    value: c_uchar,
    count: usize,
    stream: hipStream_t,
) -> hipError_t {
    fill_values(target, value.into(), 1, count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemsetD16(target: hipDeviceptr_t, value: c_ushort, count: usize) -> hipError_t {
    fill_values(target, value.into(), 2, count, DEFAULT_STREAM)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemsetD16Async(
    target: hipDeviceptr_t,
    value: c_ushort,
    count: usize,
    stream: hipStream_t,
) -> hipError_t {
    fill_values(target, value.into(), 2, count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemsetD32(target: hipDeviceptr_t, value: c_int, count: usize) -> hipError_t {
    fill_values(target, value.cast_unsigned(), 4, count, DEFAULT_STREAM)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipMemsetD32Async(
    target: hipDeviceptr_t,
    value: c_int,
    count: usize,
    stream: hipStream_t,
) -> hipError_t {
    fill_values(target, value.cast_unsigned(), 4, count, stream)
}
