//! Attention over pages that requests share.

use burn::tensor::{DType, Device};
use burn_flashinfer::{
    AttentionOptions, Cascade, CascadePlan, Indptr, KvLayout, KvPages, PageTable, PlanConfig, Spans,
    cascade_attention,
};

use crate::attention::on_device;
use crate::devices::{Target, device_tests, devices};
use crate::problem::{Case, Got, Paging, Problem};
use crate::support::{DTYPES, Rng, refused};

device_tests!(levels, any_tree, refuses_what_does_not_fit);

/// A problem whose request `r` begins with the first `shared[r]` pages of request `r - 1`.
pub fn sharing(case: &Case, label: &str, page_size: usize, shared: &[usize]) -> (Problem, Paging) {
    let mut problem = case.problem(label);
    let mut paging = problem.paging(page_size);
    let rows = problem.kv_indptr();
    for (r, &pages) in shared.iter().enumerate().skip(1) {
        let tokens = pages * page_size;
        for x in [&mut problem.k, &mut problem.v] {
            let row = x.shape[1] * x.shape[2];
            x.values.copy_within(rows[r - 1] * row..(rows[r - 1] + tokens) * row, rows[r] * row);
        }
        let first = paging.indptr[r - 1];
        paging.indices.copy_within(first..first + pages, paging.indptr[r]);
    }
    (problem, paging)
}

pub fn cascade(problem: &Problem, paging: &Paging, device: &Device, least_saved: usize) -> Cascade {
    let qo = Indptr::new(&problem.qo_indptr(), device).expect("a row pointer");
    let cascade = Cascade::new(&paging.table(device), &qo, least_saved).expect("it fits");
    // Level by level every request has its pages, in their order, and no group shares less than it has to.
    let mut pages = vec![vec![]; problem.case.lengths.len()];
    for level in 0..cascade.levels() {
        let groups: Vec<_> = cascade.groups(level).collect();
        assert_eq!(groups.iter().flat_map(|(requests, _)| requests.clone()).collect::<Vec<_>>(), {
            (0..pages.len()).collect::<Vec<_>>()
        });
        for (requests, shared) in groups {
            let saved = (requests.len() - 1) * shared.len() * paging.page_size;
            assert!(level + 1 == cascade.levels() || shared.is_empty() || saved >= least_saved.max(1));
            requests.for_each(|request| pages[request].extend_from_slice(shared));
        }
    }
    for (request, pages) in pages.iter().enumerate() {
        assert_eq!(pages, &paging.indices[paging.indptr[request]..paging.indptr[request + 1]]);
    }
    assert_eq!(cascade.keys_seen(), paging.keys.iter().sum::<usize>());
    cascade
}

fn attend(problem: &Problem, paging: &Paging, target: &Target, layout: KvLayout, cascade: &Cascade) -> Got {
    let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, layout).tensor(&target.device));
    let pages = KvPages::new(k, v, layout).expect("pages that fit");
    let q = || problem.q.tensor(&target.device);
    let options = problem.case.options();
    let got = Got::of(cascade_attention(q(), &pages, cascade, &options).expect("it fits"));
    // The same as a plan.
    let Case { kv_heads, group, dim, dtype, .. } = problem.case;
    let config = PlanConfig::new(kv_heads * group, kv_heads, dim, dtype).options(options);
    let plan = CascadePlan::new(&config, cascade).expect("a plan");
    assert_eq!(plan.explain().to_string().lines().count(), cascade.levels());
    assert_eq!(Got::of(plan.run(q(), &pages).expect("as planned")).bits(), got.bits());
    got
}

/// Decoding and appending, over one level and over several, causal or not, in every type.
fn levels(target: Target) {
    let decode = [(1, 97), (1, 101), (1, 83), (1, 85), (1, 17), (1, 1), (1, 0)];
    let append = [(7, 97), (3, 101), (0, 90), (17, 97), (1, 1)];
    let trees = [
        // Pages of 5: all of the first four begin alike, the first two go on together.
        (&decode[..6], &[0, 19, 12, 16, 0, 0][..], 3),
        (&decode[..], &[0, 0, 0, 0, 0, 0, 0], 1),
        (&append[..], &[0, 18, 16, 11, 0], 4),
    ];
    for (lengths, shared, levels) in trees {
        let mut cases = vec![];
        for (dtype, causal) in DTYPES.into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]) {
            // A row without any key is refused under a causal mask.
            let least = usize::from(causal);
            let lengths: Vec<_> =
                lengths.iter().map(|&(queries, keys)| (queries, keys.max(queries.min(least)))).collect();
            cases.push(Case { causal, ..Case::new(dtype, 64, &lengths).heads(2, 4) });
        }
        on_device(&target, 3, &cases, |target, case| {
            let (problem, paging) = sharing(case, "levels", 5, shared);
            let expected = problem.expected();
            let found = cascade(&problem, &paging, &target.device, 1);
            assert_eq!(found.levels(), levels, "{case:?}");
            for layout in [KvLayout::Nhd, KvLayout::Hnd] {
                let got = attend(&problem, &paging, target, layout, &found);
                problem.check("cascade", target, &expected, &got);
            }
        });
    }
}

/// Random trees of prefixes, soft caps and scales, and any saving asked for.
fn any_tree(target: Target) {
    let rng = &mut Rng::new("any_tree");
    for round in 0..if target.name == "flex" { 60 } else { 4 } {
        let page_size = [1, 3, 16][rng.below(3)];
        let lengths: Vec<(usize, usize)> = (0..1 + rng.below(7))
            .map(|_| {
                let keys = rng.below(90);
                (rng.below(keys.min(9) + 1), keys)
            })
            .collect();
        let shared: Vec<usize> = (0..lengths.len())
            .map(|r| if r == 0 { 0 } else { rng.below(lengths[r].1.min(lengths[r - 1].1) / page_size + 1) })
            .collect();
        let case = Case {
            causal: round % 2 == 0,
            soft_cap: (round % 3 == 0).then_some(20.0),
            scale: (round % 5 == 0).then_some(0.4),
            ..Case::new(target.dtypes()[round % target.dtypes().len()], 32, &lengths)
        };
        let (problem, paging) = sharing(&case, &format!("any_tree {round}"), page_size, &shared);
        let found = cascade(&problem, &paging, &target.device, [0, 1, 40][rng.below(3)]);
        assert!(found.keys_read() <= found.keys_seen());
        let got = attend(&problem, &paging, &target, KvLayout::Nhd, &found);
        problem.check("cascade", &target, &problem.expected(), &got);
    }
}

/// What is shared by many is one read, and too little is not worth a level.
#[test]
fn saves_what_it_is_asked_to() {
    let device = &devices()[0].device;
    // 64 requests over a prefix of 2048 pages, 16 of their own each.
    let (requests, prefix, own) = (64, 2048, 16);
    let indices: Vec<usize> = (0..requests)
        .flat_map(|request| (0..prefix).chain(prefix + request * own..prefix + (request + 1) * own))
        .collect();
    let indptr: Vec<usize> = (0..=requests).map(|request| request * (prefix + own)).collect();
    let table = PageTable::new(&indptr, &indices, &vec![16; requests], 16, prefix + requests * own, device);
    let (table, qo) =
        (table.expect("valid"), Indptr::from_lengths(&vec![1; requests], device).expect("valid"));
    let found = Cascade::new(&table, &qo, 10_000).expect("it fits");
    assert_eq!((found.levels(), found.keys_read()), (2, prefix * 16 + requests * own * 16));
    assert_eq!(found.keys_seen(), requests * (prefix + own) * 16);
    let saved = found.keys_seen() - found.keys_read();
    assert_eq!(Cascade::new(&table, &qo, saved).expect("it fits").levels(), 2);
    assert_eq!(Cascade::new(&table, &qo, saved + 1).expect("it fits").levels(), 1);
}

fn refuses_what_does_not_fit(target: Target) {
    let case = Case::new(DType::F32, 32, &[(1, 40), (1, 40)]);
    let (problem, paging) = sharing(&case, "refuses", 4, &[0, 8]);
    let device = &target.device;
    let table = paging.table(device);
    let rows = |lengths: &[usize]| Indptr::from_lengths(lengths, device).expect("lengths");
    refused(
        Cascade::new(&table, &rows(&[1]), 1),
        "Cascade::new: `qo_indptr` is of 1 requests, expected of 2 requests, as `table`",
    );
    let found = Cascade::new(&table, &rows(&[1, 1]), 1).expect("it fits");
    let pool = |page_size: usize| {
        let paging = Paging { page_size, ..paging.clone() };
        let [k, v] = [&problem.k, &problem.v].map(|x| {
            let shape = [paging.pages, page_size, x.shape[1], x.shape[2]];
            burn::tensor::Tensor::<4>::zeros(shape, (device, DType::F32))
        });
        KvPages::new(k, v, KvLayout::Nhd).expect("pages that fit")
    };
    let q = problem.q.tensor(device);
    let options = AttentionOptions::new();
    refused(
        cascade_attention(q.clone(), &pool(4), &found, &options.clone().window_left(3)),
        "cascade_attention: `window_left` is 3, expected none, as requests share keys",
    );
    let spans = Spans::new(&[vec![], vec![]]).expect("spans");
    refused(
        cascade_attention(q.clone(), &pool(4), &found, &options.clone().causal(true).spans(spans)),
        "cascade_attention: `spans` is set, expected none, as requests share keys",
    );
    refused(
        cascade_attention(q.clone(), &pool(8), &found, &options),
        "cascade_attention: `cascade` is of pages of 4 tokens, expected pages of 8 tokens, as `pages`",
    );
    refused(
        cascade_attention(q.narrow(0, 0, 1), &pool(4), &found, &options),
        "cascade_attention: `cascade[2]` is 2, expected 1, the tokens of `q`",
    );
    let windowed = Case { window: Some(3), ..case };
    let (problem, paging) = sharing(&windowed, "refuses", 4, &[0, 8]);
    let alone = cascade(&problem, &paging, device, 1000);
    assert_eq!(alone.levels(), 1);
    let got = attend(&problem, &paging, &target, KvLayout::Nhd, &alone);
    problem.check("a cascade of one level", &target, &problem.expected(), &got);
}
