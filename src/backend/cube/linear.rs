//! Linear layers.

use burn::backend::{DType, cubecl::dtype_to_storage_type, ops::FloatTensorOps};
use burn_cubecl::{
    CubeBackend,
    kernel::matmul::{MatmulStrategy, matmul},
    kernel::{cast, into_contiguous},
    tensor::CubeTensor,
};
use burn_flashinfer_kernels::DeviceProfile;
use burn_flashinfer_kernels::gemm::{self, Dtypes, Epilogue, Gemm, RmsNorm, TF32};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::{launch::launch_ref, multi_level};
use cubek::std::InputBinding;

use super::activation::function;
use super::norm;
use super::tensor::{dense, empty_like, in_rows, launched, owned, refused};
use crate::extension::{MaybeFloats, Rounding, Rows};
use crate::types::{LinearParams, RmsNormStyle};

pub(super) fn linear(
    x: CubeTensor,
    weight: CubeTensor,
    norm: MaybeFloats<CubeBackend>,
    bias: MaybeFloats<CubeBackend>,
    residual: MaybeFloats<CubeBackend>,
    params: LinearParams,
) -> CubeTensor {
    let [rows, columns] = [x.meta.shape()[0], params.outputs(weight.meta.shape()[0])];
    let (add, y) = sum_or_empty(residual, &x, [rows, columns], params.dtype);
    if rows == 0 {
        return y;
    }
    let epilogue =
        Epilogue { bias: dense(bias), gate: params.gate.map(function), soft_cap: params.soft_cap, add };
    let client = x.client.clone();
    let dtypes = Dtypes { x: dtype_to_storage_type(x.dtype), y: dtype_to_storage_type(params.dtype) };
    if gemm::is_for(&DeviceProfile::of(&client), rows) {
        let multiplied = if params.tf32 && x.dtype == DType::F32 { TF32 } else { dtypes.x };
        let (x, weight) = (in_rows(x).binding(), in_rows(weight).binding());
        let one_more = params.style == RmsNormStyle::Gemma;
        let norm = dense(norm).map(|weight| RmsNorm { weight, epsilon: params.epsilon, one_more });
        launched(gemm::launch(
            &client,
            Gemm {
                x,
                weight,
                y: y.clone().binding(),
                norm,
                epilogue,
                batch_invariant: params.batch_invariant,
            },
            Dtypes { x: multiplied, ..dtypes },
        ));
        return y;
    }
    let x = match norm {
        MaybeFloats::None => x,
        MaybeFloats::Some(weight) => rms_norm(x, weight, params),
    };
    if epilogue.is_empty() && dtypes.x == dtypes.y {
        return burns_product(x, weight);
    }
    let wide = |tensor: CubeTensor| cast(tensor, DType::F32);
    let sums = into_contiguous(burns_product(wide(x), wide(weight)));
    launched(gemm::finish(&client, sums.binding(), y.clone().binding(), epilogue, dtypes));
    y
}

/// The output of a linear layer, and true if it is the residual, to which the product is added.
pub(super) fn sum_or_empty(
    residual: MaybeFloats<CubeBackend>,
    like: &CubeTensor,
    shape: [usize; 2],
    dtype: DType,
) -> (bool, CubeTensor) {
    match residual {
        MaybeFloats::Some(residual) => (true, owned(into_contiguous(residual))),
        MaybeFloats::None => (false, empty_like(like, shape.into(), dtype)),
    }
}

fn rms_norm(x: CubeTensor, weight: CubeTensor, params: LinearParams) -> CubeTensor {
    match norm::rms_norm(x, weight, Rounding::none(), params.epsilon, params.style) {
        Rows::Floats(normed) | Rows::Codes(normed) => normed,
    }
}

/// Burn's `x · weightᵀ`, where this crate has no kernel.
pub(super) fn burns_product(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let shape = [x.meta.shape()[0], weight.meta.shape()[0]];
    // A view: Burn's product reads the weight column by column and accumulates f16 and bf16 in f32.
    let weight = CubeBackend::float_swap_dims(weight, 0, 1);
    // On a CPU each unit of Burn's kernel is a thread that spins until the others have come: where these were 8 on 2 busy
    // cores, one product took 53 s.
    if !cfg!(feature = "autotune") {
        return naive_matmul(x, weight, shape);
    }
    matmul(x.clone(), weight.clone(), None, MatmulStrategy::default(), x.dtype)
        .unwrap_or_else(|_| naive_matmul(x, weight, shape))
}

/// `x · weight`, slowly, for shapes that Burn refuses. Without autotuning it has one kernel, which for most
/// shapes needs more shared memory than the CPU has (45 KB of 32 KiB).
fn naive_matmul(x: CubeTensor, weight: CubeTensor, shape: [usize; 2]) -> CubeTensor {
    let product = empty_like(&x, shape.into(), x.dtype);
    let element = dtype_to_storage_type(x.dtype);
    let [lhs, rhs, out] = [element; 3];
    let launched = launch_ref(
        &multi_level::Strategy::Naive.into(),
        &product.client,
        InputBinding::new(x.binding(), lhs),
        InputBinding::new(weight.binding(), rhs),
        product.clone().binding(),
        &mut MatmulElems::from_globals(&MatmulGlobalElems { lhs, rhs, out }),
    );
    if let Err(refusal) = launched {
        refused(&refusal)
    }
    product
}
