//! Linear layers on a GPU, timed on the device.
//!
//!     cargo bench -p burn-flashinfer-kernels --features cuda --bench gemm -- [csv=FILE] [sweep=few|many|one]
//!
//! As the bench of attention: medians of replayed graphs over sets of inputs that are larger than the caches together. Bytes
//! are those of `x`, `weight` and `y`. `sweep=one` is a single product, for a profiler.

#[path = "device.rs"]
#[allow(dead_code, reason = "this bench has no tensors of numbers")]
mod device;

use burn_flashinfer_kernels::MmaKind;
use burn_flashinfer_kernels::gemm::{
    Blueprint, Epilogue, Gemm, Skinny, WarpSpecialized, launch, launch_with,
};
use cubecl::ir::{ElemType, FloatKind};
use device::Device;

const BF16: FloatKind = FloatKind::BF16;

/// The layers of Llama 3 8B: queries, keys and values; output; gate and up; down.
const LAYERS: [[usize; 2]; 4] = [[4096, 6144], [4096, 4096], [4096, 28672], [14336, 4096]];

/// Times a product, with exactly this blueprint if there is one.
fn run(device: &Device, [rows, d_in, d_out]: [usize; 3], blueprint: Option<Blueprint>) -> String {
    let bytes = 2 * (rows * (d_in + d_out) + d_in * d_out);
    let count = (4e8 / bytes as f64).ceil().clamp(2.0, 64.0) as u32;
    let sets: Vec<_> = (0..count)
        .map(|seed| {
            [[rows, d_in], [d_out, d_in], [rows, d_out]].map(|shape| {
                let place = if shape[0] == rows { shape[1] as u32 } else { 7 };
                device.random(BF16, &shape, 3 * seed + place)
            })
        })
        .collect();
    let dtype = ElemType::Float(BF16);
    let step = || {
        for [x, weight, y] in &sets {
            let gemm = Gemm {
                x: x.clone(),
                weight: weight.clone(),
                y: y.clone(),
                norm: None,
                epilogue: Epilogue::default(),
                batch_invariant: false,
            };
            match blueprint {
                None => launch(&device.client, gemm, dtype),
                Some(blueprint) => launch_with(&device.client, gemm, dtype, blueprint),
            }
            .expect("launches");
        }
    };
    step();
    device.wait();
    let ms = device.replayed(&step) / sets.len() as f64;
    let tflops = 2.0 * (rows * d_in * d_out) as f64 / ms / 1e9;
    let name = blueprint.map_or("auto".into(), |blueprint| format!("{blueprint:?}").replace(',', ";"));
    format!("{name},{rows},{d_in},{d_out},{ms:.5},{tflops:.1},{:.0}", bytes as f64 / ms / 1e6)
}

fn main() {
    let device = Device::open();
    let argument = |name: &str| std::env::args().find_map(|it| it.strip_prefix(name).map(str::to_owned));
    let mut csv = String::from("blueprint,rows,d_in,d_out,ms,tflops,gbps\n");
    let mut row = |shape, blueprint| {
        let line = run(&device, shape, blueprint);
        println!("{line}");
        csv += &(line + "\n");
    };
    match argument("sweep=").as_deref() {
        Some("few") => few(&mut row),
        Some("many") => many(&mut row),
        Some("one") => {
            let specialized = WarpSpecialized { outputs: 256, stages: 4, cluster: 1, group: 16 };
            row([2048, 4096, 28672], Some(Blueprint::WarpSpecialized(specialized)));
        }
        _ => {
            for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192] {
                for [d_in, d_out] in LAYERS.into_iter().chain([[4096, 128256]]) {
                    if rows <= 128 || d_out < 100_000 {
                        row([rows, d_in, d_out], None);
                    }
                }
            }
        }
    }
    if let Some(file) = argument("csv=") {
        std::fs::write(file, &csv).expect("the file can be written");
    }
}

fn few(row: &mut impl FnMut([usize; 3], Option<Blueprint>)) {
    for rows in [64usize, 128] {
        for [d_in, d_out] in LAYERS {
            for [output_tiles, output_planes, depth_planes, depth_vecs, stages, cluster] in [
                [2, 4, 1, 8, 3, 1],
                [2, 4, 1, 8, 4, 1],
                [2, 4, 1, 8, 4, 2],
                [2, 4, 1, 8, 4, 4],
                [2, 4, 2, 16, 3, 1],
                [2, 4, 2, 16, 3, 2],
                [2, 2, 2, 16, 3, 1],
                [2, 2, 2, 16, 3, 2],
                [2, 2, 4, 32, 2, 2],
                [2, 7, 1, 8, 3, 1],
                [2, 7, 1, 8, 4, 1],
                [2, 7, 1, 16, 3, 1],
                [4, 2, 2, 16, 3, 1],
                [3, 2, 2, 16, 3, 1],
                [3, 1, 4, 32, 3, 1],
                [4, 2, 4, 32, 2, 1],
                [7, 1, 4, 32, 2, 1],
            ] {
                let row_tiles = rows.div_ceil(16) * 2;
                let skinny = Skinny {
                    unit: MmaKind::MmaSync,
                    output_tiles,
                    output_planes,
                    row_tiles,
                    depth_planes,
                    depth_vecs,
                    stages,
                    cluster,
                    norm: false,
                };
                let shared = stages * depth_vecs * 16 * (output_tiles * output_planes * 16 + row_tiles * 8);
                if shared < 220 << 10 {
                    row([rows, d_in, d_out], Some(Blueprint::Skinny(skinny)));
                }
            }
        }
    }
}

fn many(row: &mut impl FnMut([usize; 3], Option<Blueprint>)) {
    for rows in [64, 128, 256, 512] {
        for [d_in, d_out] in LAYERS {
            for (outputs, stages, cluster) in [
                (256, 4, 1),
                (224, 4, 1),
                (192, 5, 1),
                (128, 6, 1),
                (64, 8, 1),
                (256, 4, 2),
                (256, 4, 4),
                (192, 5, 2),
                (192, 5, 4),
                (128, 6, 2),
                (128, 6, 4),
                (64, 8, 2),
                (64, 8, 4),
            ] {
                if cluster == 1 || d_out < 10_000 {
                    let specialized = WarpSpecialized { outputs, stages, cluster, group: 16 };
                    row([rows, d_in, d_out], Some(Blueprint::WarpSpecialized(specialized)));
                }
            }
        }
    }
}
