//! Decoding with the shipped Llama, beside `transformers` on the same processor, type and threads, in one run.
//!
//! ```sh
//! cargo bench -p llama --bench decode
//! ```
//!
//! prints one CSV line for each. The lines of `transformers` need a Python that has it: `$PYTHON`, or else `python3`;
//! without one they are missing and a note says why. `RAYON_NUM_THREADS` sets the threads of both.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::KvLayout;
use llama::model::Llama;
use llama::weights::LoadOptions;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tiny");
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/transformers_decode.py");
const PROMPT_TOKENS: usize = 16;
const NEW_TOKENS: usize = 128;
const REPEATS: usize = 5;

fn main() -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(threads);
    println!("peer,model,dtype,threads,prompt_tokens,new_tokens,tokens_per_s,ttft_ms");
    for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        ours(name, dtype, threads)?;
        theirs(name, threads);
    }
    Ok(())
}

/// Greedy decoding as the program does it: every step reads the logits back and chooses on the host.
fn ours(name: &str, dtype: DType, threads: usize) -> Result<()> {
    let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
    let model = Llama::load(Path::new(MODEL), &Device::default(), &options, |_| |_| {})?;
    let prompt: Vec<u32> = (0..PROMPT_TOKENS as u32).map(|token| 5 + 7 * token).collect();
    let (mut rates, mut first) = (Vec::new(), Vec::new());
    for _ in 0..=REPEATS {
        let start = Instant::now();
        let mut cache = model.new_cache((PROMPT_TOKENS + NEW_TOKENS).div_ceil(16), 16, KvLayout::Nhd)?;
        let sequence = cache.create();
        let mut token = best(model.logits(model.extend(&mut cache, &[(sequence, &prompt)])?)?)?;
        first.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        for _ in 1..NEW_TOKENS {
            token = best(model.logits(model.extend(&mut cache, &[(sequence, &[token])])?)?)?;
        }
        rates.push((NEW_TOKENS - 1) as f64 / start.elapsed().as_secs_f64());
    }
    // The first run warms up.
    let [rate, first] = [&mut rates, &mut first].map(|all| median(&mut all[1..]));
    println!("burn-flashinfer,tiny,{name},{threads},{PROMPT_TOKENS},{NEW_TOKENS},{rate:.1},{first:.2}");
    Ok(())
}

fn best(logits: Tensor<2>) -> Result<u32> {
    let logits = logits.try_into_vec_as::<f32>().context("cannot read the logits")?;
    let best = (0..).zip(&logits).max_by(|(_, a), (_, b)| a.total_cmp(b));
    Ok(best.context("no logits")?.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn theirs(name: &str, threads: usize) {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(&python);
    command.args([PEER, "--model", MODEL, "--dtype", name]);
    for (flag, value) in [
        ("--threads", threads),
        ("--prompt-len", PROMPT_TOKENS),
        ("--new-tokens", NEW_TOKENS),
        ("--repeats", REPEATS),
    ] {
        command.args([flag, &value.to_string()]);
    }
    match command.output() {
        Ok(output) if output.status.success() => print!("{}", String::from_utf8_lossy(&output.stdout)),
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr);
            eprintln!("no line of transformers: {}", reason.lines().last().unwrap_or("it failed"));
        }
        Err(error) => eprintln!("no line of transformers: cannot run {python}: {error}"),
    }
}
