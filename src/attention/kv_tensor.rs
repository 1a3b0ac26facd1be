//! Keys and values of a call that are not in pages: numbers, or codes.

use burn::backend::{Dispatch, DispatchTensor};
use burn::tensor::{DType, Int, Tensor};

use crate::check::{self, Floats};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::{KeysValues, KvTensors, MaybeScales};
use crate::types::{AttentionOptions, Code8, Fp8, KvLayout};

/// Keys or values that are not in pages: a float tensor, which becomes one by `into`, or [codes](Self::fp8).
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Int, Tensor};
/// use burn_flashinfer::{AttentionOptions, Fp8, KvTensor, single_prefill};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let q = Tensor::<3>::random([17, 8, 64], Distribution::Default, &device);
/// let codes = Tensor::<3, Int>::full([40, 2, 64], 0x38, (&device, DType::U8));
/// let ones = KvTensor::fp8(codes, Tensor::ones([1], (&device, DType::F32)), Fp8::E4m3);
/// let attended = single_prefill(q, ones.clone(), ones, &AttentionOptions::new())?;
/// let one = Tensor::<3>::ones([17, 8, 64], &device);
/// attended.output.into_data().assert_approx_eq::<f32>(&one.into_data(), Default::default());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct KvTensor(Stored);

#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives as long as a call, and a box would be an allocation for each"
)]
enum Stored {
    Floats(Tensor<3>),
    Codes { codes: Tensor<3, Int>, scale: Tensor<1>, format: Fp8 },
}

impl KvTensor {
    /// Codes (`U8`) in place of numbers, which are `code * scale`. The scale is f32, `[1]` or `[kv_heads]`.
    pub fn fp8(codes: Tensor<3, Int>, scale: Tensor<1>, format: Fp8) -> Self {
        Self(Stored::Codes { codes, scale, format })
    }
}

impl From<Tensor<3>> for KvTensor {
    fn from(numbers: Tensor<3>) -> Self {
        Self(Stored::Floats(numbers))
    }
}

impl Stored {
    fn dims(&self) -> [usize; 3] {
        match self {
            Self::Floats(numbers) => numbers.dims(),
            Self::Codes { codes, .. } => codes.dims(),
        }
    }

    /// With tokens before heads, whatever order they came in; a view, not a copy.
    fn by_token(self, layout: KvLayout) -> Self {
        match (self, layout) {
            (stored, KvLayout::Nhd) => stored,
            (Self::Floats(numbers), KvLayout::Hnd) => Self::Floats(numbers.swap_dims(0, 1)),
            (Self::Codes { codes, scale, format }, KvLayout::Hnd) => {
                Self::Codes { codes: codes.swap_dims(0, 1), scale, format }
            }
        }
    }

    /// The tensor, and the scale of codes.
    fn into_backend(self) -> (DispatchTensor, Option<DispatchTensor>) {
        match self {
            Self::Floats(numbers) => (numbers.into_backend(), None),
            Self::Codes { codes, scale, .. } => (codes.into_backend(), Some(scale.into_backend())),
        }
    }

    fn format(&self) -> Option<Code8> {
        match self {
            Self::Floats(_) => None,
            Self::Codes { format, .. } => Some((*format).into()),
        }
    }

    fn check(&self, op: &'static str, names: [&'static str; 2], floats: &Floats) -> Result<()> {
        match self {
            Self::Floats(numbers) => floats.like(names[0], numbers),
            Self::Codes { codes, scale, .. } => {
                check::codes(op, names[0], codes)?;
                floats.on_device(names[0], &codes.device())?;
                floats.on_device(names[1], &scale.device())?;
                check::scales(op, names[1], scale.clone(), codes.dims()[1]).map(drop)
            }
        }
    }
}

/// Keys and values of a call, by tokens.
#[derive(Debug)]
pub(crate) struct KvPair {
    k: Stored,
    v: Stored,
}

impl KvPair {
    pub(crate) fn new(k: KvTensor, v: KvTensor, options: &AttentionOptions) -> Self {
        let layout = options.kv_layout.unwrap_or_default();
        Self { k: k.0.by_token(layout), v: v.0.by_token(layout) }
    }

    /// `[tokens, kv_heads, head_dim]` of keys and of values.
    pub(crate) fn dims(&self) -> [[usize; 3]; 2] {
        [self.k.dims(), self.v.dims()]
    }

    /// The format of codes.
    pub(crate) fn code(&self) -> Option<Code8> {
        self.k.format()
    }

    /// Refuses others than floats of the type and device of these, or codes of one format on that device.
    pub(crate) fn check(&self, op: &'static str, floats: &Floats) -> Result<()> {
        self.k.check(op, ["k", "k_scale"], floats)?;
        self.v.check(op, ["v", "v_scale"], floats)?;
        let [k, v] = [&self.k, &self.v].map(Stored::format);
        if k == v {
            return Ok(());
        }
        let expected = format!("{}, as `k`", element(k, floats.dtype()));
        Err(Error::Dtype { op, argument: "v", got: element(v, floats.dtype()), expected })
    }

    pub(crate) fn into_stored(self) -> KeysValues<Dispatch> {
        let format = self.code();
        let [(k, k_scale), (v, v_scale)] = [self.k, self.v].map(Stored::into_backend);
        match (k_scale, v_scale) {
            (Some(k_scale), Some(v_scale)) => {
                let scales = MaybeScales::Some(k_scale, v_scale);
                KeysValues { tensors: KvTensors::Codes(k, v), scales, format }
            }
            _ => KeysValues::floats(k, v),
        }
    }
}

/// An element as errors name it.
pub(crate) fn element(format: Option<Code8>, dtype: DType) -> String {
    format.map_or_else(|| format!("{dtype:?}"), |format| format!("codes of {format:?}"))
}
