//! Softmax and sampling, beside the same arithmetic on the host.

use burn_flashinfer_kernels::sampling::{
    DRAW_WORDS, Filter, Limit, Output, SampleLogits, SampleProbs, Softmax, TopK, filter, sample_logits,
    sample_probs, softmax, top_k,
};
use cubecl::{client::Client, prelude::TensorBinding, server::Handle};

use crate::host::{Device, Random, TYPES, Type, assert_close, binding, device_tests, ints};

device_tests!(
    probabilities_are_drawn_in_order,
    filters_leave_the_likely_tokens,
    logits_are_drawn_in_order,
    softmax_sums_to_one,
    the_likely_are_kept,
    crowds_at_the_threshold,
    the_largest_are_sorted
);

/// Philox 4x32-10.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (first, second) = (u64::from(counter[0]) * 0xd251_1f53, u64::from(counter[2]) * 0xcd9e_8d57);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// Draws from every row, with random keys.
struct Draws(Vec<[i32; DRAW_WORDS]>);

impl Draws {
    fn new(rows: usize, each: usize, random: &mut Random) -> Self {
        let draw = |at: usize| {
            let mut word = || random.below(1 << 32) as u32 as i32;
            [word(), word(), word(), word(), word(), (at / each) as i32]
        };
        Self((0..rows * each).map(draw).collect())
    }

    fn words(&self, draw: usize, block: u32) -> [u32; 4] {
        let words = self.0[draw].map(|word| word as u32);
        philox([block, words[2], words[3], words[4]], [words[0], words[1]])
    }

    fn binding(&self, client: &Client) -> TensorBinding {
        binding(&upload(client, self.0.as_flattened()), &[self.0.len(), DRAW_WORDS], &[DRAW_WORDS, 1])
    }

    /// What `launch` writes to samples and valid flags.
    fn samples(
        &self,
        client: &Client,
        launch: impl FnOnce(TensorBinding, TensorBinding),
    ) -> Vec<Option<usize>> {
        let [samples, valid] = [(); 2].map(|()| upload(client, &vec![-1; self.0.len()]));
        let read = |handle: &Handle| -> Vec<i32> {
            let bytes = client.read_one_unchecked(handle.clone());
            bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let again = |handle: &Handle| binding(handle, &[self.0.len()], &[1]);
        launch(again(&samples), again(&valid));
        let pairs = read(&samples).into_iter().zip(read(&valid)).take(self.0.len());
        pairs
            .map(|(id, valid)| match valid {
                1 => Some(id as usize),
                0 if id == 0 => None,
                _ => panic!("token {id}, valid {valid}"),
            })
            .collect()
    }
}

fn mass(p: f64) -> u64 {
    if p > 0.0 { ((p.min(2.0) * 40.0_f64.exp2()) as u64).max(1) } else { 0 }
}

fn upload(client: &Client, words: &[i32]) -> Handle {
    client.create_from_slice(&words.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

/// A row with zeros and equals.
fn row(vocab: usize, random: &mut Random) -> Vec<f64> {
    let mut row: Vec<f64> = (0..vocab).map(|_| Type::F32.round((4.0 * random.unit()).exp())).collect();
    for _ in 0..vocab / 3 {
        row[random.below(vocab)] = 0.0;
        row[random.below(vocab)] = 1.0;
    }
    row[vocab / 2] = 1.5;
    let sum: f64 = row.iter().sum();
    row.iter().map(|p| Type::F32.round(p / sum)).collect()
}

fn probabilities_are_drawn_in_order(client: Client) {
    let mut random = Random::new(21);
    for vocab in [1, 7, 64, 1000, 4096] {
        let (rows, each) = (3, 20);
        let mut probs: Vec<f64> = (0..rows).flat_map(|_| row(vocab, &mut random)).collect();
        // The last row has no token.
        probs[2 * vocab + vocab / 3] = f64::NAN;
        let draws = Draws::new(rows, each, &mut random);
        let tensor = Device::strided(&client, Type::F32, &probs, &[rows, vocab], &[vocab + 4, 1]);
        let got = draws.samples(&client, |samples, valid| {
            let (probs, draws) = (tensor.binding(), draws.binding(&client));
            let sample = SampleProbs { probs, top_k: None, top_p: None, min_p: None, draws, samples, valid };
            // SAFETY: `Draws::new` draws from rows that there are.
            unsafe { sample_probs(&client, sample) }.expect("launches");
        });
        for (draw, got) in got.into_iter().enumerate() {
            let row = &probs[draw / each * vocab..][..vocab];
            let total: u64 = row.iter().map(|&p| mass(p)).sum();
            let words = draws.words(draw, 0);
            let random = u64::from(words[0]) << 32 | u64::from(words[1]);
            let mut rest = ((u128::from(total) * u128::from(random)) >> 64) as u64;
            let wanted = row.iter().position(|&p| {
                let is_here = rest < mass(p);
                rest = rest.wrapping_sub(mass(p));
                is_here
            });
            assert_eq!(got, wanted.filter(|_| draw / each < 2), "{vocab} tokens, draw {draw}");
        }
    }
}

/// With each filter, and with all of them: never a token that does not count.
fn filters_leave_the_likely_tokens(client: Client) {
    let mut random = Random::new(22);
    for vocab in [7, 1000, 4099] {
        let (rows, each) = (4, 40);
        let probs: Vec<f64> = (0..rows).flat_map(|_| row(vocab, &mut random)).collect();
        let (top_k, top_p, min_p) = ([1, 3, 40, 5000], [0.0, 0.3, 0.9, 1.0], [0.0, 0.1, 0.5, 2.0]);
        for which in 1..8 {
            let draws = Draws::new(rows, each, &mut random);
            let tensor = Device::new(&client, Type::F32, &probs, &[rows, vocab]);
            let of = |values: &[f64]| Device::new(&client, Type::F32, values, &[rows]).binding();
            let got = draws.samples(&client, |samples, valid| {
                let sample = SampleProbs {
                    probs: tensor.binding(),
                    top_k: (which & 1 != 0).then(|| ints(&client, &top_k)),
                    top_p: (which & 2 != 0).then(|| of(&top_p)),
                    min_p: (which & 4 != 0).then(|| of(&min_p)),
                    draws: draws.binding(&client),
                    samples,
                    valid,
                };
                // SAFETY: `Draws::new` draws from rows that there are.
                unsafe { sample_probs(&client, sample) }.expect("launches");
            });
            for (draw, got) in got.into_iter().enumerate() {
                let row = draw / each;
                let probs = &probs[row * vocab..][..vocab];
                let id = got.expect("a token");
                let above: Vec<f64> = probs.iter().copied().filter(|p| *p > probs[id]).collect();
                let what = format!("{vocab} tokens, filters {which:03b}, row {row}: token {id}");
                assert!(probs[id] > 0.0, "{what}");
                assert!(which & 1 == 0 || above.len() < top_k[row] as usize, "{what}: top_k");
                let before: u64 = above.iter().map(|&p| mass(p)).sum();
                let p = Type::F32.round(top_p[row]);
                assert!(which & 2 == 0 || above.is_empty() || p >= 1.0 || before < mass(p), "{what}: top_p");
                let largest = probs.iter().copied().fold(0.0, f64::max);
                let least = Type::F32.round(Type::F32.round(min_p[row]) * largest).min(largest);
                assert!(which & 4 == 0 || probs[id] >= least, "{what}: min_p");
            }
        }
    }
}

/// The token is where the random number falls among the probabilities, added up, in f64. Rows of several chunks, at
/// temperatures of all magnitudes, with logits to match.
fn logits_are_drawn_in_order(client: Client) {
    let mut random = Random::new(23);
    let cases = [(Type::F32, 1), (Type::F32, 9001), (Type::F16, 514), (Type::BF16, 4096), (Type::BF16, 8200)];
    for (dtype, vocab) in cases {
        let (rows, each) = (6, 10);
        // Only f32 has subnormal numbers as small as this temperature.
        let tiny = if dtype == Type::F32 { 1e-40 } else { 1e-3 };
        let huge = if dtype == Type::F16 { 1e3 } else { 1e38 };
        let temperature = [1.0, 1.0, 0.0, 0.25, tiny, huge].map(|t| Type::F32.round(t));
        let mut logits = random.floats(rows * vocab, dtype, 5.0);
        for (row, scale) in [(4, tiny), (5, huge / 4.0)] {
            logits[row * vocab..][..vocab].iter_mut().for_each(|x| *x = dtype.round(*x * scale));
        }
        logits[vocab - 1] = f64::NAN;
        logits[vocab] = f64::NEG_INFINITY;
        // All of the second chunk.
        logits[3 * vocab..4 * vocab].iter_mut().skip(4096).take(4096).for_each(|x| *x = f64::NEG_INFINITY);
        let draws = Draws::new(rows, each, &mut random);
        let tensor = Device::strided(&client, dtype, &logits, &[rows, vocab], &[vocab + 8, 1]);
        let got = draws.samples(&client, |samples, valid| {
            let sample = SampleLogits {
                logits: tensor.binding(),
                temperature: Device::new(&client, Type::F32, &temperature, &[rows]).binding(),
                draws: draws.binding(&client),
                samples,
                valid,
            };
            // SAFETY: `Draws::new` draws from rows that there are.
            unsafe { sample_logits(&client, sample, dtype.elem()) }.expect("launches");
        });
        for (draw, got) in got.into_iter().enumerate() {
            let row = draw / each;
            let values = &logits[row * vocab..][..vocab];
            if row == 0 || (row == 1 && vocab == 1) {
                assert_eq!(got, None);
                continue;
            }
            let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weight = |&x: &f64| if x == max { 1.0 } else { ((x - max) / temperature[row]).exp() };
            let weights: Vec<f64> = values.iter().map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let id = got.expect("a token");
            let before: f64 = weights[..id].iter().sum::<f64>() / sum;
            let words = draws.words(draw, 0);
            let u = (f64::from(words[0]) * 32.0_f64.exp2() + f64::from(words[1])) / 64.0_f64.exp2();
            let what = format!("{dtype:?} {vocab} tokens, draw {draw}: {id}, {before} to {u}");
            assert!(weights[id] > 0.0, "{what}");
            assert!(before - 1e-5 <= u && u < before + weights[id] / sum + 1e-5, "{what}");
        }
    }
}

fn softmax_sums_to_one(client: Client) {
    let mut random = Random::new(24);
    for (dtype, vocab) in TYPES.into_iter().flat_map(|t| [(t, 1), (t, 111), (t, 4096), (t, 9001)]) {
        let logits = random.floats(3 * vocab, dtype, 8.0);
        let temperature = [1.0, 0.5, 3.0];
        let probs = Device::poisoned(&client, Type::F32, &[3, vocab]);
        let strided = Device::strided(&client, dtype, &logits, &[3, vocab], &[vocab + 8, 1]);
        let problem = Softmax {
            logits: strided.binding(),
            temperature: Device::new(&client, Type::F32, &temperature, &[3]).binding(),
            probs: probs.binding(),
        };
        softmax(&client, problem, dtype.elem()).expect("launches");
        let wanted: Vec<f64> = (0..3)
            .flat_map(|row| {
                let row_logits = &logits[row * vocab..][..vocab];
                let weights: Vec<f64> = row_logits.iter().map(|x| (x / temperature[row]).exp()).collect();
                let sum: f64 = weights.iter().sum();
                weights.into_iter().map(move |weight| weight / sum)
            })
            .collect();
        let baseline: Vec<f64> = wanted.iter().map(|&p| Type::F32.round(p)).collect();
        assert_close(&format!("{dtype:?} {vocab}"), &probs.read(&client), &wanted, &baseline);
    }
}

/// The most likely numbers stay, whatever their type, by count and by mass; equals count as one.
fn the_likely_are_kept(client: Client) {
    let mut random = Random::new(25);
    for (dtype, vocab) in TYPES.into_iter().flat_map(|t| [(t, 1), (t, 111), (t, 4096)]) {
        let rows = 5;
        let top_k = [1, 3, 40, 0, 5000];
        let logits = random.floats(rows * vocab, dtype, 8.0);
        let y = Device::poisoned(&client, dtype, &[rows, vocab]);
        let filtered = Filter {
            x: Device::strided(&client, dtype, &logits, &[rows, vocab], &[vocab + 8, 1]).binding(),
            by: Limit::TopK(ints(&client, &top_k)),
            y: y.binding(),
            output: Output::Masked,
        };
        filter(&client, filtered, dtype.elem()).expect("launches");
        let got = y.read(&client);
        for (at, (&x, &got)) in logits.iter().zip(&got).enumerate() {
            let row = &logits[at / vocab * vocab..][..vocab];
            let larger = row.iter().filter(|other| **other > x).count();
            let counts = larger < top_k[at / vocab].max(1) as usize;
            assert_eq!(got, if counts { x } else { f64::NEG_INFINITY }, "{dtype:?} {vocab}: {at}");
        }
    }
    for vocab in [1, 111, 1000, 4096] {
        let rows = 4;
        let top_p = [0.0, 0.3, 0.9, 1.0];
        let probs: Vec<f64> = (0..rows).flat_map(|_| row(vocab, &mut random)).collect();
        for by_count in [false, true] {
            let y = Device::poisoned(&client, Type::F32, &[rows, vocab]);
            let top_k = [1, 2, 30, 700];
            let filtered = Filter {
                x: Device::new(&client, Type::F32, &probs, &[rows, vocab]).binding(),
                by: if by_count {
                    Limit::TopK(ints(&client, &top_k))
                } else {
                    Limit::TopP(Device::new(&client, Type::F32, &top_p, &[rows]).binding())
                },
                y: y.binding(),
                output: Output::Renormalised,
            };
            filter(&client, filtered, Type::F32.elem()).expect("launches");
            let mut wanted = vec![];
            for (at, probs) in probs.chunks_exact(vocab).enumerate() {
                let p = Type::F32.round(top_p[at]);
                let counts = |p_j: f64| {
                    let larger: Vec<f64> = probs.iter().copied().filter(|p| *p > p_j).collect();
                    let above: u64 = larger.iter().map(|&p| mass(p)).sum();
                    let likely = larger.is_empty() || p >= 1.0 || above < mass(p);
                    p_j > 0.0 && if by_count { larger.len() < top_k[at] as usize } else { likely }
                };
                let kept: Vec<f64> = probs.iter().map(|&p| if counts(p) { p } else { 0.0 }).collect();
                let sum: f64 = kept.iter().sum();
                wanted.extend(kept.iter().map(|p| p / sum));
            }
            let got = y.read(&client);
            assert!(got.iter().zip(&wanted).all(|(got, wanted)| (*got > 0.0) == (*wanted > 0.0)));
            let baseline: Vec<f64> = wanted.iter().map(|&p| Type::F32.round(p)).collect();
            assert_close(&format!("{vocab} by count {by_count}"), &got, &wanted, &baseline);
        }
    }
}

/// More numbers where the threshold is than there is room for candidates: equals, numbers that differ in their last bits
/// only, most of the mass in one of them, or none above 2^-40.
fn crowds_at_the_threshold(client: Client) {
    let mut random = Random::new(26);
    let vocab = 12_000;
    let close = |at: f64, by: f64, random: &mut Random| at * (1.0 + by * random.unit());
    let rows: Vec<Vec<f64>> = (0..6)
        .map(|kind| {
            let mut p = |i: usize| match kind {
                0 => 1e-4,
                1 => [1e-4, 2e-4][i % 2],
                2 => close(1e-4, 1e-4, &mut random),
                3 if i == 77 => 0.9,
                3 => close(1e-5, 0.9, &mut random),
                4 => close(1e-13, 0.99, &mut random),
                _ => close(1e-4, 0.005, &mut random),
            };
            (0..vocab).map(|i| Type::F32.round(p(i))).collect()
        })
        .collect();
    let probs = rows.concat();
    let top_k = [1, 5000, 6000, 7, 4097, 11_999];
    let top_p = [0.5, 0.9, 0.7, 0.95, 1e-9, 0.31].map(|p| Type::F32.round(p));
    for by_count in [true, false] {
        let counts = |row: usize, least: f64| {
            let above = || rows[row].iter().filter(|p| **p > least);
            match by_count {
                true => above().count() < top_k[row] as usize,
                false => above().map(|&p| mass(p)).sum::<u64>() < mass(top_p[row]).max(1),
            }
        };
        let least: Vec<f64> = (0..rows.len())
            .map(|row| {
                let mut sorted = rows[row].clone();
                sorted.sort_by(f64::total_cmp);
                sorted[sorted.partition_point(|&p| !counts(row, p))]
            })
            .collect();
        let tensor = Device::new(&client, Type::F32, &probs, &[rows.len(), vocab]);
        let limit = || match by_count {
            true => ints(&client, &top_k),
            false => Device::new(&client, Type::F32, &top_p, &[rows.len()]).binding(),
        };
        let y = Device::poisoned(&client, Type::F32, &[rows.len(), vocab]);
        let by = if by_count { Limit::TopK(limit()) } else { Limit::TopP(limit()) };
        let filtered = Filter { x: tensor.binding(), by, y: y.binding(), output: Output::Renormalised };
        filter(&client, filtered, Type::F32.elem()).expect("launches");
        let kept = y.read(&client);
        for (at, (kept, p)) in kept.iter().zip(&probs).enumerate() {
            let row = at / vocab;
            assert_eq!(*kept > 0.0, *p >= least[row], "by count {by_count}: row {row}, {p} at {at}");
        }
        let draws = Draws::new(rows.len(), 3, &mut random);
        let got = draws.samples(&client, |samples, valid| {
            let sample = SampleProbs {
                probs: tensor.binding(),
                top_k: by_count.then(limit),
                top_p: (!by_count).then(limit),
                min_p: None,
                draws: draws.binding(&client),
                samples,
                valid,
            };
            // SAFETY: `Draws::new` draws from rows that there are.
            unsafe { sample_probs(&client, sample) }.expect("launches");
        });
        for (draw, got) in got.into_iter().enumerate() {
            let row = draw / 3;
            let masses = || rows[row].iter().map(|&p| if p >= least[row] { mass(p) } else { 0 });
            let words = draws.words(draw, 0);
            let random = u128::from(words[0]) << 32 | u128::from(words[1]);
            let mut rest = ((u128::from(masses().sum::<u64>()) * random) >> 64) as u64;
            let wanted = masses().position(|mass| {
                let is_here = rest < mass;
                rest = rest.wrapping_sub(mass);
                is_here
            });
            assert_eq!(got, wanted, "by count {by_count}: draw {draw}");
        }
    }
}

/// Sorted, the first of equals first and NaN last, whatever the type; among more equals than there is room for, too.
fn the_largest_are_sorted(client: Client) {
    let mut random = Random::new(27);
    for dtype in TYPES {
        for (vocab, k) in [(1, 1), (7, 7), (111, 5), (514, 514), (4099, 300), (9000, 2048)] {
            let mut x = random.floats(3 * vocab, dtype, 8.0);
            // Of a row of few values most are equal; one is of NaN and of what there is below all others.
            (0..vocab).for_each(|i| x[vocab + i] = [1.0, -1.0, 1.0, 2.0][random.below(64) / 20]);
            x[vocab..2 * vocab].iter_mut().step_by(50).for_each(|x| *x = f64::INFINITY);
            x[2 * vocab..].iter_mut().skip(3).for_each(|x| *x = f64::NEG_INFINITY);
            x[2 * vocab..].iter_mut().step_by(2).for_each(|x| *x = f64::NAN);
            let strided = Device::strided(&client, dtype, &x, &[3, vocab], &[vocab + 8, 1]);
            let values = Device::poisoned(&client, dtype, &[3, k]);
            let ids = upload(&client, &vec![-1; 3 * k]);
            let top =
                TopK { x: strided.binding(), values: values.binding(), ids: binding(&ids, &[3, k], &[k, 1]) };
            top_k(&client, top, dtype.elem()).expect("launches");
            let got = values.read(&client);
            let bytes = client.read_one_unchecked(ids);
            let ids = bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as usize);
            let sorted = |row: &[f64]| {
                let mut order: Vec<usize> = (0..vocab).collect();
                let size = |id: usize| if row[id].is_nan() { (0, 0.0) } else { (1, row[id]) };
                order.sort_by(|&a, &b| size(b).partial_cmp(&size(a)).unwrap());
                order
            };
            let orders: Vec<Vec<usize>> = x.chunks_exact(vocab).map(sorted).collect();
            for (at, id) in ids.take(3 * k).enumerate() {
                let (row, order) = (&x[at / k * vocab..][..vocab], &orders[at / k]);
                let what = format!("{dtype:?}, {k} of {vocab}, row {}, place {}", at / k, at % k);
                assert_eq!(id, order[at % k], "{what}");
                assert!(got[at] == row[id] || (got[at].is_nan() && row[id].is_nan()), "{what}: {}", got[at]);
            }
        }
    }
}
