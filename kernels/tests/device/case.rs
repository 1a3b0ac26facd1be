//! Problems of attention, by request, and what they should give.

use burn_flashinfer_kernels::{
    Code8, DeviceProfile, Fp8, KvLayout,
    attention::{
        Alignment, Attention, Batch, Blueprint, Choice, HeadDims, Inputs, KvScales, Plan, Problem,
        RequestShape, Split, Standard, launch,
    },
};
use cubecl::client::Client;

use crate::host::{Device, Random, Type, assert_close, contiguous, ints};

/// The codes that CDNA3 multiplies.
const FNUZ: Type = Type::Code(Code8::Fp8(Fp8::E4m3Fnuz));

/// Prefill, decode, empty requests of either side, and a page that is exactly full.
pub const MIXED: [(usize, usize); 6] = [(17, 37), (1, 97), (0, 5), (3, 0), (1, 1), (5, 80)];

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Ragged,
    Paged(usize, KvLayout),
}

/// The roundings of a computation.
struct Rounding<'a> {
    /// The rounding of every result.
    result: fn(f64) -> f64,
    /// The rounding of the `tanh` of a cap.
    tanh: &'a dyn Fn(f64) -> f64,
    /// The rounding of weights before they meet values.
    weight: &'a dyn Fn(f64) -> f64,
}

/// One problem. Every request is `(qo_len, kv_len)`.
#[derive(Debug, Clone)]
pub struct Case {
    pub kind: Kind,
    pub lengths: Vec<(usize, usize)>,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub qk: usize,
    pub vo: usize,
    pub dtype: Type,
    /// The format of keys and values, if they are codes, with scales for each head.
    pub codes: Option<Code8>,
    /// Codes have a scale for each token and head.
    pub token_scales: bool,
    pub causal: bool,
    pub window_left: Option<usize>,
    pub soft_cap: Option<f32>,
    pub skip_softmax: Option<f32>,
    /// Products may be of codes.
    pub fp8_mma: bool,
    /// Elements between rows that no tensor owns.
    pub gap: usize,
    pub spread: f64,
    pub choice: Choice,
    pub split: Split,
}

impl Case {
    pub fn new(kind: Kind, lengths: &[(usize, usize)]) -> Self {
        Self {
            kind,
            lengths: lengths.to_vec(),
            q_heads: 4,
            kv_heads: 2,
            qk: 32,
            vo: 32,
            dtype: Type::F32,
            codes: None,
            token_scales: false,
            causal: false,
            window_left: None,
            soft_cap: None,
            skip_softmax: None,
            fp8_mma: false,
            gap: 0,
            spread: 2.0,
            choice: Choice::Auto,
            split: Split::Auto,
        }
    }

    /// The plan of this device.
    pub fn plan(&self, client: &Client) -> Plan {
        let page_size = if let Kind::Paged(page_size, _) = self.kind { page_size } else { 1 };
        let spans = RequestShape::following(self.lengths.iter().copied(), page_size);
        let device = DeviceProfile::of(client);
        Plan::new(&device, &self.problem(), &self.variant(), &spans, self.choice, self.split).expect("a plan")
    }

    /// The problem as the choice of a blueprint sees it.
    pub fn problem(&self) -> Problem {
        let aligned = |dim: usize| 1 << (dim + self.gap).trailing_zeros();
        Problem {
            dims: HeadDims { qk: self.qk, vo: self.vo },
            dtype: self.dtype.elem(),
            kv_dtype: self.kv_type().element(),
            q_heads: self.q_heads,
            kv_heads: self.kv_heads,
            scale: self.variant().logit_scale(),
            align: Alignment { qk: aligned(self.qk), vo: aligned(self.vo) },
            fp8_mma: self.fp8_mma,
        }
    }

    /// The type of keys and values.
    fn kv_type(&self) -> Type {
        self.codes.map_or(self.dtype, Type::Code)
    }

    pub fn variant(&self) -> Standard {
        let Self { causal, window_left, soft_cap, skip_softmax, .. } = *self;
        Standard { causal, window_left, soft_cap, skip_softmax, ..Standard::new(self.scale()) }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.qk as f32).sqrt()
    }

    fn sees(&self, (qo_len, kv_len): (usize, usize), i: usize, j: usize) -> bool {
        let position = kv_len as i64 - qo_len as i64 + i as i64;
        let j = j as i64;
        (!self.causal || j <= position)
            && self.window_left.is_none_or(|w| j >= position - w.min(1 << 40) as i64)
    }

    /// True if products of this device are of codes.
    fn multiplies_codes(&self, client: &Client) -> bool {
        self.plan(client).to_string().contains("products of codes")
    }

    /// Queries as a matrix unit of 8 bits takes them: each row's largest number is the largest code.
    fn queries_of_codes(&self, q: &[f64]) -> Vec<f64> {
        let of_row = |row: &[f64]| {
            let scale = row.iter().fold(0.0, |size: f64, x| size.max(x.abs())) / 240.0;
            let round = move |x: &f64| if scale == 0.0 { 0.0 } else { FNUZ.round(x / scale) * scale };
            row.iter().map(round).collect::<Vec<_>>()
        };
        q.chunks(self.qk).flat_map(of_row).collect()
    }

    /// Attention, and its base-2 LSE.
    fn expected(&self, q: &[f64], k: &[Vec<f64>], v: &[Vec<f64>], rounding: &Rounding<'_>) -> [Vec<f64>; 2] {
        let Rounding { result: round, tanh, weight } = rounding;
        let (mut output, mut lse) = (vec![], vec![]);
        let mut token = 0;
        for (request, &(qo_len, kv_len)) in self.lengths.iter().enumerate() {
            for i in 0..qo_len {
                for head in 0..self.q_heads {
                    let kv_head = head / (self.q_heads / self.kv_heads);
                    let row = &q[(token * self.q_heads + head) * self.qk..][..self.qk];
                    let at = |j: usize, dim: usize| (j * self.kv_heads + kv_head) * dim;
                    let logits: Vec<f64> = (0..kv_len)
                        .map(|j| {
                            if !self.sees((qo_len, kv_len), i, j) {
                                return f64::NEG_INFINITY;
                            }
                            let key = &k[request][at(j, self.qk)..][..self.qk];
                            let dot = row.iter().zip(key).fold(0.0, |sum, (a, b)| round(sum + round(a * b)));
                            let s = round(dot * self.scale() as f64);
                            self.soft_cap
                                .map_or(s, |cap| round(cap as f64 * tanh(round((s / cap as f64).tanh()))))
                        })
                        .collect();
                    let m = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let base = if m == f64::NEG_INFINITY { 0.0 } else { m };
                    let p: Vec<f64> = logits.iter().map(|s| round((s - base).exp())).collect();
                    let sum = p.iter().fold(0.0, |sum, p| round(sum + p));
                    for column in 0..self.vo {
                        let weighed = p.iter().enumerate().filter(|(_, p)| **p > 0.0);
                        let o = weighed.fold(0.0, |o, (j, p)| {
                            round(o + round(weight(*p) * v[request][at(j, self.vo) + column]))
                        });
                        output.push(if sum == 0.0 { 0.0 } else { o / sum });
                    }
                    lse.push(if sum == 0.0 { m } else { (base + sum.ln()) / std::f64::consts::LN_2 });
                }
                token += 1;
            }
        }
        [output, lse]
    }

    /// Runs the kernel and checks it, and returns its output.
    pub fn check(&self, client: &Client, random: &mut Random) -> Vec<f64> {
        let seeds = self.lengths.iter().map(|_| random.next()).collect::<Vec<_>>();
        self.check_seeded(client, &seeds, random)
    }

    /// The same with the numbers of each request from a seed of its own.
    pub fn check_seeded(&self, client: &Client, seeds: &[u64], random: &mut Random) -> Vec<f64> {
        let (mut q, mut k, mut v) = (vec![], vec![], vec![]);
        for (&(qo_len, kv_len), &seed) in self.lengths.iter().zip(seeds) {
            let mut random = Random::quiet(seed);
            let mut fill = |elements, dtype, unit| random.floats(elements, dtype, self.spread * unit);
            q.extend(fill(qo_len * self.q_heads * self.qk, self.dtype, 1.0));
            k.push(fill(kv_len * self.kv_heads * self.qk, self.kv_type(), self.unit()));
            v.push(fill(kv_len * self.kv_heads * self.vo, self.kv_type(), self.unit()));
        }
        self.check_numbers(client, [&q, &k.concat(), &v.concat()], random)
    }

    /// The same with these queries and, one request after the other, keys and values: a NaN among the values must not be
    /// read, or weigh nothing.
    pub fn check_numbers(&self, client: &Client, [q, k, v]: [&[f64]; 3], random: &mut Random) -> Vec<f64> {
        let tokens: usize = self.lengths.iter().map(|l| l.0).sum();
        let [mut k, mut v] = [(k, self.qk), (v, self.vo)].map(|(mut rest, dim)| {
            let of_request = |&(_, kv_len): &(usize, usize)| {
                rest.split_off(..kv_len * self.kv_heads * dim).expect("as many as there are keys").to_vec()
            };
            self.lengths.iter().map(of_request).collect::<Vec<_>>()
        });
        let output = Device::poisoned(client, self.dtype, &[tokens, self.q_heads, self.vo]);
        let lse = Device::poisoned(client, Type::F32, &[tokens, self.q_heads]);
        // Heads before tokens in memory, and rows that begin apart.
        let width = self.qk + self.gap;
        let strides = [width, tokens * width, 1];
        let q_device = Device::strided(client, self.dtype, q, &[tokens, self.q_heads, self.qk], &strides);
        let [k_scales, v_scales] = [1.25, 0.75].map(|scale| self.scales(scale));
        let placed = [
            (&k, self.qk, self.kv_type()),
            (&v, self.vo, self.kv_type()),
            (&k_scales, 1, Type::F32),
            (&v_scales, 1, Type::F32),
        ];
        let (batch, [k_device, v_device, k_scale, v_scale]) = self.place(client, placed, random);
        let kv_scales = match (self.codes, self.token_scales) {
            (None, _) => None,
            (Some(_), true) => Some(KvScales { k: k_scale.binding(), v: v_scale.binding() }),
            // Those of the heads of any token.
            (Some(_), false) => {
                let [k, v] = [1.25, 0.75].map(|scale| {
                    let of_heads: Vec<f64> =
                        (0..self.kv_heads).map(|head| self.scale_of(scale, 0, head)).collect();
                    Device::new(client, Type::F32, &of_heads, &[self.kv_heads]).binding()
                });
                Some(KvScales { k, v })
            }
        };
        let problem = Attention {
            q: q_device.binding(),
            k: k_device.binding(),
            v: v_device.binding(),
            output: output.binding(),
            lse: Some(lse.binding()),
            batch,
            scale: self.variant().logit_scale(),
            dtype: self.dtype.elem(),
            kv_dtype: self.kv_type().element(),
            kv_scales,
            inputs: Inputs::default(),
            mask: None,
        };
        let planned = self.plan(client).upload(client);
        // SAFETY: `place` lists the pages of its own pool, and the plan is of the same lengths.
        unsafe { launch(client, problem, &self.variant(), planned) }.expect("launches");
        if self.codes.is_some() {
            for (requests, dim, scales) in [(&mut k, self.qk, &k_scales), (&mut v, self.vo, &v_scales)] {
                for (request, scales) in requests.iter_mut().zip(scales) {
                    request.iter_mut().enumerate().for_each(|(at, x)| *x *= scales[at / dim]);
                }
            }
        }
        let v: Vec<Vec<f64>> =
            v.iter().map(|v| v.iter().map(|&x| if x.is_nan() { 0.0 } else { x }).collect()).collect();
        let [wanted, wanted_lse] =
            self.expected(q, &k, &v, &Rounding { result: |x| x, tanh: &|x| x, weight: &|x| x });
        // Matrix cores take weights in the type of the values.
        let plain = matches!(self.choice, Choice::Exactly(Blueprint::Portable(_)))
            || client.properties().hardware.num_cpu_cores.is_some();
        let in_type = |x| if plain { x } else { self.dtype.round(x) };
        let rounding = Rounding { result: |x| x as f32 as f64, tanh: &in_type, weight: &in_type };
        let [mut baseline, baseline_lse] = if self.multiplies_codes(client) {
            let weight = |p: f64| FNUZ.round(128.0 * p) / 128.0;
            self.expected(&self.queries_of_codes(q), &k, &v, &Rounding { weight: &weight, ..rounding })
        } else {
            self.expected(q, &k, &v, &rounding)
        };
        baseline.iter_mut().for_each(|x| *x = self.dtype.round(*x));
        let got = output.read(client);
        assert_close(&format!("output of {self:?}"), &got, &wanted, &baseline);
        assert_close(&format!("lse of {self:?}"), &lse.read(client), &wanted_lse, &baseline_lse);
        got
    }

    /// Codes that are integers are as much larger than floats, and their scales smaller.
    fn unit(&self) -> f64 {
        if self.codes == Some(Code8::Int8) { 64.0 } else { 1.0 }
    }

    /// The scale of a token's head.
    fn scale_of(&self, scale: f64, token: usize, head: usize) -> f64 {
        let of_token =
            if self.token_scales { [1.0, 0.01, 0.3][token % 3] + token as f64 / 256.0 } else { 1.0 };
        Type::F32.round(scale * of_token / (1 + head) as f64 / self.unit())
    }

    /// The scale of every key head of every token of each request.
    fn scales(&self, scale: f64) -> Vec<Vec<f64>> {
        let heads = self.kv_heads;
        let of_request = |&(_, kv_len): &(usize, usize)| {
            (0..kv_len * heads).map(|at| self.scale_of(scale, at / heads, at % heads)).collect()
        };
        self.lengths.iter().map(of_request).collect()
    }

    /// Tensors of tokens, each with the size of a head and its type, where the kind of batch wants them; NaN in every place that
    /// no request owns.
    fn place<const N: usize>(
        &self,
        client: &Client,
        tensors: [(&Vec<Vec<f64>>, usize, Type); N],
        random: &mut Random,
    ) -> (Batch, [Device; N]) {
        let qo_indptr = ints(client, &indptr(self.lengths.iter().map(|l| l.0)));
        match self.kind {
            Kind::Ragged => {
                let keys: usize = self.lengths.iter().map(|l| l.1).sum();
                let device = |(data, dim, dtype): (&Vec<Vec<f64>>, usize, Type)| {
                    let (shape, width) = ([keys, self.kv_heads, dim], dim + self.gap);
                    Device::strided(client, dtype, &data.concat(), &shape, &[self.kv_heads * width, width, 1])
                };
                let kv_indptr = ints(client, &indptr(self.lengths.iter().map(|l| l.1)));
                (Batch::Ragged { qo_indptr, kv_indptr }, tensors.map(device))
            }
            Kind::Paged(page_size, layout) => {
                let counts: Vec<_> = self.lengths.iter().map(|l| l.1.div_ceil(page_size)).collect();
                let pages = counts.iter().sum::<usize>() + 3;
                let mut free: Vec<_> = (0..pages).collect();
                random.shuffle(&mut free);
                let mut indices: Vec<_> = free.iter().take(pages - 3).map(|&p| p as i32).collect();
                let device = |(data, dim, dtype): (&Vec<Vec<f64>>, usize, Type)| {
                    let shape = match layout {
                        KvLayout::Nhd => [pages, page_size, self.kv_heads, dim],
                        KvLayout::Hnd => [pages, self.kv_heads, page_size, dim],
                    };
                    let strides = contiguous(&shape);
                    let mut pool = vec![f64::NAN; shape.iter().product()];
                    let mut first = 0;
                    for (request, &(_, kv_len)) in self.lengths.iter().enumerate() {
                        for at in 0..kv_len * self.kv_heads * dim {
                            let (j, head, column) =
                                (at / dim / self.kv_heads, at / dim % self.kv_heads, at % dim);
                            let (page, slot) = (free[first + j / page_size], j % page_size);
                            let (a, b) = if layout == KvLayout::Nhd { (slot, head) } else { (head, slot) };
                            pool[page * strides[0] + a * strides[1] + b * strides[2] + column] =
                                data[request][at];
                        }
                        first += counts[request];
                    }
                    Device::new(client, dtype, &pool, &shape)
                };
                let last = |l: &(usize, usize)| if l.1 == 0 { 0 } else { ((l.1 - 1) % page_size + 1) as i32 };
                let devices = tensors.map(device);
                if indices.is_empty() {
                    indices.push(0);
                }
                let batch = Batch::Paged {
                    qo_indptr,
                    kv_indptr: ints(client, &indptr(counts.into_iter())),
                    indices: ints(client, &indices),
                    last_page_len: ints(client, &self.lengths.iter().map(last).collect::<Vec<_>>()),
                    layout,
                };
                (batch, devices)
            }
        }
    }
}

fn indptr(lengths: impl Iterator<Item = usize>) -> Vec<i32> {
    let ends = lengths.scan(0, |sum, n| {
        *sum += n as i32;
        Some(*sum)
    });
    std::iter::once(0).chain(ends).collect()
}
