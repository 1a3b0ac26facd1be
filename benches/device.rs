//! A GPU with random tensors on it, and how long launches take there.

use std::time::Instant;

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
    server::Handle,
};

/// Normal enough: the sum of four uniform numbers.
#[cube(launch_unchecked)]
fn fill<F: Float>(out: &mut [F], total: u32, seed: u32, #[define(F)] _dtype: ElemType) {
    let units = CUBE_COUNT as u32 * CUBE_DIM;
    let mut at = ABSOLUTE_POS as u32;
    while at < total {
        let mut x = at * 747796405u32 + seed;
        let mut sum = 0.0f32;
        for _ in 0..4u32 {
            x = (x ^ (x >> 15u32)) * 2246822519u32;
            x ^= x >> 13u32;
            sum += f32::cast_from(x >> 8u32) / 8388608.0f32 - 1.0f32;
        }
        out[at as usize] = F::cast_from(sum * 0.866f32);
        at += units;
    }
}

/// Elements that keep a device busy.
const OCCUPIED: usize = 32 << 20;

/// The first GPU.
pub struct Device {
    pub client: Client,
}

/// A contiguous tensor of this shape.
pub fn tensor(handle: Handle, shape: &[usize]) -> TensorBinding {
    let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    // SAFETY: the buffers are made to hold these shapes.
    unsafe { TensorBinding::from_raw_parts(handle, strides.into(), shape.to_vec().into()) }
}

impl Device {
    pub fn open() -> Self {
        #[cfg(feature = "cuda")]
        let device = cubecl::Device::Cuda(Default::default());
        #[cfg(not(feature = "cuda"))]
        let device = cubecl::Device::Hip(Default::default());
        Self { client: device.client() }
    }

    /// Gives the device some 0.1 ms of work. What is submitted meanwhile is timed from its first launch on, and not from
    /// when the host began to submit it: that was 1 to 4 us of a short kernel's time.
    fn occupy(&self, buffer: &Handle) {
        self.fill(buffer, OCCUPIED, FloatKind::F32, 0);
    }

    pub fn random(&self, dtype: FloatKind, shape: &[usize], seed: u32) -> TensorBinding {
        let total: usize = shape.iter().product();
        let handle = self.client.empty(total * ElemType::Float(dtype).size());
        self.fill(&handle, total, dtype, seed);
        tensor(handle, shape)
    }

    fn fill(&self, handle: &Handle, total: usize, dtype: FloatKind, seed: u32) {
        let (count, dim) = (CubeCount::Static(1024, 1, 1), CubeDim::new_1d(256));
        // SAFETY: units stop at `total` elements, which the buffer has.
        unsafe {
            let buffer = BufferArg::from_raw_parts(handle.clone(), total);
            fill::launch_unchecked(
                &self.client,
                count,
                dim,
                buffer,
                total as u32,
                seed,
                ElemType::Float(dtype),
            );
        }
    }

    pub fn ints(&self, data: Vec<i32>) -> TensorBinding {
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor(self.client.create_from_slice(&bytes), &[data.len()])
    }

    pub fn wait(&self) {
        cubecl::future::block_on(self.client.sync()).expect("the device is there");
    }

    /// Milliseconds of the launches of `step`, replayed as a graph; the median.
    pub fn replayed(&self, step: &dyn Fn()) -> f64 {
        self.client.graph_prepare().expect("a graph");
        step();
        self.wait();
        self.client.start_capture().expect("a capture");
        step();
        let graph = self.client.stop_capture().expect("a graph");
        let occupied = self.client.empty(OCCUPIED * 4);
        let mut times = vec![];
        let begin = Instant::now();
        while times.len() < 12 || (times.len() < 60 && begin.elapsed().as_millis() < 150) {
            self.occupy(&occupied);
            // SAFETY: the caller keeps the buffers of the launches alive.
            let replay = || unsafe { graph.replay() }.expect("replays");
            let (_, duration) = self.client.profile(replay, "attention").expect("a profile");
            let ticks = cubecl::future::block_on(duration.into_future()).expect("ticks");
            times.push(ticks.duration().as_secs_f64() * 1e3);
        }
        times.drain(..2);
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }
}
