//! Attention of one request and of ragged batches.

use burn_flashinfer::{AttentionOptions, KvLayout, single_decode, single_prefill};

use crate::devices::{Target, device_tests};
use crate::problem::{Case, Got, Problem};
use crate::support::{DTYPES, Host, Rng, VIEWS, View};

device_tests!(
    dims_and_groups,
    sizes,
    options,
    ragged_lengths,
    views,
    value_dims,
    without_lse,
    decode,
    default_options,
    many_tokens,
    fuzz
);

pub const DIMS: [usize; 8] = [32, 40, 64, 80, 96, 128, 192, 256];
/// `(kv_heads, group)`.
pub const HEADS: [(usize, usize); 6] = [(2, 1), (2, 3), (2, 4), (1, 7), (2, 8), (1, 5)];
pub const SIZES: [usize; 6] = [1, 17, 37, 54, 97, 127];
const LAYOUTS: [KvLayout; 2] = [KvLayout::Nhd, KvLayout::Hnd];

/// Runs `run` with the cases whose type the device takes, every `nth` of them on a slow device.
pub fn on_device(target: &Target, nth: usize, cases: &[Case], mut run: impl FnMut(&Target, &Case)) {
    let dtypes = target.dtypes();
    let cases: Vec<&Case> = cases.iter().filter(|case| dtypes.contains(&case.dtype)).collect();
    let cases = target.thin(nth, cases);
    println!("{}: {} cases", target.name, cases.len());
    cases.into_iter().for_each(|case| run(target, case));
}

/// Two sizes, the first at most the second: which ones goes round with `at`.
pub fn lengths(at: usize) -> (usize, usize) {
    let (a, b) = (SIZES[at % 6], SIZES[(at / 2 + at % 5) % 6]);
    (a.min(b), a.max(b))
}

/// Every head dimension with every grouping in every type; sizes and causal go round.
fn dims_and_groups(target: Target) {
    let mut cases = Vec::new();
    for dim in DIMS {
        for (kv_heads, group) in HEADS {
            for dtype in DTYPES {
                let at = cases.len();
                let case = Case::new(dtype, dim, &[lengths(at)]).heads(kv_heads, group);
                cases.push(if at % 2 == 0 { case } else { case.causal() });
            }
        }
    }
    on_device(&target, 13, &cases, |target, case| {
        let problem = case.problem("dims_and_groups");
        let got = problem.single(&target.device, View::Whole, KvLayout::Nhd);
        problem.check("single_prefill", target, &problem.expected(), &got);
    });
}

/// Every pair of sizes, more queries than keys too (where there is no causal mask).
fn sizes(target: Target) {
    let mut cases = Vec::new();
    for queries in SIZES {
        for keys in SIZES {
            let dtype = DTYPES[cases.len() % 3];
            cases.push(Case::new(dtype, 64, &[(queries, keys)]).heads(1, 3));
            if queries <= keys {
                cases.push(Case::new(dtype, 64, &[(queries, keys)]).heads(1, 3).causal());
            }
        }
    }
    on_device(&target, 5, &cases, |target, case| {
        let problem = case.problem("sizes");
        let got = problem.single(&target.device, View::Whole, KvLayout::Nhd);
        problem.check("single_prefill", target, &problem.expected(), &got);
    });
}

/// Every mask with every soft cap and scale.
pub fn option_cases(lengths: &[(usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for causal in [false, true] {
        for window in [None, Some(0), Some(5), Some(1000), Some(usize::MAX)] {
            for soft_cap in [None, Some(2.5), Some(30.0)] {
                for scale in [None, Some(0.3), Some(-1.0)] {
                    let dtype = DTYPES[cases.len() % 3];
                    let dim = [64, 80][cases.len() / 3 % 2];
                    cases.push(Case { causal, window, soft_cap, scale, ..Case::new(dtype, dim, lengths) });
                }
            }
        }
    }
    cases
}

fn options(target: Target) {
    on_device(&target, 7, &option_cases(&[(17, 37), (5, 0), (0, 3), (37, 97), (1, 54)]), |target, case| {
        if case.causal && case.lengths.iter().any(|(queries, keys)| queries > keys) {
            let lengths = case.lengths.iter().copied().filter(|(queries, keys)| queries <= keys).collect();
            let case = Case { lengths, ..case.clone() };
            ragged("options", target, &case.problem("options"));
        } else {
            ragged("options", target, &case.problem("options"));
        }
    });
}

fn ragged(what: &str, target: &Target, problem: &Problem) {
    let got = problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
    problem.check(what, target, &problem.expected(), &got);
}

/// Requests without queries, without keys, without either, and batches of nothing at all.
fn ragged_lengths(target: Target) {
    let batches: [&[(usize, usize)]; 7] = [
        &[(17, 54), (1, 1), (37, 37), (0, 5), (1, 97), (0, 0), (3, 4)],
        &[(5, 0), (0, 0), (0, 7)],
        &[(0, 0)],
        &[(0, 9)],
        &[(4, 0)],
        &[(0, 0), (0, 0), (1, 127)],
        &[(127, 127), (54, 97)],
    ];
    let cases: Vec<Case> = DTYPES
        .into_iter()
        .flat_map(|dtype| batches.map(|lengths| Case::new(dtype, 128, lengths).heads(2, 4)))
        .collect();
    on_device(&target, 1, &cases, |target, case| {
        ragged("ragged", target, &case.problem("ragged_lengths"));
        if case.lengths.iter().all(|(queries, keys)| queries <= keys) {
            ragged("ragged", target, &case.clone().causal().problem("ragged_lengths"));
        }
    });
}

/// Slices and transposed views of tensors that are NaN wherever the view does not look, in both layouts.
fn views(target: Target) {
    let cases = DTYPES.map(|dtype| Case::new(dtype, 40, &[(17, 37)]).causal());
    on_device(&target, 1, &cases, |target, case| {
        let problem = case.problem("views");
        let expected = problem.expected();
        let contiguous = problem.single(&target.device, View::Whole, KvLayout::Nhd);
        problem.check("single", target, &expected, &contiguous);
        for (view, layout) in VIEWS.into_iter().flat_map(|view| LAYOUTS.map(|layout| (view, layout))) {
            let what = format!("{view:?} {layout:?}");
            let single = problem.single(&target.device, view, layout);
            problem.check(&what, target, &expected, &single);
            problem.check(&what, target, &expected, &problem.ragged(&target.device, view, layout));
        }
    });
}

/// Values may have another head dimension than keys.
fn value_dims(target: Target) {
    let mut cases = Vec::new();
    for (dim, v_dim) in [(192, 128), (64, 32), (32, 96), (40, 1), (1, 40), (576, 512)] {
        for dtype in DTYPES {
            cases.push(Case { v_dim, ..Case::new(dtype, dim, &[(17, 54), (1, 97)]) }.causal());
        }
    }
    on_device(&target, 3, &cases, |target, case| {
        // So that the thinned grid still has every type.
        let dtypes = if target.is_slow() { DTYPES.to_vec() } else { vec![case.dtype] };
        for dtype in dtypes {
            ragged("value_dims", target, &Case { dtype, ..case.clone() }.problem("value_dims"));
        }
    });
}

/// Without the LSE the output has the same bits.
fn without_lse(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(17, 37)])), |target, case| {
        let problem = case.problem("without_lse");
        let [q, k, v] = [&problem.q, &problem.k, &problem.v].map(|x| x.tensor(&target.device));
        let attended = single_prefill(q, k, v, &case.options().return_lse(false)).expect("it fits");
        assert!(attended.lse.is_none());
        let with = problem.single(&target.device, View::Whole, KvLayout::Nhd);
        assert_eq!(Host::of(attended.output).values, with.output);
    });
}

/// One token, in both layouts, against the oracle and against prefill.
fn decode(target: Target) {
    let mut cases = Vec::new();
    for (at, keys) in [0, 1, 17, 37, 54, 97, 127, 577].into_iter().enumerate() {
        for dtype in DTYPES {
            let (kv_heads, group) = HEADS[at % 6];
            cases.push(Case::new(dtype, DIMS[at % 8], &[(1, keys)]).heads(kv_heads, group));
        }
    }
    on_device(&target, 4, &cases, |target, case| {
        let problem = case.problem("decode");
        let expected = problem.expected();
        let prefill = problem.single(&target.device, View::Whole, KvLayout::Nhd);
        problem.check("prefill of one token", target, &expected, &prefill);
        for layout in LAYOUTS {
            let [k, v] = [&problem.k, &problem.v].map(|x| match layout {
                KvLayout::Nhd => x.tensor(&target.device),
                KvLayout::Hnd => x.swapped().tensor(&target.device),
            });
            let q = problem.q.tensor(&target.device).squeeze_dim(0);
            let options = case.options().kv_layout(layout);
            let attended = single_decode(q, k, v, &options).expect("it fits");
            let heads = case.kv_heads * case.group;
            assert_eq!(attended.output.dims(), [heads, case.v_dim]);
            assert_eq!(attended.lse.as_ref().map(|lse| lse.dims()), Some([heads]));
            let lse = Host::of(attended.lse.expect("asked for")).values;
            let got = Got { output: Host::of(attended.output).values, lse };
            problem.check("decode", target, &expected, &got);
        }
    });
}

/// Without options: no mask, no LSE.
fn default_options(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(7, 9)])), |target, case| {
        let problem = case.problem("default_options");
        let [q, k, v] = [&problem.q, &problem.k, &problem.v].map(|x| x.tensor(&target.device));
        let attended = single_prefill(q, k, v, &AttentionOptions::default()).expect("it fits");
        assert_eq!(attended.output.dtype(), case.dtype);
        let expected = problem.expected();
        let got = Got { output: Host::of(attended.output).values, lse: expected.baseline.1.clone() };
        problem.check("default options", target, &expected, &got);
    });
}

/// One large problem, so that every tile and split of a kernel has neighbours.
fn many_tokens(target: Target) {
    let cases = DTYPES.map(|dtype| Case::new(dtype, 128, &[(129, 577), (1, 1031)]).heads(1, 4).causal());
    on_device(&target, 3, &cases, |target, case| ragged("many_tokens", target, &case.problem("many_tokens")));
}

/// A random mixture of everything.
fn fuzz(target: Target) {
    let rng = &mut Rng::new("fuzz");
    let cases: Vec<Case> = (0..60)
        .map(|_| {
            let lengths: Vec<(usize, usize)> = (0..1 + rng.below(4))
                .map(|_| {
                    let queries = rng.below(40);
                    (queries, queries + rng.below(80))
                })
                .collect();
            let (kv_heads, group) = HEADS[rng.below(6)];
            let maybe = |some: bool, x: f32| some.then_some(x);
            Case {
                causal: rng.below(2) == 0,
                window: (rng.below(2) == 0).then_some(rng.below(30)),
                soft_cap: maybe(rng.below(3) == 0, 1.0 + rng.below(30) as f32),
                scale: maybe(rng.below(3) == 0, 0.05 + rng.below(10) as f32 / 20.0),
                v_dim: 1 + rng.below(140),
                ..Case::new(DTYPES[rng.below(3)], 1 + rng.below(140), &lengths).heads(kv_heads, group)
            }
        })
        .collect();
    on_device(&target, 12, &cases, |target, case| ragged("fuzz", target, &case.problem("fuzz")));
}
