//! Tokens that are drawn.

use burn::tensor::{DType, Slice};
use burn_flashinfer::reference::{self, Filter, distribution};
use burn_flashinfer::sampling::{
    DrawKey, Draws, sampling_from_logits, sampling_from_probs, top_k_sampling_from_probs,
};

use super::{Sampler, draws, from_logits, integers, ints, row, tokens};
use crate::devices::{Target, device_tests, devices};
use crate::support::{Host, Rng, say};

device_tests!(
    support,
    frequencies,
    a_draw_depends_on_itself_alone,
    rows_without_a_distribution,
    views_and_empty_batches
);

/// Filters that differ from row to row.
fn filters(rows: usize, rng: &mut Rng) -> Vec<Filter> {
    let filter = |_| Filter {
        top_k: Some([1, 2, 10, 50, 100_000, 0, -3][rng.below(7)]),
        top_p: Some([0.1, 0.5, 0.9, 0.99, 1.0, 0.0, 2.0][rng.below(7)]),
        min_p: Some([0.05, 0.3, 0.9, 1.0, 0.0, 3.0, -1.0][rng.below(7)]),
    };
    (0..rows).map(filter).collect()
}

/// Never a token that does not count, and with enough draws each that does.
fn support(target: Target) {
    let rng = &mut Rng::new("sampling support");
    for (rows, vocab, count) in
        [(1, 1, 5), (7, 2, 50), (9, 17, 1000), (9, 111, 300), (5, 1000, 100), (3, 32000, 20), (300, 64, 5)]
    {
        let count = target.fewer(count);
        for spread in [0.5, 3.0] {
            let probs = Host {
                shape: [rows, vocab],
                values: (0..rows).flat_map(|_| row(vocab, spread, rng)).collect(),
                dtype: DType::F32,
            };
            let filters = filters(rows, rng);
            let keys = draws(rows, count, rng);
            for sampler in Sampler::ALL {
                let got = sampler.run(probs.tensor(&target.device), &filters, &keys, &target.device);
                for (draws, row) in got.chunks_exact(count.max(1)).zip(0..) {
                    let row_probs = &probs.values[row * vocab..(row + 1) * vocab];
                    let filter = sampler.heeds(&filters[row]);
                    let allowed = distribution(row_probs, &filter).expect("something counts");
                    let what = format!("{sampler:?} {filter:?} on {}, {vocab} tokens", target.name);
                    for draw in draws {
                        let id = draw.unwrap_or_else(|| panic!("{what}: no token"));
                        assert!(allowed[id] > 0.0, "{what}: token {id} does not count");
                    }
                    for (id, p) in allowed.iter().enumerate() {
                        let surely = p * draws.len() as f64 > 40.0;
                        assert!(!surely || draws.contains(&Some(id)), "{what}: token {id}, {p}, never");
                    }
                }
            }
        }
    }
}

/// Pearson's statistic of counts, in standard deviations from its mean, over the tokens that are expected ten times and
/// one cell of all others.
pub fn deviations(counts: &[u64], expected: &[f64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rest, mut rest_expected) = (0, 0.0);
    let mut add = |count: u64, expected: f64| {
        statistic += (count as f64 - expected).powi(2) / expected;
        cells += 1;
    };
    for (&count, &p) in counts.iter().zip(expected) {
        let expected = p * total as f64;
        if expected >= 10.0 {
            add(count, expected);
        } else {
            rest += count;
            rest_expected += expected;
        }
    }
    if rest_expected >= 10.0 {
        add(rest, rest_expected);
    }
    let freedom = f64::from(cells - 1).max(1.0);
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

/// How many draws a device makes of one distribution.
pub fn many(target: &Target) -> usize {
    match target.name {
        "flex" => 1 << 20,
        _ if target.is_checked() => 1 << 12,
        _ => 1 << 13,
    }
}

/// A million draws with a fixed seed are distributed as they should be.
fn frequencies(target: Target) {
    let mut values = vec![0.0; 60];
    for (id, p) in values.iter_mut().enumerate() {
        *p = if id % 7 == 3 { 0.0 } else { 0.9_f32.powi(id as i32 * 37 % 60) };
    }
    values[20] = values[50];
    let sum: f32 = values.iter().sum();
    values.iter_mut().for_each(|p| *p /= sum);
    let probs = Host { shape: [1, 60], values: values.clone(), dtype: DType::F32 };
    let filter = Filter { top_k: Some(12), top_p: Some(0.8), min_p: Some(0.2) };
    let keys: Vec<DrawKey> =
        (0..many(&target)).map(|i| DrawKey { seed: 4711, stream: i as u32, offset: 5, row: 0 }).collect();
    let count = |got: Vec<Option<usize>>| {
        let mut counts = vec![0_u64; 60];
        got.into_iter().for_each(|id| counts[id.expect("a token")] += 1);
        counts
    };
    for sampler in Sampler::ALL {
        let counts = count(sampler.run(probs.tensor(&target.device), &[filter], &keys, &target.device));
        let expected = distribution(&values, &sampler.heeds(&filter)).expect("something counts");
        assert!(counts.iter().zip(&expected).all(|(&count, &p)| p > 0.0 || count == 0));
        let deviations = deviations(&counts, &expected);
        say(format!("{sampler:?} on {}: {deviations:+.2} sigma, {} draws", target.name, keys.len()));
        assert!(deviations < 4.0, "{sampler:?} on {}: {deviations} sigma", target.name);
    }
    for (dtype, t) in target.dtypes().into_iter().zip([1.0, 0.5, 2.0]) {
        let logits = Host::from_fn([1, 60], dtype, |id| values[id].ln());
        let expected = reference::softmax(&logits.f64(), &[f64::from(t)], 60).expect("a row");
        let counts = count(from_logits(logits.tensor(&target.device), &[t], &keys, &target.device));
        assert!(counts.iter().zip(&expected).all(|(&count, &p)| p > 0.0 || count == 0));
        let deviations = deviations(&counts, &expected);
        say(format!("logits {dtype:?} on {}: {deviations:+.2} sigma", target.name));
        assert!(deviations < 4.0, "logits {dtype:?} on {}: {deviations} sigma", target.name);
    }
}

/// Draws with one key are one draw, in whatever batch; with another seed, stream or offset they are others.
fn a_draw_depends_on_itself_alone(target: Target) {
    let rng = &mut Rng::new("sampling keys");
    let (rows, vocab) = (6, 1000);
    let values: Vec<f32> = (0..rows).flat_map(|_| row(vocab, 1.0, rng)).collect();
    let probs = Host { shape: [rows, vocab], values, dtype: DType::F32 };
    let logits = Host::from_fn([rows, vocab], DType::F32, |i| probs.values[i].ln());
    let filters = vec![Filter { top_k: Some(300), top_p: Some(0.9), min_p: Some(0.1) }; rows];
    let keys = draws(rows, 3, rng);
    let shuffled = rng.shuffled(keys.len());
    let some: Vec<DrawKey> = shuffled.iter().take(7).map(|&at| keys[at]).collect();
    let run = |sampler: Option<Sampler>, keys: &[DrawKey]| match sampler {
        Some(sampler) => sampler.run(probs.tensor(&target.device), &filters, keys, &target.device),
        None => from_logits(logits.tensor(&target.device), &vec![0.7; rows], keys, &target.device),
    };
    for sampler in Sampler::ALL.map(Some).into_iter().chain([None]) {
        let all = run(sampler, &keys);
        assert_eq!(run(sampler, &keys), all, "{sampler:?} on {}", target.name);
        let again: Vec<_> = shuffled.iter().take(7).map(|&at| all[at]).collect();
        assert_eq!(run(sampler, &some), again, "{sampler:?} on {}", target.name);
        let others: [fn(&mut DrawKey); 5] = [
            |key| key.seed ^= 1,
            |key| key.seed ^= 1 << 63,
            |key| key.stream ^= 1 << 31,
            |key| key.offset ^= 1,
            |key| key.offset ^= 1 << 63,
        ];
        for (at, other) in others.into_iter().enumerate() {
            let mut keys = keys.clone();
            keys.iter_mut().for_each(other);
            assert_ne!(run(sampler, &keys), all, "{sampler:?} on {}: change {at}", target.name);
        }
    }
}

/// Flex and the other devices of the build draw the same tokens.
#[cfg(feature = "flex")]
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn devices_agree() {
    let rng = &mut Rng::new("sampling devices");
    let flex = burn::tensor::Device::flex();
    for target in devices() {
        for (rows, vocab) in [(5, 17), (4, 1000), (3, 4099), (2, 32000)] {
            let values: Vec<f32> = (0..rows).flat_map(|_| row(vocab, 2.0, rng)).collect();
            let probs = Host { shape: [rows, vocab], values, dtype: DType::F32 };
            let filters = filters(rows, rng);
            let keys = draws(rows, target.fewer(100), rng);
            for sampler in Sampler::ALL {
                let [here, there] = [&target.device, &flex]
                    .map(|device| sampler.run(probs.tensor(device), &filters, &keys, device));
                assert_eq!(here, there, "{sampler:?} on {}, {vocab} tokens", target.name);
            }
            for dtype in target.dtypes() {
                let logits = Host::from_fn([rows, vocab], dtype, |_| 5.0 * rng.normal());
                let temperature: Vec<f32> = (0..rows)
                    .map(|_| [0.0, 0.3, 1.0, 1.7, 1e-39, 3e38, f32::INFINITY][rng.below(7)])
                    .collect();
                let [here, there] = [&target.device, &flex]
                    .map(|device| from_logits(logits.tensor(device), &temperature, &keys, device));
                assert_eq!(here, there, "{dtype:?} logits on {}, {vocab} tokens", target.name);
            }
        }
    }
}

/// A row with a NaN, or without anything to draw, gives no token; its neighbours are not concerned.
fn rows_without_a_distribution(target: Target) {
    let rng = &mut Rng::new("sampling invalid");
    let vocab = 333;
    let rows: Vec<Vec<f32>> = (0..8)
        .map(|i| {
            let mut row = row(vocab, 1.0, rng);
            match i {
                1 => row[200] = f32::NAN,
                3 => row.fill(0.0),
                4 => row.fill(f32::NAN),
                6 => row.fill(-0.5),
                // Neither a negative probability nor an infinite one counts for more than it is.
                7 => row[5..8].copy_from_slice(&[-1.0, f32::NEG_INFINITY, f32::INFINITY]),
                _ => {}
            }
            row
        })
        .collect();
    let probs = Host { shape: [8, vocab], values: rows.concat(), dtype: DType::F32 };
    let filters = vec![Filter { top_k: Some(20), top_p: Some(0.7), min_p: Some(0.2) }; 8];
    for sampler in Sampler::ALL {
        let got = sampler.run(probs.tensor(&target.device), &filters, &draws(8, 1, rng), &target.device);
        for (row, got) in got.iter().enumerate() {
            let allowed = distribution(&rows[row], &sampler.heeds(&filters[row]));
            assert_eq!(got.is_some(), allowed.is_some(), "{sampler:?} row {row} on {}", target.name);
            assert!(got.is_none_or(|id| allowed.is_some_and(|allowed| allowed[id] > 0.0)));
        }
    }

    for dtype in target.dtypes() {
        let inf = f32::INFINITY;
        let mut logits = Host::random([7, vocab], dtype, rng);
        logits.values[vocab + 332] = f32::NAN;
        logits.values[2 * vocab..3 * vocab].fill(-inf);
        logits.values[3 * vocab + 40..3 * vocab + 42].fill(inf);
        logits.values[4 * vocab..5 * vocab].fill(-inf);
        logits.values[4 * vocab + 77] = -3.0;
        let keys = draws(7, 1, rng);
        for t in [1.0, 0.0] {
            let temperature = [t, t, t, t, t, -1.0, f32::NAN];
            let got = from_logits(logits.tensor(&target.device), &temperature, &keys, &target.device);
            let what = format!("{dtype:?} at {t} on {}: {got:?}", target.name);
            assert!(got[0].is_some() && [Some(40), Some(41)].contains(&got[3]), "{what}");
            assert_eq!(
                [got[1], got[2], got[4], got[5], got[6]],
                [None, None, Some(77), None, None],
                "{what}"
            );
        }
    }
}

/// Rows with gaps, a transposed matrix, integers of 64 bits, no draws, no rows.
fn views_and_empty_batches(target: Target) {
    let rng = &mut Rng::new("sampling views");
    let device = &target.device;
    let values: Vec<f32> = (0..4).flat_map(|_| row(40, 1.0, rng)).collect();
    let probs = Host { shape: [4, 40], values, dtype: DType::F32 };
    let wide = Host::from_fn([4, 48], DType::F32, |i| {
        if i % 48 < 40 { probs.values[i / 48 * 40 + i % 48] } else { f32::NAN }
    });
    let tall = Host::from_fn([40, 4], DType::F32, |i| probs.values[i % 4 * 40 + i / 4]);
    let keys = draws(4, 30, rng);
    let filters = filters(4, rng);
    for sampler in Sampler::ALL {
        let run = |probs| sampler.run(probs, &filters, &keys, device);
        let whole = run(probs.tensor(device));
        let gaps = wide.tensor(device).slice([Slice::from(0..4), Slice::from(0..40)]);
        assert_eq!(run(gaps), whole, "{sampler:?} on {}", target.name);
        assert_eq!(run(tall.tensor(device).transpose()), whole, "{sampler:?} on {}", target.name);
    }
    let run = |probs| from_logits(probs, &[1.0; 4], &keys, device);
    assert_eq!(run(tall.tensor(device).transpose()), run(probs.tensor(device)));

    let k = [1, 3, i64::from(i32::MAX), 40];
    let run = |dtype| {
        let draws = Draws::from_keys(&keys, device).expect("rows fit");
        let k = integers(&k, dtype, device);
        tokens(top_k_sampling_from_probs(probs.tensor(device), k, &draws).expect("it fits"), 40)
    };
    assert_eq!(run(DType::I64), run(DType::I32), "{}", target.name);

    let none = Draws::from_keys(&[], device).expect("no rows");
    assert!(none.is_empty());
    for rows in [4, 0] {
        let probs = Host::full([rows, 40], DType::F32, 1.0);
        let got = sampling_from_probs(probs.tensor(device), &none).expect("it fits");
        assert_eq!((ints(got.ids), got.valid.dims()), (vec![], [0]));
        let got = sampling_from_logits(probs.tensor(device), None, &none).expect("it fits");
        assert_eq!((ints(got.ids), got.valid.dims()), (vec![], [0]));
    }
}
