//! Attention that may multiply codes: as without the option, or with the error of 8 bits.

use burn_flashinfer::{Fp8, KvLayout};

use crate::cached_codes::Coded;
use crate::devices::{Target, device_tests};
use crate::problem::{Case, Expected, Got, Problem};
use crate::support::round;

device_tests!(products_of_codes, rms_error);

/// The problem with its queries as a matrix unit of 8 bits takes them: each row's largest number is the largest code.
fn with_queries_of_codes(problem: &Problem) -> Problem {
    let mut problem = problem.clone();
    for row in problem.q.values.chunks_mut(problem.case.dim) {
        let scale = row.iter().fold(1e-30, |size: f32, x| size.max(x.abs())) / Fp8::E4m3Fnuz.max();
        row.iter_mut().for_each(|x| *x = Fp8::E4m3Fnuz.decode(Fp8::E4m3Fnuz.encode(*x / scale)) * scale);
    }
    problem
}

/// The expected results where products are of codes.
fn expected(problem: &Problem) -> Expected {
    let rounded = with_queries_of_codes(problem);
    let weigh = |weight: f32| Fp8::E4m3Fnuz.decode(Fp8::E4m3Fnuz.encode(128.0 * weight)) / 128.0;
    let narrow = Some(problem.case.dtype);
    Expected { in_type: rounded.baseline(narrow, weigh), ..problem.expected() }
}

/// The results without the option and with it, which is not ignored where the device multiplies codes.
fn both(target: &Target, coded: &Coded) -> [Got; 2] {
    let (device, problem) = (&target.device, &coded.problem);
    let paging = problem.paging(16);
    let pages = coded.pages(&paging, KvLayout::Nhd, device);
    let config = coded.config(&pages);
    [false, true].map(|fp8_mma| {
        let config = config.clone().options(problem.case.options().fp8_mma(fp8_mma));
        let plan = coded.plan(&config, &paging, device);
        let of_codes = plan.explain().to_string().contains("products of codes");
        assert_eq!(of_codes, fp8_mma && target.name == "rocm", "{}: {}", target.name, plan.explain());
        Got::of(plan.run(problem.q.tensor(device), &pages).expect("runs"))
    })
}

/// Prefill beside decoding, with caps, windows and rows of zeros.
fn products_of_codes(target: Target) {
    let dtypes: Vec<_> = target.dtypes().into_iter().filter(|dtype| dtype.size() == 2).collect();
    let cases = [(true, None, None), (false, Some(40), Some(5.0)), (true, Some(19), None)];
    for (at, (causal, window, soft_cap)) in target.thin(2, cases.into_iter().enumerate().collect()) {
        let lengths = [(1, 70), (35, 150), (0, 9), (40, 40)];
        let case = Case::new(dtypes[at % 2], [64, 128, 80][at], &lengths).heads(1, 3);
        let mut problem = Case { causal, window, soft_cap, ..case }.problem("products of codes");
        problem.q.values[5 * 64..][..64].fill(0.0);
        let coded = Coded::new(problem, [Fp8::E4m3, Fp8::E4m3Fnuz][at % 2], at % 2 == 0);
        let [numbers, codes] = both(&target, &coded);
        if target.name == "rocm" {
            assert_ne!(numbers, codes);
            coded.problem.check("products of codes", &target, &expected(&coded.problem), &codes);
        } else {
            assert_eq!(numbers.bits(), codes.bits(), "{}", target.name);
        }
    }
}

/// The root mean square of the error over the numbers that became codes is that of the roundings alone, of numbers as
/// FlashAttention-3's paper draws them: normal, and one in a thousand ten times as large.
fn rms_error(target: Target) {
    let dtype = burn::tensor::DType::BF16;
    let mut problem = Case::new(dtype, 64, &[(48, 200)]).heads(1, 2).problem("outliers");
    for x in [&mut problem.q, &mut problem.k, &mut problem.v] {
        x.values.iter_mut().step_by(1009).for_each(|x| *x = round(*x * 10.0, dtype));
    }
    let exact = problem.expected().oracle;
    let rms = |output: &[f32]| {
        let away = output.iter().zip(exact.output.values()).map(|(&o, exact)| f64::from(o) - exact);
        (away.map(|x| x * x).sum::<f64>() / output.len() as f64).sqrt()
    };
    let format = Fp8::E4m3Fnuz;
    let scales = [&problem.k, &problem.v]
        .map(|x| vec![x.values.iter().fold(0.0, |size: f32, x| size.max(x.abs())) / format.max()]);
    let coded = Coded::of(problem, format, scales);
    let numbers = coded.problem.expected();
    let rounded = match target.name {
        "rocm" => [numbers.in_type.0, expected(&coded.problem).in_type.0],
        _ => [numbers.baseline.0.clone(), numbers.baseline.0],
    };
    for (got, rounded) in both(&target, &coded).iter().zip(&rounded) {
        let [error, of_roundings] = [&got.output, rounded].map(|output| rms(output));
        println!("{}: root mean square error {error:.4}, of roundings alone {of_roundings:.4}", target.name);
        assert!(error <= 2.0 * of_roundings, "{}: {error} and {of_roundings}", target.name);
    }
}
