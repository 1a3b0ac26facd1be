//! Runs with caches cleared between them.

use cubecl::prelude::*;

use crate::device::Device;

#[cube(launch_unchecked)]
fn zero(out: &mut [Vector<u32, Const<4>>]) {
    out[ABSOLUTE_POS] = Vector::new(0u32);
}

/// Bytes that displace whatever is in the caches, as many as Triton's `do_bench` writes.
const BYTES: usize = 256 << 20;

/// Milliseconds of `step` on each of so many inputs, on the average, the caches cleared before each, and the time of
/// clearing them taken off; the median. That is how Triton's `do_bench` times: a GPU at the limit of its power runs some
/// faster so than without a pause.
pub fn cleared(device: &Device, inputs: usize, step: &dyn Fn(usize)) -> f64 {
    let buffer = device.client.empty(BYTES);
    let clear = || {
        let vecs = BYTES / 16;
        let (count, dim) = (CubeCount::Static((vecs / 256) as u32, 1, 1), CubeDim::new_1d(256));
        // SAFETY: there is a unit for each vec of the buffer.
        unsafe {
            let out = BufferArg::from_raw_parts(buffer.clone(), vecs);
            zero::launch_unchecked(&device.client, count, dim, out);
        }
    };
    let each = |step: &dyn Fn(usize)| {
        let all = device.replayed(&|| {
            for input in 0..inputs {
                clear();
                step(input);
            }
        });
        all / inputs as f64
    };
    each(step) - each(&|_| ())
}
