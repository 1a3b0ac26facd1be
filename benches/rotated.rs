//! RoPE within attention (`RotatedPlan`) beside attention over keys that are rotated already, on the default device:
//!
//!     cargo bench --no-default-features --features cuda --bench rotated
//!
//! CSV rows. Times are those of many runs one after the other, with the host's part: the first row of each pair is what a plain
//! plan takes in the same way.

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, Indptr, PagedKvCache, PagedPlan, PlanConfig, Result, Rope, RopeConfig,
    RotatedPlan, append_paged_kv,
};

const Q_HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 128;
const RUNS: usize = 30;

fn main() -> Result<()> {
    let device = Device::default();
    println!("op,impl,dtype,batch,q_len,kv_len,ms,tflops,gbps,max_err,note");
    for (queries, keys, batch) in [(8192, 8192, 1), (1, 4096, 64)] {
        rows(&device, queries, keys, batch)?;
    }
    Ok(())
}

/// A row of each plan, for requests with so many queries and keys.
fn rows(device: &Device, queries: usize, keys: usize, batch: usize) -> Result<()> {
    let pages = batch * keys.div_ceil(16);
    let config = CacheConfig::new(1, pages, 16, KV_HEADS, DIM).dtype(DType::BF16);
    let mut cache = PagedKvCache::new(&config, device)?;
    let random = |tokens, heads| {
        Tensor::<3>::random([tokens, heads, DIM], Distribution::Normal(0.0, 1.0), device).cast(DType::BF16)
    };
    let new: Vec<_> = (0..batch).map(|_| (cache.create(), keys)).collect();
    let step = cache.step(&new)?;
    append_paged_kv(
        cache.layer_mut(0)?,
        random(batch * keys, KV_HEADS),
        random(batch * keys, KV_HEADS),
        step.slots(),
    )?;
    let rope = Rope::new(&RopeConfig::new(DIM), keys, device)?;
    let qo_indptr = Indptr::from_lengths(&vec![queries; batch], device)?;
    let config =
        PlanConfig::for_pages(Q_HEADS, cache.layer(0)?).options(AttentionOptions::new().causal(true));
    let plain = PagedPlan::new(&config, &qo_indptr, step.table())?;
    let rotated = RotatedPlan::new(&config, &qo_indptr, step.table())?;
    let q = random(batch * queries, Q_HEADS);

    let pairs = batch * (queries * keys - queries * (queries - 1) / 2);
    let flops = 4.0 * (pairs * Q_HEADS * DIM) as f64;
    let bytes = 4.0 * (batch * (keys * KV_HEADS + queries * Q_HEADS) * DIM) as f64;
    let row = |name: &str, seconds: f64| {
        let (ms, tflops, gbps) = (seconds * 1e3, flops / seconds / 1e12, bytes / seconds / 1e9);
        println!("{name},burn-flashinfer,bf16,{batch},{queries},{keys},{ms:.4},{tflops:.1},{gbps:.0},,");
    };
    row("plain", time(device, || plain.run(q.clone(), cache.layer(0)?).map(drop))?);
    row("rotated", time(device, || rotated.run(q.clone(), cache.layer(0)?, &rope).map(drop))?);
    Ok(())
}

/// Seconds of a run: the best of five times [`RUNS`], after a first one that compiles.
fn time(device: &Device, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        device.sync().expect("the device works");
        let start = Instant::now();
        for _ in 0..RUNS {
            run()?;
        }
        device.sync().expect("the device works");
        best = best.min(start.elapsed().as_secs_f64() / RUNS as f64);
    }
    Ok(best)
}
