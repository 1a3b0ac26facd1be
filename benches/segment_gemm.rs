//! Segments of rows times matrices of their own on a GPU, timed on the device.
//!
//!     cargo bench -p burn-flashinfer-kernels --features cuda --bench segment_gemm -- [csv=FILE]
//!
//! As the bench of attention: medians of replayed graphs over sets of inputs that are larger than the caches together. Bytes
//! are those of `x`, `y` and each matrix once.

#[path = "device.rs"]
mod device;

use burn_flashinfer_kernels::segment_gemm::{SegmentGemm, launch};
use cubecl::ir::{ElemType, FloatKind};
use device::Device;

const BF16: FloatKind = FloatKind::BF16;

struct Case {
    segments: usize,
    /// Rows of a segment.
    rows: usize,
    matrices: usize,
    d_in: usize,
    d_out: usize,
    tile_rows: usize,
}

impl Case {
    /// The matrices in turn, work items of one matrix together.
    fn work_items(&self) -> Vec<i32> {
        let mut work_items = vec![];
        for segment in 0..self.segments {
            let (first, end) = (segment * self.rows, (segment + 1) * self.rows);
            for tile in (first..end).step_by(self.tile_rows) {
                work_items.push([segment % self.matrices, tile, end.min(tile + self.tile_rows)]);
            }
        }
        work_items.sort_unstable();
        work_items
            .into_iter()
            .flat_map(|[matrix, first, end]| [first, end, matrix].map(|word| word as i32))
            .collect()
    }

    fn run(&self, device: &Device, by_input: bool) -> String {
        let &Self { segments, rows, matrices, d_in, d_out, tile_rows } = self;
        let all = segments * rows;
        let numbers = all * (d_in + d_out) + matrices * d_in * d_out;
        let bytes = 2 * numbers;
        let count = (4e8 / bytes as f64).ceil().clamp(2.0, 64.0) as u32;
        let matrix = if by_input { [matrices, d_in, d_out] } else { [matrices, d_out, d_in] };
        let work_items = device.ints(self.work_items());
        let sets: Vec<_> = (0..count)
            .map(|seed| {
                let x = device.random(BF16, &[all, d_in], 3 * seed + 1);
                let y = device.random(BF16, &[all, d_out], 3 * seed + 2);
                (x, device.random(BF16, &matrix, 3 * seed + 3), y)
            })
            .collect();
        let step = || {
            for (x, weights, y) in &sets {
                let (x, weights, y, work_items) = (x.clone(), weights.clone(), y.clone(), work_items.clone());
                let epilogue = Default::default();
                let gemm = SegmentGemm { x, weights, y, work_items, tile_rows, by_input, epilogue };
                // SAFETY: `work_items` divides the rows among the matrices.
                unsafe { launch(&device.client, gemm, ElemType::Float(BF16)) }.expect("launches");
            }
        };
        step();
        device.wait();
        let ms = device.replayed(&step) / sets.len() as f64;
        let tflops = 2.0 * (all * d_in * d_out) as f64 / ms / 1e9;
        let layout = if by_input { "row major" } else { "column major" };
        format!(
            "{segments},{rows},{matrices},{d_in},{d_out},{layout},{ms:.5},{tflops:.2},{:.1}",
            bytes as f64 / ms / 1e6
        )
    }
}

fn main() {
    let device = Device::open();
    let mut csv = String::from("segments,rows,matrices,d_in,d_out,layout,ms,tflops,gbps\n");
    print!("{csv}");
    let grouped =
        |segments, rows, tile_rows| Case { segments, rows, matrices: 8, d_in: 4096, d_out: 4096, tile_rows };
    let lora =
        |rows, tile_rows, d_in, d_out| Case { segments: 64, rows, matrices: 64, d_in, d_out, tile_rows };
    for case in [
        grouped(64, 128, 128),
        grouped(64, 64, 64),
        grouped(64, 16, 16),
        grouped(64, 1, 1),
        lora(1, 1, 4096, 16),
        lora(1, 1, 16, 4096),
        lora(128, 128, 4096, 16),
        lora(128, 128, 16, 4096),
    ] {
        for by_input in [true, false] {
            let line = case.run(&device, by_input);
            println!("{line}");
            csv += &(line + "\n");
        }
    }
    if let Some(file) = std::env::args().find_map(|argument| argument.strip_prefix("csv=").map(str::to_owned))
    {
        std::fs::write(file, &csv).expect("the file can be written");
    }
}
