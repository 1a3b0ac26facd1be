//! Slots of each query token, and how scores become slots.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::sampling::{top_k_page_table_transform, top_k_ragged_transform};
use burn_flashinfer::{
    AttentionOptions, Fp8, Indptr, KvLayout, KvPages, PageTable, PlanConfig, PodPlan, TokenSparsePlan,
};

use crate::cached_codes::Coded;
use crate::devices::{Target, device_tests};
use crate::problem::{Case, Got, Paging};
use crate::support::{Host, Rng, refused};

device_tests!(
    slots_of_each_token,
    slots_of_codes,
    scores_to_slots,
    slots_that_do_not_fit_are_refused,
    autodiff_and_plain_tensors_mix
);

fn ints<const D: usize>(values: Vec<i32>, shape: [usize; D], target: &Target) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (&target.device, DType::I32))
}

/// Slots of each token, at most.
const TOP_K: usize = 70;

/// The slots of each request's keys in any order, with what is left out anywhere among them.
fn slots(paging: &Paging, label: &str, target: &Target) -> Tensor<2, Int> {
    let rng = &mut Rng::new(label);
    let end = (paging.pages * paging.page_size) as i32;
    let rows = paging.keys.iter().enumerate().flat_map(|(token, &keys)| {
        let slot = |at: usize| match at {
            _ if at < keys => paging.slot(token, at) as i32,
            _ => [-1, end, i32::MIN][at % 3],
        };
        rng.shuffled(TOP_K).into_iter().map(slot).collect::<Vec<_>>()
    });
    ints(rows.collect(), [paging.keys.len(), TOP_K], target)
}

/// Slots that hold codes, of whose heads each has a scale.
fn slots_of_codes(target: Target) {
    let device = &target.device;
    let dtype = target.dtypes()[0];
    let lengths: Vec<(usize, usize)> = [70, 1, 0, 33].map(|keys| (1, keys)).to_vec();
    let case = Case::new(dtype, 64, &lengths).heads(2, 4);
    let coded = Coded::new(case.problem("slots of codes"), Fp8::E4m3, true);
    let paging = coded.problem.paging(4);
    let pages = coded.pages(&paging, KvLayout::Nhd, device);
    let plan = TokenSparsePlan::new(&coded.config(&pages), [lengths.len(), TOP_K], device).expect("a plan");
    let indices = slots(&paging, "slots of codes", &target);
    let got = Got::of(plan.run(coded.problem.q.tensor(device), &pages, indices.clone()).expect("runs"));
    coded.problem.check("slots of codes", &target, &coded.problem.expected(), &got);
    let numbers = PlanConfig::new(8, 2, 64, dtype);
    let plan = TokenSparsePlan::new(&numbers, [lengths.len(), TOP_K], device).expect("a plan");
    refused(
        plan.run(coded.problem.q.tensor(device), &pages, indices),
        format!("TokenSparsePlan::run: `pages` is of type codes of E4m3, expected {dtype:?}, as planned"),
    );
}

/// In any order, with what is left out anywhere among them; a run after another has its own.
fn slots_of_each_token(target: Target) {
    let device = &target.device;
    for dtype in target.dtypes() {
        let lengths: Vec<(usize, usize)> = [70, 1, 0, 33, 64].map(|keys| (1, keys)).to_vec();
        let case = Case::new(dtype, 64, &lengths).heads(2, 4);
        let config = PlanConfig::new(8, 2, 64, dtype).options(AttentionOptions::new().return_lse(true));
        let plan = TokenSparsePlan::new(&config, [lengths.len(), TOP_K], device).expect("a plan");
        assert_eq!((plan.tokens(), plan.top_k()), (5, TOP_K));
        for run in 0..2 {
            let problem = case.problem(&format!("slots of each token {run}"));
            let paging = problem.paging(4);
            let indices = slots(&paging, &format!("slots {run} {case:?}"), &target);
            let [k, v] = [&problem.k, &problem.v].map(|x| paging.pool(x, KvLayout::Nhd).tensor(device));
            let pages = KvPages::new(k, v, KvLayout::Nhd).expect("pages");
            let got = Got::of(plan.run(problem.q.tensor(device), &pages, indices).expect("runs"));
            problem.check("slots of each token", &target, &problem.expected(), &got);
        }
        // Nothing is seen of a pool that is NaN all over.
        let nans = || Tensor::<4>::full([2, 4, 2, 64], f32::NAN, (device, dtype));
        let pages = KvPages::new(nans(), nans(), KvLayout::Nhd).expect("pages");
        let q = Tensor::<3>::ones([5, 8, 64], (device, dtype));
        let got = Got::of(plan.run(q, &pages, ints(vec![-1; 5 * TOP_K], [5, TOP_K], &target)).expect("runs"));
        assert!(got.output.iter().all(|&x| x == 0.0) && got.lse.iter().all(|&x| x == f32::NEG_INFINITY));
    }
}

/// The keys of a row by score, the first of equals first; all of them in order if there are few.
fn best(scores: &[f32], len: usize, k: usize) -> Vec<i32> {
    let mut keys: Vec<usize> = (0..len).collect();
    if len > k {
        keys.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        keys.truncate(k);
    }
    keys.into_iter().map(|key| key as i32).collect()
}

/// Ties, lengths of all kinds, rows of one request and of none, and scores behind the end that must not count.
fn scores_to_slots(target: Target) {
    const MAX_LEN: usize = 50;
    let lengths = [0, 1, 7, 8, 9, 50, 49, -3, 1000, 20];
    let requests = [2, 0, 1, 1, 0, 2, 2, 0, 1, 3];
    let (tables, offsets) = (Rng::new("tables").shuffled(3 * 16), Rng::new("offsets").shuffled(10));
    for (at, k) in [8, 50, 64].into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16].into_iter().skip(at % 2).take(1) {
            let rng = &mut Rng::new(&format!("scores {k}"));
            let mut scores = Host::from_fn([10, MAX_LEN], dtype, |_| rng.below(9) as f32 - 4.0);
            for (row, len) in lengths.into_iter().enumerate() {
                let behind = (len.max(0) as usize).min(MAX_LEN);
                scores.values[row * MAX_LEN..][..MAX_LEN][behind..].fill([f32::NAN, f32::INFINITY][row % 2]);
            }
            let expected = |row: usize, most: usize, of_key: &dyn Fn(i32) -> i32| {
                let len = (lengths[row].max(0) as usize).min(most);
                let of_row = &scores.values[row * MAX_LEN..][..MAX_LEN];
                let mut keys: Vec<i32> = best(of_row, len, k).into_iter().map(of_key).collect();
                keys.resize(k, -1);
                keys
            };
            let pages: Vec<i32> = tables.iter().map(|&page| page as i32).collect();
            let slots = top_k_page_table_transform(
                scores.tensor(&target.device),
                ints(pages.clone(), [3, 16], &target),
                ints(lengths.to_vec(), [10], &target),
                k,
                Some(ints(requests.to_vec(), [10], &target)),
                3,
            );
            let rows = (0..10).flat_map(|row| {
                let request = requests[row] as usize;
                // Request 3 is none, and 16 pages of 3 have room for 48 keys.
                let room = if request < 3 { 48 } else { 0 };
                expected(row, room, &|key| pages[16 * request + key as usize / 3] * 3 + key % 3)
            });
            let slots = slots.expect("runs");
            assert_eq!((slots.dims(), slots.dtype()), ([10, k], DType::I32));
            assert_eq!(
                slots.into_data().iter::<i32>().collect::<Vec<_>>(),
                rows.collect::<Vec<_>>(),
                "k = {k}"
            );

            let offsets: Vec<i32> = offsets.iter().map(|&offset| 100 * offset as i32).collect();
            let rows = (0..10).flat_map(|row| expected(row, MAX_LEN, &|key| offsets[row] + key));
            let got = top_k_ragged_transform(
                scores.tensor(&target.device),
                ints(offsets.clone(), [10], &target),
                ints(lengths.to_vec(), [10], &target),
                k,
            );
            let got = got.expect("runs").into_data().iter::<i32>().collect::<Vec<_>>();
            assert_eq!(got, rows.collect::<Vec<_>>(), "k = {k}");
        }
    }
}

/// On an autodiff device all runs as on the one inside, and a gradient is refused.
fn autodiff_and_plain_tensors_mix(target: Target) {
    let devices = [target.device.clone(), target.device.clone().autodiff()];
    let config = PlanConfig::new(4, 2, 32, DType::F32);
    for (q_device, other) in [(0, 1), (1, 0), (1, 1)] {
        let (q_device, other) = (&devices[q_device], &devices[other]);
        let floats = |heads, device| Tensor::<3>::ones([3, heads, 32], (device, DType::F32));
        let pool = || Tensor::<4>::ones([3, 1, 2, 32], (&target.device, DType::F32));
        let pages = KvPages::new(pool(), pool(), KvLayout::Nhd).expect("pages");
        let row = |device| Tensor::<1, Int>::from_data([3, 3, 3], (device, DType::I32));
        let table = Tensor::<2, Int>::from_data([[0, 1, 2]], (other, DType::I32));
        let scores = || Tensor::<2>::ones([3, 3], (q_device, DType::F32));
        let rows = Some(Tensor::zeros([3], (&target.device, DType::I32)));
        let slots =
            top_k_page_table_transform(scores(), table.clone(), row(other), 2, rows, 1).expect("runs");
        assert_eq!(slots.device().is_autodiff(), q_device.is_autodiff());
        let plan = TokenSparsePlan::new(&config, [3, 2], other).expect("a plan");
        let output = plan.run(floats(4, q_device), &pages, slots).expect("runs").output;
        assert_eq!(output.device().is_autodiff(), q_device.is_autodiff());
        assert!(output.into_data().iter::<f32>().all(|x| x == 1.0));

        let table = PageTable::new(&[0, 3, 4], &[0, 1, 2, 1], &[1, 1], 1, 3, q_device).expect("a table");
        let pod = PodPlan::new(&config, &Indptr::from_lengths(&[3], other).expect("valid"), &table)
            .expect("a plan");
        let q_decode = floats(4, other).slice_dim(0, 0..1);
        let (prefill, decode) = pod.run(floats(4, q_device), q_decode, &pages).expect("runs");
        for output in [prefill.output, decode.output] {
            assert_eq!(output.device().is_autodiff(), q_device.is_autodiff());
            assert!(output.into_data().iter::<f32>().all(|x| x == 1.0));
        }
    }
    let gradient = |op: &str, argument: &str| {
        format!(
            "{op}: `{argument}` requires a gradient, expected a tensor without one: this operation has no backward pass (call \
             `.inner()` for inference)"
        )
    };
    let device = &devices[1];
    let q = Tensor::<3>::ones([3, 4, 32], (device, DType::F32)).require_grad();
    let pool = || Tensor::<4>::ones([3, 1, 2, 32], (device, DType::F32));
    let pages = KvPages::new(pool(), pool(), KvLayout::Nhd).expect("pages");
    let plan = TokenSparsePlan::new(&config, [3, 2], device).expect("a plan");
    refused(plan.run(q, &pages, Tensor::zeros([3, 2], device)), gradient("TokenSparsePlan::run", "q"));
    let scores = Tensor::<2>::ones([3, 3], (device, DType::F32)).require_grad();
    refused(
        top_k_ragged_transform(scores, Tensor::zeros([3], device), Tensor::zeros([3], device), 2),
        gradient("top_k_ragged_transform", "scores"),
    );
}

fn slots_that_do_not_fit_are_refused(target: Target) {
    let device = &target.device;
    let config = PlanConfig::new(4, 2, 32, DType::F32);
    refused(
        TokenSparsePlan::new(&config, [3, 0], device),
        "TokenSparsePlan::new: `top_k` is 0, expected at least 1",
    );
    refused(
        TokenSparsePlan::new(&config.clone().options(AttentionOptions::new().window_left(3)), [3, 8], device),
        "TokenSparsePlan::new: `window_left` is 3, expected none, as keys have no positions",
    );
    let plan = TokenSparsePlan::new(&config, [3, 8], device).expect("a plan");
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, (device, DType::F32));
    let pages = |shape, layout| KvPages::new(zeros(shape), zeros(shape), layout).expect("pages");
    let q = || Tensor::<3>::zeros([3, 4, 32], (device, DType::F32));
    let indices = |top_k| ints(vec![0; 3 * top_k], [3, top_k], &target);
    refused(
        plan.run(q(), &pages([6, 2, 4, 32], KvLayout::Hnd), indices(8)),
        "TokenSparsePlan::run: `pages` is HND, expected NHD, of which a slot is one row",
    );
    refused(
        plan.run(q(), &pages([6, 4, 2, 32], KvLayout::Nhd), indices(7)),
        "TokenSparsePlan::run: `indices` has shape [3, 7], expected [3, 8], as planned",
    );
    let scores = || Tensor::<2>::zeros([3, 9], (device, DType::F32));
    let row = |len| ints(vec![0; len], [len], &target);
    let transform = |table: [usize; 2], lengths: usize, k, page_size| {
        let table = ints(vec![0; table[0] * table[1]], table, &target);
        top_k_page_table_transform(scores(), table, row(lengths), k, None, page_size)
    };
    for (refusal, message) in [
        (transform([3, 2], 3, 4, 0), "`page_size` is 0, expected at least 1"),
        (
            transform([2, 2], 3, 4, 8),
            "`page_table` has shape [2, 2], expected a row for each of the 3 rows of `scores`",
        ),
        (transform([3, 2], 2, 4, 8), "`lengths` has shape [2], expected [3], one for each row of `scores`"),
        (transform([3, 2], 3, 0, 8), "`k` is 0, expected at least 1"),
        (
            transform([0, 2], 3, 4, 8),
            "`page_table` has shape [0, 2], expected at least one request and one page",
        ),
    ] {
        refused(refusal, format!("top_k_page_table_transform: {message}"));
    }
    refused(
        top_k_ragged_transform(scores(), row(2), row(3), 4),
        "top_k_ragged_transform: `offsets` has shape [2], expected [3], one for each row of `scores`",
    );
}
