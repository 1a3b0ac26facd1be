//! The portable kernels on CubeCL's CPU runtime, against f64 on the host.
//!
//! An error may be twice that of the same sum in f32 over the same rounded inputs, rounded once at the end, plus 1e-5:
//! a bound that scales with the problem instead of a tolerance someone picked.

mod attention;
mod elements;
mod host;
