//! Rotary position embedding.

use burn::{
    backend::Dispatch,
    tensor::{DType, Device, Tensor, TensorData},
};

use crate::check::{self, Floats, shape};
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, RopeStyle};
use crate::indptr::Positions;

/// How the frequencies of RoPE are stretched for a longer context.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RopeScaling {
    /// `f_i = theta^(-2i / rotary_dim)`.
    #[default]
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context is.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    ///
    /// With `s = clamp((f_i · original_max_positions / 2π - low) / (high - low), 0, 1)`: `f_i' = (1 - s) f_i / factor + s
    /// f_i`.
    Llama3 {
        /// How many times longer the context is.
        factor: f64,
        /// Turns over the original context up to which a frequency is low.
        low_freq_factor: f64,
        /// Turns over the original context from which on a frequency is high.
        high_freq_factor: f64,
        /// The context the model was first trained with.
        original_max_positions: usize,
    },
}

/// The parameters of RoPE, by builder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    rotary_dim: usize,
    theta: f64,
    style: RopeStyle,
    scaling: RopeScaling,
}

impl RopeConfig {
    /// Rotates the first `rotary_dim` elements of a head, in [halves](RopeStyle::Halves), with base 10000 and no scaling
    /// unless set otherwise.
    pub const fn new(rotary_dim: usize) -> Self {
        Self { rotary_dim, theta: 10_000.0, style: RopeStyle::Halves, scaling: RopeScaling::None }
    }

    /// The base of the frequencies.
    pub const fn theta(mut self, theta: f64) -> Self {
        self.theta = theta;
        self
    }

    /// Which elements form a pair.
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
            }
        })
    }

    fn check(&self, op: &'static str) -> Result<()> {
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
        let (RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. }) = scaling else {
            return Ok(());
        };
        if !(factor > 0.0 && factor.is_finite()) {
            return refuse("scaling.factor", factor.to_string(), "a finite number above 0");
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

/// The rotations of RoPE for every position, on a device.
///
/// Cosines and sines are computed in f64 and kept in f32: an angle at position 100 000 computed in f32 would be wrong
/// in the third digit. The table takes `4 * max_positions * rotary_dim` bytes.
#[derive(Debug, Clone)]
pub struct Rope {
    /// `[max_positions, rotary_dim]`: cosines, then sines.
    cos_sin: Tensor<2>,
    style: RopeStyle,
}

impl Rope {
    /// The rotations of the positions below `max_positions`.
    ///
    /// # Errors
    ///
    /// If a parameter is out of its range, the table would have more than `i32::MAX` elements, or no backend of this
    /// build serves `device`.
    pub fn new(config: &RopeConfig, max_positions: usize, device: &Device) -> Result<Self> {
        const OP: &str = "Rope::new";
        config.check(OP)?;
        check::device(OP, "device", device)?;
        if max_positions == 0 {
            return Err(Error::Value {
                op: OP,
                argument: "max_positions",
                got: "0".into(),
                expected: "at least 1".into(),
            });
        }
        // Kernels count elements in i32.
        let most = i32::MAX as usize / config.rotary_dim;
        if max_positions > most {
            return Err(Error::Value {
                op: OP,
                argument: "max_positions",
                got: max_positions.to_string(),
                expected: format!("at most {most}, for {} elements each", config.rotary_dim),
            });
        }
        let frequencies: Vec<f64> = config.frequencies().collect();
        let mut table = Vec::with_capacity(max_positions * config.rotary_dim);
        for position in 0..max_positions {
            let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
            table.extend(angles.clone().map(|angle| angle.cos() as f32));
            table.extend(angles.map(|angle| angle.sin() as f32));
        }
        let data = TensorData::new(table, [max_positions, config.rotary_dim]);
        Ok(Self { cos_sin: Tensor::from_data(data, (device, DType::F32)), style: config.style })
    }

    /// How many positions the table holds.
    pub fn max_positions(&self) -> usize {
        self.cos_sin.dims()[0]
    }

    /// How many elements of a head are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.cos_sin.dims()[1]
    }
}

/// Rotates queries and keys by their positions.
///
/// `q`: `[tokens, q_heads, head_dim]`, `k`: `[tokens, kv_heads, head_dim]`, `positions`: one for each token. With the
/// angle `a = position * f_i` of pair `i`, the pair `(x, y)` becomes `(x cos a - y sin a, y cos a + x sin a)`, computed
/// in f32 and rounded once. Elements from `rotary_dim` on stay as they are.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{Positions, Rope, RopeConfig, apply_rope};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let rope = Rope::new(&RopeConfig::new(64).theta(500_000.0), 8192, &device)?;
/// let q = Tensor::<3>::random([3, 8, 64], Distribution::Default, &device);
/// let k = Tensor::<3>::random([3, 2, 64], Distribution::Default, &device);
/// let (q, k) = apply_rope(q, k, &rope, &Positions::new(&[0, 1, 2], &device)?)?;
/// assert_eq!((q.dims(), k.dims()), ([3, 8, 64], [3, 2, 64]));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If shapes, types or devices do not fit together, a position is beyond the table, or a tensor requires a gradient.
pub fn apply_rope(
    q: Tensor<3>,
    k: Tensor<3>,
    rope: &Rope,
    positions: &Positions,
) -> Result<(Tensor<3>, Tensor<3>)> {
    const OP: &str = "apply_rope";
    let floats = Floats::first(OP, "q", &q)?;
    floats.like("k", &k)?;
    floats.on_device("rope", &rope.cos_sin.device())?;
    floats.on_device("positions", &positions.tensor.device())?;
    let ([tokens, _, head_dim], [k_tokens, _, k_dim]) = (q.dims(), k.dims());
    if [k_tokens, k_dim] != [tokens, head_dim] {
        return Err(shape(OP, "k", &k.dims(), format!("[{tokens}, kv_heads, {head_dim}], as `q`")));
    }
    if rope.rotary_dim() > head_dim {
        let expected = format!("a head dimension of at least {}, as `rope` rotates", rope.rotary_dim());
        return Err(shape(OP, "q", &q.dims(), expected));
    }
    if positions.len() != tokens {
        return Err(Error::Value {
            op: OP,
            argument: "positions",
            got: format!("of length {}", positions.len()),
            expected: format!("one for each of {tokens} tokens"),
        });
    }
    if positions.end() > rope.max_positions() {
        return Err(Error::Value {
            op: OP,
            argument: "positions",
            got: format!("up to {}", positions.end() - 1),
            expected: format!("below {}, the positions of `rope`", rope.max_positions()),
        });
    }
    let (q, k) = Dispatch::apply_rope(
        q.into_dispatch(),
        k.into_dispatch(),
        rope.cos_sin.clone().into_dispatch(),
        positions.tensor.clone().into_dispatch(),
        rope.style,
    );
    Ok((Tensor::from_dispatch(q), Tensor::from_dispatch(k)))
}
