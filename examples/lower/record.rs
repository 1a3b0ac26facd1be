//! Launches written to files, for a program that can run them: see the head of `lower.rs`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn_flashinfer_kernels::KvLayout;
use burn_flashinfer_kernels::attention::{
    Alignment, Attention, Batch, Choice, HeadDims, Inputs, Plan, Problem, RequestShape, Split, Standard,
    launch,
};
use burn_flashinfer_kernels::offline::{Device, Target};
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::TensorBinding;
use half::bf16;
use serde_json::json;

const Q_HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 128;
const PAGE: usize = 16;
const SCALE: f64 = 0.088_388_346;

/// Writes small problems of bf16, causal, each into a folder of its own.
pub fn record(target: Target, dir: &Path) -> Result<()> {
    ensure!(
        matches!(target, Target::Gfx(_)),
        "{target}: on NVIDIA the metadata is a parameter, not a buffer"
    );
    for (phase, lengths) in
        [("decode", [(1, 197), (1, 33), (1, 300)]), ("prefill", [(140, 333), (70, 70), (3, 90)])]
    {
        for paged in [false, true] {
            let name = format!("{target}-{phase}-{}", if paged { "paged" } else { "ragged" });
            let to = dir.join(&name);
            fs::create_dir_all(&to).with_context(|| format!("making {}", to.display()))?;
            one(target, &name, &lengths, paged, &to)?;
            println!("{}", to.display());
        }
    }
    Ok(())
}

fn one(target: Target, name: &str, lengths: &[(usize, usize)], paged: bool, to: &Path) -> Result<()> {
    let device = Device::new(target)?;
    let client = device.client();
    let tokens: usize = lengths.iter().map(|l| l.0).sum();
    let keys: usize = lengths.iter().map(|l| l.1).sum();
    let mut random = Random(lengths[0].0 as u64);
    let mut floats = |n: usize| -> Vec<f64> { (0..n).map(|_| round(3.0 * random.unit())).collect() };
    let (q, k, v) =
        (floats(tokens * Q_HEADS * DIM), floats(keys * KV_HEADS * DIM), floats(keys * KV_HEADS * DIM));

    let pages: Vec<usize> = lengths.iter().map(|l| l.1.div_ceil(PAGE)).collect();
    let count: usize = pages.iter().sum();
    // Every entry once, out of order, and a page that nobody owns.
    let table: Vec<usize> = (0..count).map(|i| (i * 11 + 3) % count).collect();
    ensure!(!count.is_multiple_of(11), "the table must be a permutation");
    let qo_indptr = ints(client, &indptr(lengths.iter().map(|l| l.0)));
    let (batch, shape) = if paged {
        let batch = Batch::Paged {
            qo_indptr,
            kv_indptr: ints(client, &indptr(pages.iter().copied())),
            indices: ints(client, &table.iter().map(|&page| page as i32).collect::<Vec<_>>()),
            last_page_len: ints(
                client,
                &lengths.iter().map(|l| ((l.1 - 1) % PAGE + 1) as i32).collect::<Vec<_>>(),
            ),
            layout: KvLayout::Nhd,
        };
        (batch, vec![count + 1, PAGE, KV_HEADS, DIM])
    } else {
        let kv_indptr = ints(client, &indptr(lengths.iter().map(|l| l.1)));
        (Batch::Ragged { qo_indptr, kv_indptr }, vec![keys, KV_HEADS, DIM])
    };
    // NaN where no request has a key.
    let place = |data: &[f64]| {
        if !paged {
            return data.to_vec();
        }
        let row = KV_HEADS * DIM;
        let mut pool = vec![f64::NAN; (count + 1) * PAGE * row];
        let (mut key, mut entry) = (0, 0);
        for (&(_, kv_len), pages) in lengths.iter().zip(&pages) {
            for j in 0..kv_len {
                let at = (table[entry + j / PAGE] * PAGE + j % PAGE) * row;
                pool[at..at + row].copy_from_slice(&data[(key + j) * row..][..row]);
            }
            (key, entry) = (key + kv_len, entry + pages);
        }
        pool
    };

    let dtype = ElemType::Float(FloatKind::BF16);
    let problem = Problem {
        dims: HeadDims { qk: DIM, vo: DIM },
        dtype,
        kv_dtype: dtype.into(),
        q_heads: Q_HEADS,
        kv_heads: KV_HEADS,
        scale: SCALE as f32,
        align: Alignment { qk: 64, vo: 64 },
        fp8_mma: false,
    };
    let causal = Standard { causal: true, ..Standard::new(SCALE as f32) };
    let spans = RequestShape::following(lengths.iter().copied(), if paged { PAGE } else { 1 });
    // One launch.
    let plan = Plan::new(&target.profile(), &problem, &causal, &spans, Choice::Auto, Split::Never)?;
    let outputs = tokens * Q_HEADS * DIM;
    let attention = Attention {
        q: tensor(client, &bytes(&q), &[tokens, Q_HEADS, DIM]),
        k: tensor(client, &bytes(&place(&k)), &shape),
        v: tensor(client, &bytes(&place(&v)), &shape),
        output: tensor(client, &bytes(&vec![f64::NAN; outputs]), &[tokens, Q_HEADS, DIM]),
        lse: None,
        batch,
        scale: SCALE as f32,
        dtype,
        kv_dtype: dtype.into(),
        kv_scales: None,
        inputs: Inputs::default(),
        mask: None,
    };
    // SAFETY: the recorder runs no kernel.
    unsafe { launch(client, attention, &causal, plan.upload(client)) }?;
    let launches = device.launches();
    let [launch] = launches.as_slice() else { anyhow::bail!("{} launches", launches.len()) };
    let lowered = launch.lower()?;

    let mut arguments = vec![];
    for (at, buffer) in launch.buffers().iter().enumerate() {
        let Ok(content) = buffer else { anyhow::bail!("buffer {at} was never written") };
        arguments.push(write(to, &format!("{at}.bin"), content, lowered.writes[at])?);
    }
    arguments.push(write(to, "metadata.bin", &launch.metadata(), false)?);
    write(to, "code.o", lowered.bytes(), false)?;
    let wanted = expected(&q, &k, &v, lengths, |x| x, |x| x);
    let mut rounded = expected(&q, &k, &v, lengths, |x| x as f32 as f64, round);
    rounded.iter_mut().for_each(|x| *x = round(*x));
    let error = wanted.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let content: Vec<u8> = wanted.iter().flat_map(|x| x.to_le_bytes()).collect();
    write(to, "expected.bin", &content, false)?;
    let output = lowered.writes.iter().position(|&writes| writes).context("no output")?;
    let description = json!({
        "target": target.to_string(),
        "case": name,
        "blueprint": plan.to_string(),
        "code": "code.o",
        "entry": lowered.entry,
        "grid": lowered.grid,
        "block": lowered.block,
        "shared_memory": lowered.shared_memory,
        "arguments": arguments,
        "expected": {
            "argument": output,
            "dtype": "bf16",
            "elements": outputs,
            "file": "expected.bin",
            "tolerance": 2.0 * error + 1e-5,
        },
    });
    fs::write(to.join("launch.json"), serde_json::to_string_pretty(&description)?)?;
    Ok(())
}

/// A file, described.
fn write(to: &Path, file: &str, content: &[u8], written: bool) -> Result<serde_json::Value> {
    fs::write(to.join(file), content).with_context(|| format!("writing {file}"))?;
    Ok(json!({ "file": file, "bytes": content.len(), "written": written }))
}

/// Causal attention, every result rounded by `number` and weights before they meet values by `weight`.
fn expected(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    lengths: &[(usize, usize)],
    number: fn(f64) -> f64,
    weight: fn(f64) -> f64,
) -> Vec<f64> {
    let mut output = vec![];
    let (mut token, mut first) = (0, 0);
    for &(qo_len, kv_len) in lengths {
        for i in 0..qo_len {
            for head in 0..Q_HEADS {
                let kv_head = head / (Q_HEADS / KV_HEADS);
                let row = &q[(token * Q_HEADS + head) * DIM..][..DIM];
                let key = |j: usize| ((first + j) * KV_HEADS + kv_head) * DIM;
                let seen = (kv_len + i + 1).saturating_sub(qo_len);
                let logits: Vec<f64> = (0..seen)
                    .map(|j| {
                        let products = row.iter().zip(&k[key(j)..][..DIM]);
                        let dot = products.fold(0.0, |sum, (a, b)| number(sum + number(a * b)));
                        number(dot * SCALE as f32 as f64)
                    })
                    .collect();
                let base = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = logits.iter().map(|s| number((s - base).exp())).collect();
                let total = weights.iter().fold(0.0, |sum, p| number(sum + p));
                for column in 0..DIM {
                    let sum = weights
                        .iter()
                        .enumerate()
                        .fold(0.0, |sum, (j, p)| number(sum + number(weight(*p) * v[key(j) + column])));
                    output.push(if total == 0.0 { 0.0 } else { sum / total });
                }
            }
            token += 1;
        }
        first += kv_len;
    }
    output
}

fn indptr(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let ends = lengths.scan(0, |sum, n| {
        *sum += n as i32;
        Some(*sum)
    });
    std::iter::once(0).chain(ends).collect()
}

fn ints(client: &Client, data: &[i32]) -> TensorBinding {
    let content: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensor(client, &content, &[data.len()])
}

fn tensor(client: &Client, content: &[u8], shape: &[usize]) -> TensorBinding {
    let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    let handle = client.create_from_slice(content);
    // SAFETY: nothing runs; the content is as long as the shape.
    unsafe { TensorBinding::from_raw_parts(handle, strides.into(), shape.to_vec().into()) }
}

fn round(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

fn bytes(data: &[f64]) -> Vec<u8> {
    data.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// Uniform in -1..1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
