//! Pages of codes that become numbers before attention reads them.

use burn_flashinfer::{
    AttentionOptions, Dequantize, Fp8, Indptr, KvLayout, PagedPlan, PlanConfig, RaggedPlan,
    batch_prefill_paged, gather_paged_kv,
};

use crate::cached_codes::Coded;
use crate::devices::{Target, device_tests};
use crate::fp8::FORMATS;
use crate::problem::{Case, Expected, Got};
use crate::support::round;

device_tests!(as_over_numbers, the_choice);

/// The bits of a plan over the numbers that `gather_paged_kv` makes, also after an update; as near to the oracle over the codes as
/// attention over numbers of the type is.
fn as_over_numbers(target: Target) {
    let (device, dtypes) = (&target.device, target.dtypes());
    for (at, format) in target.thin(2, FORMATS.into_iter().enumerate().collect()) {
        let dtype = dtypes[(at + 1) % dtypes.len()];
        let lengths = [(17, 54), (0, 0), (1, 97), (0, 16), (5, 5)];
        let case = Case { v_dim: 32, ..Case::new(dtype, 64, &lengths).heads(2, 2) };
        let case = Case { window: (at == 1).then_some(20), ..case.causal() };
        let coded = Coded::new(case.problem("numbers first"), format, true);
        let paging = coded.problem.paging(7);
        let pages = coded.pages(&paging, [KvLayout::Nhd, KvLayout::Hnd][at % 2], device);
        let config = coded.config(&pages).dequantize(Dequantize::First);
        let mut plan = coded.plan(&config, &paging, device);
        assert!(plan.explain().to_string().starts_with("codes become numbers first; "), "{}", plan.explain());
        let run = |plan: &PagedPlan| Got::of(plan.run(coded.problem.q.tensor(device), &pages).expect("runs"));
        let got = run(&plan);

        let (k, v) = gather_paged_kv(&pages, &paging.table(device), dtype).expect("it fits");
        let [qo, kv] = [coded.problem.qo_indptr(), coded.problem.kv_indptr()]
            .map(|rows| Indptr::new(&rows, device).expect("valid"));
        let of_numbers = PlanConfig::new(4, 2, 64, dtype).head_dim_v(32).options(case.options());
        let over_numbers = RaggedPlan::new(&of_numbers, &qo, &kv).expect("a plan");
        let wanted = Got::of(over_numbers.run(coded.problem.q.tensor(device), k, v).expect("runs"));
        assert_eq!(got.bits(), wanted.bits(), "{} {format:?}", target.name);
        plan.update(&qo, &paging.table(device)).expect("as before");
        assert_eq!(run(&plan).bits(), wanted.bits(), "{} {format:?}, updated", target.name);

        let mut rounded = coded.problem.clone();
        for x in [&mut rounded.k, &mut rounded.v] {
            x.values.iter_mut().for_each(|x| *x = round(*x, dtype));
        }
        let Expected { baseline, in_type, .. } = rounded.expected();
        let expected = Expected { baseline, in_type, ..coded.problem.expected() };
        coded.problem.check("numbers first", &target, &expected, &got);
    }
}

/// Where kernels over numbers are faster, long prompts have codes become numbers first, unless they are told not to.
fn the_choice(target: Target) {
    let device = &target.device;
    let config = PlanConfig::new(32, 1, 64, burn::tensor::DType::BF16)
        .fp8(Fp8::E4m3)
        .options(AttentionOptions::new().causal(true));
    let first = |config: &PlanConfig, tokens: usize, keys: usize| {
        let rows = Indptr::from_lengths(&[tokens], device).expect("valid");
        let pages: Vec<usize> = (0..keys / 16).collect();
        let table =
            burn_flashinfer::PageTable::new(&[0, pages.len()], &pages, &[16], 16, pages.len(), device);
        let plan = PagedPlan::new(config, &rows, &table.expect("valid")).expect("a plan");
        plan.explain().to_string().contains("codes become numbers first")
    };
    // Among NVIDIA's GPUs only Hopper has such kernels.
    let wanted = target.name == "rocm" || target.name == "cuda" && first(&config, 512, 512);
    assert_eq!(first(&config, 512, 512), wanted, "{}", target.name);
    assert!(!first(&config, 1, 4096) && !first(&config, 16, 16));
    assert!(!first(&config.clone().dequantize(Dequantize::InKernel), 512, 512));
    assert!(first(&config.dequantize(Dequantize::First), 1, 16));

    // Calls without a plan choose alike.
    if target.name == "rocm" {
        let case = Case::new(burn::tensor::DType::BF16, 32, &[(132, 132)]).heads(1, 128).causal();
        let coded = Coded::new(case.problem("long codes"), Fp8::E4m3Fnuz, false);
        let paging = coded.problem.paging(16);
        let pages = coded.pages(&paging, KvLayout::Nhd, device);
        let plan = coded.plan(&coded.config(&pages), &paging, device);
        assert!(plan.explain().to_string().contains("codes become numbers first"), "{}", plan.explain());
        let planned = Got::of(plan.run(coded.problem.q.tensor(device), &pages).expect("runs"));
        let rows = Indptr::from_lengths(&[132], device).expect("valid");
        let (q, table) = (coded.problem.q.tensor(device), paging.table(device));
        let unplanned = batch_prefill_paged(q, &rows, &pages, &table, &case.options()).expect("runs");
        assert_eq!(planned.bits(), Got::of(unplanned).bits());
    }
}
