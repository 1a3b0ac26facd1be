//! Results written row by row, into memory that is not cleared first.

use std::mem::MaybeUninit;

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::float::Float;
use super::scratch::with_scratch;
use super::view;

/// The tensor `[rows, width]` that `make` writes, row by row, each in memory that holds anything: on several
/// threads from `parallel` elements on.
///
/// A row is made in a thread's scratch memory, which stays in its cache, and copied from there. Clearing a
/// result of 8 MB took as long as a layer norm.
pub(super) fn by_rows<E: Float>(
    [rows, width]: [usize; 2],
    parallel: usize,
    make: impl Fn(usize, &mut [E]) + Sync,
) -> FlexTensor {
    let mut output = Box::<[E]>::new_uninit_slice(rows * width);
    each_row(&mut output, width, parallel, |row, place: &mut [MaybeUninit<E>]| {
        with_scratch(size_of_val(place).div_ceil(size_of::<f32>()), |scratch| {
            let made = &mut bytemuck::cast_slice_mut(scratch)[..width];
            make(row, made);
            place.write_copy_of_slice(made);
        });
    });
    // SAFETY: there is nothing but rows of `width` elements, and all of each was written.
    let output = unsafe { output.assume_init() };
    view::tensor(output.into_vec(), [rows, width], E::dtype())
}

/// Calls `one` with each row of `width` elements and its number: on several threads from `parallel` elements on.
pub(super) fn each_row<E: Send>(
    rows: &mut [E],
    width: usize,
    parallel: usize,
    one: impl Fn(usize, &mut [E]) + Sync,
) {
    let one = |(row, elements): (usize, &mut [E])| one(row, elements);
    if width == 0 {
        return;
    }
    if rows.len() < parallel {
        rows.chunks_exact_mut(width).enumerate().for_each(one);
    } else {
        rows.par_chunks_exact_mut(width).enumerate().for_each(one);
    }
}
