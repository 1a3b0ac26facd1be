//! Plans: made once, run and updated, against the oracle and against the calls that plan for themselves.

mod decode;
mod refusals;
mod steps;
mod trees;

use burn::tensor::{DType, Device};
use burn_flashinfer::{Indptr, KvLayout, KvPages, KvSplit, PagedPlan, PlanConfig, RaggedPlan};

use crate::attention::on_device;
use crate::devices::{Target, device_tests, devices};
use crate::problem::{Case, Got, Problem};
use crate::support::{DTYPES, Host, Rng, View};

device_tests!(
    every_split,
    skewed_lengths,
    long_requests,
    updates,
    a_fixed_split_is_reproducible,
    runs_repeat
);

/// Prefill, append, decode, and requests without queries or keys.
const MIXED: [(usize, usize); 7] = [(17, 65), (1, 700), (0, 16), (40, 64), (1, 1), (3, 300), (1, 97)];
const DECODE: [(usize, usize); 5] = [(1, 700), (1, 1), (1, 64), (1, 2000), (1, 17)];

/// The first device, for what depends on none.
fn any_device() -> Device {
    devices().swap_remove(0).device
}

fn config(case: &Case) -> PlanConfig {
    PlanConfig::new(case.kv_heads * case.group, case.kv_heads, case.dim, case.dtype)
        .head_dim_v(case.v_dim)
        .options(case.options())
}

fn rows(problem: &Problem, device: &Device) -> Indptr {
    Indptr::new(&problem.qo_indptr(), device).expect("a row pointer")
}

fn run_paged(plan: &PagedPlan, problem: &Problem, page_size: usize, device: &Device) -> Got {
    let paging = problem.paging(page_size);
    let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, KvLayout::Nhd).tensor(device));
    let pages = KvPages::new(k, v, KvLayout::Nhd).expect("pages that fit");
    Got::of(plan.run(problem.q.tensor(device), &pages).expect("as planned"))
}

/// Every way to split, over pages and without.
fn every_split(target: Target) {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for lengths in [&MIXED[..], &DECODE] {
            cases.push(Case::new(dtype, 64, lengths).heads(2, 4).causal());
        }
        cases.push(Case { window: Some(100), v_dim: 32, ..Case::new(dtype, 64, &MIXED).causal() });
    }
    on_device(&target, 4, &cases, |target, case| {
        // A causal mask wants as many keys as queries.
        let device = &target.device;
        let problem = case.problem("every_split");
        let expected = problem.expected();
        let qo = rows(&problem, device);
        let kv = Indptr::new(&problem.kv_indptr(), device).expect("a row pointer");
        for split in [KvSplit::Auto, KvSplit::Fixed(128), KvSplit::Fixed(1), KvSplit::Never] {
            let config = config(case).split(split);
            let table = problem.paging(16).table(device);
            let plan = PagedPlan::new(&config, &qo, &table).expect("a plan");
            assert_eq!(plan.tokens(), problem.q.shape[0]);
            let got = run_paged(&plan, &problem, 16, device);
            problem.check(&format!("{split:?}, pages: {}", plan.explain()), target, &expected, &got);
            if split == KvSplit::Auto {
                assert_eq!(
                    got.bits(),
                    problem.paged(device, 16, KvLayout::Nhd).bits(),
                    "the call without a plan"
                );
            }
            let plan = RaggedPlan::new(&config, &qo, &kv).expect("a plan");
            let [q, k, v] = [&problem.q, &problem.k, &problem.v].map(|x| x.tensor(device));
            let got = Got::of(plan.run(q, k, v).expect("as planned"));
            problem.check(&format!("{split:?}, ragged: {}", plan.explain()), target, &expected, &got);
            if split == KvSplit::Auto {
                assert_eq!(got.bits(), problem.ragged(device, View::Whole, KvLayout::Nhd).bits());
            }
        }
    });
}

/// Lengths by Zipf's law, as the benchmark has them: decoding over pages, and ragged prefill.
fn skewed_lengths(target: Target) {
    let zipf =
        |requests: u32, longest: f64| (1..=requests).map(move |rank| (longest / f64::from(rank)) as usize);
    let decode: Vec<_> = zipf(64, 4096.0).map(|keys| (1, keys)).collect();
    let prefill: Vec<_> = zipf(16, 512.0).map(|tokens| (tokens, tokens)).collect();
    let cases = [&decode, &prefill].map(|lengths| Case::new(DType::BF16, 64, lengths).heads(1, 4).causal());
    on_device(&target, 1, &cases, |target, case| {
        let (device, problem) = (&target.device, case.problem("skewed_lengths"));
        let (qo, expected) = (rows(&problem, device), problem.expected());
        let plan = PagedPlan::new(&config(case), &qo, &problem.paging(16).table(device)).expect("a plan");
        let got = run_paged(&plan, &problem, 16, device);
        problem.check(&plan.explain().to_string(), target, &expected, &got);
        let got = problem.ragged(device, View::Whole, KvLayout::Nhd);
        problem.check("ragged", target, &expected, &got);
    });
}

/// A request that is far longer than what one core reads, beside short ones.
fn long_requests(target: Target) {
    on_device(&target, 1, &[Case::new(DType::BF16, 64, &[]).heads(1, 4)], |target, case| {
        // Simulated or compiled for a CPU, keys take their time.
        let longest = if ["flex", "cuda"].contains(&target.name) { 300_000 } else { 20_000 };
        let case = Case { lengths: vec![(1, 700), (1, longest), (2, 5000)], ..case.clone() };
        let problem = case.problem("long_requests");
        let device = &target.device;
        let table = problem.paging(16).table(device);
        let plan = PagedPlan::new(&config(&case), &rows(&problem, device), &table).expect("a plan");
        let got = run_paged(&plan, &problem, 16, device);
        problem.check(&plan.explain().to_string(), target, &problem.expected(), &got);
    });
}

/// One plan goes through batches that grow and shrink, and gives what a new one would.
fn updates(target: Target) {
    on_device(&target, 1, &[Case::new(DType::F16, 64, &DECODE).heads(2, 4)], |target, case| {
        let device = &target.device;
        let mut rng = Rng::new("updates");
        let mut plan: Option<PagedPlan> = None;
        let mut held = 0;
        for step in 0..if target.is_slow() { 3 } else { 8 } {
            let lengths: Vec<_> = (0..1 + rng.below(6))
                .map(|_| {
                    let longest = [30, 400, 3000][rng.below(3)];
                    let keys = 1 + rng.below(longest);
                    (if rng.below(3) == 0 { keys.min(1 + rng.below(60)) } else { 1 }, keys)
                })
                .collect();
            let case = Case { lengths, ..case.clone() };
            let problem = case.problem(&format!("updates {step}"));
            let (qo, table) = (rows(&problem, device), problem.paging(16).table(device));
            let fresh = PagedPlan::new(&config(&case), &qo, &table).expect("a plan");
            let decodes = case.lengths.iter().all(|&(queries, _)| queries == 1);
            match &mut plan {
                None => plan = Some(PagedPlan::new(&config(&case), &qo, &table).expect("a plan")),
                Some(plan) if decodes => plan.update_decode(&table).expect("an update"),
                Some(plan) => plan.update(&qo, &table).expect("an update"),
            }
            let plan = plan.as_ref().expect("made in the first step");
            let got = run_paged(plan, &problem, 16, device);
            problem.check("updated", target, &problem.expected(), &got);
            assert_eq!(got.bits(), run_paged(&fresh, &problem, 16, device).bits(), "{}", fresh.explain());
            assert_eq!(plan.explain().to_string(), fresh.explain().to_string());
            // It grows, and holds what it has.
            assert!(plan.workspace_bytes() >= held.max(fresh.workspace_bytes()));
            held = plan.workspace_bytes();
        }
    });
}

/// With a fixed split a request gets the same bits alone and beside others; decoding and prefill.
fn a_fixed_split_is_reproducible(target: Target) {
    let cases: Vec<_> =
        DTYPES.into_iter().map(|dtype| Case::new(dtype, 64, &MIXED).heads(2, 4).causal()).collect();
    on_device(&target, 2, &cases, |target, case| {
        let device = &target.device;
        let problem = case.problem("a_fixed_split");
        let run = |problem: &Problem| {
            let config = config(&problem.case).split(KvSplit::Fixed(256));
            let table = problem.paging(16).table(device);
            let plan = PagedPlan::new(&config, &rows(problem, device), &table).expect("a plan");
            run_paged(&plan, problem, 16, device).bits().0
        };
        let together = run(&problem);
        let (qo, kv) = (problem.qo_indptr(), problem.kv_indptr());
        let row = case.kv_heads * case.group * case.v_dim;
        for (r, &lengths) in case.lengths.iter().enumerate().filter(|(_, lengths)| lengths.0 > 0) {
            let alone = Problem {
                case: Case { lengths: vec![lengths], ..case.clone() },
                q: problem.q.tokens(qo[r]..qo[r + 1]),
                k: problem.k.tokens(kv[r]..kv[r + 1]),
                v: problem.v.tokens(kv[r]..kv[r + 1]),
            };
            assert_eq!(run(&alone), together[qo[r] * row..qo[r + 1] * row], "request {r} on {}", target.name);
        }
    });
}

/// The output of a run does not depend on what an earlier one left in the workspace, nor on what lies beyond the tensors.
fn runs_repeat(target: Target) {
    on_device(&target, 1, &[Case::new(DType::BF16, 128, &MIXED).heads(2, 4).causal()], |target, case| {
        let device = &target.device;
        let (first, second) = (case.problem("runs_repeat 1"), case.problem("runs_repeat 2"));
        let plan = PagedPlan::new(&config(case), &rows(&first, device), &first.paging(16).table(device));
        let plan = plan.expect("a plan");
        let bits = |problem: &Problem| run_paged(&plan, problem, 16, device).bits();
        let once = bits(&first);
        let other = bits(&second);
        assert_eq!((bits(&first), bits(&second)), (once, other));
        // NaN keys and values of one layer leave nothing behind for the next.
        let poisoned = Problem {
            k: Host::full(first.k.shape, case.dtype, f32::NAN),
            v: Host::full(first.v.shape, case.dtype, f32::NAN),
            ..first.clone()
        };
        let before = bits(&first);
        bits(&poisoned);
        assert_eq!(bits(&first), before);
    });
}
