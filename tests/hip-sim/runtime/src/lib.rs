//! `libamdhip64.so` without a GPU: the functions of HIP that CubeCL's runtime calls, and their
//! neighbours, on top of the simulator. Also loaded as `libhiprtc.so`, which cannot compile.
//!
//! Work runs when it is submitted, on the thread that submits it, under the one lock of the device: a
//! stream is always idle. What a program can tell from that is only time. As on the real device a kernel
//! that faults does not fail its launch, but every call after it.

#![allow(non_snake_case, non_upper_case_globals, reason = "the names are those of HIP")]
#![allow(clippy::missing_safety_doc, reason = "the contract of each function is HIP's documentation")]

mod api;
mod device;
mod error;
mod graph;
mod operation;
mod profile;
mod properties;
mod rtc;

#[cfg(test)]
mod abi;
