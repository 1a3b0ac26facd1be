//! Every temperature that f32 represents: the distribution of `softmax(logits / T)` in f64, in probabilities and in draws.

use burn::tensor::DType;
use burn_flashinfer::{reference, sampling::softmax};

use super::tokens::{deviations, many};
use super::{DrawKey, draws, floats, from_logits};
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, say};

device_tests!(frequencies, of_all_magnitudes, borders_of_chunks, none_at_all);

const INF: f32 = f32::INFINITY;
/// The smallest number above 0.
const LEAST: f32 = f32::from_bits(1);

/// Draws from rows of few tokens, whose probabilities are known.
fn frequencies(target: Target) {
    // Logits, a temperature, and the natural logarithms of the weights.
    let cases: [([f32; 4], f32, [f32; 4]); 19] = [
        ([1.0, 2.0, 3.0, -INF], 1e-39, [-INF, -INF, 0.0, -INF]),
        ([-30.0, -20.0, -10.0, -30.0], 1e-38, [-INF, -INF, 0.0, -INF]),
        ([20.0, 20.0, 20.0, 0.0], 1e-6, [0.0, 0.0, 0.0, -INF]),
        ([1e7, 1e7 + 1.0, 1e7 + 2.0, -INF], 1.0, [-2.0, -1.0, 0.0, -INF]),
        ([INF, 1.0, INF, -INF], 1.0, [0.0, -INF, 0.0, -INF]),
        ([INF, 1.0, INF, -INF], INF, [0.0, -INF, 0.0, -INF]),
        ([INF, 1.0, INF, -INF], 0.0, [0.0, -INF, 0.0, -INF]),
        ([3.0, 1.0, 3.0, 3.0], 0.0, [0.0, -INF, 0.0, 0.0]),
        ([3.0, 1.0, 3.0, 3.0], -0.0, [0.0, -INF, 0.0, 0.0]),
        ([-3.0, -INF, 3.0, 50.0], INF, [0.0, -INF, 0.0, 0.0]),
        ([-f32::MAX, -INF, f32::MAX, 0.0], INF, [0.0, -INF, 0.0, 0.0]),
        ([-f32::MAX, 0.0, f32::MAX, -INF], f32::MAX, [-2.0, -1.0, 0.0, -INF]),
        ([-3e38, -3e38, 3e38, 3e38], 1e38, [-6.0, -6.0, 0.0, 0.0]),
        ([0.0, LEAST, 2.0 * LEAST, -LEAST], LEAST, [-2.0, -1.0, 0.0, -3.0]),
        ([1e-39, 2e-39, 3e-39, -1e-39], 1e-39, [-2.0, -1.0, 0.0, -4.0]),
        ([1e-20, 2e-20, 3e-20, -1e-20], 1e-20, [-2.0, -1.0, 0.0, -4.0]),
        ([0.5, 0.5, 1.0, 0.0], 0.5, [-1.0, -1.0, 0.0, -2.0]),
        ([1e30, 2e30, 3e30, -1e30], 1e30, [-2.0, -1.0, 0.0, -4.0]),
        ([-1e-45, 0.0, -0.0, 1e-45], 1.0, [0.0, 0.0, 0.0, 0.0]),
    ];
    let count = many(&target) / 16;
    let logits = Host::from_fn([cases.len(), 4], DType::F32, |i| cases[i / 4].0[i % 4]);
    let temperature: Vec<f32> = cases.iter().map(|case| case.1).collect();
    let key = |(row, i): (usize, usize)| DrawKey { seed: 4711, stream: i as u32, offset: row as u64, row };
    let keys: Vec<_> = (0..cases.len()).flat_map(|row| (0..count).map(move |i| (row, i))).map(key).collect();
    let got = from_logits(logits.tensor(&target.device), &temperature, &keys, &target.device);
    let t = Some(floats(&temperature, &target.device));
    let probs = Host::of(softmax(logits.tensor(&target.device), t).expect("it fits")).values;
    for (row, (values, t, logarithms)) in cases.iter().enumerate() {
        let weights = logarithms.map(|x| f64::from(x).exp());
        let expected = weights.map(|weight| weight / weights.iter().sum::<f64>());
        let what = format!("{values:?} at {t:e} on {}", target.name);
        for (p, want) in probs[4 * row..][..4].iter().zip(&expected) {
            // Logits and temperatures are themselves rounded, to 2⁻²⁴ where they are not subnormal.
            assert!(
                (f64::from(*p) - want).abs() < 1e-5,
                "{what}: {:?}, not {expected:?}",
                &probs[4 * row..][..4]
            );
        }
        let mut counts = [0; 4];
        got[row * count..][..count].iter().for_each(|id| counts[id.expect(&what)] += 1);
        assert!(counts.iter().zip(&expected).all(|(&count, &p)| p > 0.0 || count == 0), "{what}: {counts:?}");
        let deviations = deviations(&counts, &expected);
        say(format!("{what}: {deviations:+.2} sigma, {count} draws"));
        assert!(deviations < 4.5, "{what}: {counts:?} of {expected:?}, {deviations} sigma");
    }
}

/// Random temperatures of all magnitudes, and logits about as far apart: probabilities as in f64, and no other token than one
/// that has some.
fn of_all_magnitudes(target: Target) {
    let rng = &mut Rng::new("temperatures of all magnitudes");
    let (rows, vocab) = (if target.is_slow() { 16 } else { 200 }, 33);
    let temperature: Vec<f32> =
        (0..rows).map(|_| f32::from_bits((rng.bits() % 0x7f80_0000) as u32)).collect();
    let logits = Host::from_fn([rows, vocab], DType::F32, |i| {
        let x = temperature[i / vocab] * rng.normal() * [0.1, 1.0, 10.0][i / vocab % 3];
        x.clamp(-f32::MAX, f32::MAX)
    });
    let wide: Vec<f64> = temperature.iter().map(|&t| f64::from(t)).collect();
    let expected = reference::softmax(&logits.f64(), &wide, vocab).expect("whole rows");
    let t = Some(floats(&temperature, &target.device));
    let got = Host::of(softmax(logits.tensor(&target.device), t).expect("it fits")).values;
    for (at, (&got, want)) in got.iter().zip(&expected).enumerate() {
        let t = temperature[at / vocab];
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= 3e-5 * want + 1e-30,
            "token {} at {t:e} on {}: {got}, not {want}",
            at % vocab,
            target.name
        );
    }
    let keys = draws(rows, 5, rng);
    let got = from_logits(logits.tensor(&target.device), &temperature, &keys, &target.device);
    for (key, id) in keys.iter().zip(got) {
        let t = temperature[key.row];
        let id = id.unwrap_or_else(|| panic!("no token at {t:e} on {}", target.name));
        let p = expected[key.row * vocab + id];
        assert!(p > 1e-12, "token {id} at {t:e} on {}, whose probability is {p:e}", target.name);
    }
}

/// Long rows are weighed in chunks: tokens at their ends and on both sides of their borders, between chunks of `-inf`.
fn borders_of_chunks(target: Target) {
    for vocab in [4095, 4096, 4097, 8192, 20_001] {
        let ids = [0, 17, 4094, 4095, 4096, 4097, 8191, 12_287, 12_288, 20_000];
        let weights: Vec<(usize, f32)> = ids
            .into_iter()
            .filter(|&id| id < vocab)
            .zip([1.0, 5.0, 2.0, 3.0, 0.5, 4.0, 1.5, 2.5, 3.5, 6.0])
            .collect();
        let logits = Host::from_fn([1, vocab], DType::F32, |id| {
            weights.iter().find(|(at, _)| *at == id).map_or(-INF, |(_, weight)| 20.0 + weight.ln())
        });
        let count = many(&target) / 64;
        let keys: Vec<_> = (0..count)
            .map(|i| DrawKey { seed: 815, stream: i as u32, offset: vocab as u64, row: 0 })
            .collect();
        let got = from_logits(logits.tensor(&target.device), &[1.0], &keys, &target.device);
        let sum: f32 = weights.iter().map(|(_, weight)| weight).sum();
        let expected: Vec<f64> = weights.iter().map(|(_, weight)| f64::from(weight / sum)).collect();
        let mut counts = vec![0; weights.len()];
        for id in got {
            let id = id.expect("a token");
            let at = weights.iter().position(|(at, _)| *at == id);
            counts[at.unwrap_or_else(|| panic!("token {id} of {vocab} on {} is masked", target.name))] += 1;
        }
        let deviations = deviations(&counts, &expected);
        assert!(deviations < 4.5, "{vocab} tokens on {}: {counts:?}, {deviations} sigma", target.name);
    }
}

/// Temperatures below 0, and NaN, are none: no token, and a row of NaN.
fn none_at_all(target: Target) {
    let rng = &mut Rng::new("no temperatures");
    let temperature = [-1.0, -INF, -LEAST, f32::NAN, -f32::NAN, 1.0];
    let logits = Host::random([temperature.len(), 40], DType::F32, rng);
    let keys = draws(temperature.len(), 1, rng);
    let got = from_logits(logits.tensor(&target.device), &temperature, &keys, &target.device);
    assert!(got[..5].iter().all(Option::is_none) && got[5].is_some(), "{got:?} on {}", target.name);
    let t = Some(floats(&temperature, &target.device));
    let probs = Host::of(softmax(logits.tensor(&target.device), t).expect("it fits")).values;
    assert!(probs[..200].iter().all(|p| p.is_nan()) && probs[200..].iter().all(|p| !p.is_nan()));
}
