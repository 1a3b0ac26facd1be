//! Logits to tokens in named steps, which run as few kernels as they can.

use burn::tensor::{Int, Tensor};

use super::draws::Draws;
use super::filter::{FilterOrder, renorm_top_k};
use super::penalties::{Penalties, apply_penalties};
use super::sample::{Filters, Samples, sample, sampling_from_logits, softmax_for};
use crate::error::{Error, Result};

const OP: &str = "LogitsPipeline";

/// A step from logits to tokens. Parameters are one for each row, on the device of the logits.
#[allow(clippy::large_enum_variant, reason = "a pipeline has few, and takes them apart at once")]
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Step {
    /// [`apply_penalties`]. On logits as the model has them.
    Penalties(Penalties),
    /// Divides logits, as in [`softmax`](super::softmax). `[rows]` of f32, 0 for the largest alone.
    Temperature(Tensor<1>),
    /// Only the most likely tokens, as [`top_k_sampling_from_probs`](super::top_k_sampling_from_probs). `[rows]` of
    /// integers.
    TopK(Tensor<1, Int>),
    /// Only the fewest that reach a probability, as [`top_p_sampling_from_probs`](super::top_p_sampling_from_probs).
    /// `[rows]` of f32.
    TopP(Tensor<1>),
    /// Only those likely beside the most likely one, as
    /// [`min_p_sampling_from_probs`](super::min_p_sampling_from_probs). `[rows]` of f32.
    MinP(Tensor<1>),
    /// Draws tokens. The last step.
    Sample(Draws),
}

/// The kinds of steps, in the order in which they may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Penalties,
    Temperature,
    TopK,
    TopP,
    MinP,
    Sample,
}

impl Step {
    fn stage(&self) -> Stage {
        match self {
            Self::Penalties(_) => Stage::Penalties,
            Self::Temperature(_) => Stage::Temperature,
            Self::TopK(_) => Stage::TopK,
            Self::TopP(_) => Stage::TopP,
            Self::MinP(_) => Stage::MinP,
            Self::Sample(_) => Stage::Sample,
        }
    }
}

/// Steps from logits to tokens, in the order penalties, temperature, top-k, top-p, min-p, sample, each of
/// which but the last may be left out.
///
/// Each filter counts in the distribution that the one before it leaves, made one again
/// ([`FilterOrder::TopKFirst`]), or with [`joint`](Self::joint) in that of the logits. Without a filter
/// tokens are drawn from the logits themselves, in one pass; with filters, from their
/// [`softmax`](super::softmax), all filters in one kernel. Only top-k before top-p, unless joint, takes one
/// more, which renormalises. [`explain`](Self::explain) says which kernels run.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::sampling::{Draws, LogitsPipeline, Step};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let logits = Tensor::<2>::random([4, 1000], Distribution::Normal(0.0, 3.0), &device);
/// let pipeline = LogitsPipeline::new(vec![
///     Step::Temperature(Tensor::full([4], 0.7, &device)),
///     Step::TopP(Tensor::full([4], 0.9, &device)),
///     Step::Sample(Draws::new(42, 17, 4, &device)?),
/// ])?;
/// assert_eq!(pipeline.explain(), "softmax, sample_probs by top_p");
/// let samples = pipeline.run(logits)?;
/// # let _ = samples;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct LogitsPipeline {
    penalties: Option<Penalties>,
    temperature: Option<Tensor<1>>,
    top_k: Option<Tensor<1, Int>>,
    top_p: Option<Tensor<1>>,
    min_p: Option<Tensor<1>>,
    draws: Draws,
    order: FilterOrder,
}

impl LogitsPipeline {
    /// Takes the steps in their order.
    ///
    /// # Errors
    ///
    /// If a step comes twice or before one that has to come first, or the last does not sample.
    pub fn new(steps: Vec<Step>) -> Result<Self> {
        let refuse = |at: usize, got: String, expected: String| {
            Err(Error::Index { op: "LogitsPipeline::new", argument: "steps", at, got, expected })
        };
        let (mut penalties, mut temperature, mut top_k, mut top_p, mut min_p) =
            (None, None, None, None, None);
        let mut last: Option<Stage> = None;
        let count = steps.len();
        for (at, step) in steps.into_iter().enumerate() {
            let stage = step.stage();
            if let Some(last) = last.filter(|last| *last >= stage) {
                return refuse(
                    at,
                    format!("{stage:?} after {last:?}"),
                    format!("a step that comes after {last:?}"),
                );
            }
            last = Some(stage);
            match step {
                Step::Penalties(of) => penalties = Some(of),
                Step::Temperature(of) => temperature = Some(of),
                Step::TopK(of) => top_k = Some(of),
                Step::TopP(of) => top_p = Some(of),
                Step::MinP(of) => min_p = Some(of),
                Step::Sample(draws) => {
                    let order = FilterOrder::default();
                    return match count - at {
                        1 => Ok(Self { penalties, temperature, top_k, top_p, min_p, draws, order }),
                        _ => refuse(at + 1, "a step".into(), "no step after Sample".into()),
                    };
                }
            }
        }
        refuse(count, "no step".into(), "Sample, as the last step".into())
    }

    /// Lets top-k and top-p both count in the distribution of the logits.
    pub fn joint(mut self) -> Self {
        self.order = FilterOrder::Joint;
        self
    }

    /// True if top-k leaves probabilities that must be renormalised before the next filter.
    fn renormalises(&self) -> bool {
        self.order == FilterOrder::TopKFirst && self.top_k.is_some() && self.top_p.is_some()
    }

    /// The kernels that run, in their order.
    pub fn explain(&self) -> String {
        let mut kernels = vec![];
        if self.penalties.is_some() {
            kernels.push("apply_penalties".to_owned());
        }
        let renormalises = self.renormalises();
        let filters = [
            ("top_k", self.top_k.is_some() && !renormalises),
            ("top_p", self.top_p.is_some()),
            ("min_p", self.min_p.is_some()),
        ];
        let filters: Vec<_> =
            filters.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect();
        if filters.is_empty() {
            kernels.push("sample_logits".to_owned());
            return kernels.join(", ");
        }
        kernels.push("softmax".to_owned());
        if renormalises {
            kernels.push("filter by top_k".to_owned());
        }
        kernels.push(format!("sample_probs by {}", filters.join(" and ")));
        kernels.join(", ")
    }

    /// Draws tokens from `logits` `[rows, vocab]` of f32, f16 or bf16.
    ///
    /// # Errors
    ///
    /// If the parameters of a step do not fit the logits; as with the operations of the steps.
    pub fn run(&self, logits: Tensor<2>) -> Result<Samples> {
        let logits = match &self.penalties {
            Some(penalties) => apply_penalties(logits, penalties)?,
            None => logits,
        };
        let temperature = self.temperature.clone();
        let mut filters =
            Filters { top_k: self.top_k.clone(), top_p: self.top_p.clone(), min_p: self.min_p.clone() };
        if filters.top_k.is_none() && filters.top_p.is_none() && filters.min_p.is_none() {
            return sampling_from_logits(logits, temperature, &self.draws);
        }
        let mut probs = softmax_for(OP, logits, temperature)?;
        if self.renormalises()
            && let Some(top_k) = filters.top_k.take()
        {
            probs = renorm_top_k(OP, probs, top_k)?;
        }
        sample(OP, probs, filters, &self.draws)
    }
}
