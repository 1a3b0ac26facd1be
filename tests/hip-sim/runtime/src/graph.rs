//! Capture of what is submitted to streams, and the graphs that come of it.
//!
//! Work runs in the order of submission, so the order of capture is an order that respects every
//! dependence: a graph is a list.

use std::ffi::{c_char, c_uint, c_ulonglong};
use std::thread::ThreadId;

use cubecl_hip_sys::*;

use crate::device::{Device, call, unique, write};
use crate::error::{Error, Result};
use crate::operation::Operation;

/// Nodes with their handles.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: Vec<(usize, Operation)>,
}

/// A recording that has not ended.
pub(crate) struct Capture {
    graph: Graph,
    mode: hipStreamCaptureMode,
    thread: ThreadId,
    /// Handle of the stream it began on.
    origin: usize,
    /// A call that is not allowed during capture has spoilt it.
    invalidated: bool,
}

impl Capture {
    pub(crate) fn began_on(&self, stream: hipStream_t) -> bool {
        self.origin == stream.addr()
    }

    pub(crate) fn record(&mut self, operation: Operation) -> Result {
        if self.invalidated {
            return Err(Error::STREAM_CAPTURE_INVALIDATED);
        }
        self.graph.nodes.push((unique(), operation));
        Ok(())
    }
}

impl Device {
    /// The capture that a stream takes part in.
    pub(crate) fn capture_of(&mut self, stream: hipStream_t) -> Result<Option<&mut Capture>> {
        if is_default(stream) {
            return Ok(None);
        }
        let capture = self.streams.get(stream)?.capture;
        Ok(capture.and_then(|id| self.captures.get_mut(&id)))
    }

    /// Refuses a call that would have to wait for, or touch the memory of, work that is only recorded.
    /// The captures that forbid it are spoilt.
    pub(crate) fn forbid_during_capture(&mut self) -> Result {
        let thread = std::thread::current().id();
        let mut allowed = Ok(());
        for capture in self.captures.values_mut() {
            let forbids = match capture.mode {
                hipStreamCaptureMode_hipStreamCaptureModeGlobal => true,
                hipStreamCaptureMode_hipStreamCaptureModeThreadLocal => capture.thread == thread,
                _ => false,
            };
            if forbids {
                capture.invalidated = true;
                allowed = Err(Error::STREAM_CAPTURE_UNSUPPORTED);
            }
        }
        allowed
    }

    /// Refuses to wait for a stream that captures.
    pub(crate) fn forbid_capturing(&mut self, stream: hipStream_t) -> Result {
        if let Some(capture) = self.capture_of(stream)? {
            capture.invalidated = true;
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        Ok(())
    }

    /// Refuses to wait for an event that was recorded in a capture that goes on.
    pub(crate) fn forbid_captured(&mut self, event: hipEvent_t) -> Result {
        let capture = self.events.get(event)?.capture;
        if let Some(capture) = capture.and_then(|id| self.captures.get_mut(&id)) {
            capture.invalidated = true;
            return Err(Error::CAPTURED_EVENT);
        }
        Ok(())
    }
}

/// The streams that exist without being created: the null stream, `hipStreamLegacy` and
/// `hipStreamPerThread`.
pub(crate) fn is_default(stream: hipStream_t) -> bool {
    stream.addr() <= 2
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamBeginCapture(
    stream: hipStream_t,
    mode: hipStreamCaptureMode,
) -> hipError_t {
    call(|device| {
        if is_default(stream) {
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        if mode > hipStreamCaptureMode_hipStreamCaptureModeRelaxed {
            return Err(Error::INVALID_VALUE);
        }
        let id = unique();
        let state = device.streams.get(stream)?;
        if state.capture.is_some() {
            return Err(Error::ILLEGAL_STATE);
        }
        state.capture = Some(id);
        let thread = std::thread::current().id();
        let capture =
            Capture { graph: Graph::default(), mode, thread, origin: stream.addr(), invalidated: false };
        device.captures.insert(id, capture);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamEndCapture(stream: hipStream_t, graph: *mut hipGraph_t) -> hipError_t {
    call(|device| {
        if graph.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        let capture = device.capture_of(stream)?.ok_or(Error::ILLEGAL_STATE)?;
        if !capture.began_on(stream) {
            return Err(Error::STREAM_CAPTURE_UNMATCHED);
        }
        let bound = capture.mode != hipStreamCaptureMode_hipStreamCaptureModeRelaxed;
        if bound && capture.thread != std::thread::current().id() {
            return Err(Error::STREAM_CAPTURE_WRONG_THREAD);
        }
        let id = device.streams.get(stream)?.capture;
        for stream in device.streams.values().filter(|stream| stream.capture == id) {
            stream.capture = None;
        }
        let capture = id.and_then(|id| device.captures.remove(&id)).ok_or(Error::ILLEGAL_STATE)?;
        if capture.invalidated {
            // SAFETY: the caller's pointer.
            unsafe { write(graph, std::ptr::null_mut())? };
            return Err(Error::STREAM_CAPTURE_INVALIDATED);
        }
        // SAFETY: the caller's pointer.
        unsafe { write(graph, device.graphs.insert(capture.graph)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipStreamIsCapturing(
    stream: hipStream_t,
    capturing: *mut hipStreamCaptureStatus,
) -> hipError_t {
    call(|device| {
        let value = match device.capture_of(stream)? {
            None => hipStreamCaptureStatus_hipStreamCaptureStatusNone,
            Some(Capture { invalidated: false, .. }) => hipStreamCaptureStatus_hipStreamCaptureStatusActive,
            Some(_) => hipStreamCaptureStatus_hipStreamCaptureStatusInvalidated,
        };
        // SAFETY: the caller's pointer.
        unsafe { write(capturing, value) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphCreate(graph: *mut hipGraph_t, flags: c_uint) -> hipError_t {
    call(|device| {
        if graph.is_null() || flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller's pointer.
        unsafe { write(graph, device.graphs.insert(Graph::default())) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphDestroy(graph: hipGraph_t) -> hipError_t {
    call(|device| device.graphs.remove(graph).map(drop))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphGetNodes(
    graph: hipGraph_t,
    nodes: *mut hipGraphNode_t,
    count: *mut usize,
) -> hipError_t {
    call(|device| {
        let graph = device.graphs.get(graph)?;
        if count.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        if nodes.is_null() {
            // SAFETY: the caller's pointer.
            return unsafe { write(count, graph.nodes.len()) };
        }
        // SAFETY: `count` is not null, so it holds the room for nodes.
        let room = unsafe { *count };
        for (index, &(handle, _)) in graph.nodes.iter().enumerate().take(room) {
            // SAFETY: there is room for this node.
            unsafe { nodes.add(index).write(std::ptr::without_provenance_mut(handle)) };
        }
        for index in graph.nodes.len()..room {
            // SAFETY: there is room for this node.
            unsafe { nodes.add(index).write(std::ptr::null_mut()) };
        }
        // SAFETY: the caller's pointer.
        unsafe { write(count, room.min(graph.nodes.len())) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphNodeGetType(
    node: hipGraphNode_t,
    kind: *mut hipGraphNodeType,
) -> hipError_t {
    call(|device| {
        let mut nodes = device.graphs.values().flat_map(|graph| &graph.nodes);
        let (_, operation) = nodes.find(|(handle, _)| *handle == node.addr()).ok_or(Error::INVALID_VALUE)?;
        let value = match operation {
            Operation::Launch(_) => hipGraphNodeType_hipGraphNodeTypeKernel,
            Operation::Copy(_) => hipGraphNodeType_hipGraphNodeTypeMemcpy,
            Operation::Fill(_) => hipGraphNodeType_hipGraphNodeTypeMemset,
        };
        // SAFETY: the caller's pointer.
        unsafe { write(kind, value) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphInstantiate(
    executable: *mut hipGraphExec_t,
    graph: hipGraph_t,
    _error_node: *mut hipGraphNode_t,
    _log: *mut c_char,
    _log_size: usize,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipGraphInstantiateWithFlags(executable, graph, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphInstantiateWithFlags(
    executable: *mut hipGraphExec_t,
    graph: hipGraph_t,
    _flags: c_ulonglong,
) -> hipError_t {
    call(|device| {
        if executable.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        let nodes = &device.graphs.get(graph)?.nodes;
        let operations = nodes.iter().map(|(_, operation)| operation.clone()).collect();
        // SAFETY: the caller's pointer.
        unsafe { write(executable, device.executables.insert(operations)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphUpload(executable: hipGraphExec_t, stream: hipStream_t) -> hipError_t {
    call(|device| {
        device.executables.get(executable)?;
        device.capture_of(stream).map(drop)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphLaunch(executable: hipGraphExec_t, stream: hipStream_t) -> hipError_t {
    call(|device| {
        let operations = device.executables.get(executable)?.clone();
        operations.iter().try_for_each(|operation| device.submit(stream, operation.clone()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipGraphExecDestroy(executable: hipGraphExec_t) -> hipError_t {
    call(|device| device.executables.remove(executable).map(drop))
}
