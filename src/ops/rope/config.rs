//! The parameters of RoPE.

use crate::error::{Error, Result};
use crate::types::RopeStyle;

/// The scaling of RoPE's frequencies for a longer context.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum RopeScaling {
    /// `f_i = theta^(-2i / rotary_dim)`.
    #[default]
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The factor by which the context is longer.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    ///
    /// With `s = clamp((f_i · original_max_positions / 2π - low) / (high - low), 0, 1)`:
    /// `f_i' = (1 - s) f_i / factor + s f_i`.
    Llama3 {
        /// The factor by which the context is longer.
        factor: f64,
        /// Turns over the original context up to which a frequency is low.
        low_freq_factor: f64,
        /// Turns over the original context from which on a frequency is high.
        high_freq_factor: f64,
        /// The context the model was first trained with.
        original_max_positions: usize,
    },
    /// YaRN ([arXiv:2309.00071](https://arxiv.org/abs/2309.00071)): pairs that turn often keep their
    /// frequency, those that turn seldom have it divided by `factor`, those between are blended; and all
    /// cosines and sines are multiplied with a factor.
    ///
    /// Pair `i` turns `n` times over the original context at
    /// `c(n) = rotary_dim/2 · ln(original_max_positions / 2πn) / ln(theta)`. With
    /// `s = clamp((i - low) / (high - low), 0, 1)` between `low = c(beta_fast)` and `high = c(beta_slow)`,
    /// rounded down and up if `truncate`: `f_i' = s f_i / factor + (1 - s) f_i`. As Hugging Face has it;
    /// [`yarn`](Self::yarn) fills in the usual numbers.
    Yarn {
        /// The factor by which the context is longer.
        factor: f64,
        /// Turns over the original context from which on a frequency is kept: 32, usually.
        beta_fast: f64,
        /// Turns over the original context up to which a frequency is divided: 1, usually.
        beta_slow: f64,
        /// The context the model was first trained with.
        original_max_positions: usize,
        /// The factor of cosines and sines: `0.1 ln(factor) + 1` if not given. (With DeepSeek's `mscale` and
        /// `mscale_all_dim` it is `(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)`.)
        attention_factor: Option<f64>,
        /// Rounds the ends of the blend to whole pairs.
        truncate: bool,
    },
}

impl RopeScaling {
    /// YaRN with the numbers of the paper.
    pub const fn yarn(factor: f64, original_max_positions: usize) -> Self {
        Self::Yarn {
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_positions,
            attention_factor: None,
            truncate: true,
        }
    }
}

/// The parameters of RoPE, by builder.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct RopeConfig {
    pub(super) rotary_dim: usize,
    theta: f64,
    pub(super) style: RopeStyle,
    scaling: RopeScaling,
}

impl RopeConfig {
    /// Rotates the first `rotary_dim` elements of a head, in [halves](RopeStyle::Halves), with base 10000 and
    /// no scaling unless set otherwise.
    pub const fn new(rotary_dim: usize) -> Self {
        Self { rotary_dim, theta: 10_000.0, style: RopeStyle::Halves, scaling: RopeScaling::None }
    }

    /// The base of the frequencies.
    pub const fn theta(mut self, theta: f64) -> Self {
        self.theta = theta;
        self
    }

    /// Sets the pairing of elements.
    pub const fn style(mut self, style: RopeStyle) -> Self {
        self.style = style;
        self
    }

    /// The stretching of the frequencies.
    pub const fn scaling(mut self, scaling: RopeScaling) -> Self {
        self.scaling = scaling;
        self
    }

    /// The angle per position of each of the `rotary_dim / 2` pairs, in radians.
    pub fn frequencies(&self) -> impl ExactSizeIterator<Item = f64> + use<> {
        let Self { rotary_dim, theta, scaling, .. } = *self;
        let pairs = rotary_dim / 2;
        let (low, high) = self.blended();
        (0..pairs).map(move |pair| {
            let frequency = theta.powf(-(pair as f64) / pairs as f64);
            match scaling {
                RopeScaling::None => frequency,
                RopeScaling::Linear { factor } => frequency / factor,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                    let turns = frequency * original_max_positions as f64 / std::f64::consts::TAU;
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
                RopeScaling::Yarn { factor, .. } => {
                    let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    divided * frequency / factor + (1.0 - divided) * frequency
                }
            }
        })
    }

    /// The factor of all cosines and sines: 1 except for [YaRN](RopeScaling::Yarn).
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor: Some(given), .. } => given,
            RopeScaling::Yarn { factor, .. } if factor > 1.0 => 0.1 * factor.ln() + 1.0,
            _ => 1.0,
        }
    }

    /// The pairs between which YaRN blends.
    fn blended(&self) -> (f64, f64) {
        let RopeScaling::Yarn { beta_fast, beta_slow, original_max_positions, truncate, .. } = self.scaling
        else {
            return (0.0, 1.0);
        };
        let dim = self.rotary_dim as f64;
        let pair_of = |turns: f64| {
            let positions = original_max_positions as f64 / (turns * std::f64::consts::TAU);
            dim * positions.ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // Both may be one.
        (low, if low == high { high + 0.001 } else { high })
    }

    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        let refuse = |argument, got: String, expected: &str| {
            Err(Error::Value { op, argument, got, expected: expected.into() })
        };
        let Self { rotary_dim, theta, scaling, .. } = *self;
        if rotary_dim == 0 || rotary_dim % 2 != 0 {
            return refuse("rotary_dim", rotary_dim.to_string(), "an even number above 0");
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return refuse("theta", theta.to_string(), "a finite number above 0");
        }
        let (RopeScaling::Linear { factor }
        | RopeScaling::Llama3 { factor, .. }
        | RopeScaling::Yarn { factor, .. }) = scaling
        else {
            return Ok(());
        };
        if !(factor > 0.0 && factor.is_finite()) {
            return refuse("scaling.factor", factor.to_string(), "a finite number above 0");
        }
        if let RopeScaling::Yarn { beta_fast, beta_slow, original_max_positions, attention_factor, .. } =
            scaling
        {
            if !(beta_slow > 0.0 && beta_fast > beta_slow && beta_fast.is_finite()) {
                let expected = "a finite number above beta_slow, itself above 0";
                return refuse("scaling.beta_fast", beta_fast.to_string(), expected);
            }
            if theta <= 1.0 {
                return refuse("theta", theta.to_string(), "a finite number above 1, for YaRN");
            }
            if original_max_positions == 0 {
                return refuse("scaling.original_max_positions", "0".into(), "at least 1");
            }
            if let Some(given) = attention_factor
                && !(given > 0.0 && given.is_finite())
            {
                let argument = "scaling.attention_factor";
                return refuse(argument, given.to_string(), "a finite number above 0");
            }
        }
        if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, original_max_positions, .. } = scaling
        {
            if !(low_freq_factor > 0.0 && high_freq_factor > low_freq_factor && high_freq_factor.is_finite())
            {
                let got = format!("{high_freq_factor}");
                return refuse(
                    "scaling.high_freq_factor",
                    got,
                    "a finite number above low_freq_factor, itself above 0",
                );
            }
            if original_max_positions == 0 {
                return refuse("scaling.original_max_positions", "0".into(), "at least 1");
            }
        }
        Ok(())
    }
}
