//! Streams. Work is done once it is submitted, so waiting is only a check.

use std::ffi::{c_int, c_uint};

use cubecl_hip_sys::*;

use crate::device::{Stream, call, write};
use crate::error::Error;
use crate::graph::is_default;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamCreateWithFlags(stream: *mut hipStream_t, flags: c_uint) -> hipError_t {
    call(|device| {
        if stream.is_null() || flags > hipStreamNonBlocking {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller's pointer.
        unsafe { write(stream, device.streams.insert(Stream { flags, capture: None })) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamCreate(stream: *mut hipStream_t) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipStreamCreateWithFlags(stream, hipStreamDefault) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamCreateWithPriority(
    stream: *mut hipStream_t,
    flags: c_uint,
    _priority: c_int,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipStreamCreateWithFlags(stream, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamDestroy(stream: hipStream_t) -> hipError_t {
    call(|device| {
        if is_default(stream) {
            return Err(Error::INVALID_HANDLE);
        }
        let id = device.streams.remove(stream)?.capture;
        // A capture ends with the stream it began on.
        device.captures.retain(|capture, state| Some(*capture) != id || !state.began_on(stream));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamSynchronize(stream: hipStream_t) -> hipError_t {
    call(|device| device.forbid_capturing(stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamQuery(stream: hipStream_t) -> hipError_t {
    call(|device| device.forbid_capturing(stream))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamGetFlags(stream: hipStream_t, flags: *mut c_uint) -> hipError_t {
    call(|device| {
        let value = if is_default(stream) { hipStreamDefault } else { device.streams.get(stream)?.flags };
        // SAFETY: the caller's pointer.
        unsafe { write(flags, value) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamWaitEvent(
    stream: hipStream_t,
    event: hipEvent_t,
    flags: c_uint,
) -> hipError_t {
    call(|device| {
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        let capture = device.events.get(event)?.capture;
        if is_default(stream) {
            return Ok(());
        }
        // A stream that waits for a captured event takes part in its capture.
        let capture = capture.filter(|id| device.captures.contains_key(id));
        let state = device.streams.get(stream)?;
        state.capture = state.capture.or(capture);
        Ok(())
    })
}
