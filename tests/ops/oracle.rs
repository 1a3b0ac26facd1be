//! Attention of any variant by its formula: in f64, and as its baseline in the input type.

use burn::tensor::DType;
use burn_flashinfer::reference::{self, State};
use burn_flashinfer::{AttentionVariant, Request, Row};

use crate::devices::Target;
use crate::problem::{Got, Problem};
use crate::support::{check, round};

/// Checks the results of a variant with these tensors.
pub fn check_variant(
    what: &str,
    target: &Target,
    problem: &Problem,
    variant: &dyn AttentionVariant,
    tensors: (&[f32], &[i32]),
    got: &Got,
) {
    let dtype = problem.case.dtype;
    let in_type = |weight| if target.has_matrix_cores() { round(weight, dtype) } else { weight };
    let (oracle, output, lse) = expected(problem, variant, tensors, in_type);
    let what = format!("{what} on {}: {:?} {variant:?}", target.name, problem.case);
    check(format!("{what}: output"), &got.output, &output, oracle.output.values(), dtype);
    check(format!("{what}: LSE"), &got.lse, &lse, &oracle.lse, DType::F32);
}

/// Attention in f64, and in f32 with weights as `weigh` leaves them.
fn expected(
    problem: &Problem,
    variant: &dyn AttentionVariant,
    (floats, ints): (&[f32], &[i32]),
    weigh: impl Fn(f32) -> f32,
) -> (State, Vec<f32>, Vec<f32>) {
    let Problem { case, q, k, v } = problem;
    let q_heads = case.kv_heads * case.group;
    let (qo, kv) = (problem.qo_indptr(), problem.kv_indptr());
    let (mut values, mut lses) = (vec![], vec![]);
    let (mut output, mut lse) = (vec![], vec![]);
    for (index, &(qo_len, kv_len)) in case.lengths.iter().enumerate() {
        let heads = [q.tokens(qo[index]..qo[index + 1]), k.tokens(kv[index]..kv[index + 1])];
        let [of_q, of_k] = heads.map(|heads| heads.heads());
        let of_v = v.tokens(kv[index]..kv[index + 1]).heads();
        let state = reference::attention_of(&of_q, &of_k, &of_v, variant, index, (floats, ints));
        let state = state.expect("a problem that fits");
        values.extend_from_slice(state.output.values());
        lses.extend(state.lse);
        let request = Request { index, qo_len, kv_len };
        for (query, q_head) in (0..qo_len).flat_map(|i| (0..q_heads).map(move |h| (i, h))) {
            let row = Row { request, query, q_head, kv_head: q_head / case.group, floats, ints };
            let of_query = q.row(qo[index] + query, q_head);
            let keys = variant.keys(&request, query);
            let keys: Vec<usize> = keys.filter(|&key| variant.keep(&row, key)).collect();
            let logits: Vec<f32> = keys
                .iter()
                .map(|&key| {
                    let of_key = k.row(kv[index] + key, row.kv_head);
                    let product = of_query.iter().zip(of_key).map(|(q, k)| q * k).sum::<f32>();
                    variant.logit(product.into(), &row, key) as f32 * variant.scale()
                })
                .collect();
            let (m, mut sum) = variant.start(&row);
            let m = m as f32 * variant.scale();
            let max = logits.iter().fold(m, |max, &logit| max.max(logit));
            let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
            sum *= f64::from((m - max).exp());
            let weights: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
            let sum = weights.iter().fold(sum as f32, |sum, weight| sum + weight);
            let mut of_row = vec![0.0_f32; case.v_dim];
            for (&key, &weight) in keys.iter().zip(&weights) {
                let of_key = v.row(kv[index] + key, row.kv_head);
                of_row.iter_mut().zip(of_key).for_each(|(o, v)| *o += weigh(weight) * v);
            }
            let norm = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            let finished = |o: f32| round(variant.finish((o * norm).into(), &row) as f32, case.dtype);
            output.extend(of_row.into_iter().map(finished));
            lse.push((max + sum.ln()) * std::f32::consts::LOG2_E);
        }
    }
    let shape = [*qo.last().unwrap_or(&0), q_heads, case.v_dim];
    let oracle = reference::Heads::new(shape, values).expect("as many values");
    (State { output: oracle, lse: lses }, output, lse)
}
