//! Integers of any type as those that kernels take.

use burn::tensor::{DType, Int, Tensor};

/// Integers of any type as i32, the integers of every kernel: those that do not fit become the nearest that does.
///
/// So a number out of a range of its own stays out of it, on the side where it was: an identifier below 0 or beyond a
/// vocabulary names no token, a `k` below 1 stays below, and a count that is too large stays large.
pub(crate) fn saturated<const D: usize>(tensor: Tensor<D, Int>) -> Tensor<D, Int> {
    let fitting = match tensor.dtype() {
        DType::I32 => return tensor,
        DType::I64 => tensor.clamp(i32::MIN, i32::MAX),
        DType::U32 | DType::U64 => tensor.clamp_max(i32::MAX),
        // Narrower than i32.
        _ => tensor,
    };
    fitting.cast(DType::I32)
}
