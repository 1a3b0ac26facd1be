//! Attention where arithmetic is in danger: huge logits, NaN, infinities, rows without keys.

use burn_flashinfer::KvLayout;

use crate::attention::on_device;
use crate::devices::{Target, device_tests};
use crate::problem::{Case, Problem};
use crate::support::{DTYPES, View, round};

device_tests!(
    large_negative_logits,
    large_logits,
    tiny_soft_caps,
    masked_keys_do_not_leak,
    rows_without_keys,
    nan_stays_in_its_row,
    infinite_logits,
    one_key
);

fn run(what: &str, target: &Target, problem: &Problem) {
    let expected = problem.expected();
    let contiguous = problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
    problem.check(&format!("{what}, ragged"), target, &expected, &contiguous);
    let paged = problem.paged(&target.device, 5, KvLayout::Hnd);
    problem.check(&format!("{what}, paged"), target, &expected, &paged);
}

/// Logits of -1e4 to -2.45e5 in every row: a mask value like -5e4 would beat them. Inputs are powers of two and small
/// integers, so that every logit is exact in f32 and the comparison strict.
fn large_negative_logits(target: Target) {
    let lengths = [(17, 37), (1, 54), (3, 97)];
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &lengths)), |target, case| {
        for k in [10.0, 60.0, 240.0] {
            for case in [case.clone(), case.clone().causal(), Case { window: Some(5), ..case.clone() }] {
                let mut problem = case.problem("large_negative_logits");
                problem.q.values.fill(128.0);
                // -128 · k · 64 / 8, and one key in four a little nearer to zero.
                for (at, x) in problem.k.values.iter_mut().enumerate() {
                    *x = if at / 128 % 4 == 3 && at % 64 == 0 { 1.0 - k } else { -k };
                }
                run("large negative logits", target, &problem);
            }
        }
    });
}

/// Logits up to 1e5 of both signs: no exponential may overflow.
fn large_logits(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(17, 37), (1, 97)])), |target, case| {
        let mut problem = case.clone().causal().problem("large_logits");
        // Integers times 256 and 8: products and sums are exact.
        problem.q.values.iter_mut().for_each(|x| *x = (*x * 3.0).round() * 256.0);
        problem.k.values.iter_mut().for_each(|x| *x = (*x * 3.0).round() * 8.0);
        run("large logits", target, &problem);
    });
}

/// A cap whose reciprocal overflows: all logits are as good as 0, and those that are 0 do not become NaN.
fn tiny_soft_caps(target: Target) {
    let cases =
        DTYPES.map(|dtype| Case { soft_cap: Some(1e-39), ..Case::new(dtype, 64, &[(17, 37), (1, 97)]) });
    on_device(&target, 1, &cases, |target, case| {
        let mut problem = case.problem("tiny_soft_caps");
        let half = problem.q.values.len() / 2;
        problem.q.values[..half].fill(0.0);
        run("tiny soft caps", target, &problem);
    });
}

/// Keys outside the mask whose logits are huge, and whose values too, have no influence. Queries and keys are small
/// integers, so that every logit is exact in f32: of inexact ones in the thousands, the rounding of a single product
/// decides how far an output of huge values is off, and the baseline's may happen to be small.
fn masked_keys_do_not_leak(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(8, 40), (1, 70)])), |target, case| {
        for case in [
            case.clone().causal(),
            Case { window: Some(5), ..case.clone() },
            Case { window: Some(5), ..case.clone().causal() },
        ] {
            let mut clean = case.problem("masked_keys_do_not_leak");
            for x in [&mut clean.q, &mut clean.k] {
                x.values.iter_mut().for_each(|x| *x = (*x * 3.0).round());
            }
            let mut problem = clean.clone();
            // The last key is for the last query alone under a causal mask, the first ones are left of every window.
            let positions = if case.causal { vec![39, 109] } else { vec![0, 1, 40, 41] };
            for token in positions {
                for (x, huge) in [(&mut problem.k, 200.0), (&mut problem.v, 59904.0)] {
                    x.values[token * 128..][..128].iter_mut().for_each(|x| *x = f32::copysign(huge, *x));
                }
            }
            run("huge masked keys", target, &problem);
            // All rows but those of the last queries are those of the problem without them.
            let [dirty, clean] =
                [&problem, &clean].map(|problem| problem.ragged(&target.device, View::Whole, KvLayout::Nhd));
            let rows = if case.causal { 7 } else { 9 } * 4;
            assert_eq!(dirty.output[..rows * 64], clean.output[..rows * 64], "{}: {case:?}", target.name);
            assert_eq!(dirty.lse[..rows], clean.lse[..rows], "{}: {case:?}", target.name);
        }
    });
}

/// Rows that see no key, those of requests without keys: output exactly 0, LSE -inf. (A causal mask with more queries
/// than keys is refused, and a left window alone always leaves the last key.)
fn rows_without_keys(target: Target) {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for lengths in [&[(37, 5)][..], &[(37, 5), (0, 0), (3, 0), (17, 17)], &[(3, 0)]] {
            cases.push(Case { window: Some(0), ..Case::new(dtype, 64, lengths) });
            cases.push(Case { soft_cap: Some(20.0), ..Case::new(dtype, 64, lengths) });
        }
    }
    on_device(&target, 1, &cases, |target, case| {
        run("rows without keys", target, &case.problem("rows_without_keys"))
    });
}

/// A NaN in a query makes its own row NaN and no other; a NaN in a key, the rows of its head that see it.
fn nan_stays_in_its_row(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(17, 37), (1, 20)])), |target, case| {
        for case in [case.clone(), case.clone().causal()] {
            let clean = case.problem("nan_stays_in_its_row");
            let clean_got = clean.ragged(&target.device, View::Whole, KvLayout::Nhd);
            let mut problem = clean.clone();
            // Token 5, head 2, one element.
            let row = 5 * 4 + 2;
            problem.q.values[row * 64 + 13] = f32::NAN;
            run("NaN query", target, &problem);
            let got = problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
            for at in (0..clean_got.lse.len()).filter(|&at| at != row) {
                let output = at * 64..(at + 1) * 64;
                assert_eq!(got.output[output.clone()], clean_got.output[output], "row {at}: {case:?}");
                assert_eq!(got.lse[at], clean_got.lse[at], "row {at}: {case:?}");
            }
            let mut problem = clean;
            problem.k.values[(30 * 2 + 1) * 64 + 3] = f32::NAN;
            run("NaN key", target, &problem);
        }
    });
}

/// A query of infinities: NaN where the reference has NaN, -inf logits count as no key.
fn infinite_logits(target: Target) {
    on_device(&target, 1, &DTYPES.map(|dtype| Case::new(dtype, 64, &[(4, 9)])), |target, case| {
        let mut problem = case.problem("infinite_logits");
        problem.k.values.iter_mut().for_each(|x| *x = round(x.abs() + 0.5, case.dtype));
        // Token 0: every logit -inf, so no key. Token 1: one key far ahead of the others.
        problem.q.values[..4 * 64].fill(f32::NEG_INFINITY);
        problem.k.values[2 * 128..3 * 128].iter_mut().for_each(|x| *x *= 64.0);
        run("infinite logits", target, &problem);
    });
}

/// One key: the output is its value, bit for bit, whatever the logit.
fn one_key(target: Target) {
    on_device(
        &target,
        1,
        &DTYPES.map(|dtype| Case::new(dtype, 64, &[(3, 1), (1, 1)]).heads(2, 4)),
        |target, case| {
            let problem = case.problem("one_key");
            let got = problem.ragged(&target.device, View::Whole, KvLayout::Nhd);
            for row in 0..4 * 8 {
                let (token, head) = (row / 8, row % 8);
                let value = problem.v.row(usize::from(token == 3), head / 4);
                assert_eq!(&got.output[row * 64..][..64], value, "row {row} on {}", target.name);
            }
        },
    );
}
