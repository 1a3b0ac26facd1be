//! Attention on a GPU, timed on the device: CSV rows of the columns that other libraries' rows have.
//!
//!     cargo bench -p burn-flashinfer-kernels --features cuda --bench attention -- PART.. [quick] [keys=N] [cleared] [csv=FILE]
//!
//! With `keys`, only rows of requests that end with so many keys. With `cleared`, the caches are cleared before each run. Parts: first, plan, prefill, biases, decode, codes, few, skew, mixed, cascade, mask, sparse, plain, sweep and warpgroups; without any, all but the last two.
//!
//! Every row is the median of at least ten passes over several sets of random inputs, which together are larger than the
//! caches, as a replayed graph of launches: what the device needs, without the gaps that the host leaves. The first call
//! of every kernel is timed too: that is compilation.

#[path = "attention/case.rs"]
mod case;
#[path = "attention/cleared.rs"]
mod cleared;
#[path = "device.rs"]
mod device;
#[path = "attention/masks.rs"]
mod masks;
#[path = "attention/sigmoid.rs"]
mod sigmoid;
#[path = "attention/sparse.rs"]
mod sparse;
#[path = "attention/step.rs"]
mod step;
#[path = "attention/sweep.rs"]
mod sweep;

use burn_flashinfer_kernels::Fp8;
use burn_flashinfer_kernels::attention::{Blueprint, Choice, Portable, Split};
use case::{Bench, Shape, total};
use cubecl::ir::FloatKind;
use device::Device;
use step::zipf;

const F32: (&str, FloatKind) = ("fp32", FloatKind::F32);
const F16: (&str, FloatKind) = ("fp16", FloatKind::F16);
const BF16: (&str, FloatKind) = ("bf16", FloatKind::BF16);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let every = ![
        "first",
        "plan",
        "prefill",
        "biases",
        "decode",
        "codes",
        "few",
        "skew",
        "mixed",
        "cascade",
        "mask",
        "sparse",
        "plain",
        "sweep",
        "warpgroups",
    ]
    .into_iter()
    .any(has);
    let quick = has("quick");
    let header = "op,impl,dtype,batch,q_len,kv_len,ms,tflops,gbps,max_err,note\n";
    let only = arguments.iter().find_map(|argument| argument.strip_prefix("keys=")?.parse().ok());
    let mut bench = Bench { device: Device::open(), csv: header.into(), only, cleared: has("cleared") };
    let base = Shape {
        op: "prefill",
        dtype: BF16,
        lengths: vec![],
        q_heads: 32,
        kv_heads: 8,
        dim: 128,
        causal: true,
        sinks: false,
        soft_cap: None,
        window: None,
        slopes: false,
        codes: None,
        sigmoid: false,
        paged: false,
        choice: Choice::Auto,
        split: Split::Auto,
        mask: None,
        shared: None,
    };
    if every || has("first") {
        bench.llama_step(&base);
    }
    if every || has("plan") {
        for requests in [1, 64, 1024] {
            bench.planning(&base, requests);
        }
    }
    if every || has("prefill") {
        let lengths: &[usize] = if quick {
            &[1024, 2048, 4096, 8192, 16384]
        } else {
            &[128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
        };
        for dtype in if quick { vec![BF16] } else { vec![BF16, F16] } {
            for &n in lengths {
                bench.row(&Shape { dtype, lengths: vec![(n, n)], ..base.clone() });
            }
        }
        for n in [8192, 16384] {
            for kv_heads in [8, 32] {
                bench.row(&Shape { lengths: vec![(n, n)], kv_heads, causal: false, ..base.clone() });
            }
        }
        for n in [8192, 16384] {
            bench.row(&Shape { lengths: vec![(n, n)], q_heads: 64, ..base.clone() });
        }
        for dim in [64, 256] {
            bench.row(&Shape { lengths: vec![(8192, 8192)], dim, ..base.clone() });
        }
        bench.row(&Shape { op: "prefill-paged", lengths: vec![(8192, 8192)], paged: true, ..base.clone() });
        for paged in [false, true] {
            let op = if paged { "prefill-paged" } else { "prefill-ragged" };
            let mix = vec![(2048, 2048); 8];
            bench.row(&Shape { op, lengths: mix, paged, ..base.clone() });
            let mix = [200, 3000, 17, 4096, 1000, 511, 2049, 777, 8000].map(|n| (n, n)).to_vec();
            bench.row(&Shape { op, lengths: mix, paged, ..base.clone() });
        }
    }
    if every || has("biases") {
        for (op, sinks, slopes) in [
            ("prefill", false, false),
            ("prefill-sinks", true, false),
            ("prefill-alibi", false, true),
            ("prefill-sinks-alibi", true, true),
        ] {
            let biased = Shape { op, sinks, slopes, ..base.clone() };
            for n in [1024, 8192, 16384] {
                bench.row(&Shape { lengths: vec![(n, n)], ..biased.clone() });
            }
            bench.row(&Shape { lengths: vec![(1, 4096); 64], causal: false, paged: true, ..biased });
        }
        bench.row(&Shape {
            op: "prefill-sigmoid",
            sigmoid: true,
            lengths: vec![(8192, 8192)],
            ..base.clone()
        });
        for (op, sinks, soft_cap, window) in [
            ("prefill-cap", false, Some(30.0), None),
            ("prefill-window", false, None, Some(1023)),
            ("prefill-sinks-cap-window", true, Some(30.0), Some(1023)),
        ] {
            let lengths = vec![(8192, 8192)];
            bench.row(&Shape { op, sinks, soft_cap, window, lengths, ..base.clone() });
        }
    }
    if every || has("codes") {
        // Pages of 8 bits, and the same of 16.
        for codes in [Some(Fp8::E4m3), None] {
            let cached = Shape { op: "codes", codes, paged: true, ..base.clone() };
            for (batch, keys) in [(1, 16384), (16, 1024), (64, 4096), (128, 16384)] {
                let lengths = vec![(1, keys); batch];
                bench.row(&Shape { lengths, causal: false, ..cached.clone() });
            }
            bench.row(&Shape { lengths: vec![(8192, 8192)], ..cached });
        }
    }
    if every || has("few") {
        few_queries(&mut bench, &base);
    }
    if every || has("decode") {
        let decode = Shape { op: "decode", causal: false, paged: true, ..base.clone() };
        for (batch, keys) in [(1, 16384), (16, 1024), (64, 4096), (128, 16384)] {
            bench.row(&Shape { lengths: vec![(1, keys); batch], ..decode.clone() });
        }
        if !quick {
            for (batch, keys) in [
                (1, 1024),
                (1, 4096),
                (1, 32768),
                (1, 1 << 20),
                (4, 4096),
                (4, 32768),
                (16, 8192),
                (64, 1024),
                (128, 2048),
                (256, 4096),
            ] {
                bench.row(&Shape { lengths: vec![(1, keys); batch], ..decode.clone() });
            }
            for (q_heads, kv_heads) in [(32, 32), (64, 8)] {
                for (batch, keys) in [(16, 4096), (64, 4096)] {
                    bench.row(&Shape {
                        lengths: vec![(1, keys); batch],
                        q_heads,
                        kv_heads,
                        ..decode.clone()
                    });
                }
            }
        }
    }
    if every || has("skew") {
        skewed(&mut bench, &base);
    }
    if every || has("mixed") {
        bench.mixed(&base, &[(4096, 4096)], &[(1, 8192); 64]);
        bench.mixed(&base, &[(512, 2048)], &[(1, 2048); 32]);
    }
    if every || has("cascade") {
        for (requests, prefix, own) in [(64, 32768, 256), (16, 8192, 1024)] {
            bench.cascade(&base, requests, prefix, own, Choice::Auto, Split::Auto);
        }
    }
    if every || has("mask") {
        masks::rows(&mut bench, &base);
    }
    if every || has("sparse") {
        sparse::rows(&mut bench, &base);
    }
    if every || has("plain") {
        // Without matrix cores: tiles of plain multiplications, and the portable kernel that they replace.
        let portable = Portable { rows: 1, units: 64, tile: 64, qk_vector: 4, vo_vector: 2 };
        let plain = Shape { dtype: F32, ..base.clone() };
        for choice in [Choice::Auto, Choice::Exactly(Blueprint::Portable(portable))] {
            bench.row(&Shape { lengths: vec![(4096, 4096)], choice, ..plain.clone() });
            for (batch, keys) in [(1, 16384), (64, 4096)] {
                let decode = Shape { op: "decode", causal: false, paged: true, choice, ..plain.clone() };
                bench.row(&Shape { lengths: vec![(1, keys); batch], ..decode });
            }
        }
    }
    if has("warpgroups") {
        sweep::warpgroup_sweep(&mut bench, &base);
    }
    if has("sweep") {
        sweep::plain_sweep(&mut bench, &Shape { dtype: F32, ..base.clone() });
        sweep::sweep(&mut bench, &base);
    }
    if let Some(file) = arguments.iter().find_map(|argument| argument.strip_prefix("csv=")) {
        std::fs::write(file, &bench.csv).expect("the file can be written");
    }
}

/// A few queries of each request, or a chunk of a long prompt, over many keys.
fn few_queries(bench: &mut Bench, base: &Shape) {
    let few = Shape { op: "few", paged: true, ..base.clone() };
    for queries in [2, 4, 8, 16] {
        for (batch, keys) in [(1, 131072), (16, 8192), (128, 8192)] {
            bench.row(&Shape { lengths: vec![(queries, keys); batch], ..few.clone() });
        }
    }
    for (q_heads, kv_heads) in [(8, 1), (16, 2), (32, 4), (64, 8)] {
        let lengths = vec![(256, 131072)];
        bench.row(&Shape { op: "chunk", lengths, q_heads, kv_heads, ..few.clone() });
    }
}

/// Lengths by Zipf's law beside the same number of tokens in equal parts.
fn skewed(bench: &mut Bench, base: &Shape) {
    let decode = Shape { op: "decode-skewed", causal: false, paged: true, ..base.clone() };
    let skewed = zipf(64);
    let mean = total(&skewed, |l| l.1) / 64;
    let uneven = bench.row(&Shape { lengths: skewed.clone(), ..decode.clone() });
    let even = bench.row(&Shape { lengths: vec![(1, mean); 64], ..decode });
    bench.say(format!(
        "decode-skewed-share,burn-flashinfer,bf16,64,1,{mean},,,,,{:.1} %",
        100.0 * even / uneven
    ));
    let ragged = Shape { op: "prefill-skewed", ..base.clone() };
    // Of the same mean: 16 requests of 2048 tokens have as many pairs of query and key as these do.
    let skewed: Vec<_> = zipf(16).iter().map(|l| (l.1 / 4, l.1 / 4)).collect();
    let pairs: usize = skewed.iter().map(|l| l.0 * l.0).sum();
    let mean = (pairs as f64 / 16.0).sqrt() as usize;
    for paged in [false, true] {
        let uneven = bench.row(&Shape { lengths: skewed.clone(), paged, ..ragged.clone() });
        let even = bench.row(&Shape { lengths: vec![(mean, mean); 16], paged, ..ragged.clone() });
        let kind = if paged { "paged" } else { "ragged" };
        bench.say(format!(
            "prefill-skewed-share,burn-flashinfer,bf16,16,{mean},{mean},,,,,{kind} {:.1} %",
            100.0 * even / uneven
        ));
    }
}
