//! Probabilities of logits.

use burn::tensor::{DType, Slice, Tensor};
use burn_flashinfer::{reference, sampling::softmax};

use super::floats;
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, check};

device_tests!(shapes, views, special_values);

fn compare(what: &str, target: &Target, logits: &Host<2>, temperature: Option<&[f32]>, got: Tensor<2>) {
    let [rows, vocab] = logits.shape;
    assert_eq!((got.dims(), got.dtype()), ([rows, vocab], DType::F32));
    let ones = vec![1.0; rows];
    let temperature = temperature.unwrap_or(&ones);
    let wide: Vec<f64> = temperature.iter().map(|&t| f64::from(t)).collect();
    let oracle = reference::softmax(&logits.f64(), &wide, vocab).expect("whole rows");
    let row = |(row, &t): (&[f32], &f32)| {
        let max = row.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
        // Neither the difference nor the quotient of two f32 overflows in f64.
        let quotient = |x: f32| (f64::from(x) - f64::from(max)) / f64::from(t.abs());
        let weight = |&x: &f32| match x {
            x if x == max => 1.0,
            x if x < max && (max == f32::INFINITY || x == f32::NEG_INFINITY) => 0.0,
            x => (quotient(x) as f32).exp(),
        };
        let sum: f32 = row.iter().map(weight).sum();
        row.iter().map(|x| weight(x) / sum).collect::<Vec<_>>()
    };
    let baseline: Vec<f32> = logits.values.chunks_exact(vocab).zip(temperature).flat_map(row).collect();
    let what = format!("softmax {what} on {}, {:?} {:?}", target.name, logits.shape, logits.dtype);
    let got = Host::of(got).values;
    check(&what, &got, &baseline, &oracle, DType::F32);
    // The rule's slack is as large as a probability of a large vocabulary: so each is compared with itself, too.
    for (at, (&got, &oracle)) in got.iter().zip(&oracle).enumerate().filter(|(_, (got, _))| got.is_finite()) {
        let error = (f64::from(got) - oracle).abs();
        assert!(error <= 2e-5 * oracle + 1e-30, "{what}: element {at} is {got:e}, expected {oracle:e}");
    }
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("softmax shapes");
    for dtype in target.dtypes() {
        for [rows, vocab] in [[1, 1], [3, 17], [5, 111], [37, 128], [2, 32000], [0, 64], [300, 40]] {
            let logits = Host::from_fn([rows, vocab], dtype, |_| 4.0 * rng.normal());
            let got = softmax(logits.tensor(&target.device), None).expect("it fits");
            compare("shapes", &target, &logits, None, got);
            let temperature: Vec<f32> =
                (0..rows).map(|_| [0.0, 0.1, 0.7, 1.0, 3.0, 100.0][rng.below(6)]).collect();
            let t = Some(floats(&temperature, &target.device));
            let got = softmax(logits.tensor(&target.device), t).expect("it fits");
            compare("temperatures", &target, &logits, Some(&temperature), got);
        }
    }
}

/// Rows with gaps, columns of a transposed matrix, and a strided temperature; what lies between is NaN.
fn views(target: Target) {
    let rng = &mut Rng::new("softmax views");
    for dtype in target.dtypes() {
        let logits = Host::random([5, 40], dtype, rng);
        let temperature = [0.5, 1.0, 0.0, 2.0, 1.5];
        let wide = Host::from_fn([5, 48], dtype, |i| {
            if i % 48 < 40 { logits.values[i / 48 * 40 + i % 48] } else { f32::NAN }
        });
        let tall = Host::from_fn([40, 5], dtype, |i| logits.values[i % 5 * 40 + i / 5]);
        let strided =
            Host::from_fn([10], DType::F32, |i| if i % 2 == 0 { temperature[i / 2] } else { f32::NAN });
        for logits_view in [
            wide.tensor(&target.device).slice([Slice::from(0..5), Slice::from(0..40)]),
            tall.tensor(&target.device).transpose(),
        ] {
            let t = strided.tensor(&target.device).slice([Slice::new(0, Some(10), 2)]);
            let got = softmax(logits_view, Some(t)).expect("it fits");
            compare("views", &target, &logits, Some(&temperature), got);
        }
    }
}

/// Infinities, NaN, logits of 1e4, and temperatures that are none.
fn special_values(target: Target) {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    for dtype in target.dtypes() {
        let rows = [
            ([0.0, 1.0, -inf, 2.0, -inf], 1.0),
            ([-inf; 5], 1.0),
            ([-inf; 5], 0.0),
            ([inf, 0.0, -inf, inf, 5.0], 1.0),
            ([0.0, nan, 1.0, 2.0, 3.0], 1.0),
            ([0.0, nan, 1.0, 2.0, 3.0], 0.0),
            ([-1e4, -1e4, -2e4, -1.5e4, -1e4], 1.0),
            ([1e4, 2e4, 2e4, -3e4, 1.0], 1e-3),
            ([3.0, 3.0, 1.0, 2.0, -inf], 0.0),
            ([3.0, 3.0, 1.0, 2.0, 0.0], -1.0),
            ([3.0, 3.0, 1.0, 2.0, 0.0], nan),
            ([1.0, 2.0, 3.0, 4.0, 5.0], 1e30),
            ([3.0, 3.0, 1.0, 2.0, -inf], -0.0),
            ([3.0, 4.0, 1.0, 2.0, -inf], inf),
            ([inf, 4.0, inf, nan, -inf], inf),
            ([inf, 4.0, inf, 2.0, -inf], inf),
            ([-inf; 5], inf),
            ([3.0, 3.0, 1.0, 2.0, 0.0], -inf),
            ([3.0, 3.0, 1.0, 2.0, 0.0], -1e-45),
            ([1.0, 2.0, 3.0, 3.0, 0.0], 1e-39),
            ([1.0, 2.0, 3.0, 3.0, 0.0], 1e-45),
            ([1e4, -6e4, 6e4, 6e4, 0.0], f32::MAX),
        ];
        let logits = Host::from_fn([rows.len(), 5], dtype, |i| rows[i / 5].0[i % 5]);
        let temperature = rows.map(|(_, t)| t);
        let t = Some(floats(&temperature, &target.device));
        let got = softmax(logits.tensor(&target.device), t).expect("it fits");
        compare("special values", &target, &logits, Some(&temperature), got);
    }
}
