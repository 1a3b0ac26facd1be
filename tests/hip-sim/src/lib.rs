//! A functional simulator of AMD gfx942 (MI300X): runs linked code objects on the CPU.
//!
//! It models what a program can observe through registers, LDS and memory, not time.

pub mod code_object;
pub mod decode;
pub mod dispatch;
mod execute;
pub mod float;
pub mod memory;
pub mod profile;
pub mod report;
mod wave;
