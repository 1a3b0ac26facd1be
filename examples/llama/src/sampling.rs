//! From logits to tokens.

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Int, Tensor};
use burn_flashinfer::sampling::{Draws, LogitsPipeline, Step, top_k};

/// How to choose a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
    min_p: f64,
}

/// True if the first of the most likely tokens is taken: at temperature 0, to which a very small one is rounded.
pub fn is_greedy(temperature: f64) -> bool {
    temperature as f32 == 0.0
}

impl Sampling {
    /// With probability `softmax(logits / temperature)`, among the `top_k` most likely tokens, and of these among the
    /// fewest most likely ones that hold `top_p` of the probability; of equally likely ones all or none. Temperature 0 is
    /// greedy, and at infinity all tokens are as likely as each other.
    pub fn new(temperature: f64, top_k: Option<usize>, top_p: f64) -> Result<Self> {
        ensure!(temperature >= 0.0, "the temperature is {temperature}, expected at least 0");
        ensure!(top_k != Some(0), "top-k is 0, expected at least 1");
        ensure!(top_p > 0.0 && top_p <= 1.0, "top-p is {top_p}, expected above 0 and at most 1");
        Ok(Self { temperature, top_k, top_p, min_p: 0.0 })
    }

    /// Keeps, of those that are left, only tokens at least `min_p` times as likely as the most likely one.
    pub fn min_p(mut self, min_p: f64) -> Result<Self> {
        ensure!((0.0..=1.0).contains(&min_p), "min-p is {min_p}, expected 0 to 1");
        self.min_p = min_p;
        Ok(self)
    }
}

/// Chooses a token for each row of logits, on their device: only its number is ever read back.
///
/// What is drawn from a row depends on the key of the row and nothing else, so not on the company that a sequence keeps in a
/// batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    is_greedy: bool,
    /// `[rows]`, as all of these.
    temperature: Tensor<1>,
    top_k: Option<Tensor<1, Int>>,
    top_p: Option<Tensor<1>>,
    min_p: Option<Tensor<1>>,
}

impl Sampler {
    /// A sampler of up to `rows` rows.
    pub fn new(sampling: Sampling, rows: usize, device: &Device) -> Self {
        let Sampling { temperature, top_k, top_p, min_p } = sampling;
        let floats = |of: f64| Tensor::full([rows], of, (device, DType::F32));
        let top_k =
            top_k.map(|k| Tensor::full([rows], k.min(i32::MAX as usize) as i32, (device, DType::I32)));
        let top_p = (top_p < 1.0).then(|| floats(top_p));
        let min_p = (min_p > 0.0).then(|| floats(min_p));
        let is_greedy = is_greedy(temperature);
        Self {
            is_greedy,
            temperature: floats(temperature),
            top_k: top_k.filter(|_| !is_greedy),
            top_p: top_p.filter(|_| !is_greedy),
            min_p: min_p.filter(|_| !is_greedy),
        }
    }

    /// Chooses a token of each row of `logits` `[rows, vocab_size]`, or -1 where there is none to choose.
    pub fn sample(&self, logits: Tensor<2>, draws: Draws) -> Result<Tensor<1, Int>> {
        let [rows, _] = logits.dims();
        let mut steps = vec![Step::Temperature(self.temperature.clone().narrow(0, 0, rows))];
        steps.extend(self.top_k.iter().map(|top_k| Step::TopK(top_k.clone().narrow(0, 0, rows))));
        steps.extend(self.top_p.iter().map(|top_p| Step::TopP(top_p.clone().narrow(0, 0, rows))));
        steps.extend(self.min_p.iter().map(|min_p| Step::MinP(min_p.clone().narrow(0, 0, rows))));
        steps.push(Step::Sample(draws));
        let samples = LogitsPipeline::new(steps)?.run(logits.clone())?;
        let ids = match self.is_greedy {
            // The pipeline would draw among equal ones.
            true => top_k(logits, 1)?.1.reshape([rows]),
            false => samples.ids,
        };
        Ok(ids.mask_fill(samples.valid.bool_not(), -1))
    }
}

/// Reads tokens that were chosen.
pub fn read(tokens: Tensor<1, Int>) -> Result<Vec<u32>> {
    let tokens = tokens.try_into_vec_as::<i32>().context("cannot read the tokens from the device")?;
    let tokens = tokens.into_iter().map(u32::try_from).collect::<Result<_, _>>();
    tokens.ok().context(
        "the model computed NaN, or no logit above -inf is left; if it runs in f16, try --dtype bf16 or f32",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flashinfer::sampling::DrawKey;

    const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0 };
    const LOGITS: [f32; 6] = [0.0, 3.0, 1.0, 3.0, f32::NEG_INFINITY, 2.0];

    /// `count` tokens of the same logits, one after the other.
    fn draw_from<const N: usize>(
        logits: [f32; N],
        sampling: Sampling,
        seed: u64,
        count: usize,
    ) -> Result<Vec<u32>> {
        let device = Device::default();
        let keys = (0..count).map(|at| DrawKey { seed, offset: at as u64, row: at, ..DrawKey::default() });
        let draws = Draws::from_keys(&keys.collect::<Vec<_>>(), &device)?;
        let logits = Tensor::<2>::from_data([logits], &device).expand([count, N]);
        read(Sampler::new(sampling, count, &device).sample(logits, draws)?)
    }

    fn draw(sampling: Sampling, seed: u64, count: usize) -> Vec<u32> {
        draw_from(LOGITS, sampling, seed, count).unwrap()
    }

    fn support(sampling: Sampling) -> Vec<u32> {
        let mut tokens = draw(sampling, 7, 4000);
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    #[test]
    fn greedy_takes_the_first_maximum() {
        assert_eq!(support(GREEDY), [1]);
    }

    #[test]
    fn filters_bound_the_support() {
        let sampling = |top_k, top_p| Sampling::new(1.0, top_k, top_p).unwrap();
        assert_eq!(support(sampling(None, 1.0)), [0, 1, 2, 3, 5], "never a token of logit -inf");
        assert_eq!(support(sampling(Some(1), 1.0)), [1, 3], "both of the most likely");
        assert_eq!(support(sampling(Some(3), 1.0)), [1, 3, 5]);
        assert_eq!(support(sampling(Some(99), 1.0)), [0, 1, 2, 3, 5]);
        // Shares: 0.392, 0.392, 0.144, 0.053, 0.020.
        assert_eq!(support(sampling(None, 0.39)), [1, 3]);
        assert_eq!(support(sampling(None, 0.78)), [1, 3]);
        assert_eq!(support(sampling(None, 0.79)), [1, 3, 5]);
        // Top-p looks at what top-k has left: shares 0.422, 0.422, 0.155.
        assert_eq!(support(sampling(Some(3), 0.84)), [1, 3]);
        assert_eq!(support(sampling(None, 1e-9)), [1, 3]);
        // The others are exp(-1), exp(-2) and exp(-3) times as likely: 0.368, 0.135 and 0.050.
        let min_p = |min_p| sampling(None, 1.0).min_p(min_p).unwrap();
        assert_eq!(support(min_p(1.0)), [1, 3]);
        assert_eq!(support(min_p(0.36)), [1, 3, 5]);
        assert_eq!(support(min_p(0.13)), [1, 2, 3, 5]);
    }

    #[test]
    fn frequencies_follow_the_temperature() {
        for temperature in [0.5, 1.0, 2.0] {
            let tokens = draw(Sampling::new(temperature, None, 1.0).unwrap(), 3, 40_000);
            let weights = LOGITS.map(|logit| (f64::from(logit) / temperature).exp());
            for (token, weight) in weights.iter().enumerate() {
                let expected = weight / weights.iter().sum::<f64>();
                let share = tokens.iter().filter(|&&t| t as usize == token).count() as f64 / 40_000.0;
                assert!(
                    (share - expected).abs() < 0.01,
                    "{temperature}: token {token}: {share}, not {expected}"
                );
            }
        }
    }

    /// At the ends of f32, and beyond: what is too small for it is 0, what is too large is infinite.
    #[test]
    fn temperatures_without_end() {
        for temperature in [-0.0, 1e-50, f64::MIN_POSITIVE] {
            assert_eq!(support(Sampling::new(temperature, None, 1.0).unwrap()), [1], "{temperature}");
        }
        // Not 0, but so small that the largest alone are drawn.
        assert_eq!(support(Sampling::new(1e-45, None, 1.0).unwrap()), [1, 3]);
        for temperature in [f64::INFINITY, f64::MAX, 1e39] {
            let tokens = draw(Sampling::new(temperature, None, 1.0).unwrap(), 5, 40_000);
            for (token, logit) in LOGITS.iter().enumerate() {
                let expected = if logit.is_finite() { 0.2 } else { 0.0 };
                let share = tokens.iter().filter(|&&t| t as usize == token).count() as f64 / 40_000.0;
                assert!((share - expected).abs() < 0.01, "{temperature}: token {token}: {share}");
            }
            // As likely as each other: all or none.
            assert_eq!(support(Sampling::new(temperature, Some(2), 0.5).unwrap()), [0, 1, 2, 3, 5]);
        }
    }

    #[test]
    fn the_seed_decides() {
        let sampling = Sampling::new(1.0, None, 0.9).unwrap();
        assert_eq!(draw(sampling, 1, 100), draw(sampling, 1, 100));
        assert_ne!(draw(sampling, 1, 100), draw(sampling, 2, 100));
    }

    #[test]
    fn bad_numbers_are_refused() {
        for (temperature, top_k, top_p) in [
            (-1.0, None, 1.0),
            (-1e-50, None, 1.0),
            (f64::NEG_INFINITY, None, 1.0),
            (f64::NAN, None, 1.0),
            (1.0, Some(0), 1.0),
            (1.0, None, 0.0),
            (1.0, None, 1.1),
        ] {
            assert!(Sampling::new(temperature, top_k, top_p).is_err());
        }
        for min_p in [-0.1, 1.1, f64::NAN] {
            assert!(GREEDY.min_p(min_p).is_err());
        }
        for logits in [[0.0, f32::NAN], [f32::NEG_INFINITY; 2]] {
            for sampling in [GREEDY, Sampling::new(1.0, Some(2), 0.9).unwrap()] {
                assert!(draw_from(logits, sampling, 0, 1).is_err());
            }
        }
    }
}
