//! Linear layers on a GPU, timed on the device.
//!
//!     cargo bench -p burn-flashinfer-kernels --features cuda --bench gemm -- [csv=FILE] [sweep=few|many|one|bits|fp8|tf32|invariant]
//!
//! As the bench of attention: medians of replayed graphs over sets of inputs that are larger than the caches together. Bytes
//! are those of `x`, `weight` and `y`. `sweep=one shape=2048,4096,28672` is a single product, for a profiler, with
//! `bits=e4m3|int4` of such weights and with `bits=fp8` of two factors of e4m3. `sweep=bits` compares weights of 16, 8 and
//! 4 bits, as chosen; `bits=e4m3` or `bits=int4` tries settings for few rows of that format. `sweep=fp8` compares products of
//! factors that are both of 8 bits with those of bf16, `sweep=tf32` f32 as TF32 with exact products, and `sweep=invariant` few
//! rows with results that do not depend on each other.

#[path = "device.rs"]
#[allow(dead_code, reason = "this bench has no tensors of numbers")]
mod device;

use std::cell::RefCell;

use burn_flashinfer_kernels::gemm::quantized::{
    self, FewRows, QuantizedGemm, ScaledGemm, Scales, Weight, WeightFormat, launch_scaled,
};
use burn_flashinfer_kernels::gemm::{
    Blueprint, Epilogue, Gemm, Skinny, TF32, WarpSpecialized, launch, launch_with,
};
use burn_flashinfer_kernels::{MmaKind, Refusal};
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::TensorBinding;
use device::Device;

const BF16: FloatKind = FloatKind::BF16;

/// The layers of Llama 3 8B: queries, keys and values; output; gate and up; down.
const LAYERS: [[usize; 2]; 4] = [[4096, 6144], [4096, 4096], [4096, 28672], [14336, 4096]];

/// Times a product, with exactly this blueprint if there is one.
fn run(device: &Device, shape: [usize; 3], blueprint: Option<Blueprint>) -> String {
    let name = blueprint.map_or("auto".into(), |blueprint| format!("{blueprint:?}").replace(',', ";"));
    timed(device, &name, shape, ElemType::Float(BF16), |gemm, dtype| match blueprint {
        None => launch(&device.client, gemm, dtype),
        Some(blueprint) => launch_with(&device.client, gemm, dtype, blueprint),
    })
}

/// Times products that are launched so.
fn timed(
    device: &Device,
    name: &str,
    [rows, d_in, d_out]: [usize; 3],
    dtype: ElemType,
    launch: impl Fn(Gemm, ElemType) -> Result<(), Refusal>,
) -> String {
    let bytes = dtype.size() * (rows * (d_in + d_out) + d_in * d_out);
    let kind = if dtype.size() == 4 { FloatKind::F32 } else { BF16 };
    let count = (4e8 / bytes as f64).ceil().clamp(2.0, 64.0) as u32;
    let sets: Vec<_> = (0..count)
        .map(|seed| {
            [[rows, d_in], [d_out, d_in], [rows, d_out]].map(|shape| {
                let place = if shape[0] == rows { shape[1] as u32 } else { 7 };
                device.random(kind, &shape, 3 * seed + place)
            })
        })
        .collect();
    let step = || {
        for [x, weight, y] in &sets {
            launch(Gemm::product(x.clone(), weight.clone(), y.clone()), dtype).expect("launches");
        }
    };
    step();
    device.wait();
    let ms = device.replayed(&step) / sets.len() as f64;
    let tflops = 2.0 * (rows * d_in * d_out) as f64 / ms / 1e9;
    format!("{name},{rows},{d_in},{d_out},{ms:.5},{tflops:.1},{:.0}", bytes as f64 / ms / 1e6)
}

/// Times a product with a weight in codes, with exactly these settings if there are any.
fn run_quantized(
    device: &Device,
    [rows, d_in, d_out]: [usize; 3],
    format: WeightFormat,
    few: Option<FewRows>,
) -> String {
    let scales = format.scales(d_out, d_in);
    let of_scales = 4 * scales.iter().product::<usize>();
    let bytes = 2 * rows * (d_in + d_out) + d_in * d_out * format.bits() / 8 + of_scales;
    let count = (4e8 / bytes as f64).ceil().clamp(2.0, 64.0) as u32;
    let sets: Vec<_> = (0..count)
        .map(|seed| {
            // Any bits are codes; those of two numbers of 16 bits are four of them.
            let width = d_in * format.bits() / 8;
            let codes = device.random(BF16, &[d_out, width / 2], 3 * seed + 7);
            let codes = TensorBinding { shape: [d_out, width].into(), strides: [width, 1].into(), ..codes };
            let scales = device.random(FloatKind::F32, &scales, 3 * seed + 11);
            let [x, y] = [[rows, d_in], [rows, d_out]].map(|shape| device.random(BF16, &shape, 3 * seed));
            (x, codes, scales, y)
        })
        .collect();
    let dtype = ElemType::Float(BF16);
    let step = || {
        for (x, codes, scales, y) in &sets {
            let weight = Weight { codes: codes.clone(), scales: scales.clone(), format };
            let gemm = QuantizedGemm { x: x.clone(), weight, y: y.clone() };
            match few {
                None => quantized::launch(&device.client, gemm, dtype),
                Some(few) => {
                    quantized::launch_with(&device.client, gemm, dtype, quantized::Blueprint::FewRows(few))
                }
            }
            .expect("launches");
        }
    };
    step();
    device.wait();
    let ms = device.replayed(&step) / sets.len() as f64;
    let tflops = 2.0 * (rows * d_in * d_out) as f64 / ms / 1e9;
    let name = few.map_or("auto".into(), |few| format!("{few:?}"));
    let name = format!("{format:?} {name}").replace(',', ";");
    format!("{name},{rows},{d_in},{d_out},{ms:.5},{tflops:.1},{:.0}", bytes as f64 / ms / 1e6)
}

/// Times a product of two factors of e4m3.
fn run_scaled(device: &Device, [rows, d_in, d_out]: [usize; 3], scales: Scales) -> String {
    let format = WeightFormat::E4m3(scales);
    let of_weight = format.scales(d_out, d_in);
    let bytes = rows * (d_in + 2 * d_out) + d_in * d_out;
    let count = (4e8 / bytes as f64).ceil().clamp(2.0, 64.0) as u32;
    let codes = |[rows, width]: [usize; 2], seed| {
        // Any bits are codes; those of a number of 16 bits are two of them.
        let numbers = device.random(BF16, &[rows, width / 2], seed);
        TensorBinding { shape: [rows, width].into(), strides: [width, 1].into(), ..numbers }
    };
    let sets: Vec<_> = (0..count)
        .map(|seed| {
            let (x, weight) = (codes([rows, d_in], 5 * seed), codes([d_out, d_in], 5 * seed + 1));
            let x_scales = device.random(FloatKind::F32, &[rows], 5 * seed + 2);
            let scales = device.random(FloatKind::F32, &of_weight, 5 * seed + 3);
            (x, x_scales, weight, scales, device.random(BF16, &[rows, d_out], 5 * seed + 4))
        })
        .collect();
    let step = || {
        for (x, x_scales, codes, scales, y) in &sets {
            let weight = Weight { codes: codes.clone(), scales: scales.clone(), format };
            let (x, x_scales, epilogue) = (x.clone(), x_scales.clone(), Epilogue::default());
            let gemm = ScaledGemm { x, x_scales, weight, y: y.clone(), epilogue };
            launch_scaled(&device.client, gemm, ElemType::Float(BF16)).expect("launches");
        }
    };
    step();
    device.wait();
    let ms = device.replayed(&step) / sets.len() as f64;
    let tflops = 2.0 * (rows * d_in * d_out) as f64 / ms / 1e9;
    format!("e4m3 {scales:?},{rows},{d_in},{d_out},{ms:.5},{tflops:.1},{:.0}", bytes as f64 / ms / 1e6)
}

fn main() {
    let device = Device::open();
    let argument = |name: &str| std::env::args().find_map(|it| it.strip_prefix(name).map(str::to_owned));
    let csv = RefCell::new(String::from("blueprint,rows,d_in,d_out,ms,tflops,gbps\n"));
    let print = |line: String| {
        println!("{line}");
        *csv.borrow_mut() += &(line + "\n");
    };
    let mut row = |shape, blueprint| print(run(&device, shape, blueprint));
    match argument("sweep=").as_deref() {
        Some("few") => few(&mut row),
        Some("many") => many(&mut row),
        Some("bits") => bits(argument("bits=").as_deref(), &mut row, &mut |shape, format, few| {
            print(run_quantized(&device, shape, format, few));
        }),
        Some("fp8") => {
            for (rows, widths) in
                [128, 512, 2048, 8192].into_iter().flat_map(|rows| LAYERS.map(|it| (rows, it)))
            {
                let shape = [rows, widths[0], widths[1]];
                print(run(&device, shape, None));
                for scales in [Scales::PerChannel, Scales::Block128] {
                    print(run_scaled(&device, shape, scales));
                }
            }
        }
        Some("tf32") => {
            for (rows, [d_in, d_out]) in
                [1, 16, 512, 8192].into_iter().flat_map(|rows| LAYERS.map(|it| (rows, it)))
            {
                for (name, dtype) in [("TF32", TF32), ("f32", ElemType::Float(FloatKind::F32))] {
                    print(timed(&device, name, [rows, d_in, d_out], dtype, |gemm, dtype| {
                        launch(&device.client, gemm, dtype)
                    }));
                }
            }
        }
        Some("invariant") => {
            for (rows, [d_in, d_out]) in
                [1, 8, 32, 64, 128].into_iter().flat_map(|rows| LAYERS.map(|it| (rows, it)))
            {
                for batch_invariant in [false, true] {
                    let name = if batch_invariant { "batch invariant" } else { "auto" };
                    let dtype = ElemType::Float(BF16);
                    print(timed(&device, name, [rows, d_in, d_out], dtype, |gemm, dtype| {
                        launch(&device.client, Gemm { batch_invariant, ..gemm }, dtype)
                    }));
                }
            }
        }
        Some("one") => {
            let shape = argument("shape=").unwrap_or_else(|| "2048,4096,28672".into());
            let [rows, d_in, d_out] = *shape.split(',').map(number).collect::<Vec<_>>() else {
                panic!("shape=ROWS,D_IN,D_OUT, not {shape}");
            };
            let shape = [rows, d_in, d_out];
            match argument("bits=").as_deref() {
                None => row(shape, None),
                Some("fp8") => print(run_scaled(&device, shape, Scales::PerChannel)),
                Some(format) => print(run_quantized(&device, shape, format_of(format), None)),
            }
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
        std::fs::write(file, csv.into_inner()).expect("the file can be written");
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
                (160, 5, 1),
                (128, 6, 1),
                (96, 7, 1),
                (64, 8, 1),
                (256, 4, 2),
                (256, 4, 4),
                (192, 5, 2),
                (192, 5, 4),
                (128, 6, 2),
                (128, 6, 4),
                (96, 7, 2),
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

fn number(text: &str) -> usize {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

fn format_of(name: &str) -> WeightFormat {
    match name {
        "e4m3" => WeightFormat::E4m3(Scales::PerChannel),
        "int4" => WeightFormat::Int4 { group: 128 },
        other => panic!("bits=e4m3 or int4, not {other}"),
    }
}

/// Weights of 16 bits, of e4m3 and of int4 by turns; or settings for one of them.
fn bits(
    format: Option<&str>,
    row: &mut impl FnMut([usize; 3], Option<Blueprint>),
    quantized: &mut impl FnMut([usize; 3], WeightFormat, Option<FewRows>),
) {
    let [e4m3, int4] = ["e4m3", "int4"].map(format_of);
    let tried = match format {
        Some(name) => format_of(name),
        None => {
            for (rows, [d_in, d_out]) in [1, 4, 8, 16, 32, 64, 128, 2048]
                .into_iter()
                .flat_map(|rows| LAYERS.map(|widths| (rows, widths)))
            {
                let shape = [rows, d_in, d_out];
                row(shape, None);
                for format in [e4m3, WeightFormat::E4m3(Scales::Block128), int4] {
                    quantized(shape, format, None);
                }
            }
            return;
        }
    };
    for (rows, [d_in, d_out]) in
        [1usize, 16, 32, 64].into_iter().flat_map(|rows| LAYERS.map(|widths| (rows, widths)))
    {
        let row_tiles = rows.div_ceil(8);
        for (output_tiles, output_planes, depth_planes, depth, stages, cluster) in [
            (1, 1, 4, 512, 3, 1),
            (1, 1, 4, 512, 4, 1),
            (1, 1, 4, 1024, 3, 1),
            (1, 1, 8, 1024, 3, 1),
            (1, 1, 4, 512, 4, 2),
            (2, 1, 4, 512, 3, 1),
            (2, 1, 4, 512, 4, 1),
            (2, 1, 4, 512, 4, 2),
            (2, 1, 8, 1024, 2, 2),
            (1, 2, 4, 512, 3, 1),
            (1, 4, 1, 256, 4, 1),
            (1, 4, 2, 512, 3, 1),
            (1, 7, 1, 256, 3, 1),
            (1, 7, 1, 256, 4, 1),
            (1, 7, 1, 512, 3, 1),
            (1, 8, 1, 256, 3, 1),
            (2, 2, 2, 256, 3, 1),
            (2, 2, 2, 256, 4, 1),
            (2, 2, 2, 512, 3, 1),
            (2, 2, 2, 512, 3, 2),
            (2, 2, 2, 512, 3, 4),
            (2, 4, 1, 256, 3, 1),
            (2, 4, 1, 256, 3, 2),
            (2, 4, 2, 256, 3, 1),
            (4, 1, 4, 512, 3, 1),
            (4, 2, 2, 256, 3, 1),
            (4, 2, 2, 256, 3, 2),
        ] {
            let unit = MmaKind::MmaSync;
            let few = FewRows {
                unit,
                output_tiles,
                output_planes,
                row_tiles,
                depth_planes,
                depth,
                stages,
                cluster,
            };
            let outputs = 16 * output_tiles * output_planes;
            let shared = stages * depth * (outputs * tried.bits() / 8 + row_tiles * 16 + outputs / 32);
            // Sums in registers.
            if shared < 225 << 10 && output_tiles * row_tiles <= 32 {
                quantized([rows, d_in, d_out], tried, Some(few));
            }
        }
    }
}
