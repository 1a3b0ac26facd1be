//! Attention on a GPU, timed on the device: CSV rows of the columns that other libraries' rows have.
//!
//!     cargo bench -p burn-flashinfer-kernels --features cuda --bench attention -- PART.. [quick] [csv=FILE]
//!
//! Parts: first, prefill, decode, cascade, plain, and sweep; without any, all but sweep.
//!
//! Every row is the median of at least ten passes over several sets of random inputs, which together are larger than the
//! caches, as a replayed graph of launches: what the device needs, without the gaps that the host leaves. The first call
//! of every kernel is timed too: that is compilation.

#[path = "device.rs"]
mod device;

use std::fmt::Write as _;
use std::time::Instant;

use burn_flashinfer_kernels::append::{Append, launch as append_paged_kv};
use burn_flashinfer_kernels::attention::{
    Alignment, Attention, Batch, Blueprint, Choice, HeadDims, Portable, Problem, Tiled, Unit, launch,
};
use burn_flashinfer_kernels::merge::{Merge, State, States, launch as merge_state};
use burn_flashinfer_kernels::norm::{Norm, Scaling, launch as norm};
use burn_flashinfer_kernels::rope::{Rope, Style, launch as apply_rope};
use burn_flashinfer_kernels::{DeviceProfile, KvLayout};
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use device::Device;

const PAGE: usize = 16;

struct Bench {
    device: Device,
    csv: String,
}

/// The shape of a row.
#[derive(Clone)]
struct Shape {
    op: &'static str,
    dtype: (&'static str, FloatKind),
    lengths: Vec<(usize, usize)>,
    q_heads: usize,
    kv_heads: usize,
    dim: usize,
    causal: bool,
    paged: bool,
    choice: Choice,
}

#[derive(Clone)]
struct Inputs {
    q: TensorBinding,
    k: TensorBinding,
    v: TensorBinding,
    output: TensorBinding,
    /// Row pointers of queries and keys, if there are several requests or pages.
    indptr: Option<[TensorBinding; 2]>,
    /// Page indices and lengths of the last pages.
    pages: Option<[TensorBinding; 2]>,
}

impl Bench {
    fn inputs(&self, s: &Shape, seed: u32) -> Inputs {
        let (tokens, keys) = (total(&s.lengths, |l| l.0), total(&s.lengths, |l| l.1));
        let indptr = |of: fn(&(usize, usize)) -> usize, unit: usize| {
            let mut at = 0;
            let ends = s.lengths.iter().map(|l| {
                at += of(l).div_ceil(unit) as i32;
                at
            });
            self.device.ints(std::iter::once(0).chain(ends).collect())
        };
        let kv = if s.paged {
            vec![total(&s.lengths, |l| l.1.div_ceil(PAGE)), PAGE, s.kv_heads, s.dim]
        } else {
            vec![keys, s.kv_heads, s.dim]
        };
        let indices = s.paged.then(|| {
            // Shuffled pages.
            let mut pages: Vec<i32> = (0..kv[0] as i32).collect();
            let mut x = u64::from(seed) * 2 + 1;
            for i in (1..pages.len()).rev() {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                pages.swap(i, (x >> 33) as usize % (i + 1));
            }
            let last = s.lengths.iter().map(|l| ((l.1 - 1) % PAGE + 1) as i32).collect();
            [self.device.ints(pages), self.device.ints(last)]
        });
        let batched = s.paged || s.lengths.len() > 1;
        Inputs {
            q: self.device.random(s.dtype.1, &[tokens, s.q_heads, s.dim], 3 * seed),
            k: self.device.random(s.dtype.1, &kv, 3 * seed + 1),
            v: self.device.random(s.dtype.1, &kv, 3 * seed + 2),
            output: self.device.random(s.dtype.1, &[tokens, s.q_heads, s.dim], 0),
            indptr: batched.then(|| [indptr(|l| l.0, 1), indptr(|l| l.1, if s.paged { PAGE } else { 1 })]),
            pages: indices,
        }
    }

    fn run(&self, s: &Shape, inputs: &Inputs) {
        self.attend(s, inputs, None);
    }

    fn attend(&self, s: &Shape, inputs: &Inputs, lse: Option<TensorBinding>) {
        let max_qo_len = s.lengths.iter().map(|l| l.0).max().unwrap_or(0);
        let batch = match (inputs.indptr.clone(), inputs.pages.clone()) {
            (None, _) => Batch::Single,
            (Some([qo_indptr, kv_indptr]), None) => Batch::Ragged { qo_indptr, kv_indptr, max_qo_len },
            (Some([qo_indptr, kv_indptr]), Some([indices, last_page_len])) => Batch::Paged {
                qo_indptr,
                kv_indptr,
                indices,
                last_page_len,
                max_qo_len,
                layout: KvLayout::Nhd,
            },
        };
        let problem = Attention {
            q: inputs.q.clone(),
            k: inputs.k.clone(),
            v: inputs.v.clone(),
            output: inputs.output.clone(),
            lse,
            batch,
            causal: s.causal,
            window_left: None,
            soft_cap: None,
            scale: (s.dim as f32).powf(-0.5),
        };
        launch(&self.device.client, problem, ElemType::Float(s.dtype.1), s.choice).expect("launches");
    }

    fn row(&mut self, s: &Shape) {
        let elements = |l: &(usize, usize)| 2 * (l.0 * s.q_heads + l.1 * s.kv_heads) * s.dim;
        let bytes =
            ElemType::Float(s.dtype.1).size() as f64 * s.lengths.iter().map(elements).sum::<usize>() as f64;
        let pairs = |l: &(usize, usize)| {
            // As is usual, causal attention counts half a square, and what lies before it.
            (l.0 * l.1) as f64 - if s.causal && l.0 > 1 { (l.0 * l.0) as f64 / 2.0 } else { 0.0 }
        };
        let flops = 4.0 * s.lengths.iter().map(pairs).sum::<f64>() * (s.q_heads * s.dim) as f64;
        let sets = (4e8 / bytes).ceil().clamp(2.0, 24.0) as u32;
        let inputs: Vec<_> = (0..sets).map(|seed| self.inputs(s, seed + 1)).collect();
        self.device.wait();
        let first = Instant::now();
        self.run(s, &inputs[0]);
        self.device.wait();
        let first = first.elapsed();

        let ms =
            self.device.replayed(&|| inputs.iter().for_each(|inputs| self.run(s, inputs))) / f64::from(sets);
        let (q, kv) = s.lengths[s.lengths.len() - 1];
        let heads = format!("{}/{} heads d {}", s.q_heads, s.kv_heads, s.dim);
        let line = format!(
            "{},burn-flashinfer,{},{},{q},{kv},{ms:.5},{:.2},{:.1},,{heads}{} first {:.2} s; {}",
            s.op,
            s.dtype.0,
            s.lengths.len(),
            flops / ms / 1e9,
            bytes / ms / 1e6,
            if s.causal { " causal" } else { " full" },
            first.as_secs_f64(),
            self.explain(s).replace(',', ";"),
        );
        println!("{line}");
        self.csv += &(line + "\n");
    }

    /// How long each of our kernels of a Llama step takes to run for the first time, which is its compilation.
    fn llama_step(&mut self, base: &Shape) {
        let (tokens, width, dtype) = (512, base.q_heads * base.dim, ElemType::Float(base.dtype.1));
        let random = |shape: &[usize]| self.device.random(base.dtype.1, shape, 1);
        let count = |n: usize| self.device.ints((0..n as i32).collect());
        let heads = |heads| random(&[tokens, heads, base.dim]);
        let (q, k, pool) =
            (heads(base.q_heads), heads(base.kv_heads), [tokens / PAGE, PAGE, base.kv_heads, base.dim]);
        let rms = Norm {
            x: random(&[tokens, width]),
            add: None,
            scaling: Scaling::Rms(random(&[width])),
            y: Some(random(&[tokens, width])),
            epsilon: 1e-5,
        };
        let rope = Rope {
            q: q.clone(),
            k: k.clone(),
            cos_sin: self.device.random(FloatKind::F32, &[tokens, base.dim], 2),
            positions: count(tokens),
            q_out: heads(base.q_heads),
            k_out: heads(base.kv_heads),
            style: Style::Halves,
        };
        let append = Append {
            k_pool: random(&pool),
            v_pool: random(&pool),
            k: k.clone(),
            v: k,
            slots: count(tokens),
            layout: KvLayout::Nhd,
        };
        let paged = Shape { paged: true, ..base.clone() };
        let prefill = Shape { lengths: vec![(tokens, tokens)], ..paged.clone() };
        let decode = Shape { lengths: vec![(1, 16384)], causal: false, ..paged };
        let [prompt, step] = [&prefill, &decode].map(|shape| self.inputs(shape, 1));
        let client = &self.device.client;
        type Call<'a> = Box<dyn FnOnce() + 'a>;
        let calls: [(&str, Call); 5] = [
            ("rms_norm", Box::new(|| norm(client, rms, dtype, dtype).expect("launches"))),
            ("rope", Box::new(|| apply_rope(client, rope, dtype).expect("launches"))),
            ("append", Box::new(|| append_paged_kv(client, append, dtype).expect("launches"))),
            ("prefill", Box::new(|| self.run(&prefill, &prompt))),
            ("decode", Box::new(|| self.run(&decode, &step))),
        ];
        let mut all = 0.0;
        let mut parts = String::new();
        self.device.wait();
        for (name, call) in calls {
            let begin = Instant::now();
            call();
            self.device.wait();
            let seconds = begin.elapsed().as_secs_f64();
            all += seconds;
            let _ = write!(parts, "; {name} {seconds:.2} s");
        }
        let line = format!(
            "llama-step-first-call,burn-flashinfer,{},1,,,{:.0},,,,{}",
            base.dtype.0,
            all * 1e3,
            &parts[2..]
        );
        println!("{line}");
        self.csv += &(line + "\n");
    }

    /// Decoding of requests that share a prefix: as if they did not, and as a cascade of two levels.
    fn cascade(&mut self, base: &Shape, requests: usize, prefix: usize, own: usize, choice: Choice) {
        let decode = Shape { op: "decode", causal: false, paged: true, ..base.clone() };
        let whole = Shape { lengths: vec![(1, prefix + own); requests], ..decode.clone() };
        let levels = [
            Shape { lengths: vec![(requests, prefix)], choice, ..decode.clone() },
            Shape { lengths: vec![(1, own); requests], ..decode },
        ];
        let dtype = ElemType::Float(base.dtype.1);
        let rows = [requests, base.q_heads, base.dim];
        let sets: Vec<_> = (1..3)
            .map(|seed| {
                let lse = || self.device.random(FloatKind::F32, &rows[..2], seed);
                let inputs = levels.each_ref().map(|level| self.inputs(level, seed));
                (inputs, [lse(), lse(), lse()], self.device.random(base.dtype.1, &rows, seed))
            })
            .collect();
        let step = |bench: &Self| {
            for ([shared, own], [s_a, s_b, s], v) in &sets {
                // One batch of queries.
                let own = Inputs { q: shared.q.clone(), ..own.clone() };
                bench.attend(&levels[0], shared, Some(s_a.clone()));
                bench.attend(&levels[1], &own, Some(s_b.clone()));
                let merge = Merge {
                    states: States::Two {
                        a: State { v: shared.output.clone(), s: s_a.clone() },
                        b: State { v: own.output.clone(), s: s_b.clone() },
                        mask: None,
                    },
                    v: Some(v.clone()),
                    s: Some(s.clone()),
                };
                merge_state(&bench.device.client, merge, dtype).expect("launches");
            }
        };
        let ms = self.device.replayed(&|| step(self)) / sets.len() as f64;
        let note = levels.each_ref().map(|level| self.explain(level).replace(',', ";")).join(" | ");
        let heads = format!("{}/{} heads d {}", base.q_heads, base.kv_heads, base.dim);
        let line = format!(
            "decode-cascade,burn-flashinfer,{},{requests},1,{},{ms:.5},,,,{heads}; {prefix} shared; {note}",
            base.dtype.0,
            prefix + own,
        );
        println!("{line}");
        self.csv += &(line + "\n");
        if choice == Choice::Auto {
            self.row(&whole);
        }
    }

    fn explain(&self, s: &Shape) -> String {
        let device = DeviceProfile::of(&self.device.client);
        let problem = Problem {
            dims: HeadDims { qk: s.dim, vo: s.dim },
            dtype: ElemType::Float(s.dtype.1),
            q_heads: s.q_heads,
            kv_heads: s.kv_heads,
            tokens: total(&s.lengths, |l| l.0),
            max_qo_len: s.lengths.iter().map(|l| l.0).max().unwrap_or(0),
            requests: s.lengths.len(),
            keys: total(&s.lengths, |l| l.1),
            scale: 1.0,
            align: Alignment { qk: 64, vo: 64 },
        };
        let blueprint = match s.choice {
            Choice::Auto => Blueprint::auto(&device, &problem),
            Choice::Exactly(blueprint) => blueprint,
        };
        blueprint.explain(&device, &problem)
    }
}

fn total(lengths: &[(usize, usize)], of: fn(&(usize, usize)) -> usize) -> usize {
    lengths.iter().map(of).sum()
}

const F32: (&str, FloatKind) = ("fp32", FloatKind::F32);
const F16: (&str, FloatKind) = ("fp16", FloatKind::F16);
const BF16: (&str, FloatKind) = ("bf16", FloatKind::BF16);

/// Other blueprints than those chosen, where choices are close.
fn sweep(bench: &mut Bench, base: &Shape) {
    let unit = Unit::MmaSync;
    let tiled = |row_tiles, row_planes, keys, key_planes, stages, resident| Tiled {
        unit,
        row_tiles,
        row_planes,
        keys,
        key_planes,
        stages,
        resident,
        chunk: None,
    };
    let many = [
        tiled(2, 4, 64, 1, 2, false),
        tiled(2, 4, 32, 1, 2, false),
        tiled(1, 4, 64, 1, 2, true),
        tiled(1, 4, 64, 1, 3, true),
        tiled(1, 8, 64, 1, 2, true),
        tiled(1, 4, 32, 1, 2, true),
        tiled(1, 4, 64, 1, 2, false),
    ];
    for n in [1024, 2048, 4096, 8192] {
        for blueprint in many {
            let choice = Choice::Exactly(Blueprint::Tiled(blueprint));
            bench.row(&Shape { lengths: vec![(n, n)], choice, ..base.clone() });
        }
    }
    for (blueprint, chunks) in [(many[0], [4096, 2048, 1024]), (many[2], [8192, 4096, 2048])] {
        for chunk in chunks {
            let choice = Choice::Exactly(Blueprint::Tiled(Tiled { chunk: Some(chunk), ..blueprint }));
            bench.cascade(base, 64, 32768, 256, choice);
        }
    }
    let few = [tiled(1, 1, 16, 4, 3, true), tiled(1, 1, 16, 4, 4, true)];
    for (batch, keys) in [(64, 4096), (128, 16384)] {
        for blueprint in few {
            let choice = Choice::Exactly(Blueprint::Tiled(blueprint));
            let lengths = vec![(1, keys); batch];
            bench.row(&Shape { op: "decode", causal: false, paged: true, lengths, choice, ..base.clone() });
        }
    }
    let chunked = |chunk| Tiled { chunk: Some(chunk), ..few[0] };
    for (batch, keys, chunks) in [(1, 16384, [896, 1024, 1152]), (16, 1024, [512, 1024, 2048])] {
        for chunk in chunks {
            let choice = Choice::Exactly(Blueprint::Tiled(chunked(chunk)));
            let lengths = vec![(1, keys); batch];
            bench.row(&Shape { op: "decode", causal: false, paged: true, lengths, choice, ..base.clone() });
        }
    }
}

/// The same without matrix cores.
fn plain_sweep(bench: &mut Bench, base: &Shape) {
    let tiled = |row_tiles, row_planes, keys, key_planes| {
        let (unit, stages, resident, chunk) = (Unit::Scalar32, 1, false, None);
        Choice::Exactly(Blueprint::Tiled(Tiled {
            unit,
            row_tiles,
            row_planes,
            keys,
            key_planes,
            stages,
            resident,
            chunk,
        }))
    };
    for choice in
        [tiled(4, 4, 16, 1), tiled(2, 4, 32, 1), tiled(2, 4, 16, 1), tiled(4, 8, 16, 1), tiled(4, 2, 16, 1)]
    {
        bench.row(&Shape { lengths: vec![(4096, 4096)], choice, ..base.clone() });
    }
    for choice in [tiled(1, 1, 16, 4), tiled(1, 1, 16, 2), tiled(1, 1, 16, 8)] {
        let shape = Shape { op: "decode", causal: false, paged: true, choice, ..base.clone() };
        bench.row(&Shape { lengths: vec![(1, 4096); 64], ..shape });
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let every = !["first", "prefill", "decode", "cascade", "plain", "sweep"].into_iter().any(has);
    let quick = has("quick");
    let header = "op,impl,dtype,batch,q_len,kv_len,ms,tflops,gbps,max_err,note\n";
    let mut bench = Bench { device: Device::open(), csv: header.into() };
    let base = Shape {
        op: "prefill",
        dtype: BF16,
        lengths: vec![],
        q_heads: 32,
        kv_heads: 8,
        dim: 128,
        causal: true,
        paged: false,
        choice: Choice::Auto,
    };
    if every || has("first") {
        bench.llama_step(&base);
    }
    if every || has("prefill") {
        let lengths: &[usize] =
            if quick { &[1024, 2048, 4096, 8192] } else { &[1024, 2048, 4096, 8192, 16384, 32768] };
        for dtype in if quick { vec![BF16] } else { vec![BF16, F16] } {
            for &n in lengths {
                bench.row(&Shape { dtype, lengths: vec![(n, n)], ..base.clone() });
            }
        }
        for n in [8192, 16384] {
            bench.row(&Shape { lengths: vec![(n, n)], causal: false, ..base.clone() });
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
    if every || has("cascade") {
        for (requests, prefix, own) in [(64, 32768, 256), (16, 8192, 1024)] {
            bench.cascade(&base, requests, prefix, own, Choice::Auto);
        }
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
    if has("sweep") {
        plain_sweep(&mut bench, &Shape { dtype: F32, ..base.clone() });
        sweep(&mut bench, &base);
    }
    if let Some(file) = arguments.iter().find_map(|argument| argument.strip_prefix("csv=")) {
        std::fs::write(file, &bench.csv).expect("the file can be written");
    }
}
