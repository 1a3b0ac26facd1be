use cubecl::prelude::*;

/// The tensors of a checked problem, with keys and values in pages.
pub(super) struct Operands {
    pub q: TensorBinding,
    pub k: TensorBinding,
    pub v: TensorBinding,
    pub output: TensorBinding,
    pub lse: Option<TensorBinding>,
}
