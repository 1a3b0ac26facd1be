//! What an atomic writes, given what it finds.

use crate::decode::AtomicOp;
use crate::float::{BF16, F16, Format, Rounding};

use super::{double, single};

/// The new value of 4 or 8 bytes. `other` is the second operand of those that have one: what to compare
/// with, the bits to put in, or what to add to a value that does not wrap.
pub(super) fn updated(op: AtomicOp, wide: bool, old: u64, data: u64, other: u64) -> u64 {
    let signed = |value: u64| if wide { value as i64 } else { i64::from(value as i32) };
    let mask = if wide { u64::MAX } else { 0xffff_ffff };
    let new = match op {
        AtomicOp::Swap => data,
        AtomicOp::CompareSwap => {
            if old == other {
                data
            } else {
                old
            }
        }
        AtomicOp::CompareSwapFloat => {
            let value =
                |bits: u64| if wide { f64::from_bits(bits) } else { f32::from_bits(bits as u32).into() };
            if value(old) == value(other) { data } else { old }
        }
        AtomicOp::MaskedOr => old & !data | other,
        AtomicOp::Wrap if old >= data => old - data,
        AtomicOp::Wrap => old.wrapping_add(other),
        AtomicOp::ConditionalSwap => {
            conditional(old as u32, data as u32) | conditional((old >> 32) as u32, (data >> 32) as u32) << 32
        }
        AtomicOp::Add => old.wrapping_add(data),
        AtomicOp::Sub => old.wrapping_sub(data),
        AtomicOp::ReverseSub => data.wrapping_sub(old),
        AtomicOp::MinSigned => signed(old).min(signed(data)) as u64,
        AtomicOp::MaxSigned => signed(old).max(signed(data)) as u64,
        AtomicOp::MinUnsigned => old.min(data),
        AtomicOp::MaxUnsigned => old.max(data),
        AtomicOp::And => old & data,
        AtomicOp::Or => old | data,
        AtomicOp::Xor => old ^ data,
        AtomicOp::Increment if old >= data => 0,
        AtomicOp::Increment => old + 1,
        AtomicOp::Decrement if old == 0 || old > data => data,
        AtomicOp::Decrement => old - 1,
        AtomicOp::AddF32 => float(old, data, |a, b| a + b),
        AtomicOp::MinF32 => float(old, data, |a, b| single::minimum(false, a, b)),
        AtomicOp::MaxF32 => float(old, data, |a, b| single::maximum(false, a, b)),
        AtomicOp::AddF64 => (f64::from_bits(old) + f64::from_bits(data)).to_bits(),
        AtomicOp::MinF64 => double::minimum(false, f64::from_bits(old), f64::from_bits(data)).to_bits(),
        AtomicOp::MaxF64 => double::maximum(false, f64::from_bits(old), f64::from_bits(data)).to_bits(),
        AtomicOp::AddPackedF16 => pair(old, data, F16),
        AtomicOp::AddPackedBf16 => pair(old, data, BF16),
    };
    new & mask
}

/// The new word, whose highest bit says whether it is written, and is not.
fn conditional(old: u32, new: u32) -> u64 {
    if new >> 31 == 1 { new & 0x7fff_ffff } else { old }.into()
}

fn float(old: u64, data: u64, f: impl Fn(f32, f32) -> f32) -> u64 {
    f(f32::from_bits(old as u32), f32::from_bits(data as u32)).to_bits().into()
}

fn pair(old: u64, data: u64, format: Format) -> u64 {
    let sum = |shift: u32| {
        let half = |value: u64| format.decode((value >> shift) as u32 & 0xffff);
        u64::from(format.encode(half(old) + half(data), Rounding::NearestEven, false)) << shift
    };
    sum(0) | sum(16)
}
