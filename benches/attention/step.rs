//! What a step of a model launches, and batches that can be launched in more than one way.

use std::fmt::Write as _;
use std::time::Instant;

use burn_flashinfer_kernels::KvLayout;
use burn_flashinfer_kernels::attention::{Choice, Split};
use burn_flashinfer_kernels::merge::{Merge, State, States, launch as merge_state};
use burn_flashinfer_kernels::norm::{Norm, Scaling, launch as norm};
use burn_flashinfer_kernels::pages::Pools;
use burn_flashinfer_kernels::rope::{Rope, Style, To, launch as rope_append_paged_kv};
use cubecl::ir::{ElemType, FloatKind};

use crate::case::{Bench, Inputs, PAGE, Shape};

impl Bench {
    /// How long each of our kernels of a Llama step takes to run for the first time, which is its compilation.
    pub fn llama_step(&mut self, base: &Shape) {
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
            quantized: None,
            epsilon: 1e-5,
        };
        let rope = Rope {
            q: q.clone(),
            k: k.clone(),
            cos_sin: self.device.random(FloatKind::F32, &[tokens, base.dim], 2),
            positions: count(tokens),
            style: Style::Halves,
            norm: None,
            q_out: Some(heads(base.q_heads)),
            q_quantized: None,
            to: To::Pages {
                v: k,
                pools: Pools { k: random(&pool), v: random(&pool), layout: KvLayout::Nhd, quantized: None },
                slots: count(tokens),
            },
        };
        let paged = Shape { paged: true, ..base.clone() };
        let prefill = Shape { lengths: vec![(tokens, tokens)], ..paged.clone() };
        let decode = Shape { lengths: vec![(1, 16384)], causal: false, ..paged };
        let [prompt, step] = [&prefill, &decode].map(|shape| self.inputs(shape, 1));
        let client = &self.device.client;
        type Call<'a> = Box<dyn FnOnce() + 'a>;
        // SAFETY: positions and slots are below the tokens, for which table and pages have room.
        let rope = || unsafe { rope_append_paged_kv(client, rope, dtype) }.expect("launches");
        let calls: [(&str, Call); 4] = [
            ("rms_norm", Box::new(|| norm(client, rms, dtype, dtype).expect("launches"))),
            ("rope and append", Box::new(rope)),
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
        self.say(line);
    }

    /// Decoding of requests that share a prefix: as if they did not, and as a cascade of two levels.
    pub fn cascade(
        &mut self,
        base: &Shape,
        requests: usize,
        prefix: usize,
        own: usize,
        choice: Choice,
        split: Split,
    ) {
        let decode = Shape { op: "decode", causal: false, paged: true, ..base.clone() };
        let whole = Shape { lengths: vec![(1, prefix + own); requests], ..decode.clone() };
        let levels = [
            Shape { lengths: vec![(requests, prefix)], choice, split, ..decode.clone() },
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
                // SAFETY: there is no row pointer.
                unsafe { merge_state(&bench.device.client, merge, dtype) }.expect("launches");
            }
        };
        let ms = self.device.replayed(&|| step(self)) / sets.len() as f64;
        let note = levels.each_ref().map(|level| self.plan(level).to_string().replace(',', ";")).join(" | ");
        let heads = format!("{}/{} heads d {}", base.q_heads, base.kv_heads, base.dim);
        let line = format!(
            "decode-cascade,burn-flashinfer,{},{requests},1,{},{ms:.5},,,,{heads}; {prefix} shared; {note}",
            base.dtype.0,
            prefix + own,
        );
        self.say(line);
        if split == Split::Auto {
            self.row(&whole);
        }
    }

    /// Prefill and decode together: in one launch, one after the other, and all as if it were prefill.
    pub fn mixed(&mut self, base: &Shape, prefill: &[(usize, usize)], decode: &[(usize, usize)]) {
        let paged = Shape { paged: true, ..base.clone() };
        let both = Shape { op: "mixed", lengths: [prefill, decode].concat(), ..paged.clone() };
        let alone = [prefill, decode].map(|lengths| Shape { lengths: lengths.to_vec(), ..paged.clone() });
        let sets: Vec<_> = (1..3)
            .map(|seed| (self.inputs(&both, seed), alone.each_ref().map(|shape| self.inputs(shape, seed))))
            .collect();
        let per_set = |ms: f64| ms / sets.len() as f64;
        let together =
            per_set(self.device.replayed(&|| sets.iter().for_each(|(inputs, _)| self.run(&both, inputs))));
        let one_by_one = per_set(self.device.replayed(&|| {
            for (_, inputs) in &sets {
                alone.iter().zip(inputs).for_each(|(shape, inputs)| self.run(shape, inputs));
            }
        }));
        let each = [0, 1].map(|part| {
            let run = || sets.iter().for_each(|(_, inputs)| self.run(&alone[part], &inputs[part]));
            per_set(self.device.replayed(&run))
        });
        let note = self.plan(&both).to_string().replace(',', ";");
        let [(q, _), (_, kv)] = [prefill[0], decode[0]];
        self.say(format!(
            "mixed,burn-flashinfer,{},{},{q},{kv},{together:.5},,,,one after the other {one_by_one:.5} ms (prefill {:.5}; \
             decode {:.5}); {note}",
            base.dtype.0,
            prefill.len() + decode.len(),
            each[0],
            each[1],
        ));
    }

    /// What a plan costs the host.
    pub fn planning(&mut self, base: &Shape, requests: usize) {
        let decode =
            Shape { op: "plan", causal: false, paged: true, lengths: zipf(requests), ..base.clone() };
        let prefill =
            Shape { lengths: zipf(requests).iter().map(|l| (l.1 / 8, l.1)).collect(), ..decode.clone() };
        for (name, shape) in [("decode", decode), ("append", prefill)] {
            let mut times: Vec<f64> = (0..200)
                .map(|_| {
                    let begin = Instant::now();
                    std::hint::black_box(self.plan(&shape));
                    begin.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            times.sort_by(f64::total_cmp);
            self.say(format!(
                "plan-{name},burn-flashinfer,{},{requests},,,{:.5},,,,host; {}",
                base.dtype.0,
                times[times.len() / 2],
                self.plan(&shape).to_string().replace(',', ";")
            ));
        }
    }
}

/// Requests whose lengths follow Zipf's law: 4096 keys on average of 64, the longest 32768.
pub fn zipf(requests: usize) -> Vec<(usize, usize)> {
    let mut lengths: Vec<_> =
        (1..=requests).map(|rank| (1, (32768.0 * (rank as f64).powf(-0.659)) as usize)).collect();
    // In no order.
    for at in 0..requests {
        lengths.swap(at, (at * 7919 + 13) % requests);
    }
    lengths
}
