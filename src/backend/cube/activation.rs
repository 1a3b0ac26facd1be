//! Gated activations.

use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_flashinfer_kernels::activation::{self as kernels, ActAndMul};

use super::tensor::{in_rows, launched, quantized, rounded_like, rows_of};
use crate::extension::{Rounding, Rows};
use crate::types::Activation;

pub(super) fn act_and_mul(
    x: CubeTensor,
    rounding: Rounding<CubeBackend>,
    activation: Activation,
) -> Rows<CubeBackend> {
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1] / 2];
    let y = rounded_like(&x, [rows, width].into(), &rounding);
    if y.meta.num_elements() > 0 {
        let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
        let act = ActAndMul {
            x: in_rows(x).binding(),
            y: y.clone().binding(),
            quantized: quantized(rounding),
            activation: function(activation),
        };
        launched(kernels::launch(&client, act, dtype));
    }
    rows_of(y)
}

/// The function as the kernels take it.
pub(super) fn function(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::Silu => kernels::Activation::Silu,
        Activation::Gelu => kernels::Activation::Gelu,
        Activation::GeluTanh => kernels::Activation::GeluTanh,
    }
}
