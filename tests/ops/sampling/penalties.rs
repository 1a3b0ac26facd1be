//! Penalties on tokens that a sequence has already.

use burn::tensor::{DType, Int, Tensor};
use burn_flashinfer::reference;
use burn_flashinfer::sampling::{Penalties, apply_penalties};

use super::{floats, integers};
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, address, bits, check, round};

device_tests!(shapes, in_place_and_views);

/// Counts and penalties of a batch.
struct Batch {
    prompt: Vec<i64>,
    output: Vec<i64>,
    penalties: Vec<[f32; 3]>,
}

impl Batch {
    fn random(rows: usize, vocab: usize, rng: &mut Rng) -> Self {
        let mut counts = || (0..rows * vocab).map(|_| [0, 0, 0, 1, 2, 7][rng.below(6)]).collect();
        let (prompt, output) = (counts(), counts());
        let penalties = (0..rows)
            .map(|i| match i % 4 {
                0 => [1.0, 0.0, 0.0],
                1 => [1.3, 0.2, 0.5],
                2 => [0.8, -0.1, 0.3],
                _ => [2.0, 0.7, -1.5],
            })
            .collect();
        Self { prompt, output, penalties }
    }

    fn tensors(&self, target: &Target, dtype: DType) -> Penalties {
        let rows = self.penalties.len();
        let vocab = self.prompt.len().checked_div(rows).unwrap_or(40);
        let counts = |counts: &[i64]| -> Tensor<2, Int> {
            integers(counts, dtype, &target.device).reshape([rows, vocab])
        };
        let [repetition, frequency, presence] = [0, 1, 2].map(|which| {
            let column: Vec<f32> = self.penalties.iter().map(|penalties| penalties[which]).collect();
            floats(&column, &target.device)
        });
        let (prompt, output) = (counts(&self.prompt), counts(&self.output));
        Penalties { prompt, output, repetition, frequency, presence }
    }
}

fn compare(what: &str, target: &Target, logits: &Host<2>, batch: &Batch, got: Tensor<2>) {
    let (vocab, dtype) = (logits.shape[1], logits.dtype);
    assert_eq!((got.dims(), got.dtype()), (logits.shape, dtype));
    let (mut oracle, mut baseline) = (vec![], vec![]);
    for (row, &[repetition, frequency, presence]) in batch.penalties.iter().enumerate() {
        let range = row * vocab..(row + 1) * vocab;
        let (prompt, output) = (&batch.prompt[range.clone()], &batch.output[range.clone()]);
        let wide: Vec<f64> = logits.values[range.clone()].iter().map(|&x| f64::from(x)).collect();
        let penalties = [repetition, frequency, presence].map(f64::from);
        oracle.extend(reference::apply_penalties(&wide, prompt, output, penalties).expect("counts fit"));
        for (&x, (&prompt, &output)) in logits.values[range].iter().zip(prompt.iter().zip(output)) {
            let repeated = if x > 0.0 { x / repetition } else { x * repetition };
            let repeated = if prompt > 0 || output > 0 { repeated } else { x };
            let less = frequency * output as f32 + presence;
            baseline.push(round(if output > 0 { repeated - less } else { repeated }, dtype));
        }
    }
    let what = format!("penalties {what} on {}, {:?} {dtype:?}", target.name, logits.shape);
    check(what, &Host::of(got).values, &baseline, &oracle, dtype);
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("penalties shapes");
    for dtype in target.dtypes() {
        for [rows, vocab] in [[1, 1], [5, 17], [8, 111], [3, 4096], [0, 40], [64, 40]] {
            let mut logits = Host::from_fn([rows, vocab], dtype, |_| 4.0 * rng.normal());
            for special in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for _ in 0..rows * vocab / 30 {
                    logits.values[rng.below(rows * vocab)] = special;
                }
            }
            let batch = Batch::random(rows, vocab, rng);
            for ints in [DType::I32, DType::I64] {
                let penalties = batch.tensors(&target, ints);
                let got = apply_penalties(logits.tensor(&target.device), &penalties).expect("it fits");
                compare("shapes", &target, &logits, &batch, got);
            }
        }
    }
}

/// What nobody else has a clone of is overwritten, a clone never is; a transposed matrix is read as it lies.
fn in_place_and_views(target: Target) {
    let rng = &mut Rng::new("penalties in place");
    for dtype in target.dtypes() {
        let logits = Host::random([8, 256], dtype, rng);
        let batch = Batch::random(8, 256, rng);
        let penalties = batch.tensors(&target, DType::I32);
        for keep in [false, true] {
            let tensor = logits.tensor(&target.device);
            let before = address(&tensor);
            let clone = keep.then(|| tensor.clone());
            let got = apply_penalties(tensor, &penalties).expect("it fits");
            assert_eq!(address(&got) != before, keep, "{} {dtype:?}", target.name);
            compare("in place", &target, &logits, &batch, got);
            if let Some(clone) = clone {
                assert_eq!(bits(clone), bits(logits.tensor(&target.device)), "a clone was overwritten");
            }
        }
        let tall = Host::from_fn([256, 8], dtype, |i| logits.values[i % 8 * 256 + i / 8]);
        let turned = |counts: &Tensor<2, Int>| counts.clone().transpose().clone();
        let strided = Penalties {
            prompt: turned(&turned(&penalties.prompt)),
            output: turned(&turned(&penalties.output)),
            ..penalties.clone()
        };
        let got = apply_penalties(tall.tensor(&target.device).transpose(), &strided).expect("it fits");
        compare("transposed", &target, &logits, &batch, got);
    }
}
