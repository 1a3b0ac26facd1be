//! What must hold between results, whatever they are.

use burn::tensor::Tensor;
use burn_flashinfer::{Indptr, KvLayout, KvPages, batch_prefill_paged, merge_state, single_prefill};

use crate::attention::on_device;
use crate::devices::{Target, device_tests};
use crate::problem::{Case, Expected, Got, Paging, Problem};
use crate::support::{DTYPES, Host, Rng, View, bits};

device_tests!(
    permuted_pages,
    repeatable,
    gqa_is_repeated_mha,
    batch_does_not_matter,
    split_and_merge,
    window_is_a_suffix,
    chunked_prefill,
    inputs_are_not_touched
);

const REPEATS: usize = 20;

fn batch(dtype: burn::tensor::DType) -> Case {
    Case::new(dtype, 128, &[(17, 54), (1, 97), (0, 5), (37, 37), (1, 127)]).heads(2, 4).causal()
}

/// Which pages hold the tokens makes no difference to a single bit.
fn permuted_pages(target: Target) {
    on_device(&target, 1, &DTYPES.map(batch), |target, case| {
        let problem = case.problem("permuted_pages");
        let rng = &mut Rng::new("permuted_pages");
        let first = problem.paging(5);
        let run = |paging: &Paging, layout| {
            let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, layout).tensor(&target.device));
            problem.paged_in(&target.device, k, v, layout, paging).bits()
        };
        let expected = run(&first, KvLayout::Nhd);
        for _ in 0..3 {
            let order = rng.shuffled(first.pages);
            let indices = first.indices.iter().map(|&page| order[page]).collect();
            assert_eq!(run(&Paging { indices, ..first.clone() }, KvLayout::Nhd), expected, "{case:?}");
        }
        assert_eq!(run(&first, KvLayout::Hnd), expected, "{case:?}: HND");
    });
}

/// The same call gives the same bits, every time.
fn repeatable(target: Target) {
    on_device(&target, 1, &DTYPES.map(batch), |target, case| {
        let problem = case.problem("repeatable");
        let first = problem.paged(&target.device, 16, KvLayout::Nhd).bits();
        for _ in 0..REPEATS {
            assert_eq!(problem.paged(&target.device, 16, KvLayout::Nhd).bits(), first, "{case:?}");
        }
    });
}

/// Query heads that share a key head get what they get when each has its own copy of it: within the bound, not the same
/// bits, since a backend may add up in another order where more rows share a key.
fn gqa_is_repeated_mha(target: Target) {
    let cases = DTYPES.map(|dtype| Case::new(dtype, 64, &[(17, 54), (1, 97)]).heads(2, 4));
    on_device(&target, 1, &cases, |target, case| {
        let problem = case.problem("gqa_is_repeated_mha");
        let repeated = |x: &Host<3>| {
            let [tokens, heads, dim] = x.shape;
            let rows = (0..tokens).flat_map(|t| (0..heads * 4).map(move |h| (t, h / 4)));
            let values = rows.flat_map(|(t, h)| x.row(t, h).to_vec()).collect();
            Host { shape: [tokens, heads * 4, dim], values, dtype: x.dtype }
        };
        let mha = Problem {
            case: case.clone().heads(8, 1),
            q: problem.q.clone(),
            k: repeated(&problem.k),
            v: repeated(&problem.v),
        };
        let run = |problem: &Problem| problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
        let expected = problem.expected();
        problem.check("shared", target, &expected, &run(&problem));
        problem.check("repeated", target, &expected, &run(&mha));
    });
}

/// A request alone gives the bits it gives among others.
fn batch_does_not_matter(target: Target) {
    on_device(&target, 1, &DTYPES.map(batch), |target, case| {
        let problem = case.problem("batch_does_not_matter");
        let together = problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
        let alone = problem.single(&target.device, View::Whole, KvLayout::Nhd);
        let expected = problem.expected();
        problem.check("together", target, &expected, &together);
        problem.check("alone", target, &expected, &alone);
    });
}

/// Attention over two sets of keys, merged, is attention over both. Some sets are empty.
fn split_and_merge(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(17, 97)])), |target, case| {
        for soft_cap in [None, Some(5.0)] {
            let problem = Case { soft_cap, ..case.clone() }.problem("split_and_merge");
            let Expected { oracle, baseline, .. } = problem.expected();
            for at in [0, 1, 37, 96, 97] {
                let part = |range: std::ops::Range<usize>| {
                    let [k, v] =
                        [&problem.k, &problem.v].map(|x| x.tokens(range.clone()).tensor(&target.device));
                    let attended =
                        single_prefill(problem.q.tensor(&target.device), k, v, &problem.case.options())
                            .expect("it fits");
                    (attended.output, attended.lse.expect("asked for"))
                };
                let ((v_a, s_a), (v_b, s_b)) = (part(0..at), part(at..97));
                let (output, lse) = merge_state(v_a, s_a, v_b, s_b).expect("states that fit");
                let got = Got { output: Host::of(output).values, lse: Host::of(lse).values };
                // Each part is rounded to the type before they are merged: what the baseline must do as well.
                let baseline = (split_baseline(&problem, at), baseline.1.clone());
                let expected =
                    Expected { oracle: oracle.clone(), baseline: baseline.clone(), in_type: baseline };
                problem.check(&format!("merged at {at}"), target, &expected, &got);
            }
        }
    });
}

/// Straightforward attention over each part, rounded, merged in f32 and rounded.
fn split_baseline(problem: &Problem, at: usize) -> Vec<f32> {
    let part = |range: std::ops::Range<usize>| {
        let case = Case { lengths: vec![(17, range.len())], ..problem.case.clone() };
        let (k, v) = (problem.k.tokens(range.clone()), problem.v.tokens(range));
        Problem { case, q: problem.q.clone(), k, v }.expected().baseline
    };
    let ((v_a, s_a), (v_b, s_b)) = (part(0..at), part(at..97));
    let dim = problem.case.v_dim;
    let merged = v_a.iter().zip(&v_b).enumerate().map(|(i, (a, b))| {
        let (s_a, s_b) = (s_a[i / dim], s_b[i / dim]);
        let (w_a, w_b) = ((s_a - s_a.max(s_b)).exp2(), (s_b - s_a.max(s_b)).exp2());
        crate::support::round((w_a * a + w_b * b) / (w_a + w_b), problem.case.dtype)
    });
    merged.collect()
}

/// Keys before the window make no difference to what is within it.
fn window_is_a_suffix(target: Target) {
    let cases = DTYPES.map(|dtype| Case { window: Some(16), ..Case::new(dtype, 64, &[(1, 127)]) });
    on_device(&target, 1, &cases, |target, case| {
        let problem = case.problem("window_is_a_suffix");
        let suffix = Problem {
            case: Case { lengths: vec![(1, 17)], window: None, ..case.clone() },
            q: problem.q.clone(),
            k: problem.k.tokens(110..127),
            v: problem.v.tokens(110..127),
        };
        let got = problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
        suffix.check("window", target, &suffix.expected(), &got);
    });
}

/// Prefill in two steps over one cache is prefill in one.
fn chunked_prefill(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(54, 54)]).causal()), |target, case| {
        let problem = case.problem("chunked_prefill");
        let expected = problem.expected();
        let [whole, chunks] = [&[54][..], &[20, 1, 33]].map(|chunks| chunked(target, &problem, chunks));
        problem.check("in one step", target, &expected, &whole);
        problem.check("in three steps", target, &expected, &chunks);
    });
}

fn chunked(target: &Target, problem: &Problem, chunks: &[usize]) -> Got {
    let mut got = Got { output: Vec::new(), lse: Vec::new() };
    let paging = problem.paging(16);
    let [k, v]: [Tensor<4>; 2] =
        [&problem.k, &problem.v].map(|x| paging.pool(x, KvLayout::Nhd).tensor(&target.device));
    let pages = KvPages::new(k, v, KvLayout::Nhd).expect("pages that fit");
    let mut end = 0;
    for &queries in chunks {
        let q = problem.q.tokens(end..end + queries).tensor(&target.device);
        end += queries;
        let paging = Paging { keys: vec![end], indptr: vec![0, end.div_ceil(16)], ..paging.clone() };
        let paging = Paging { indices: paging.indices[..end.div_ceil(16)].to_vec(), ..paging };
        let qo = Indptr::new(&[0, queries], &target.device).expect("a row pointer");
        let table = paging.table(&target.device);
        let attended = batch_prefill_paged(q, &qo, &pages, &table, &problem.case.options());
        let part = Got::of(attended.expect("it fits"));
        got.output.extend(part.output);
        got.lse.extend(part.lse);
    }
    got
}

/// Operations leave their inputs as they were.
fn inputs_are_not_touched(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(7, 9)])), |target, case| {
        let problem = case.problem("inputs_are_not_touched");
        let [q, k, v] = [&problem.q, &problem.k, &problem.v].map(|x| x.tensor(&target.device));
        let before = [&q, &k, &v].map(|x| bits(x.clone()));
        let _ = single_prefill(q.clone(), k.clone(), v.clone(), &case.options()).expect("it fits");
        assert_eq!([&q, &k, &v].map(|x| bits(x.clone())), before);
    });
}
