//! The most likely tokens: renormalised, masked, and both filters together.

use burn::tensor::{DType, Int, Slice, Tensor};
use burn_flashinfer::reference::{self, Filter, distribution};
use burn_flashinfer::sampling::{
    Draws, FilterOrder, top_k_mask_logits, top_k_renorm_probs, top_k_top_p_sampling_from_logits,
    top_k_top_p_sampling_from_probs, top_p_renorm_probs,
};

use super::{draws, floats, integers, row, tokens};
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, check};

device_tests!(renormalised, special_rows_and_views, masked, both_filters);

const TOP_K: [i64; 8] = [1, 2, 10, 50, 300, 100_000, 0, -3];
const TOP_P: [f32; 8] = [0.1, 0.5, 0.9, 0.99, 1.0, 0.0, 2.0, f32::NAN];

/// Rows of probabilities with zeros and equals, of all spreads.
fn rows(rows: usize, vocab: usize, rng: &mut Rng) -> Host<2> {
    let values = (0..rows).flat_map(|i| row(vocab, [0.1, 1.0, 4.0][i % 3], rng)).collect();
    Host { shape: [rows, vocab], values, dtype: DType::F32 }
}

fn compare(what: &str, target: &Target, probs: &Host<2>, filters: &[Filter], got: Tensor<2>) {
    let vocab = probs.shape[1];
    assert_eq!((got.dims(), got.dtype()), (probs.shape, DType::F32));
    let got = Host::of(got).values;
    for (at, (row, filter)) in probs.values.chunks_exact(vocab).zip(filters).enumerate() {
        let got = &got[at * vocab..(at + 1) * vocab];
        let oracle = reference::renormalised(row, filter);
        let what = format!("{what} {filter:?} on {}, row {at} of {vocab} tokens", target.name);
        for (id, (got, oracle)) in got.iter().zip(&oracle).enumerate() {
            assert_eq!(*got > 0.0, *oracle > 0.0, "{what}: {got} for {oracle} of token {id}");
        }
        let sum: f32 = oracle.iter().zip(row).filter(|(share, _)| **share > 0.0).map(|(_, p)| p).sum();
        let share = |(share, p): (&f64, &f32)| if *share > 0.0 { p / sum } else { *share as f32 };
        let baseline: Vec<f32> = oracle.iter().zip(row).map(share).collect();
        check(what, got, &baseline, &oracle, DType::F32);
    }
}

fn renormalised(target: Target) {
    let rng = &mut Rng::new("renorm");
    let device = &target.device;
    for (count, vocab) in
        target.thin(2, vec![(8, 1), (8, 2), (8, 17), (24, 111), (8, 1000), (3, 32000), (0, 8), (300, 64)])
    {
        let probs = rows(count, vocab, rng);
        let k: Vec<i64> = (0..count).map(|i| TOP_K[i % 8]).collect();
        let p: Vec<f32> = (0..count).map(|i| TOP_P[i % 8]).collect();
        let filters: Vec<Filter> =
            k.iter().map(|&k| Filter { top_k: Some(k), ..Filter::default() }).collect();
        let k = integers(&k, DType::I32, device);
        let got = top_k_renorm_probs(probs.tensor(device), k).expect("it fits");
        compare("top_k", &target, &probs, &filters, got);
        let filters: Vec<Filter> =
            p.iter().map(|&p| Filter { top_p: Some(p), ..Filter::default() }).collect();
        let got = top_p_renorm_probs(probs.tensor(device), floats(&p, device)).expect("it fits");
        compare("top_p", &target, &probs, &filters, got);
    }
}

/// NaN, negative and infinite numbers, rows of nothing; rows with gaps and a transposed matrix.
fn special_rows_and_views(target: Target) {
    let rng = &mut Rng::new("renorm special");
    let device = &target.device;
    let mut probs = rows(6, 40, rng);
    probs.values[40 + 7] = f32::NAN;
    probs.values[80..120].fill(0.0);
    probs.values[120..160].fill(f32::NAN);
    probs.values[160..164].copy_from_slice(&[-1.0, -0.0, f32::NEG_INFINITY, 1e-45]);
    let wide = Host::from_fn([6, 48], DType::F32, |i| {
        if i % 48 < 40 { probs.values[i / 48 * 40 + i % 48] } else { f32::NAN }
    });
    let tall = Host::from_fn([40, 6], DType::F32, |i| probs.values[i % 6 * 40 + i / 6]);
    let by_k = vec![Filter { top_k: Some(5), ..Filter::default() }; 6];
    let by_p = vec![Filter { top_p: Some(0.8), ..Filter::default() }; 6];
    for view in 0..3 {
        let x = || match view {
            0 => probs.tensor(device),
            1 => wide.tensor(device).slice([Slice::from(0..6), Slice::from(0..40)]),
            _ => tall.tensor(device).transpose(),
        };
        let k = integers(&[5; 6], DType::I64, device);
        compare("top_k", &target, &probs, &by_k, top_k_renorm_probs(x(), k).expect("it fits"));
        let p = floats(&[0.8; 6], device);
        compare("top_p", &target, &probs, &by_p, top_p_renorm_probs(x(), p).expect("it fits"));
    }
}

/// Exact, in every type: a logit stays as it is, or becomes `-inf`.
fn masked(target: Target) {
    let rng = &mut Rng::new("mask logits");
    for dtype in target.dtypes() {
        for (rows, vocab) in target.thin(2, vec![(8, 1), (8, 17), (16, 1000), (2, 32000), (0, 8)]) {
            let mut logits = Host::from_fn([rows, vocab], dtype, |_| 4.0 * rng.normal());
            for special in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e-7] {
                for _ in 0..rows * vocab / 20 {
                    logits.values[rng.below(rows * vocab)] = special;
                }
            }
            let logits = Host::from_fn([rows, vocab], dtype, |i| logits.values[i]);
            let k: Vec<i64> = (0..rows).map(|i| TOP_K[i % 8]).collect();
            let top_k: Tensor<1, Int> = integers(&k, DType::I32, &target.device);
            let got = top_k_mask_logits(logits.tensor(&target.device), top_k).expect("it fits");
            assert_eq!((got.dims(), got.dtype()), ([rows, vocab], dtype));
            let oracle: Vec<f64> = logits
                .f64()
                .chunks_exact(vocab)
                .zip(&k)
                .flat_map(|(row, &k)| reference::top_k_mask_logits(row, k))
                .collect();
            for (at, (got, want)) in Host::of(got).values.into_iter().zip(oracle).enumerate() {
                let same = f64::from(got) == want || (got.is_nan() && want.is_nan());
                assert!(same, "{dtype:?} on {}, {vocab} tokens: {got} for {want} at {at}", target.name);
            }
        }
    }
}

/// Both filters, in both orders, from probabilities and from logits: the tokens that may come, and with enough draws do.
fn both_filters(target: Target) {
    let rng = &mut Rng::new("top_k_top_p");
    let device = &target.device;
    for (count, vocab, each) in [(8, 17, 300), (16, 111, 300), (4, 1000, 60)] {
        let each = target.fewer(each);
        let probs = rows(count, vocab, rng);
        let k: Vec<i64> = (0..count).map(|_| [1, 5, 40, 5000][rng.below(4)]).collect();
        let p: Vec<f32> = (0..count).map(|_| [0.2, 0.6, 0.95, 1.0][rng.below(4)]).collect();
        let keys = draws(count, each, rng);
        let draws = Draws::from_keys(&keys, device).expect("rows fit");
        for order in [FilterOrder::TopKFirst, FilterOrder::Joint] {
            let (top_k, top_p) = (|| integers(&k, DType::I32, device), || floats(&p, device));
            let got = top_k_top_p_sampling_from_probs(probs.tensor(device), top_k(), top_p(), order, &draws);
            let got = tokens(got.expect("it fits"), vocab);
            for (row, got) in got.chunks_exact(each).enumerate() {
                let row_probs = &probs.values[row * vocab..(row + 1) * vocab];
                let (top_k, top_p) = (Some(k[row]), Some(p[row]));
                let (row_probs, filter) = match order {
                    FilterOrder::Joint => (row_probs.to_vec(), Filter { top_k, top_p, ..Filter::default() }),
                    _ => {
                        let first = Filter { top_k, ..Filter::default() };
                        let shares = reference::renormalised(row_probs, &first);
                        let shares = shares.into_iter().map(|share| share as f32).collect();
                        (shares, Filter { top_p, ..Filter::default() })
                    }
                };
                let allowed = distribution(&row_probs, &filter).expect("something counts");
                let what = format!("{order:?} {top_k:?} {top_p:?} on {}, row {row} of {vocab}", target.name);
                assert!(got.iter().all(|id| id.is_some_and(|id| allowed[id] > 0.0)), "{what}");
                for (id, share) in allowed.iter().enumerate() {
                    let surely = share * each as f64 > 40.0;
                    assert!(!surely || got.contains(&Some(id)), "{what}: token {id}, {share}, never");
                }
            }
            // Logits whose probabilities are powers of 2 give the same draws.
            let halves = Host::from_fn([count, vocab], DType::F32, |i| -((i % vocab % 8) as f32));
            let logits = Host::from_fn([count, vocab], DType::F32, |i| halves.values[i] * 2.0_f32.ln());
            let from_logits = top_k_top_p_sampling_from_logits(
                logits.tensor(device),
                None,
                top_k(),
                top_p(),
                order,
                &draws,
            );
            for (draw, id) in tokens(from_logits.expect("it fits"), vocab).into_iter().enumerate() {
                let id = id.expect("a token");
                let (row, larger) = (draw / each, (0..vocab).filter(|other| other % 8 < id % 8).count());
                assert!((larger as i64) < k[row], "{order:?}: token {id} for top_k {}", k[row]);
            }
        }
    }
}
