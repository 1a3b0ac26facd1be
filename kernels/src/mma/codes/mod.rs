//! Codes of 8 and 4 bits, of weights and of cached keys and values, as an operand of a matrix unit: the one place where codes become numbers of 16 bits.
//!
//! The inputs that a step of the instruction sums up are free as long as both operands agree. So a lane reads 16 bytes of
//! codes at a time, and of `x` the inputs that belong to them. No load transposes, and codes stay codes until a lane has
//! them in registers.
//!
//! A *block* is 128 inputs of an output. Four lanes share it. Each has 32 inputs, for eight steps of four:
//!
//! | format | a lane's vec16s of codes | step `s` of lane `t` has the inputs |
//! |---|---|---|
//! | e4m3 | `t` and `t + 4` of 8 | `64 (s / 4) + 16 t + 4 (s % 4)` to `+ 3` |
//! | int4 | `t` of 4 | `32 (s / 2) + 8 t + 4 (s % 2)` to `+ 3` |

mod cached;
mod convert;
mod fnuz;
mod format;
mod unit;

pub(super) use cached::{multiply_keys, multiply_values, pair_outputs};
pub(super) use convert::numbers;
pub(crate) use convert::{four_codes, prepared_zero};
pub(super) use fnuz::to_fnuz_all;
pub(crate) use format::BLOCK;
pub use format::{Scales, WeightFormat};
pub(crate) use unit::CodeMma;
