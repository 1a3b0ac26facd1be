//! Events: the time at which a stream had done what was submitted before.

use std::ffi::c_uint;
use std::time::Instant;

use cubecl_hip_sys::*;

use crate::device::{Event, call, write};
use crate::error::Error;
use crate::graph::is_default;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventCreateWithFlags(event: *mut hipEvent_t, flags: c_uint) -> hipError_t {
    const KNOWN: c_uint = hipEventBlockingSync
        | hipEventDisableTiming
        | hipEventInterprocess
        | hipEventReleaseToDevice
        | hipEventReleaseToSystem;
    call(|device| {
        if event.is_null() || flags & !KNOWN != 0 {
            return Err(Error::INVALID_VALUE);
        }
        let untimed = flags & hipEventDisableTiming != 0;
        // SAFETY: the caller's pointer.
        unsafe { write(event, device.events.insert(Event { untimed, ..Event::default() })) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventCreate(event: *mut hipEvent_t) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipEventCreateWithFlags(event, hipEventDefault) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventDestroy(event: hipEvent_t) -> hipError_t {
    call(|device| device.events.remove(event).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventRecord(event: hipEvent_t, stream: hipStream_t) -> hipError_t {
    call(|device| {
        let capture = if is_default(stream) { None } else { device.streams.get(stream)?.capture };
        let event = device.events.get(event)?;
        event.capture = capture;
        event.recorded = capture.is_none().then(Instant::now);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventQuery(event: hipEvent_t) -> hipError_t {
    call(|device| device.forbid_captured(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventSynchronize(event: hipEvent_t) -> hipError_t {
    call(|device| device.forbid_captured(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipEventElapsedTime(
    milliseconds: *mut f32,
    start: hipEvent_t,
    stop: hipEvent_t,
) -> hipError_t {
    call(|device| {
        let mut time = |event| {
            let event = device.events.get(event)?;
            event.recorded.filter(|_| !event.untimed).ok_or(Error::INVALID_HANDLE)
        };
        let (start, stop) = (time(start)?, time(stop)?);
        let seconds = match stop.checked_duration_since(start) {
            Some(forwards) => forwards.as_secs_f64(),
            None => -(start - stop).as_secs_f64(),
        };
        // SAFETY: the caller's pointer.
        unsafe { write(milliseconds, (seconds * 1e3) as f32) }
    })
}
