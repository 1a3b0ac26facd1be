//! From logits to a token.

use anyhow::{Result, bail, ensure};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// How to choose a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
}

impl Sampling {
    /// With probability `softmax(logits / temperature)`, among the `top_k` most likely tokens, and of these among the
    /// fewest most likely ones that hold `top_p` of the probability. Temperature 0 is greedy.
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

/// Chooses the tokens of one sequence. It has its own random numbers, so that they do not depend on the company a
/// sequence keeps in a batch.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: SmallRng,
}

impl Sampler {
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        Self { sampling, random: SmallRng::seed_from_u64(seed) }
    }

    /// Chooses a token; of equally likely ones the first.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let (mut best, mut max) = (0, f32::NEG_INFINITY);
        for (token, &logit) in logits.iter().enumerate() {
            if logit.is_nan() {
                bail!("the model computed NaN; if it runs in f16, try --dtype bf16 or f32");
            }
            if logit > max {
                (best, max) = (token, logit);
            }
        }
        ensure!(max.is_finite(), "the model computed logits that are not finite");
        let Sampling { temperature, top_k, top_p } = self.sampling;
        if temperature == 0.0 {
            return Ok(best as u32);
        }

        let weight = |logit: f32| (f64::from(logit - max) / temperature).exp();
        let mut candidates: Vec<(usize, f64)> = logits
            .iter()
            .map(|&logit| weight(logit))
            .enumerate()
            .filter(|&(_, weight)| weight > 0.0)
            .collect();
        let by_rank = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = top_k.filter(|&k| k < candidates.len()) {
            candidates.select_nth_unstable_by(k, by_rank);
            candidates.truncate(k);
        }
        if top_p < 1.0 {
            let total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
            // Tokens below this share hold less than 1 - top_p together, so that none of them is needed; without them
            // there is little left to sort.
            let floor = (1.0 - top_p) * total / candidates.len() as f64;
            candidates.retain(|&(_, weight)| weight >= floor);
            candidates.sort_unstable_by(by_rank);
            let mut held = 0.0;
            let needed = candidates.iter().take_while(|&&(_, weight)| {
                let before = held;
                held += weight;
                before < top_p * total
            });
            let needed = needed.count();
            candidates.truncate(needed);
        }
        let total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
        let mut rest = self.random.random::<f64>() * total;
        for &(token, weight) in &candidates {
            rest -= weight;
            if rest < 0.0 {
                return Ok(token as u32);
            }
        }
        // Rounding may leave a crumb of `rest`.
        Ok(candidates.last().map_or(best, |&(token, _)| token) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0 };
    const LOGITS: [f32; 6] = [0.0, 3.0, 1.0, 3.0, f32::NEG_INFINITY, 2.0];

    fn draw(sampling: Sampling, seed: u64, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, seed);
        (0..count).map(|_| sampler.sample(&LOGITS).unwrap()).collect()
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
        assert_eq!(support(sampling(Some(1), 1.0)), [1]);
        assert_eq!(support(sampling(Some(3), 1.0)), [1, 3, 5]);
        assert_eq!(support(sampling(Some(99), 1.0)), [0, 1, 2, 3, 5]);
        // Shares: 0.392, 0.392, 0.144, 0.053, 0.020.
        assert_eq!(support(sampling(None, 0.39)), [1]);
        assert_eq!(support(sampling(None, 0.78)), [1, 3]);
        assert_eq!(support(sampling(None, 0.79)), [1, 3, 5]);
        // Top-p looks at what top-k has left: shares 0.422, 0.422, 0.155.
        assert_eq!(support(sampling(Some(3), 0.84)), [1, 3]);
        assert_eq!(support(sampling(None, 1e-9)), [1]);
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
        let mut sampler = Sampler::new(GREEDY, 0);
        for logits in [[0.0, f32::NAN], [f32::NEG_INFINITY; 2], [0.0, f32::INFINITY]] {
            assert!(sampler.sample(&logits).is_err());
        }
    }
}
