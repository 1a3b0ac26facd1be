//! Tensors that come with a call.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::check::{Floats, device as check_device, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::VariantTensors;
use crate::ints::saturated;
use crate::memory;
use crate::types::{AttentionOptions, InputLengths};

/// The tensors of one run, which may change from layer to layer: sinks, slopes, and those of a variant. By builder.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{AttentionOptions, VariantInputs, alibi_slopes, single_prefill};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let [q, k, v] = [8, 2, 2].map(|heads| Tensor::<3>::random([12, heads, 64], Distribution::Default, &device));
/// let sinks = Tensor::<1>::random([8], Distribution::Default, &device);
/// let inputs = VariantInputs::new().sinks(sinks).slopes(alibi_slopes(8, &device)?);
/// let options = AttentionOptions::new().causal(true);
/// assert_eq!(single_prefill(q, k, v, (&options, inputs))?.output.dims(), [12, 8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct VariantInputs {
    pub(crate) sinks: Option<Tensor<1>>,
    pub(crate) slopes: Option<Tensor<1>>,
    floats: Option<Tensor<1>>,
    ints: Option<Tensor<1, Int>>,
}

impl VariantInputs {
    /// No tensor.
    pub fn new() -> Self {
        Self::default()
    }

    /// Attention sinks, `[q_heads]` in f32: a natural logit `z` for each head, whose value is 0, as in GPT-OSS.
    ///
    /// `o_i = Σ_j exp(s_ij) v_j / (Σ_j exp(s_ij) + exp(z))`. The LSE has the sink in it; a query without a key gets output 0
    /// and LSE `z / ln 2`.
    pub fn sinks(mut self, sinks: Tensor<1>) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Slopes of ALiBi, `[q_heads]` in f32: a key at position `j` adds `slope · (j - i)` to the logit of a query at position
    /// `i`, after scale and soft cap.
    ///
    /// The last query is at the last key. So the bias is at most 0 behind a causal mask. [`alibi_slopes`] has the usual ones
    /// (Press et al., <https://arxiv.org/abs/2108.12409>).
    pub fn slopes(mut self, slopes: Tensor<1>) -> Self {
        self.slopes = Some(slopes);
        self
    }

    /// Numbers of a variant of the caller's, f32.
    pub fn floats(mut self, floats: Tensor<1>) -> Self {
        self.floats = Some(floats);
        self
    }

    /// Integers of a variant of the caller's, which become `i32`: one that does not fit becomes the nearest that does.
    pub fn ints(mut self, ints: Tensor<1, Int>) -> Self {
        self.ints = Some(ints);
        self
    }

    /// Checks that they fit the queries, in the types that kernels take.
    pub(crate) fn checked(
        self,
        op: &'static str,
        q: &Floats,
        q_heads: usize,
        options: &AttentionOptions,
    ) -> Result<Self> {
        for (argument, tensor) in [("sinks", &self.sinks), ("slopes", &self.slopes)] {
            if let Some(tensor) = tensor {
                q.f32(argument, tensor)?;
                if tensor.dims() != [q_heads] {
                    let expected = format!("[{q_heads}], one for each query head");
                    return Err(shape(op, argument, &tensor.dims(), expected));
                }
            }
        }
        if self.slopes.is_some() && options.has_trees() {
            let expected = "none, as tokens of a tree are not where their keys are".into();
            return Err(Error::Value { op, argument: "slopes", got: "given".into(), expected });
        }
        let wanted = options.variant.as_ref().map(|variant| variant.input_lengths(q_heads));
        let lengths = InputLengths {
            floats: self.floats.as_ref().map(|floats| floats.dims()[0]),
            ints: self.ints.as_ref().map(|ints| ints.dims()[0]),
        };
        for (argument, got, wanted) in [
            ("floats", lengths.floats, wanted.map(|wanted| wanted.floats)),
            ("ints", lengths.ints, wanted.map(|wanted| wanted.ints)),
        ] {
            match (got, wanted) {
                (Some(_), None) => {
                    let expected = "none, as no variant reads it".into();
                    return Err(Error::Value { op, argument, got: "given".into(), expected });
                }
                (None, Some(Some(wanted))) => {
                    let expected = format!("[{wanted}], which the variant reads");
                    return Err(Error::Value { op, argument, got: "not given".into(), expected });
                }
                (Some(got), Some(Some(wanted))) if got != wanted => {
                    return Err(shape(op, argument, &[got], format!("[{wanted}], which the variant reads")));
                }
                _ => {}
            }
        }
        if let Some(floats) = &self.floats {
            q.f32("floats", floats)?;
        }
        if let Some(ints) = &self.ints {
            q.on_device("ints", &ints.device())?;
        }
        Ok(Self { ints: self.ints.map(saturated), ..self })
    }

    /// Those of keys that requests share: sinks count once, with a request's own keys.
    pub(crate) fn over_shared(&self) -> Self {
        Self { sinks: None, ..self.clone() }
    }

    pub(crate) fn into_backend(self) -> VariantTensors<Dispatch> {
        let Self { sinks, slopes, floats, ints } = self;
        let [sinks, slopes, floats] =
            [sinks, slopes, floats].map(|tensor| tensor.map(Tensor::into_backend).into());
        VariantTensors { sinks, slopes, floats, ints: ints.map(Tensor::into_backend).into() }
    }
}

/// Options of a call without a plan, and its tensors: made of `&options`, or of `(&options, inputs)`.
#[derive(Debug, Clone)]
pub struct CallOptions<'a> {
    pub(crate) options: &'a AttentionOptions,
    pub(crate) inputs: VariantInputs,
}

impl<'a> From<&'a AttentionOptions> for CallOptions<'a> {
    fn from(options: &'a AttentionOptions) -> Self {
        Self { options, inputs: VariantInputs::new() }
    }
}

impl<'a> From<(&'a AttentionOptions, VariantInputs)> for CallOptions<'a> {
    fn from((options, inputs): (&'a AttentionOptions, VariantInputs)) -> Self {
        Self { options, inputs }
    }
}

/// The usual slopes of ALiBi for any number of heads, for [`VariantInputs::slopes`].
///
/// With the largest power of two `n <= heads`, head `h` has `2^(-8 (h + 1) / n)` if `h < n`, and
/// `2^(-4 (2 (h - n) + 1) / n)` otherwise.
///
/// # Errors
///
/// If there is no head, more than can be counted, or this build has no such device.
pub fn alibi_slopes(heads: usize, device: &Device) -> Result<Tensor<1>> {
    const OP: &str = "alibi_slopes";
    check_device(OP, "device", device)?;
    if heads == 0 || heads > i32::MAX as usize {
        let (got, expected) = (heads.to_string(), format!("1 to {}", i32::MAX));
        return Err(Error::Value { op: OP, argument: "heads", got, expected });
    }
    let mut slopes = memory::list(OP, "heads", heads)?;
    let n = 1 << heads.ilog2();
    slopes.extend((0..heads).map(|head| {
        let eighths = if head < n { 2 * (head + 1) } else { 2 * (head - n) + 1 };
        (-4.0 * eighths as f64 / n as f64).exp2() as f32
    }));
    Ok(Tensor::from_data(TensorData::new(slopes, [heads]), (device, DType::F32)))
}
