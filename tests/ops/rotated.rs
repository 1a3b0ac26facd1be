//! Attention over pages whose keys are not rotated.

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, Indptr, KvLayout, KvPages, PageTable, PlanConfig, Positions, RaggedPlan, Rope,
    RopeConfig, RotatedPlan, apply_rope,
};

use crate::devices::{Target, device_tests};
use crate::problem::{Case, Got, Problem};
use crate::support::refused;

device_tests!(as_keys_that_were_rotated_before, fewer_keys_than_queries_are_refused);

/// The same bits as of keys that were rotated first, at the usual positions and at others.
fn as_keys_that_were_rotated_before(target: Target) {
    let device = &target.device;
    for dtype in target.dtypes() {
        let lengths: &[(usize, usize)] = &[(1, 37), (5, 5), (0, 9), (20, 70)];
        let case = Case { causal: true, ..Case::new(dtype, 64, lengths) };
        let problem = case.problem("rotated");
        let Problem { q, k, v, .. } = &problem;
        let rope = Rope::new(&RopeConfig::new(64), 256, device).expect("a table");
        let paging = problem.paging(16);
        let pool = |x| paging.pool(x, KvLayout::Hnd).tensor(device);
        let pages = KvPages::new(pool(k), pool(v), KvLayout::Hnd).expect("a pool");
        let [qo, kv] =
            [problem.qo_indptr(), problem.kv_indptr()].map(|rows| Indptr::new(&rows, device).expect("valid"));
        let options = AttentionOptions::new().causal(true).return_lse(true);
        let config = PlanConfig::new(case.kv_heads * case.group, case.kv_heads, 64, dtype).options(options);
        let plan = RaggedPlan::new(&config, &qo, &kv).expect("a plan");
        let usual: Vec<usize> = lengths.iter().map(|(qo_len, kv_len)| kv_len - qo_len).collect();
        for (q_offsets, k_offsets) in [(usual.clone(), vec![0; 4]), (vec![9, 100, 0, 30], vec![3, 0, 5, 120])]
        {
            let rotated = |x: &crate::support::Host<3>, rows: &Indptr, offsets: &[usize]| {
                let positions = Positions::continuing(rows, offsets).expect("positions");
                let x = x.tensor(device);
                apply_rope(x.clone(), x, &rope, &positions).expect("rotates").0
            };
            let (q_first, k_first) = (rotated(q, &qo, &q_offsets), rotated(k, &kv, &k_offsets));
            let before = Got::of(plan.run(q_first, k_first, v.tensor(device)).expect("runs"));
            let mut within = RotatedPlan::new(&config, &qo, &paging.table(device)).expect("a plan");
            if q_offsets != usual {
                within = within.at(&q_offsets, &k_offsets).expect("positions");
            }
            let within = Got::of(within.run(q.tensor(device), &pages, &rope).expect("runs"));
            let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&within.output), bits(&before.output), "{dtype:?} {k_offsets:?}");
            assert_eq!(bits(&within.lse), bits(&before.lse), "{dtype:?} {k_offsets:?}");
        }
    }
}

fn fewer_keys_than_queries_are_refused(target: Target) {
    let device = &target.device;
    let table = PageTable::new(&[0, 1], &[0], &[2], 4, 1, device).expect("a table");
    let rows = Indptr::from_lengths(&[3], device).expect("valid");
    refused(
        RotatedPlan::new(&PlanConfig::new(2, 1, 32, DType::F32), &rows, &table),
        "RotatedPlan::new: `qo_indptr[0]` is 3 queries, expected at most 2, the keys of the request",
    );
    let short = Rope::new(&RopeConfig::new(32), 1, device).expect("a table");
    let rows = Indptr::from_lengths(&[1], device).expect("valid");
    let plan = RotatedPlan::new(&PlanConfig::new(2, 1, 32, DType::F32), &rows, &table).expect("a plan");
    let pool = || Tensor::<4>::zeros([1, 4, 1, 32], (device, DType::F32));
    let pages = KvPages::new(pool(), pool(), KvLayout::Nhd).expect("a pool");
    refused(
        plan.run(Tensor::zeros([1, 2, 32], (device, DType::F32)), &pages, &short),
        "apply_rope: `positions` is up to 1, expected below 1, the positions of `rope`",
    );
}
