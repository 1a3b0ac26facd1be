//! Norms, activations and sampling on a GPU, timed on the device, beside a copy of as many bytes.
//!
//!     cargo bench -p burn-flashinfer-kernels --features cuda --bench rows -- [csv=FILE] [op=PART OF A NAME] [rows=ROWS]
//!
//! As the bench of attention: medians of replayed graphs over sets of inputs that are larger than the caches together.

#[path = "device.rs"]
mod device;

use burn_flashinfer_kernels::activation::{ActAndMul, Activation, launch as act_and_mul};
use burn_flashinfer_kernels::append::{Tokens, append};
use burn_flashinfer_kernels::norm::{Add, Norm, Scaling, launch as norm};
use burn_flashinfer_kernels::pages::{KvQuantized, Pools};
use burn_flashinfer_kernels::rope::{HeadNorm, Rope, Style, To, launch as apply_rope};
use burn_flashinfer_kernels::sampling::{
    self, DRAW_WORDS, Filter, Limit, Output, SampleLogits, SampleProbs, Softmax, TopK, filter, sample_logits,
    sample_probs, softmax,
};
use burn_flashinfer_kernels::{Fp8, KvLayout, Quantized};
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use device::{Device, tensor};

const BF16: FloatKind = FloatKind::BF16;
const F32: FloatKind = FloatKind::F32;

/// Copies 16 bytes a unit.
#[cube(launch_unchecked)]
fn copy(from: &[Vector<u32, Const<4>>], to: &mut [Vector<u32, Const<4>>], total: usize) {
    if ABSOLUTE_POS < total {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}

struct Bench {
    device: Device,
    /// What the names of the operations that are timed contain.
    op: String,
    /// How many rows those have; if not given, any number.
    rows: Option<String>,
    csv: String,
}

impl Bench {
    /// Times one launch for each of `sets`, which reads and writes so many `bytes`.
    fn row<T>(&mut self, op: &str, shape: [usize; 2], bytes: usize, sets: &[T], launch: impl Fn(&T)) {
        if !op.contains(&self.op) || self.rows.as_ref().is_some_and(|rows| *rows != shape[0].to_string()) {
            return;
        }
        launch(&sets[0]);
        self.device.wait();
        let ms = self.device.replayed(&|| sets.iter().for_each(&launch)) / sets.len() as f64;
        let [rows, width] = shape;
        let line = format!("{op},burn-flashinfer,{rows},{width},{ms:.5},{:.1}", bytes as f64 / ms / 1e6);
        println!("{line}");
        self.csv += &(line + "\n");
    }

    fn copy(&mut self, shape: [usize; 2]) {
        let bytes = shape[0] * shape[1] * 2;
        let sets = self.sets(2 * bytes, |d, seed| [seed, seed + 1].map(|seed| d.random(BF16, &shape, seed)));
        let client = self.device.client.clone();
        self.row("copy", shape, 2 * bytes, &sets, |[from, to]| {
            let (total, units) = (bytes / 16, 256);
            // SAFETY: units stop at the vectors that both buffers have.
            unsafe {
                copy::launch_unchecked(
                    &client,
                    CubeCount::Static(total.div_ceil(units) as u32, 1, 1),
                    CubeDim::new_1d(units as u32),
                    from.clone().into_buffer_arg(),
                    to.clone().into_buffer_arg(),
                    total,
                );
            }
        });
    }

    /// Sets of inputs, of `bytes` each.
    fn sets<T>(&self, bytes: usize, make: impl Fn(&Device, u32) -> T) -> Vec<T> {
        let count = (4e8 / bytes as f64).ceil().clamp(2.0, 64.0) as u32;
        (0..count).map(|seed| make(&self.device, 10 * seed + 1)).collect()
    }

    /// `count` times `value`, in f32.
    fn filled(&self, count: usize, value: f32) -> TensorBinding {
        tensor(self.device.client.create_from_slice(&value.to_le_bytes().repeat(count)), &[count])
    }

    fn norms(&mut self, shape: [usize; 2]) {
        let [rows, width] = shape;
        let (bytes, dtype) = (rows * width * 2, ElemType::Float(BF16));
        let client = self.device.client.clone();
        let three = |d: &Device, seed| {
            (
                [seed, seed + 1, seed + 2].map(|seed| d.random(BF16, &shape, seed)),
                d.random(BF16, &[width], seed),
            )
        };
        let sets = self.sets(2 * bytes, three);
        self.row("rms_norm", shape, 2 * bytes, &sets, |([x, y, _], weight)| {
            let (x, y, scaling) = (x.clone(), Some(y.clone()), Scaling::Rms(weight.clone()));
            norm(&client, Norm { x, add: None, scaling, y, quantized: None, epsilon: 1e-5 }, dtype, dtype)
                .expect("launches");
        });
        self.row("fused_add_rms_norm", shape, 4 * bytes, &sets, |([x, y, _], weight)| {
            let (x, scaling) = (x.clone(), Scaling::Rms(weight.clone()));
            let add = Some(Add { residual: y.clone(), sum: None });
            norm(&client, Norm { x, add, scaling, y: None, quantized: None, epsilon: 1e-5 }, dtype, dtype)
                .expect("launches");
        });
        self.row("layer_norm", shape, 2 * bytes, &sets, |([x, y, _], weight)| {
            let scaling = Scaling::Layer { gamma: weight.clone(), beta: weight.clone() };
            let (x, y) = (x.clone(), Some(y.clone()));
            norm(&client, Norm { x, add: None, scaling, y, quantized: None, epsilon: 1e-5 }, dtype, dtype)
                .expect("launches");
        });
    }

    /// Norms and products in 8 bits: half as many bytes are written.
    fn quantized(&mut self, shape: [usize; 2]) {
        let [rows, width] = shape;
        let (elements, dtype) = (rows * width, ElemType::Float(BF16));
        let client = self.device.client.clone();
        let scale = self.filled(1, 0.05);
        let e4m3 = || Some(Quantized { format: Fp8::E4m3, scale: scale.clone() });
        let sets = self.sets(3 * elements, |d, seed| {
            let codes = d.ints(vec![0; elements.div_ceil(4)]);
            let codes = TensorBinding { shape: shape.into(), strides: [width, 1].into(), ..codes };
            (d.random(BF16, &shape, seed), d.random(BF16, &[width], seed), codes)
        });
        self.row("rms_norm_quant", shape, 3 * elements, &sets, |(x, weight, codes)| {
            let (x, y, scaling) = (x.clone(), Some(codes.clone()), Scaling::Rms(weight.clone()));
            let norm_quant = Norm { x, add: None, scaling, y, quantized: e4m3(), epsilon: 1e-5 };
            norm(&client, norm_quant, dtype, dtype).expect("launches");
        });
        let sets = self.sets(5 * elements, |d, seed| {
            let codes = d.ints(vec![0; elements.div_ceil(4)]);
            let codes = TensorBinding { shape: shape.into(), strides: [width, 1].into(), ..codes };
            (d.random(BF16, &[rows, 2 * width], seed), codes)
        });
        self.row("silu_and_mul_quant", shape, 5 * elements, &sets, |(x, codes)| {
            let (x, y) = (x.clone(), codes.clone());
            let act = ActAndMul { x, y, quantized: e4m3(), activation: Activation::Silu };
            act_and_mul(&client, act, dtype).expect("launches");
        });
    }

    /// RoPE and cache writes of heads of 128 elements.
    fn heads(&mut self, tokens: usize, [q_heads, kv_heads]: [usize; 2]) {
        let (dim, page) = (128, 16);
        let (q_bytes, kv_bytes) = (tokens * q_heads * dim * 2, tokens * kv_heads * dim * 2);
        let (shape, dtype) = ([tokens, (q_heads + 2 * kv_heads) * dim], ElemType::Float(BF16));
        let client = self.device.client.clone();
        let count = || self.device.ints((0..tokens as i32).collect());
        let cos_sin = self.device.random(F32, &[tokens, dim], 2);
        let (positions, slots, scale) = (count(), count(), self.filled(1, 0.05));
        let pool = [tokens.div_ceil(page), page, kv_heads, dim];
        let sets = self.sets(2 * (q_bytes + 2 * kv_bytes), |d, seed| {
            let codes = || {
                let codes = d.ints(vec![0; pool.iter().product::<usize>() / 4]);
                let strides = [page * kv_heads * dim, kv_heads * dim, dim, 1];
                TensorBinding { shape: pool.into(), strides: strides.into(), ..codes }
            };
            let new = |heads, seed| d.random(BF16, &[tokens, heads, dim], seed);
            (
                [new(q_heads, seed), new(q_heads, seed + 1)],
                [new(kv_heads, seed + 2), new(kv_heads, seed + 3)],
                [d.random(BF16, &pool, seed + 4), d.random(BF16, &pool, seed + 5)],
                [codes(), codes()],
            )
        });
        let head_norm = self.device.random(BF16, &[dim], 3);
        let bench = |q: &[TensorBinding; 2], k: &TensorBinding, norm: bool, to: To| {
            let norm = norm.then(|| HeadNorm {
                q_weight: head_norm.clone(),
                k_weight: head_norm.clone(),
                epsilon: 1e-6,
            });
            let rope = Rope {
                q: q[0].clone(),
                k: k.clone(),
                cos_sin: cos_sin.clone(),
                positions: positions.clone(),
                style: Style::Halves,
                norm,
                q_out: Some(q[1].clone()),
                q_quantized: None,
                to,
            };
            // SAFETY: positions and slots are below the tokens, for which table and pages have room.
            unsafe { apply_rope(&client, rope, dtype) }.expect("launches");
        };
        let pools = |[k, v]: &[TensorBinding; 2], quantized: bool| Pools {
            k: k.clone(),
            v: v.clone(),
            layout: KvLayout::Nhd,
            quantized: quantized.then(|| KvQuantized {
                format: Fp8::E4m3.into(),
                k_scale: scale.clone(),
                v_scale: scale.clone(),
            }),
        };
        self.row("rope", shape, 2 * (q_bytes + kv_bytes), &sets, |(q, [k, v], ..)| {
            bench(q, k, false, To::Tensor(v.clone(), None));
        });
        self.row("rope in place", shape, 2 * (q_bytes + kv_bytes), &sets, |(q, [k, _], ..)| {
            let rope = Rope {
                q: q[0].clone(),
                k: k.clone(),
                cos_sin: cos_sin.clone(),
                positions: positions.clone(),
                style: Style::Halves,
                norm: None,
                q_out: None,
                q_quantized: None,
                to: To::InPlace,
            };
            // SAFETY: positions and slots are below the tokens, for which table and pages have room.
            unsafe { apply_rope(&client, rope, dtype) }.expect("launches");
        });
        self.row("append", shape, 4 * kv_bytes, &sets, |(_, [k, v], paged, _)| {
            let tokens =
                Tokens { pools: pools(paged, false), k: k.clone(), v: v.clone(), slots: slots.clone() };
            // SAFETY: as above.
            unsafe { append(&client, tokens, dtype) }.expect("launches");
        });
        for (op, norm, fp8, written) in [
            ("rope_append", false, false, 2 * kv_bytes),
            ("qk_rms_norm_rope_append", true, false, 2 * kv_bytes),
            ("rope_append fp8", false, true, kv_bytes),
        ] {
            let bytes = 2 * q_bytes + 2 * kv_bytes + written;
            self.row(op, shape, bytes, &sets, |(q, [k, v], paged, codes)| {
                let pools = pools(if fp8 { codes } else { paged }, fp8);
                bench(q, k, norm, To::Pages { v: v.clone(), pools, slots: slots.clone() });
            });
        }
    }

    fn activations(&mut self, shape: [usize; 2]) {
        let [rows, width] = shape;
        let (bytes, dtype) = (rows * width * 2, ElemType::Float(BF16));
        let client = self.device.client.clone();
        let sets = self.sets(3 * bytes, |d, seed| {
            (d.random(BF16, &[rows, 2 * width], seed), d.random(BF16, &shape, seed + 1))
        });
        for (op, activation) in [("silu_and_mul", Activation::Silu), ("gelu_and_mul", Activation::Gelu)] {
            self.row(op, shape, 3 * bytes, &sets, |(x, y)| {
                let act = ActAndMul { x: x.clone(), y: y.clone(), quantized: None, activation };
                act_and_mul(&client, act, dtype).expect("launches");
            });
        }
    }

    /// Of Gaussian logits: divided by a temperature of 1, where thousands of tokens are likely, and of 1/4, where few are.
    fn sampling(&mut self, shape: [usize; 2]) {
        let [rows, vocab] = shape;
        let (bytes, dtype) = (rows * vocab * 4, ElemType::Float(F32));
        let client = self.device.client.clone();
        let [top_p, min_p] = [0.9, 0.1].map(|value| self.filled(rows, value));
        let top_k = self.device.ints(vec![40; rows]);
        let words = (0..rows as i32).flat_map(|row| [7, 0, row, 3, 0, row]).collect();
        let mut draws = self.device.ints(words);
        draws.shape = [rows, DRAW_WORDS].to_vec().into();
        draws.strides = [DRAW_WORDS, 1].to_vec().into();
        let outcome = [0, 1].map(|_| self.device.ints(vec![0; rows]));
        let sets = self.sets(bytes, |d, seed| [0, 1, 2].map(|i| d.random(F32, &shape, seed + i)));
        for k in [40, 2048] {
            let values = self.device.random(F32, &[rows, k], 1);
            let mut ids = self.device.ints(vec![0; rows * k]);
            (ids.shape, ids.strides) = (values.shape.clone(), values.strides.clone());
            self.row(&format!("top_k {k}"), shape, bytes, &sets, |[x, ..]| {
                let (x, values, ids) = (x.clone(), values.clone(), ids.clone());
                sampling::top_k(&client, TopK { x, values, ids }, dtype).expect("launches");
            });
        }
        for (kind, temperature) in [("", 1.0), (" peaked", 0.25)] {
            let temperature = self.filled(rows, temperature);
            let name = |op: &str| format!("{op}{kind}");
            let launch = |[logits, probs, _]: &[TensorBinding; 3]| {
                let (logits, probs) = (logits.clone(), probs.clone());
                let temperature = temperature.clone();
                softmax(&client, Softmax { logits, temperature, probs }, dtype).expect("launches");
            };
            sets.iter().for_each(launch);
            self.row(&name("softmax"), shape, 2 * bytes, &sets, launch);
            self.row(&name("sampling_from_logits"), shape, bytes, &sets, |[logits, ..]| {
                let [samples, valid] = outcome.clone();
                let (logits, draws, temperature) = (logits.clone(), draws.clone(), temperature.clone());
                let sample = SampleLogits { logits, temperature, draws, samples, valid };
                // SAFETY: the draws are from the rows in order.
                unsafe { sample_logits(&client, sample, dtype) }.expect("launches");
            });
            for (op, filters) in [
                ("sampling_from_probs", 0),
                ("top_k_sampling_from_probs", 1),
                ("top_p_sampling_from_probs", 2),
                ("top_k_top_p_sampling_from_probs", 3),
                ("min_p_sampling_from_probs", 4),
            ] {
                self.row(&name(op), shape, bytes, &sets, |[_, probs, _]| {
                    let [samples, valid] = outcome.clone();
                    let of =
                        |bit: usize, filter: &TensorBinding| (filters & bit != 0).then(|| filter.clone());
                    let sample = SampleProbs {
                        probs: probs.clone(),
                        top_k: of(1, &top_k),
                        top_p: of(2, &top_p),
                        min_p: of(4, &min_p),
                        draws: draws.clone(),
                        samples,
                        valid,
                    };
                    // SAFETY: as above.
                    unsafe { sample_probs(&client, sample) }.expect("launches");
                });
            }
            self.likely(kind, &sets, ElemType::Float(F32));
        }
    }

    /// What is done with the likely ones of rows of logits, of probabilities and of results.
    fn likely(&mut self, kind: &str, sets: &[[TensorBinding; 3]], dtype: ElemType) {
        let shape = [sets[0][0].shape[0], sets[0][0].shape[1]];
        let top_k = self.device.ints(vec![40; shape[0]]);
        let top_p = self.filled(shape[0], 0.9);
        let client = self.device.client.clone();
        for (op, by_count, output) in [
            ("top_k_renorm_probs", true, Output::Renormalised),
            ("top_p_renorm_probs", false, Output::Renormalised),
            ("top_k_mask_logits", true, Output::Masked),
        ] {
            let bytes = 2 * shape[0] * shape[1] * dtype.size();
            self.row(&format!("{op}{kind}"), shape, bytes, sets, |[logits, probs, y]| {
                let x = if output == Output::Masked { logits } else { probs }.clone();
                let by = if by_count { Limit::TopK(top_k.clone()) } else { Limit::TopP(top_p.clone()) };
                let filtered = Filter { x, by, y: y.clone(), output };
                filter(&client, filtered, dtype).expect("launches");
            });
        }
    }

    /// The same in rows of a few thousand.
    fn short_rows(&mut self, shape: [usize; 2]) {
        let (client, dtype) = (self.device.client.clone(), ElemType::Float(F32));
        let temperature = self.filled(shape[0], 1.0);
        let sets = self.sets(8 * shape[0] * shape[1], |d, seed| {
            let [logits, probs, y] = [0, 1, 2].map(|i| d.random(F32, &shape, seed + i));
            let (x, temperature) = (logits.clone(), temperature.clone());
            let made = Softmax { logits: x, temperature, probs: probs.clone() };
            softmax(&client, made, dtype).expect("launches");
            [logits, probs, y]
        });
        self.likely("", &sets, dtype);
    }

    /// A launch that reads and writes next to nothing.
    fn nothing(&mut self) {
        let client = self.device.client.clone();
        let sets = self.sets(1 << 20, |d, seed| d.random(F32, &[4], seed));
        self.row("nothing", [1, 4], 32, &sets, |x| {
            // SAFETY: one unit copies the vector that the buffer has to itself.
            unsafe {
                copy::launch_unchecked(
                    &client,
                    CubeCount::Static(1, 1, 1),
                    CubeDim::new_1d(1),
                    x.clone().into_buffer_arg(),
                    x.clone().into_buffer_arg(),
                    1,
                );
            }
        });
    }
}

fn main() {
    let header = "op,impl,rows,width,ms,gbps\n";
    let argument =
        |name: &str| std::env::args().find_map(|given| given.strip_prefix(name).map(str::to_owned));
    let op = argument("op=").unwrap_or_default();
    let mut bench = Bench { device: Device::open(), op, rows: argument("rows="), csv: header.into() };
    bench.nothing();
    for shape in [[8192, 8192], [64, 8192]] {
        bench.copy(shape);
        bench.short_rows(shape);
        bench.norms(shape);
        bench.activations(shape);
        bench.quantized(shape);
    }
    // The first is as much as 8192 x 8192: queries, or keys and values.
    for (tokens, heads) in [(8192, [64, 32]), (8192, [32, 8]), (64, [32, 8])] {
        bench.heads(tokens, heads);
    }
    for shape in [[128, 128_256], [8, 128_256], [1, 128_256]] {
        bench.copy([shape[0], 2 * shape[1]]);
        bench.sampling(shape);
    }
    if let Some(file) = argument("csv=") {
        std::fs::write(file, &bench.csv).expect("the file can be written");
    }
}
