//! Prefill and decoding with a Llama of random weights in the shape of Llama 3 8B: step by step, and as a captured graph,
//! beside what reading weights and cache takes.
//!
//! ```sh
//! cargo bench -p llama --bench step --no-default-features --features cuda,kernel-cache -- [layers=32] [batch=1] [context=1024] [gbps=4460] [prefill=0] [weights=bf16] [kv=auto] [cache=DIR]
//! ```
//!
//! prints one CSV line each. `weights=e4m3` and `weights=int4` are layers of codes, beside a head of bf16; `kv=fp8` and
//! `kv=fp8_e5m2` a cache of codes. Tokens are those of all sequences together; every step chooses the most likely on the device and
//! reads it back. `prefill=2048` times a prompt of so many tokens instead. `cache=DIR` keeps compiled kernels there.

use std::slice;
use std::time::Instant;

use anyhow::{Context, Error, Result, bail};
use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::sampling::top_k;
use burn_flashinfer::{DecodeGraph, KvLayout, SequenceId};
use llama::config::Config;
use llama::kv_cache::{KvCacheDtype, KvCacheOptions};
use llama::model::Llama;
use llama::quantization::Quantize;
use llama::weights::LoadOptions;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}"#;
const PAGE: usize = 16;
const STEPS: usize = 64;

fn main() -> Result<()> {
    let setting =
        |name: &str| std::env::args().find_map(|argument| argument.strip_prefix(name).map(str::to_owned));
    let number = |name: &str, default: usize| -> Result<usize> {
        let given = setting(name);
        given.map_or(Ok(default), |given| given.parse().with_context(|| format!("{name}{given}")))
    };
    let (layers, batch, context) = (number("layers=", 32)?, number("batch=", 1)?, number("context=", 1024)?);
    // The rate at which attention reads on an H200: `benches/attention.rs` of the kernels, 128 x 16384.
    let bandwidth = number("gbps=", 4460)?;
    #[cfg(all(feature = "kernel-cache", feature = "gpu"))]
    if let Some(folder) = setting("cache=") {
        llama::kernel_cache::keep_in(Some(folder.as_ref()));
    }
    // Bits of a weight, its share of the scales counted: one of 32 bits for each output, or for 128 inputs.
    let (quantize, bits) = match setting("weights=").as_deref() {
        None | Some("bf16") => (None, 16.0),
        Some("e4m3") => (Some(Quantize::E4m3), 8.0),
        Some("int4") => (Some(Quantize::Int4), 4.25),
        Some(other) => bail!("weights={other}, expected bf16, e4m3 or int4"),
    };
    let dtype = match setting("kv=").as_deref() {
        None | Some("auto") => KvCacheDtype::Auto,
        Some("fp8") => KvCacheDtype::Fp8E4m3,
        Some("fp8_e5m2") => KvCacheDtype::Fp8E5m2,
        Some(other) => bail!("kv={other}, expected auto, fp8 or fp8_e5m2"),
    };
    let device = Device::default();
    let folder = std::env::temp_dir().join(format!("llama-step-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("config.json"), CONFIG.replace("LAYERS", &layers.to_string()))?;
    let config = Config::load(&folder);
    std::fs::remove_dir_all(&folder)?;
    let config = config?;
    let weights = {
        let Config { vocab_size, hidden_size, intermediate_size, q_heads, kv_heads, head_dim, .. } = config;
        let layer = hidden_size * ((2 * q_heads + 2 * kv_heads) * head_dim + 3 * intermediate_size);
        // Of the embedding only the rows of the tokens are read.
        (layers * layer) as f64 * bits / 8.0 + (2 * vocab_size * hidden_size) as f64
    };
    let kv_cache = KvCacheOptions { dtype, ..KvCacheOptions::default() };
    let options = LoadOptions { dtype: Some(DType::BF16), quantize, kv_cache, ..LoadOptions::default() };
    let model = Llama::random(config, &device, &options)?;
    let cached = model.cached_bytes() * batch * (context + STEPS / 2);
    let limit = (batch * bandwidth) as f64 * 1e9 / (weights + cached as f64);
    println!("op,layers,batch,context,tokens_per_s,ms,share_of_limit,note");
    let prefill = number("prefill=", 0)?;
    if prefill > 0 {
        return time_prefill(&model, layers, prefill);
    }
    println!(
        "limit,{layers},{batch},{context},{limit:.1},{:.3},1,{bandwidth} GB/s read",
        1e3 * batch as f64 / limit
    );

    for graph in [false, true] {
        let pages = batch * (context + 2 * STEPS).div_ceil(PAGE);
        let mut cache = model.new_cache(pages, PAGE, KvLayout::Nhd)?;
        let sequences: Vec<SequenceId> = (0..batch).map(|_| cache.create()).collect();
        let prompt: Vec<u32> = (0..context as u32).map(|token| token * 37 % 128_000).collect();
        for &sequence in &sequences {
            model.extend(&mut cache, &[(sequence, &prompt)])?;
        }
        let mut tokens: Vec<u32> = vec![1; batch];
        let begin = Instant::now();
        let mut replay = None;
        if graph {
            let step = model.new_step(&cache, batch, context + 2 * STEPS)?;
            let first: Vec<_> = sequences.iter().map(|&sequence| (sequence, 1)).collect();
            let run = |cache: &mut _, step: &_| model.replayable(cache, step);
            replay = Some(DecodeGraph::<_, Error>::capture(&mut cache, step, &first, run)?);
        }
        let mut times = Vec::new();
        let mut first = 0.0;
        for number in 0..STEPS + STEPS / 2 {
            let start = Instant::now();
            let step: Vec<_> = sequences.iter().copied().zip(tokens.iter().copied()).collect();
            let logits = match &mut replay {
                Some(graph) => graph.replay(&mut cache, &step)?.clone(),
                None => {
                    let pieces: Vec<_> =
                        step.iter().map(|(one, token)| (*one, slice::from_ref(token))).collect();
                    model.logits(model.extend(&mut cache, &pieces)?)?
                }
            };
            tokens = best(logits)?;
            if number == 0 {
                first = begin.elapsed().as_secs_f64();
            } else if number >= STEPS / 2 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let rate = batch as f64 / median;
        let name = match replay.as_ref().map(DecodeGraph::run_anew_because) {
            None => "eager".into(),
            Some(None) => "graph".into(),
            Some(Some(why)) => format!("run anew ({})", why.replace([',', '\n'], ";")),
        };
        println!(
            "{name},{layers},{batch},{context},{rate:.1},{:.3},{:.3},first step after {first:.2} s; last token {}",
            1e3 * median,
            rate / limit,
            tokens[0]
        );
    }
    Ok(())
}

/// Times one prompt, up to the choice of the token after it.
fn time_prefill(model: &Llama, layers: usize, tokens: usize) -> Result<()> {
    let prompt: Vec<u32> = (0..tokens as u32).map(|token| token * 37 % 128_000).collect();
    let mut cache = model.new_cache(tokens.div_ceil(PAGE), PAGE, KvLayout::Nhd)?;
    let mut times = Vec::new();
    for _ in 0..8 {
        let sequence = cache.create();
        let start = Instant::now();
        best(model.logits(model.extend(&mut cache, &[(sequence, &prompt)])?)?)?;
        times.push(start.elapsed().as_secs_f64());
        cache.free(sequence)?;
    }
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let rate = tokens as f64 / median;
    println!("prefill,{layers},1,{tokens},{rate:.1},{:.3},,first after {first:.2} s", 1e3 * median);
    Ok(())
}

/// The most likely token of each row.
fn best(logits: Tensor<2>) -> Result<Vec<u32>> {
    let (_, tokens) = top_k(logits, 1)?;
    tokens.try_into_vec_as::<u32>().context("cannot read the tokens from the device")
}
