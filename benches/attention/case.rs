//! A batch on a device, and a row of the table.

use std::time::Instant;

use burn_flashinfer_kernels::attention::{
    Alignment, Attention, Batch, Choice, DevicePlan, HeadDims, Inputs as Tensors, Kernels, KvScales, Mask,
    Plan, Problem, RequestShape, Split, Standard, launch,
};
use burn_flashinfer_kernels::{DeviceProfile, Element, Fp8, KvLayout};
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use crate::cleared::cleared;
use crate::device::Device;
use crate::sigmoid::Sigmoid;

pub const PAGE: usize = 16;

pub struct Bench {
    pub device: Device,
    pub csv: String,
    /// Keys of the last request of the rows wanted, if not all are.
    pub only: Option<usize>,
    /// Whether the caches are cleared before each run.
    pub cleared: bool,
}

/// The shape of a row.
#[derive(Clone)]
pub struct Shape {
    pub op: &'static str,
    pub dtype: (&'static str, FloatKind),
    pub lengths: Vec<(usize, usize)>,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub causal: bool,
    pub sinks: bool,
    pub soft_cap: Option<f32>,
    pub window: Option<usize>,
    /// Slopes of ALiBi.
    pub slopes: bool,
    /// Keys and values of 8 bits.
    pub codes: Option<Fp8>,
    /// The causal variant without softmax, instead of the standard one.
    pub sigmoid: bool,
    pub paged: bool,
    pub choice: Choice,
    pub split: Split,
    pub mask: Option<Visible>,
    /// One pool for all requests, of which each has some pages, instead of pages of its own.
    pub shared: Option<Pool>,
}

/// A pool of keys that requests share.
#[derive(Clone, Copy)]
pub struct Pool {
    pub page_size: usize,
    pub keys: usize,
}

/// The custom mask of a batch.
#[derive(Clone, Copy)]
pub enum Visible {
    /// Each key with a probability of a half.
    Random,
    /// The context, and of the last keys the query's own and about half of those before.
    Tree,
    /// The keys of as many documents one after the other as there are.
    Documents(usize),
}

impl Shape {
    fn variant(&self) -> Standard {
        let Self { causal, soft_cap, window, .. } = *self;
        Standard { causal, soft_cap, window_left: window, ..Standard::new((self.dim as f32).powf(-0.5)) }
    }

    fn element(&self) -> Element {
        self.codes.map_or(Element::Number(ElemType::Float(self.dtype.1)), Element::from)
    }

    fn kernels(&self) -> Box<dyn Kernels> {
        let standard = self.variant();
        // The usual bias: the weights of a row add up to about 1.
        let bias = -(self.lengths[0].1 as f32).ln();
        if self.sigmoid { Box::new(Sigmoid { scale: standard.scale, bias }) } else { Box::new(standard) }
    }

    fn page_size(&self) -> usize {
        self.shared.map_or(PAGE, |pool| pool.page_size)
    }

    /// The pages of a pool, and those of each request one after the other: shuffled.
    fn pages(&self, seed: u32) -> (usize, Vec<i32>) {
        let mut x = u64::from(seed) * 2 + 1;
        let mut shuffled = |pages: usize| {
            let mut pages: Vec<i32> = (0..pages as i32).collect();
            for i in (1..pages.len()).rev() {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                pages.swap(i, (x >> 33) as usize % (i + 1));
            }
            pages
        };
        let Some(Pool { page_size, keys }) = self.shared else {
            let all = self.lengths.iter().map(|l| l.1.div_ceil(PAGE)).sum();
            return (all, shuffled(all));
        };
        let pool = keys / page_size;
        let chosen = self.lengths.iter().flat_map(|l| {
            let mut chosen = shuffled(pool);
            chosen.truncate(l.1.div_ceil(page_size));
            // In the order of the keys, as a mask has them.
            chosen.sort_unstable();
            chosen
        });
        (pool, chosen.collect())
    }
}

#[derive(Clone)]
pub struct Inputs {
    pub q: TensorBinding,
    pub k: TensorBinding,
    pub v: TensorBinding,
    pub output: TensorBinding,
    /// Row pointers of queries and keys.
    pub indptr: [TensorBinding; 2],
    pub planned: DevicePlan,
    /// Page indices and lengths of the last pages.
    pub pages: Option<[TensorBinding; 2]>,
    pub mask: Option<Mask>,
    /// Sinks and slopes.
    pub biases: Tensors,
    /// The scale of keys and values, if they are codes.
    pub scales: Option<TensorBinding>,
}

impl Bench {
    pub fn inputs(&self, s: &Shape, seed: u32) -> Inputs {
        let (tokens, keys) = (total(&s.lengths, |l| l.0), total(&s.lengths, |l| l.1));
        let indptr = |of: fn(&(usize, usize)) -> usize, unit: usize| {
            let mut at = 0;
            let ends = s.lengths.iter().map(|l| {
                at += of(l).div_ceil(unit) as i32;
                at
            });
            self.device.ints(std::iter::once(0).chain(ends).collect())
        };
        let page_size = s.page_size();
        let (pool, pages) = s.pages(seed);
        let kv =
            if s.paged { vec![pool, page_size, s.kv_heads, s.dim] } else { vec![keys, s.kv_heads, s.dim] };
        let indices = s.paged.then(|| {
            let last = s.lengths.iter().map(|l| ((l.1 - 1) % page_size + 1) as i32).collect();
            [self.device.ints(pages), self.device.ints(last)]
        });
        let planned = self.plan(s).upload(&self.device.client);
        Inputs {
            q: self.device.random(s.dtype.1, &[tokens, s.q_heads, s.dim], 3 * seed),
            k: self.cached(s, &kv, 3 * seed + 1),
            v: self.cached(s, &kv, 3 * seed + 2),
            scales: s.codes.map(|_| self.device.ints(vec![1.0_f32.to_bits() as i32])),
            output: self.device.random(s.dtype.1, &[tokens, s.q_heads, s.dim], 0),
            indptr: [indptr(|l| l.0, 1), indptr(|l| l.1, if s.paged { page_size } else { 1 })],
            mask: s.mask.map(|visible| self.mask(s, visible, &planned)),
            planned,
            pages: indices,
            biases: Tensors {
                sinks: s.sinks.then(|| self.device.random(FloatKind::F32, &[s.q_heads], 1)),
                slopes: s.slopes.then(|| {
                    // Those of as many heads as a power of two has.
                    let slope = |head: usize| (-8.0 * (head + 1) as f32 / s.q_heads as f32).exp2();
                    let bits = (0..s.q_heads).map(|head| slope(head).to_bits() as i32).collect();
                    self.device.ints(bits)
                }),
                ..Tensors::default()
            },
        }
    }

    /// Keys or values: of codes the halves of random numbers of 16 bits, which are codes of any value.
    fn cached(&self, s: &Shape, shape: &[usize], seed: u32) -> TensorBinding {
        match s.codes {
            None => self.device.random(s.dtype.1, shape, seed),
            Some(_) => {
                let (last, others) = shape.split_last().expect("a row");
                let halves = [others, &[last / 2]].concat();
                let mut codes = self.device.random(s.dtype.1, &halves, seed);
                codes.strides.iter_mut().take(shape.len() - 1).for_each(|stride| *stride *= 2);
                codes.shape = shape.to_vec().into();
                codes
            }
        }
    }

    pub fn run(&self, s: &Shape, inputs: &Inputs) {
        self.attend(s, inputs, None);
    }

    pub fn attend(&self, s: &Shape, inputs: &Inputs, lse: Option<TensorBinding>) {
        let ([qo_indptr, kv_indptr], pages) = (inputs.indptr.clone(), inputs.pages.clone());
        let batch = match pages {
            None => Batch::Ragged { qo_indptr, kv_indptr },
            Some([indices, last_page_len]) => {
                Batch::Paged { qo_indptr, kv_indptr, indices, last_page_len, layout: KvLayout::Nhd }
            }
        };
        let problem = Attention {
            q: inputs.q.clone(),
            k: inputs.k.clone(),
            v: inputs.v.clone(),
            output: inputs.output.clone(),
            lse,
            batch,
            scale: s.variant().scale,
            dtype: ElemType::Float(s.dtype.1),
            kv_dtype: s.element(),
            kv_scales: inputs.scales.clone().map(|scale| KvScales { k: scale.clone(), v: scale }),
            inputs: inputs.biases.clone(),
            mask: inputs.mask.clone(),
        };
        // SAFETY: row pointers, pages and plan are made of the lengths that sized the tensors.
        unsafe { launch(&self.device.client, problem, s.kernels().as_ref(), inputs.planned.clone()) }
            .expect("launches");
    }

    /// A row of the table; milliseconds.
    pub fn row(&mut self, s: &Shape) -> f64 {
        if self.only.is_some_and(|keys| s.lengths.last().is_none_or(|last| last.1 != keys)) {
            return f64::NAN;
        }
        let (size, kv_size) = (ElemType::Float(s.dtype.1).size(), s.element().size());
        let bytes_of = |l: &(usize, usize)| 2 * (l.0 * s.q_heads * size + l.1 * s.kv_heads * kv_size) * s.dim;
        let bytes = s.lengths.iter().map(bytes_of).sum::<usize>() as f64;
        let pairs = |l: &(usize, usize)| match s.window {
            // A window of a prompt counts what it leaves.
            Some(window) => (0..l.0).map(|query| (query + 1).min(window + 1)).sum::<usize>() as f64,
            // As is usual, causal attention counts half a square, and what lies before it.
            None => (l.0 * l.1) as f64 - if s.causal && l.0 > 1 { (l.0 * l.0) as f64 / 2.0 } else { 0.0 },
        };
        let flops = 4.0 * s.lengths.iter().map(pairs).sum::<f64>() * (s.q_heads * s.dim) as f64;
        let sets = (4e8 / bytes).ceil().clamp(2.0, 24.0) as u32;
        let inputs: Vec<_> = (0..sets).map(|seed| self.inputs(s, seed + 1)).collect();
        self.device.wait();
        let first = Instant::now();
        self.run(s, &inputs[0]);
        self.device.wait();
        let first = first.elapsed();

        let ms = if self.cleared {
            cleared(&self.device, inputs.len(), &|at| self.run(s, &inputs[at]))
        } else {
            self.device.replayed(&|| inputs.iter().for_each(|inputs| self.run(s, inputs))) / f64::from(sets)
        };
        let (q, kv) = s.lengths[s.lengths.len() - 1];
        let heads = format!("{}/{} heads d {}", s.q_heads, s.kv_heads, s.dim);
        let line = format!(
            "{},burn-flashinfer,{}{},{},{q},{kv},{ms:.5},{:.2},{:.1},,{heads}{} first {:.2} s; {}",
            s.op,
            s.dtype.0,
            if s.codes.is_some() { "/e4m3" } else { "" },
            s.lengths.len(),
            flops / ms / 1e9,
            bytes / ms / 1e6,
            match (s.mask, s.causal) {
                (Some(_), _) => " masked",
                (None, true) => " causal",
                (None, false) => " full",
            },
            first.as_secs_f64(),
            self.plan(s).to_string().replace(',', ";"),
        );
        self.say(line);
        ms
    }

    /// One line of the table.
    pub fn say(&mut self, line: String) {
        println!("{line}");
        self.csv += &(line + "\n");
    }

    pub fn plan(&self, s: &Shape) -> Plan {
        let device = DeviceProfile::of(&self.device.client);
        let spans =
            RequestShape::following(s.lengths.iter().copied(), if s.paged { s.page_size() } else { 1 });
        let problem = Problem {
            dims: HeadDims { qk: s.dim, vo: s.dim },
            dtype: ElemType::Float(s.dtype.1),
            kv_dtype: s.element(),
            q_heads: s.q_heads,
            kv_heads: s.kv_heads,
            scale: s.variant().scale,
            align: Alignment { qk: 64, vo: 64 },
            fp8_mma: false,
        };
        Plan::new(&device, &problem, &s.variant(), &spans, s.choice, s.split).expect("a plan")
    }
}

pub fn total(lengths: &[(usize, usize)], of: fn(&(usize, usize)) -> usize) -> usize {
    lengths.iter().map(of).sum()
}
