//! Tensors that come with a call.

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use crate::check::Floats;
use crate::dispatch::IntoBackend;
use crate::error::Result;
use crate::extension::{MaybeFloats, MaybeInts};
use crate::ints::saturated;
use crate::types::{AttentionOptions, KvLayout};

/// The tensors of a variant, which may change from run to run of a plan: slopes, sinks, scales, masks. By builder.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct VariantInputs {
    floats: Option<Tensor<1>>,
    ints: Option<Tensor<1, Int>>,
}

impl VariantInputs {
    /// No tensor.
    pub fn new() -> Self {
        Self::default()
    }

    /// Numbers, f32.
    pub fn floats(mut self, floats: Tensor<1>) -> Self {
        self.floats = Some(floats);
        self
    }

    /// Integers, which become `i32`: one that does not fit becomes the nearest that does.
    pub fn ints(mut self, ints: Tensor<1, Int>) -> Self {
        self.ints = Some(ints);
        self
    }

    /// Checks that they are on the device of the queries, in the types that kernels take.
    pub(crate) fn checked(self, q: &Floats) -> Result<Self> {
        if let Some(floats) = &self.floats {
            q.f32("floats", floats)?;
        }
        if let Some(ints) = &self.ints {
            q.on_device("ints", &ints.device())?;
        }
        Ok(Self { floats: self.floats, ints: self.ints.map(saturated) })
    }

    pub(crate) fn into_backend(self) -> (MaybeFloats<Dispatch>, MaybeInts<Dispatch>) {
        let (floats, ints) = (self.floats.map(Tensor::into_backend), self.ints.map(Tensor::into_backend));
        (floats.into(), ints.into())
    }
}

/// Contiguous keys and values as `[tokens, heads, head_dim]`, whatever order they came in; a view, not a copy.
pub(crate) fn by_token(k: Tensor<3>, v: Tensor<3>, options: &AttentionOptions) -> (Tensor<3>, Tensor<3>) {
    match options.kv_layout.unwrap_or_default() {
        KvLayout::Nhd => (k, v),
        KvLayout::Hnd => (k.swap_dims(0, 1), v.swap_dims(0, 1)),
    }
}
