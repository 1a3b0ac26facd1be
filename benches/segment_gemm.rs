//! Segments of rows times matrices of their own on a GPU, timed on the device.
//!
//!     cargo bench -p burn-flashinfer-kernels --features cuda --bench segment_gemm -- [csv=FILE]
//!
//! Mixtures of experts follow, beside the two products of as many rows with one expert: random experts, `silu`.
//!
//! As the bench of attention: medians of replayed graphs over sets of inputs that are larger than the caches together. Bytes
//! are those of `x`, `y` and each matrix once.

#[path = "device.rs"]
mod device;

use burn_flashinfer_kernels::activation::Activation;
use burn_flashinfer_kernels::gemm;
use burn_flashinfer_kernels::gemm::{Epilogue, Gemm};
use burn_flashinfer_kernels::moe::{self, FusedMoe};
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
                let epilogue = Epilogue::default();
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

/// A layer of experts, and the products of as many rows with one expert.
fn experts(
    device: &Device,
    name: &str,
    tokens: usize,
    [hidden, inter]: [usize; 2],
    [experts, top_k]: [usize; 2],
) -> String {
    let dtype = ElemType::Float(BF16);
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut chosen = vec![];
    for _ in 0..tokens {
        let mut left: Vec<usize> = (0..experts).collect();
        chosen.extend((0..top_k).map(|_| left.swap_remove(next() % left.len()) as i32));
    }
    let rows = |tensor: cubecl::prelude::TensorBinding, shape: [usize; 2]| cubecl::prelude::TensorBinding {
        shape: shape.into(),
        strides: [shape[1], 1].into(),
        ..tensor
    };
    let ids = rows(device.ints(chosen), [tokens, top_k]);
    let (x, y) = (device.random(BF16, &[tokens, hidden], 1), device.random(BF16, &[tokens, hidden], 2));
    let gate_up = device.random(BF16, &[experts, 2 * inter, hidden], 3);
    let down = device.random(BF16, &[experts, hidden, inter], 4);
    let weights = device.random(FloatKind::F32, &[tokens, top_k], 5);
    let step = || {
        let (x, y, gate_up, down) = (x.clone(), y.clone(), gate_up.clone(), down.clone());
        let (weights, experts) = (weights.clone(), ids.clone());
        let layer = FusedMoe { x, gate_up, down, weights, experts, y, activation: Activation::Silu };
        moe::launch(&device.client, layer, dtype).expect("launches");
    };
    step();
    device.wait();
    let ms = device.replayed(&step);
    let count = tokens * top_k;
    let (wide, narrow) = (device.random(BF16, &[count, hidden], 6), device.random(BF16, &[count, inter], 7));
    let one = |weight: &cubecl::prelude::TensorBinding, shape| rows(weight.clone(), shape);
    let dense = || {
        let first = Gemm {
            epilogue: Epilogue { gate: Some(Activation::Silu), ..Epilogue::default() },
            ..Gemm::product(wide.clone(), one(&gate_up, [2 * inter, hidden]), narrow.clone())
        };
        gemm::launch(&device.client, first, dtype).expect("launches");
        let second = Gemm::product(narrow.clone(), one(&down, [hidden, inter]), wide.clone());
        gemm::launch(&device.client, second, dtype).expect("launches");
    };
    dense();
    device.wait();
    let dense = device.replayed(&dense);
    let tflops = 6.0 * (count * hidden * inter) as f64 / ms / 1e9;
    format!("{name},{tokens},{experts},{top_k},{hidden},{inter},{ms:.5},{tflops:.1},{:.3}", dense / ms)
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
    let header = "layer,tokens,experts,top_k,hidden,inter,ms,tflops,share_of_dense";
    println!("{header}");
    csv += &format!("{header}\n");
    for (name, widths, counts) in [("Mixtral", [4096, 14336], [8, 2]), ("Qwen3-MoE", [2048, 768], [128, 8])] {
        for tokens in [1, 2, 4, 16, 64, 256, 2048, 8192] {
            let line = experts(&device, name, tokens, widths, counts);
            println!("{line}");
            csv += &(line + "\n");
        }
    }
    if let Some(file) = std::env::args().find_map(|argument| argument.strip_prefix("csv=").map(str::to_owned))
    {
        std::fs::write(file, &csv).expect("the file can be written");
    }
}
