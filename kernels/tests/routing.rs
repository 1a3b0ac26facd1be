//! Which kernel each problem gets on each device, or why not a faster one: `routing.txt`, and `routing_products.txt` for
//! products of segments, line by line. After a change
//! of the choice, `UPDATE_ROUTING=1 cargo test -p burn-flashinfer-kernels --test routing` writes the file anew; what
//! changed is then seen in review.

use std::fmt::Write;
use std::path::Path;

use burn_flashinfer_kernels::{
    Arch, DeviceProfile, Fp8,
    attention::{Alignment, Choice, HeadDims, Plan, Problem, RequestShape, Split, Standard},
    gemm,
    gemm::quantized::{Scales, WeightFormat},
    segment_gemm,
};
use cubecl::ir::{ElemType, FloatKind};

const GPU: DeviceProfile = DeviceProfile {
    plane: 32,
    max_units: 1024,
    max_cubes: [i32::MAX as u32, 65535, 65535],
    shared_memory: 64 << 10,
    load_bytes: 16,
    max_vector: 16,
    arch: Arch::Other,
    cores: None,
    cpu_cores: None,
};

const DEVICES: [(&str, DeviceProfile); 8] = [
    ("MI300X", DeviceProfile { plane: 64, arch: Arch::Gfx(0x942), cores: Some(304), ..GPU }),
    ("MI250X", DeviceProfile { plane: 64, arch: Arch::Gfx(0x90a), cores: Some(110), ..GPU }),
    ("MI100", DeviceProfile { plane: 64, arch: Arch::Gfx(0x908), cores: Some(120), ..GPU }),
    ("RX 7900", DeviceProfile { arch: Arch::Gfx(0x1100), cores: Some(48), ..GPU }),
    ("H200", DeviceProfile { arch: Arch::Sm(90), cores: Some(132), shared_memory: 227 << 10, ..GPU }),
    ("RTX 3090", DeviceProfile { arch: Arch::Sm(86), cores: Some(82), shared_memory: 99 << 10, ..GPU }),
    ("T4", DeviceProfile { arch: Arch::Sm(75), cores: Some(40), ..GPU }),
    ("CPU", DeviceProfile { plane: 1, shared_memory: 1 << 20, cpu_cores: Some(8), ..GPU }),
];

/// How many requests, of how many queries and keys each.
type Alike = (usize, usize, usize);

const SHAPES: [(&str, &[Alike]); 10] = [
    ("prefill 1 x 1024", &[(1, 1024, 1024)]),
    ("prefill 1 x 8192", &[(1, 8192, 8192)]),
    ("prefill 16 x 512", &[(16, 512, 512)]),
    ("append 8 x 4", &[(8, 4, 4096)]),
    ("append 1 x 64", &[(1, 64, 32768)]),
    ("decode 1 x 16384", &[(1, 1, 16384)]),
    ("decode 16 x 1024", &[(16, 1, 1024)]),
    ("decode 128 x 4096", &[(128, 1, 4096)]),
    ("decode 1 x 32768 and 63 x 3500", &[(1, 1, 32768), (63, 1, 3500)]),
    ("prefill 1 x 4096 and decode 64 x 8192", &[(1, 4096, 4096), (64, 1, 8192)]),
];

#[test]
fn every_problem_gets_the_kernel_of_the_table() {
    let mut table = String::new();
    for (device, profile) in DEVICES {
        for (shape, lengths) in SHAPES {
            let spans = RequestShape::following(
                lengths.iter().flat_map(|&(requests, queries, keys)| vec![(queries, keys); requests]),
                1,
            );
            for (dim, vo) in [(64, 64), (128, 128), (192, 128), (256, 256), (72, 72)] {
                for (name, dtype) in
                    [("f32", FloatKind::F32), ("f16", FloatKind::F16), ("bf16", FloatKind::BF16)]
                {
                    // All types at the usual size, one at the others.
                    if dim != 128 && name != "bf16" {
                        continue;
                    }
                    let problem = Problem {
                        dims: HeadDims { qk: dim, vo },
                        dtype: ElemType::Float(dtype),
                        kv_dtype: ElemType::Float(dtype).into(),
                        q_heads: 32,
                        kv_heads: 8,
                        scale: 0.1,
                        align: Alignment { qk: 8, vo: 8 },
                        fp8_mma: false,
                    };
                    let causal = Standard { causal: true, ..Standard::new(0.1) };
                    let plan = Plan::new(&profile, &problem, &causal, &spans, Choice::Auto, Split::Auto)
                        .unwrap_or_else(|refusal| panic!("{device}, {shape}, {dim}: {refusal}"));
                    let _ = writeln!(table, "{device} | {shape} | {name} d {dim}/{vo} | {plan}");
                }
            }
        }
    }
    // Codes, whose kernels are those of numbers of the type of the queries, but for warpgroups.
    for (device, profile) in DEVICES {
        for (shape, lengths) in SHAPES {
            let spans = RequestShape::following(
                lengths.iter().flat_map(|&(requests, queries, keys)| vec![(queries, keys); requests]),
                1,
            );
            let problem = Problem {
                dims: HeadDims { qk: 128, vo: 128 },
                dtype: ElemType::Float(FloatKind::BF16),
                kv_dtype: Fp8::E4m3.into(),
                q_heads: 32,
                kv_heads: 8,
                scale: 0.1,
                align: Alignment { qk: 16, vo: 16 },
                fp8_mma: false,
            };
            let causal = Standard { causal: true, ..Standard::new(0.1) };
            let plan = |fp8_mma| {
                let problem = Problem { fp8_mma, ..problem };
                Plan::new(&profile, &problem, &causal, &spans, Choice::Auto, Split::Auto)
                    .unwrap_or_else(|refusal| panic!("{device}, {shape}: {refusal}"))
                    .to_string()
            };
            let [numbers, codes] = [false, true].map(plan);
            let _ = writeln!(table, "{device} | {shape} | bf16 over e4m3 d 128/128 | {numbers}");
            if codes != numbers {
                let _ = writeln!(table, "{device} | {shape} | bf16 over e4m3 d 128/128, fp8_mma | {codes}");
            }
        }
    }
    compare("routing.txt", &table);
}

#[test]
fn every_product_gets_the_kernel_of_the_table() {
    let mut table = String::new();
    for (device, profile) in DEVICES {
        for tile_rows in [1, 4, 16, 64, 128] {
            for [d_in, d_out] in [[4096, 4096], [4096, 16], [16, 4096], [100, 100]] {
                for (name, dtype) in
                    [("f32", FloatKind::F32), ("f16", FloatKind::F16), ("bf16", FloatKind::BF16)]
                {
                    // The order of the axes matters where matrices are read, not where tiles are multiplied.
                    for by_input in [true, false].into_iter().take(if tile_rows > 4 { 1 } else { 2 }) {
                        let dtype = ElemType::Float(dtype);
                        let work_items = 64;
                        let problem = segment_gemm::Problem {
                            d_in,
                            d_out,
                            dtype,
                            align: 8,
                            by_input,
                            tile_rows,
                            work_items,
                            gated: false,
                        };
                        let chosen = segment_gemm::Blueprint::auto(&profile, &problem);
                        let order = if by_input { "row major" } else { "column major" };
                        let _ = writeln!(
                            table,
                            "{device} | {tile_rows} rows | {name} {d_in} to {d_out}, {order} | {chosen:?}"
                        );
                    }
                }
            }
        }
    }
    for (device, profile) in DEVICES {
        for (rows, [d_in, d_out], gated) in
            [1, 8, 9, 32, 64, 65, 128, 512, 2048, 8192].into_iter().flat_map(|rows| {
                [
                    ([4096, 6144], false),
                    ([4096, 4096], false),
                    ([4096, 28672], false),
                    ([14336, 4096], false),
                    ([100, 100], false),
                    ([4096, 14336], true),
                    ([1024, 2816], true),
                ]
                .map(|(widths, gated)| (rows, widths, gated))
            })
        {
            for (name, dtype) in [("f32", FloatKind::F32), ("bf16", FloatKind::BF16)] {
                let dtype = ElemType::Float(dtype);
                let align = if d_in == 100 { 4 } else { 64 };
                let problem = gemm::Problem {
                    rows,
                    d_in,
                    d_out,
                    dtype,
                    y_dtype: dtype,
                    gated,
                    normed: gated,
                    batch_invariant: false,
                    align,
                };
                let line = match gemm::Blueprint::auto(&profile, &problem) {
                    Ok(chosen) => format!("{chosen:?}"),
                    Err(refusal) => refusal.to_string(),
                };
                let gates = if gated { ", gated" } else { "" };
                let _ = writeln!(
                    table,
                    "{device} | gemm of {rows} rows | {name} {d_in} to {d_out}{gates} | {line}"
                );
            }
        }
    }
    for (device, profile) in DEVICES {
        for (rows, [d_in, d_out]) in [1, 8, 9, 32, 64, 65].into_iter().flat_map(|rows| {
            [[4096, 6144], [4096, 4096], [4096, 28672], [14336, 4096]].map(|widths| (rows, widths))
        }) {
            for format in [WeightFormat::E4m3(Scales::PerChannel), WeightFormat::Int4 { group: 128 }] {
                let dtype = ElemType::Float(FloatKind::BF16);
                let problem = gemm::quantized::Problem {
                    rows,
                    d_in,
                    d_out,
                    dtype,
                    format,
                    align: 64,
                    weight_align: 64,
                };
                let line = match gemm::quantized::Blueprint::auto(&profile, &problem) {
                    Ok(chosen) => format!("{chosen:?}"),
                    Err(refusal) => refusal.to_string(),
                };
                let _ =
                    writeln!(table, "{device} | gemm of {rows} rows | {format:?} {d_in} to {d_out} | {line}");
            }
        }
    }
    for (device, profile) in DEVICES {
        for (rows, [d_in, d_out], gated) in [16, 64, 8192].into_iter().flat_map(|rows| {
            [([4096, 6144], false), ([100, 100], false), ([4096, 14336], true)]
                .map(|(widths, gated)| (rows, widths, gated))
        }) {
            let codes = ElemType::Float(FloatKind::E4M3);
            let align = if d_in == 100 { 4 } else { 64 };
            let product = gemm::Problem::product([rows, d_in, d_out], codes, align);
            let problem = gemm::Problem { y_dtype: ElemType::Float(FloatKind::BF16), gated, ..product };
            let line = match gemm::Blueprint::auto(&profile, &problem) {
                Ok(chosen) => format!("{chosen:?}"),
                Err(refusal) => refusal.to_string(),
            };
            let gates = if gated { ", gated" } else { "" };
            let _ = writeln!(
                table,
                "{device} | gemm of {rows} rows | both e4m3 {d_in} to {d_out}{gates} | {line}"
            );
        }
    }
    compare("routing_products.txt", &table);
}

/// Compares a table with the file of this name, or writes it there.
fn compare(name: &str, table: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    if std::env::var_os("UPDATE_ROUTING").is_some() {
        std::fs::write(&file, table).expect("the table can be written");
    }
    let golden = std::fs::read_to_string(&file).expect("the table is there");
    for (line, (got, wanted)) in table.lines().zip(golden.lines()).enumerate() {
        assert_eq!(got, wanted, "line {} of {name}", line + 1);
    }
    assert_eq!(table.lines().count(), golden.lines().count());
}
