//! Copies from global to shared memory: a ring of stages, and the two ways into it.
//!
//! Everything in shared memory, and every copy to it, is counted in 16-byte [`Vec16`]s.

mod cp_async;
mod registers;
mod ring;
mod xor;

pub(crate) use cp_async::CpAsync;
pub(crate) use registers::Registers;
pub(crate) use ring::{Ring, Staging, Vec16, stages_ahead};
pub(crate) use xor::{swizzle, swizzle_period, swizzled};
