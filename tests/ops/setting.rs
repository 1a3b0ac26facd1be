//! Attention with options of any kind and tensors of its own: what it should give, and ways to run it.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::reference::{self, State};
use burn_flashinfer::{
    AttentionOptions, AttentionOutput, HostInputs, Indptr, KvLayout, KvPages, KvSplit, PagedPlan, PlanConfig,
    RaggedPlan, Request, Row, SharedVariant, VariantInputs, single_prefill,
};

use crate::devices::Target;
use crate::problem::{Got, Problem};
use crate::support::{Host, check, round};

/// The tensors of a call on the host; an empty one is not given.
#[derive(Debug, Clone, Default)]
pub struct Tensors {
    pub sinks: Vec<f32>,
    pub slopes: Vec<f32>,
    pub floats: Vec<f32>,
    pub ints: Vec<i32>,
}

impl Tensors {
    pub fn host(&self) -> HostInputs<'_> {
        HostInputs { sinks: &self.sinks, slopes: &self.slopes, floats: &self.floats, ints: &self.ints }
    }

    pub fn on(&self, device: &Device) -> VariantInputs {
        let tensor =
            |numbers: &[f32]| Tensor::<1>::from_data(TensorData::from(numbers), (device, DType::F32));
        let mut inputs = VariantInputs::new();
        if !self.sinks.is_empty() {
            inputs = inputs.sinks(tensor(&self.sinks));
        }
        if !self.slopes.is_empty() {
            inputs = inputs.slopes(tensor(&self.slopes));
        }
        if !self.floats.is_empty() {
            inputs = inputs.floats(tensor(&self.floats));
        }
        if !self.ints.is_empty() {
            let ints = TensorData::from(&self.ints[..]);
            inputs = inputs.ints(Tensor::<1, Int>::from_data(ints, (device, DType::I32)));
        }
        inputs
    }
}

/// A problem with its options and tensors.
#[derive(Debug, Clone)]
pub struct Setting {
    pub problem: Problem,
    pub options: AttentionOptions,
    pub tensors: Tensors,
}

impl Setting {
    fn variant(&self) -> SharedVariant {
        self.options.to_variant(self.problem.case.dim)
    }

    pub fn config(&self) -> PlanConfig {
        let case = &self.problem.case;
        PlanConfig::new(case.kv_heads * case.group, case.kv_heads, case.dim, case.dtype)
            .head_dim_v(case.v_dim)
            .options(self.options.clone())
    }

    /// Attention in f64, and in f32 with weights as `weigh` leaves them.
    fn expected(&self, weigh: impl Fn(f32) -> f32) -> (State, Vec<f32>, Vec<f32>) {
        let Problem { case, q, k, v } = &self.problem;
        let (qo, kv) = (self.problem.qo_indptr(), self.problem.kv_indptr());
        let keys = |r: usize| {
            let [k, v] = [k, v].map(|x| x.tokens(kv[r]..kv[r + 1]).heads());
            Ok((k, v))
        };
        let inputs = self.tensors.host();
        let oracle = reference::batch_attention_with(&q.heads(), &qo, keys, &self.options, inputs);
        let (variant, q_heads) = (self.variant(), case.kv_heads * case.group);
        let scale = variant.scale();
        let (mut output, mut lse) = (vec![], vec![]);
        for (index, &(qo_len, kv_len)) in case.lengths.iter().enumerate() {
            let request = Request { index, qo_len, kv_len };
            for (query, q_head) in (0..qo_len).flat_map(|i| (0..q_heads).map(move |h| (i, h))) {
                let row = Row { request, query, q_head, kv_head: q_head / case.group, inputs };
                let of_query = q.row(qo[index] + query, q_head);
                let keys: Vec<usize> =
                    variant.keys(&request, query).filter(|&key| variant.keep(&row, key)).collect();
                let logits: Vec<f32> = keys
                    .iter()
                    .map(|&key| {
                        let of_key = k.row(kv[index] + key, row.kv_head);
                        let product = of_query.iter().zip(of_key).map(|(q, k)| q * k).sum::<f32>();
                        let bias = variant.slope(&row) as f32 * (key as i64 - row.position()) as f32;
                        let logit = variant.logit(product.into(), &row, key) as f32;
                        // With a cap this is a `tanh`: the units for 16 bits have it to that precision.
                        let logit = if case.soft_cap.is_some() { weigh(logit) } else { logit };
                        (logit + bias) * scale
                    })
                    .collect();
                let (m, mut sum) = variant.start(&row);
                let m = m as f32 * scale;
                let max = logits.iter().fold(m, |max, &logit| max.max(logit));
                let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
                sum *= f64::from((m - max).exp());
                let weight = |&logit: &f32| if variant.softmax() { (logit - max).exp() } else { logit };
                let weights: Vec<f32> = logits.iter().map(weight).collect();
                let sum = weights.iter().fold(sum as f32, |sum, weight| sum + weight);
                let mut of_row = vec![0.0_f32; case.v_dim];
                for (&key, &weight) in keys.iter().zip(&weights) {
                    let of_key = v.row(kv[index] + key, row.kv_head);
                    of_row.iter_mut().zip(of_key).for_each(|(o, v)| *o += weigh(weight) * v);
                }
                let norm = if !variant.softmax() || sum == 0.0 { 1.0 } else { 1.0 / sum };
                let finished = |o: f32| round(variant.finish((o * norm).into(), &row) as f32, case.dtype);
                output.extend(of_row.into_iter().map(finished));
                lse.push((max + sum.ln()) * std::f32::consts::LOG2_E);
            }
        }
        (oracle.expect("a problem that fits"), output, lse)
    }

    pub fn check(&self, what: &str, target: &Target, got: &Got) {
        let dtype = self.problem.case.dtype;
        let in_type = |weight| if target.has_matrix_cores() { round(weight, dtype) } else { weight };
        let (oracle, output, lse) = self.expected(in_type);
        let what = format!("{what} on {}: {:?} {:?}", target.name, self.problem.case, self.variant());
        check(format!("{what}: output"), &got.output, &output, oracle.output.values(), dtype);
        if self.variant().softmax() {
            check(format!("{what}: LSE"), &got.lse, &lse, &oracle.lse, DType::F32);
        }
    }

    /// Ragged, in pages, and with split keys.
    pub fn check_plans(&self, target: &Target) {
        let device = &target.device;
        self.check("ragged", target, &self.ragged(KvSplit::Auto, device));
        self.check("split", target, &self.ragged(KvSplit::Fixed(16), device));
        self.check("paged", target, &self.paged(KvSplit::Auto, device));
    }

    pub fn ragged(&self, split: KvSplit, device: &Device) -> Got {
        let Problem { q, k, v, .. } = &self.problem;
        let [qo, kv] = [self.problem.qo_indptr(), self.problem.kv_indptr()]
            .map(|rows| Indptr::new(&rows, device).expect("valid"));
        let plan = RaggedPlan::new(&self.config().split(split), &qo, &kv).expect("a plan");
        let [q, k, v] = [q, k, v].map(|x| x.tensor(device));
        got(plan.run_with(q, k, v, self.tensors.on(device)).expect("runs"))
    }

    pub fn paged(&self, split: KvSplit, device: &Device) -> Got {
        let Problem { q, k, v, .. } = &self.problem;
        let paging = self.problem.paging(16);
        let pool = |x| paging.pool(x, KvLayout::Hnd).tensor(device);
        let pages = KvPages::new(pool(k), pool(v), KvLayout::Hnd).expect("a pool");
        let qo = Indptr::new(&self.problem.qo_indptr(), device).expect("valid");
        let plan = PagedPlan::new(&self.config().split(split), &qo, &paging.table(device)).expect("a plan");
        got(plan.run_with(q.tensor(device), &pages, self.tensors.on(device)).expect("runs"))
    }

    /// Without a plan, of a problem of one request.
    pub fn single(&self, device: &Device) -> Got {
        let Problem { q, k, v, .. } = &self.problem;
        let [q, k, v] = [q, k, v].map(|x| x.tensor(device));
        got(single_prefill(q, k, v, (&self.options, self.tensors.on(device))).expect("runs"))
    }
}

/// The results, of which the LSE is empty if there is none.
pub fn got(attended: AttentionOutput) -> Got {
    match attended {
        attended @ AttentionOutput { lse: Some(_), .. } => Got::of(attended),
        attended => Got { output: Host::of(attended.output).values, lse: vec![] },
    }
}
