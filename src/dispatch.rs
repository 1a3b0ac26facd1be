//! Tensors on their way to a backend and back.
//!
//! The operations have no backward pass and refuse a tensor that needs one
//! ([`no_gradient`](crate::check::no_gradient)). So backends get tensors without autodiff, and their results
//! return to the autodiff device of the arguments.

use burn::backend::{Dispatch, DispatchTensor};
use burn::tensor::kind::Autodiff;
use burn::tensor::{GradientCheckpointingStrategy, Int, Tensor};

use crate::extension::FlashInferBackend;

/// A tensor that goes to a backend.
pub(crate) trait IntoBackend {
    /// Without autodiff.
    fn into_backend(self) -> DispatchTensor;
}

impl<const D: usize, K: Autodiff> IntoBackend for Tensor<D, K> {
    fn into_backend(self) -> DispatchTensor {
        self.without_autodiff().into_dispatch()
    }
}

/// The autodiff device of an operation's first argument, if it was on one. Results of the operation go there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin(Option<GradientCheckpointingStrategy>);

impl Origin {
    pub(crate) fn of<const D: usize, K: Autodiff>(tensor: &Tensor<D, K>) -> Self {
        Self(tensor.gradient_checkpointing_strategy())
    }

    /// A result of a backend.
    pub(crate) fn tensor<const D: usize, K: Autodiff>(self, result: DispatchTensor) -> Tensor<D, K> {
        let tensor = Tensor::from_dispatch(result);
        match self.0 {
            None => tensor,
            Some(strategy) => tensor.autodiff().with_gradient_checkpointing_strategy(strategy),
        }
    }
}

/// Writes `values` to the front of `buffer`: [`FlashInferBackend::write_ints`].
pub(crate) fn write_ints(buffer: Tensor<1, Int>, values: Vec<i32>) -> Tensor<1, Int> {
    let origin = Origin::of(&buffer);
    origin.tensor(Dispatch::write_ints(buffer.into_backend(), values))
}
