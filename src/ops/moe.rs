//! Mixture of experts.

use burn::{
    backend::Dispatch,
    tensor::{DType, Int, Tensor},
};

use crate::check::{Floats, shape, wide_integers};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::{FlashInferBackend, MaybeFloats};
use crate::ints::saturated;
use crate::memory;
use crate::types::{Activation, ExpertGroups, RouterScore, RoutingParams};

/// Options of [`moe_route`]: by default the `top_k` largest probabilities of a softmax over all experts, as they are.
///
/// | model | options |
/// |---|---|
/// | Mixtral, gpt-oss | `new(2).softmax_of_chosen()` |
/// | Qwen3-MoE | `new(8).renormalise(true)`, which is the same |
/// | DeepSeek V2-Lite | `new(6)` |
/// | DeepSeek V3 | `new(8).score(Sigmoid).correction_bias(bias).groups(8, 4).renormalise(true).scale(2.5)` |
/// | Llama 4 | `new(1).score(Sigmoid)` |
#[derive(Debug, Clone)]
#[must_use]
pub struct MoeRouting {
    params: RoutingParams,
    bias: Option<Tensor<1>>,
}

impl MoeRouting {
    /// So many experts for each token.
    pub const fn new(top_k: usize) -> Self {
        let score = RouterScore::Softmax;
        Self {
            params: RoutingParams { top_k, score, groups: None, renormalise: false, scale: 1.0 },
            bias: None,
        }
    }

    /// The score of an expert.
    pub fn score(mut self, score: RouterScore) -> Self {
        self.params.score = score;
        self
    }

    /// Adds `[experts]` of f32 to the scores for the choice of experts. Their weights are the scores without it.
    pub fn correction_bias(mut self, bias: Tensor<1>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Chooses from the best `chosen` of `count` groups of adjacent experts. The score of a group is the largest of its
    /// experts, bias included; of sigmoids with a bias it is the sum of the two largest.
    pub fn groups(mut self, count: usize, chosen: usize) -> Self {
        self.params.groups = Some(ExpertGroups { count, chosen });
        self
    }

    /// Divides the weights of a token by their sum.
    pub fn renormalise(mut self, yes: bool) -> Self {
        self.params.renormalise = yes;
        self
    }

    /// A softmax over the logits of the chosen experts alone: that over all, renormalised.
    pub fn softmax_of_chosen(self) -> Self {
        self.score(RouterScore::Softmax).renormalise(true)
    }

    /// Multiplies all weights by a finite number.
    pub fn scale(mut self, scale: f32) -> Self {
        self.params.scale = scale;
        self
    }
}

/// Chooses the experts of each token:
///
/// ```text
/// s = softmax(logits) or sigmoid(logits)
/// experts = the top_k largest of s + bias, of the chosen groups alone
/// weights = scale · s[experts]                     or scale · s[experts] / Σ s[experts]
/// ```
///
/// `logits`: `[tokens, experts]`, up to 512 experts; the results are weights (f32) and experts (`i32`), `[tokens, top_k]`
/// each with a `top_k` of up to 32. The largest comes first, NaN last, and of equals the first. Without a bias it is logits
/// that are compared, and with it numbers in f32. Scores whose sum is 0 become weights of 0. A NaN makes weights NaN, and
/// never an index out of range.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_flashinfer::{MoeRouting, moe_route};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let logits = Tensor::<2>::from_data([[0.0, 1.0, 0.0, 1.0]], &device);
/// let (weights, experts) = moe_route(logits, MoeRouting::new(2).softmax_of_chosen())?;
/// assert_eq!(weights.into_data().iter::<f32>().collect::<Vec<_>>(), [0.5, 0.5]);
/// assert_eq!(experts.into_data().iter::<i32>().collect::<Vec<_>>(), [1, 3]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If there are no or more than 512 experts; if groups, of which there are at most 32, do not divide them; if there are fewer
/// than `top_k` to choose from; if the scale is not finite; if shapes, types or devices do not fit together; if a tensor
/// requires a gradient.
pub fn moe_route(logits: Tensor<2>, options: MoeRouting) -> Result<(Tensor<2>, Tensor<2, Int>)> {
    const OP: &str = "moe_route";
    let MoeRouting { params, bias } = options;
    let floats = Floats::first(OP, "logits", &logits)?;
    let [tokens, experts] = logits.dims();
    if experts == 0 || experts > RoutingParams::MAX_EXPERTS {
        let expected = format!("from 1 to {} experts", RoutingParams::MAX_EXPERTS);
        return Err(shape(OP, "logits", &logits.dims(), expected));
    }
    if let Some(bias) = &bias {
        floats.f32("correction_bias", bias)?;
        if bias.dims() != [experts] {
            let expected = format!("[{experts}], one for each expert");
            return Err(shape(OP, "correction_bias", &bias.dims(), expected));
        }
    }
    let refuse = |argument, got: String, expected| Err(Error::Value { op: OP, argument, got, expected });
    if let Some(ExpertGroups { count, chosen }) = params.groups {
        if count == 0 || count > RoutingParams::MAX_GROUPS || !experts.is_multiple_of(count) {
            let expected =
                format!("from 1 to {} groups that divide {experts} experts", RoutingParams::MAX_GROUPS);
            return refuse("groups", count.to_string(), expected);
        }
        if chosen == 0 || chosen > count {
            return refuse("chosen groups", chosen.to_string(), format!("from 1 to {count}"));
        }
    }
    let most = params.choices(experts).min(RoutingParams::MAX_TOP_K);
    if params.top_k == 0 || params.top_k > most {
        return refuse("top_k", params.top_k.to_string(), format!("from 1 to {most}"));
    }
    if !params.scale.is_finite() {
        return refuse("scale", params.scale.to_string(), "a finite number".into());
    }
    if tokens == 0 {
        let (device, origin) = (logits.device(), floats.origin);
        let weights = Tensor::<2>::empty([0, params.top_k], (&device, DType::F32));
        let experts = Tensor::<2, Int>::empty([0, params.top_k], (&device, DType::I32));
        return Ok((origin.tensor(weights.into_backend()), origin.tensor(experts.into_backend())));
    }
    let bias: MaybeFloats<_> = bias.map(Tensor::into_backend).into();
    let (weights, experts) = Dispatch::moe_route(logits.into_backend(), bias, params);
    Ok((floats.origin.tensor(weights), floats.origin.tensor(experts)))
}

/// The feed-forward layers of each token's experts, weighted and added up:
///
/// ```text
/// y[t] = Σ_k weights[t, k] · down[e] · (act(gate[e] · x[t]) · (up[e] · x[t]))      e = experts[t, k]
/// ```
///
/// `x`: `[tokens, hidden]`; `gate_up`: `[experts, 2 * inter, hidden]`, the gates of an expert before its ups, and `down`:
/// `[experts, hidden, inter]`, both of the type of `x` and in the order of checkpoints; `weights` (f32) and `experts` (any
/// integers): `[tokens, top_k]`, as of [`moe_route`]; the result is as `x`.
///
/// A number outside of `0..experts` names no expert and adds nothing. So a device may have some of the experts, and the
/// results of all devices are added up. Sums are f32, in the order of `k`; the activated products are rounded to the type
/// of `x`, and on GPUs the rows of `down` too. The host waits for nothing: rows are sorted by expert on the device.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{Activation, MoeRouting, fused_moe, moe_route};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let random = |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Default, &device);
/// // Eight experts of 16 gates, two of them for each token.
/// let (gate_up, down) = (random([8, 32, 24]), random([8, 24, 16]));
/// let x = Tensor::<2>::random([5, 24], Distribution::Default, &device);
/// let router = Tensor::<2>::random([24, 8], Distribution::Default, &device);
/// let (weights, experts) = moe_route(x.clone().matmul(router), MoeRouting::new(2).softmax_of_chosen())?;
/// let y = fused_moe(x, gate_up, down, weights, experts, Activation::Silu)?;
/// assert_eq!(y.dims(), [5, 24]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If an axis but that of tokens is empty; if shapes, types or devices do not fit together; if a tensor requires a gradient;
/// on a device without integers of 64 bits.
pub fn fused_moe(
    x: Tensor<2>,
    gate_up: Tensor<3>,
    down: Tensor<3>,
    weights: Tensor<2>,
    experts: Tensor<2, Int>,
    activation: Activation,
) -> Result<Tensor<2>> {
    const OP: &str = "fused_moe";
    let floats = Floats::first(OP, "x", &x)?;
    let device = x.device();
    wide_integers(OP, "x", &device)?;
    floats.like("gate_up", &gate_up)?;
    floats.like("down", &down)?;
    floats.f32("weights", &weights)?;
    floats.on_device("experts", &experts.device())?;
    let ([tokens, hidden], [count, outputs, inter]) = (x.dims(), down.dims());
    if outputs != hidden || count == 0 || hidden == 0 || inter == 0 {
        let expected = format!("[experts, {hidden}, inter], as `x`, and no empty axis");
        return Err(shape(OP, "down", &down.dims(), expected));
    }
    if gate_up.dims() != [count, 2 * inter, hidden] {
        let expected = format!("[{count}, {}, {hidden}], as `x` and `down`", 2 * inter);
        return Err(shape(OP, "gate_up", &gate_up.dims(), expected));
    }
    let [rows, top_k] = experts.dims();
    if rows != tokens || top_k == 0 {
        let expected = format!("[{tokens}, top_k], at least one for each token");
        return Err(shape(OP, "experts", &experts.dims(), expected));
    }
    if weights.dims() != [tokens, top_k] {
        return Err(shape(OP, "weights", &weights.dims(), format!("[{tokens}, {top_k}], as `experts`")));
    }
    let entries = memory::bytes([tokens, top_k]);
    // Places of entries are `i32`, and so are their ends.
    if entries > i32::MAX as usize / 2 || count > i32::MAX as usize / 2 {
        let expected = format!("at most {} entries", i32::MAX / 2);
        return Err(shape(OP, "experts", &experts.dims(), expected));
    }
    let largest = memory::bytes([entries, hidden.max(2 * inter), size_of::<f32>()]);
    memory::on_device(OP, "x", [2, largest], &device)?;
    if tokens == 0 {
        return Ok(floats.origin.tensor(x.into_backend()));
    }
    Ok(floats.origin.tensor(Dispatch::fused_moe(
        x.into_backend(),
        gate_up.into_backend(),
        down.into_backend(),
        weights.into_backend(),
        saturated(experts).into_backend(),
        activation,
    )))
}
