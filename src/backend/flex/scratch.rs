//! Memory that a thread keeps from one task to the next, so that a step of decoding allocates nothing.

use std::cell::Cell;

thread_local! {
    /// A stack, because a task that runs while another holds its memory needs its own.
    static SCRATCH: Cell<Vec<Vec<f32>>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with `len` floats that hold anything and start on a cache line.
pub(super) fn with_scratch<T>(len: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    /// Floats of a cache line.
    const LINE: usize = 16;
    let mut stack = SCRATCH.take();
    let mut floats = stack.pop().unwrap_or_default();
    SCRATCH.set(stack);
    if floats.len() < len + LINE {
        floats.resize(len + LINE, 0.0);
    }
    let skip = floats.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    let result = work(&mut floats[skip..][..len]);
    let mut stack = SCRATCH.take();
    stack.push(floats);
    SCRATCH.set(stack);
    result
}

/// Cuts `len` floats off the front of `scratch`.
#[inline(always)]
pub(super) fn cut<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, rest) = std::mem::take(scratch).split_at_mut(len);
    *scratch = rest;
    front
}
