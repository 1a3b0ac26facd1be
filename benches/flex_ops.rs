//! Speed of the CPU operations beside that of memory: `cargo bench --bench flex_ops -- [rows|products]`. `rows` times norms,
//! activations, RoPE and sampling, `products` linear layers.
//!
//! Prints median and best time of each operation, and bytes of cache or weights read (or multiplications done) per
//! second of the best. `RAYON_NUM_THREADS=1` shows one core.

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use burn_flashinfer::sampling::{
    self, Draws, sampling_from_probs, softmax, top_k_sampling_from_probs, top_p_sampling_from_probs,
};
use burn_flashinfer::{
    AttentionOptions, Fp8, Indptr, KvLayout, PageTable, Positions, Rope, RopeConfig, apply_rope,
    batch_decode_paged, batch_prefill_paged, fused_add_rms_norm, gelu_and_mul, layer_norm, matmul_nt,
    rms_norm, silu_and_mul, single_prefill,
};

/// Median and best seconds of a call.
fn time(mut call: impl FnMut()) -> [f64; 2] {
    let once = Instant::now();
    call();
    let calls = (0.02 / once.elapsed().as_secs_f64()).clamp(1.0, 2000.0) as usize;
    let mut times: Vec<f64> = (0..25)
        .map(|_| {
            let start = Instant::now();
            (0..calls).for_each(|_| call());
            start.elapsed().as_secs_f64() / calls as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[0]]
}

fn print(name: &str, amount: f64, unit: &str, call: impl FnMut()) {
    let [median, best] = time(call);
    println!(
        "{name:<46} {:>9.1} us {:>9.1} us {:>7.1} {unit}",
        median * 1e6,
        best * 1e6,
        amount / best / 1e9
    );
}

fn random<const D: usize>(shape: [usize; D], dtype: DType, device: &Device) -> Tensor<D> {
    Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(dtype)
}

/// Operations that go row by row: norms, activations, RoPE, sampling.
fn rows(device: &Device) -> burn_flashinfer::Result<()> {
    let width = 4096;
    for (dtype, rows) in [(DType::F32, 512), (DType::F32, 1), (DType::BF16, 512), (DType::BF16, 1)] {
        let row = |columns| random([rows, columns], dtype, device);
        let (x, residual, halves) = (row(width), row(width), row(2 * width));
        let [gain, bias] = [(); 2].map(|()| random([width], dtype, device));
        let bytes = |elements: usize| (rows * elements * dtype.size()) as f64;
        let named = |op| format!("{op} {dtype:?} {rows} x {width}");
        print(&named("rms_norm"), bytes(2 * width), "GB/s", || {
            black_box(rms_norm(x.clone(), gain.clone(), 1e-5)).ok();
        });
        let mut stream = Some((x.clone().add_scalar(0.0), residual.clone().add_scalar(0.0)));
        print(&named("fused_add_rms_norm"), bytes(4 * width), "GB/s", || {
            // In place, as a model runs it.
            if let Some((x, residual)) = stream.take() {
                stream = fused_add_rms_norm(x, residual, gain.clone(), 1e-5).ok();
            }
        });
        print(&named("layer_norm"), bytes(2 * width), "GB/s", || {
            black_box(layer_norm(x.clone(), gain.clone(), bias.clone(), 1e-5)).ok();
        });
        print(&named("silu_and_mul"), bytes(3 * width), "GB/s", || {
            black_box(silu_and_mul(halves.clone())).ok();
        });
        print(&named("gelu_and_mul"), bytes(3 * width), "GB/s", || {
            black_box(gelu_and_mul(halves.clone())).ok();
        });
        let [q, k] = [32, 8].map(|heads| random([rows, heads, 128], dtype, device));
        let rope = Rope::new(&RopeConfig::new(128), rows, device)?;
        let positions = Positions::new(&(0..rows).collect::<Vec<_>>(), device)?;
        print(&named("rope of 32 + 8 heads,"), bytes(2 * 40 * 128), "GB/s", || {
            black_box(apply_rope(q.clone(), k.clone(), &rope, &positions)).ok();
        });
    }
    let vocab = 128_256;
    for rows in [8, 1] {
        let logits = random([rows, vocab], DType::F32, device).mul_scalar(3.0);
        let probs = softmax(logits.clone(), None)?;
        let draws = Draws::new(7, 0, rows, device)?;
        let [top_p, top_k] = [0.9, 50.0].map(|limit| Tensor::<1>::full([rows], limit, device));
        let top_k = top_k.int().cast(DType::I32);
        let bytes = (rows * vocab * 4) as f64;
        let named = |op| format!("{op} {rows} x {vocab}");
        print(&named("softmax"), 2.0 * bytes, "GB/s", || {
            black_box(softmax(logits.clone(), None)).ok();
        });
        print(&named("sampling_from_probs"), bytes, "GB/s", || {
            black_box(sampling_from_probs(probs.clone(), &draws)).ok();
        });
        print(&named("top_p_sampling_from_probs"), bytes, "GB/s", || {
            black_box(top_p_sampling_from_probs(probs.clone(), top_p.clone(), &draws)).ok();
        });
        print(&named("top_k_sampling_from_probs"), bytes, "GB/s", || {
            black_box(top_k_sampling_from_probs(probs.clone(), top_k.clone(), &draws)).ok();
        });
        print(&named("top_k 40"), bytes, "GB/s", || {
            black_box(sampling::top_k(logits.clone(), 40)).ok();
        });
    }
    Ok(())
}

/// Linear layers.
fn products(device: &Device) {
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for [depth, columns] in [[256, 704], [704, 256], [256, 256], [256, 2048], [4096, 4096]] {
            let weight = random([columns, depth], dtype, device);
            for rows in [1, 4, 8, 128, 1024] {
                if rows >= 128 && dtype == DType::F16 {
                    continue;
                }
                let x = random([rows, depth], dtype, device);
                let (amount, unit) = match rows {
                    128.. => ((rows * depth * columns) as f64, "GMAC/s"),
                    _ => ((depth * columns * dtype.size()) as f64, "GB/s"),
                };
                print(&format!("matmul_nt {dtype:?} {rows} x {depth} x {columns}"), amount, unit, || {
                    black_box(matmul_nt(x.clone(), weight.clone())).ok();
                });
            }
        }
    }
}

fn main() -> burn_flashinfer::Result<()> {
    let device = Device::flex();
    println!("{:<46} {:>12} {:>12}", "", "median", "best");
    if std::env::args().any(|argument| argument == "rows") {
        return rows(&device);
    }
    if std::env::args().any(|argument| argument == "products") {
        products(&device);
        return Ok(());
    }

    let from = vec![1u64; 1 << 24];
    print("read 128 MiB, one thread", 8.0 * from.len() as f64, "GB/s", || {
        black_box(black_box(&from).iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
    });

    let (kv_heads, heads, dim, page_size) = (8, 32, 128, 16);
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (requests, keys) in [(1, 2048), (8, 2048), (1, 64)] {
            let count = requests * keys / page_size;
            let pages = [(); 2].map(|()| random([count, page_size, kv_heads, dim], dtype, &device));
            let [k, v] = pages;
            let pages = burn_flashinfer::KvPages::new(k, v, KvLayout::Nhd)?;
            let indptr: Vec<usize> = (0..=requests).map(|r| r * keys / page_size).collect();
            let indices: Vec<usize> = (0..count).map(|i| i * 37 % count).collect();
            let table =
                PageTable::new(&indptr, &indices, &vec![page_size; requests], page_size, count, &device)?;
            let q = random([requests, heads, dim], dtype, &device);
            let bytes = (2 * requests * keys * kv_heads * dim * dtype.size()) as f64;
            let name = format!("decode {dtype:?} {requests} x {keys} keys, 32/8 heads, d 128");
            let options = AttentionOptions::new();
            print(&name, bytes, "GB/s", || {
                black_box(batch_decode_paged(q.clone(), &pages, &table, &options)).ok();
            });
            if dtype != DType::BF16 {
                continue;
            }
            for format in [Fp8::E4m3, Fp8::E5m2] {
                let codes = || {
                    let codes =
                        (0..count * page_size * kv_heads * dim).map(|i| format.encode((i % 13) as f32 - 6.0));
                    let data = TensorData::new(codes.collect::<Vec<u8>>(), [count, page_size, kv_heads, dim]);
                    Tensor::<4, Int>::from_data(data, (&device, DType::U8))
                };
                let pages = burn_flashinfer::KvPages::new_fp8(codes(), codes(), KvLayout::Nhd, format)?;
                print(&format!("{name}, over {format}"), bytes / 2.0, "GB/s", || {
                    black_box(batch_decode_paged(q.clone(), &pages, &table, &options)).ok();
                });
            }
        }
    }
    for (tokens, dtype) in [(512, DType::BF16), (512, DType::F32), (64, DType::BF16), (2048, DType::BF16)] {
        let [k, v] = [(); 2].map(|()| random([tokens, kv_heads, dim], dtype, &device));
        let q = random([tokens, heads, dim], dtype, &device);
        let options = AttentionOptions::new().causal(true);
        let products = (tokens * (tokens + 1) / 2 * heads * 2 * dim) as f64;
        print(&format!("prefill {dtype:?} {tokens} tokens, 32/8 heads, d 128"), products, "GMAC/s", || {
            black_box(single_prefill(q.clone(), k.clone(), v.clone(), &options)).ok();
        });
    }
    {
        // Four new tokens after 2048: speculative decoding.
        let (keys, new) = (2048, 4);
        let count = keys / page_size;
        let [k, v] = [(); 2].map(|()| random([count, page_size, kv_heads, dim], DType::BF16, &device));
        let pages = burn_flashinfer::KvPages::new(k, v, KvLayout::Nhd)?;
        let indices: Vec<usize> = (0..count).collect();
        let table = PageTable::new(&[0, count], &indices, &[page_size], page_size, count, &device)?;
        let (q, rows) = (random([new, heads, dim], DType::BF16, &device), Indptr::new(&[0, new], &device)?);
        let options = AttentionOptions::new().causal(true);
        print("4 queries BF16 1 x 2048 keys", (4 * keys * kv_heads * dim) as f64, "GB/s", || {
            black_box(batch_prefill_paged(q.clone(), &rows, &pages, &table, &options)).ok();
        });
    }

    products(&device);
    let (x, weight) = (random([1, 256], DType::BF16, &device), random([256], DType::BF16, &device));
    print("rms_norm BF16 1 x 256", 512.0, "GB/s", || {
        black_box(rms_norm(x.clone(), weight.clone(), 1e-5)).ok();
    });
    Ok(())
}
