use cubecl::prelude::*;

/// Period of the swizzle of shared memory in rows of `vecs`.
///
/// Eight consecutive rows differ in the banks of a vec16, so that a read of a column of vec16s has no bank
/// conflict. Rows of an odd number of vec16s need no swizzle; in others the index of the vec16 is XORed with
/// that of the row.
pub(crate) fn swizzle_period(vecs: usize) -> usize {
    (1 << vecs.trailing_zeros()).min(8)
}

/// Place of vec16 `vec` of row `row`, swizzled, in rows of `vecs` that begin at vec16 `first`.
#[cube]
pub(crate) fn swizzled(first: usize, row: usize, vec: usize, #[comptime] vecs: usize) -> usize {
    first + row * vecs + (vec ^ swizzle(row, vecs))
}

/// The operand of the XOR for the vec16s of a row, see [`swizzle_period`].
#[cube]
pub(crate) fn swizzle(row: usize, #[comptime] vecs: usize) -> usize {
    let period = comptime!(swizzle_period(vecs));
    if comptime!(period == 1) { 0usize.runtime() } else { row / comptime!(8 / period) % period }
}
