//! From logits to tokens.

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Int, Tensor};
use burn_flashinfer::sampling::{Draws, LogitsPipeline, Step};

/// How to choose a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
}

impl Sampling {
    /// With probability `softmax(logits / temperature)`, among the `top_k` most likely tokens, and of these among the
    /// fewest most likely ones that hold `top_p` of the probability; of equally likely ones all or none. Temperature 0 is
    /// greedy.
    pub fn new(temperature: f64, top_k: Option<usize>, top_p: f64) -> Result<Self> {
        ensure!(
            temperature >= 0.0 && temperature.is_finite(),
            "the temperature is {temperature}, expected at least 0"
        );
        ensure!(top_k != Some(0), "top-k is 0, expected at least 1");
        ensure!(top_p > 0.0 && top_p <= 1.0, "top-p is {top_p}, expected above 0 and at most 1");
        Ok(Self { temperature, top_k, top_p })
    }
}

/// Chooses a token for each row of logits, on their device: only its number is ever read back.
///
/// What is drawn from a row depends on the key of the row and nothing else, so not on the company that a sequence keeps in a
/// batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// `[rows]`, as all of these.
    temperature: Tensor<1>,
    top_k: Option<Tensor<1, Int>>,
    top_p: Option<Tensor<1>>,
}

impl Sampler {
    /// A sampler of up to `rows` rows.
    pub fn new(sampling: Sampling, rows: usize, device: &Device) -> Self {
        let Sampling { temperature, top_k, top_p } = sampling;
        let floats = |of: f64| Tensor::full([rows], of, (device, DType::F32));
        let top_k =
            top_k.map(|k| Tensor::full([rows], k.min(i32::MAX as usize) as i32, (device, DType::I32)));
        let top_p = (top_p < 1.0).then(|| floats(top_p));
        let is_greedy = temperature == 0.0;
        Self {
            temperature: floats(temperature),
            top_k: top_k.filter(|_| !is_greedy),
            top_p: top_p.filter(|_| !is_greedy),
        }
    }

    /// Chooses a token of each row of `logits` `[rows, vocab_size]`, or -1 where there is none to choose. Without a temperature
    /// it is the first of the most likely.
    pub fn sample(&self, logits: Tensor<2>, draws: Draws) -> Result<Tensor<1, Int>> {
        let [rows, _] = logits.dims();
        let mut steps = vec![Step::Temperature(self.temperature.clone().narrow(0, 0, rows))];
        steps.extend(self.top_k.iter().map(|top_k| Step::TopK(top_k.clone().narrow(0, 0, rows))));
        steps.extend(self.top_p.iter().map(|top_p| Step::TopP(top_p.clone().narrow(0, 0, rows))));
        steps.push(Step::Sample(draws));
        let samples = LogitsPipeline::new(steps)?.run(logits)?;
        Ok(samples.ids.mask_fill(samples.valid.bool_not(), -1))
    }
}

/// Reads tokens that were chosen.
pub fn read(tokens: Tensor<1, Int>) -> Result<Vec<u32>> {
    let tokens = tokens.try_into_vec_as::<i32>().context("cannot read the tokens from the device")?;
    let tokens = tokens.into_iter().map(u32::try_from).collect::<Result<_, _>>();
    tokens
        .ok()
        .context("the model computed NaN, or no logit above -inf; if it runs in f16, try --dtype bf16 or f32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flashinfer::sampling::DrawKey;

    const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0 };
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
            (f64::NAN, None, 1.0),
            (1.0, Some(0), 1.0),
            (1.0, None, 0.0),
            (1.0, None, 1.1),
        ] {
            assert!(Sampling::new(temperature, top_k, top_p).is_err());
        }
        for logits in [[0.0, f32::NAN], [f32::NEG_INFINITY; 2]] {
            for sampling in [GREEDY, Sampling::new(1.0, Some(2), 0.9).unwrap()] {
                assert!(draw_from(logits, sampling, 0, 1).is_err());
            }
        }
    }
}
