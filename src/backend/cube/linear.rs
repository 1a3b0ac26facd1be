//! Linear layers.

use burn::backend::{DType, cubecl::dtype_to_storage_type, ops::FloatTensorOps};
use burn_cubecl::{
    CubeBackend,
    kernel::matmul::{MatmulStrategy, matmul},
    kernel::{cast, into_contiguous},
    tensor::CubeTensor,
};
use burn_flashinfer_kernels::DeviceProfile;
use burn_flashinfer_kernels::gemm::quantized::{self, QuantizedGemm, Scales, Weight};
use burn_flashinfer_kernels::gemm::{self, Dtypes, Epilogue, Gemm, RmsNorm};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::{launch::launch_ref, multi_level};
use cubek::std::InputBinding;

use super::activation::function;
use super::norm;
use super::tensor::{dense, empty_like, in_rows, launched, owned, refused};
use crate::extension::{MaybeFloats, Rounding, Rows};
use crate::types::{LinearParams, RmsNormStyle, WeightFormat, WeightScales};

pub(super) fn linear(
    x: CubeTensor,
    weight: CubeTensor,
    norm: MaybeFloats<CubeBackend>,
    bias: MaybeFloats<CubeBackend>,
    residual: MaybeFloats<CubeBackend>,
    params: LinearParams,
) -> CubeTensor {
    let [rows, columns] = [x.meta.shape()[0], params.outputs(weight.meta.shape()[0])];
    let (add, y) = match residual {
        MaybeFloats::Some(residual) => (true, owned(into_contiguous(residual))),
        MaybeFloats::None => (false, empty_like(&x, [rows, columns].into(), params.dtype)),
    };
    if rows == 0 {
        return y;
    }
    let epilogue =
        Epilogue { bias: dense(bias), gate: params.gate.map(function), soft_cap: params.soft_cap, add };
    let client = x.client.clone();
    let dtypes = Dtypes { x: dtype_to_storage_type(x.dtype), y: dtype_to_storage_type(params.dtype) };
    if gemm::is_for(&DeviceProfile::of(&client), rows) {
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
            dtypes,
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

fn rms_norm(x: CubeTensor, weight: CubeTensor, params: LinearParams) -> CubeTensor {
    match norm::rms_norm(x, weight, Rounding::none(), params.epsilon, params.style) {
        Rows::Floats(normed) | Rows::Codes(normed) => normed,
    }
}

/// Burn's `x · weightᵀ`, where this crate has no kernel.
fn burns_product(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
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

pub(super) fn matmul_nt_quantized(
    x: CubeTensor,
    codes: CubeTensor,
    scales: CubeTensor,
    format: WeightFormat,
) -> CubeTensor {
    let ([rows, d_in], d_out) = ([x.meta.shape()[0], x.meta.shape()[1]], codes.meta.shape()[0]);
    let format = match format {
        WeightFormat::E4m3(scales) => quantized::WeightFormat::E4m3(match scales {
            WeightScales::PerTensor => Scales::PerTensor,
            WeightScales::PerChannel => Scales::PerChannel,
            WeightScales::Block128 => Scales::Block128,
        }),
        WeightFormat::Int4 { group } => quantized::WeightFormat::Int4 { group },
    };
    let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
    let mut scales = into_contiguous(scales).binding();
    let shape = format.scales(d_out, d_in);
    // `[1, 1]` and `[out, 1]` without the last axis.
    scales.strides = scales.strides[..shape.len()].to_vec().into();
    scales.shape = shape.into();
    let weight = Weight { codes: in_rows(codes).binding(), scales, format };
    if rows > 0 && !gemm::is_for(&DeviceProfile::of(&client), rows) {
        let numbers = empty_like(&x, [d_out, d_in].into(), x.dtype);
        launched(quantized::dequantize(&client, weight, numbers.clone().binding(), dtype));
        return burns_product(x, numbers);
    }
    let y = empty_like(&x, [rows, d_out].into(), x.dtype);
    if rows > 0 {
        let gemm = QuantizedGemm { x: in_rows(x).binding(), weight, y: y.clone().binding() };
        launched(quantized::launch(&client, gemm, dtype));
    }
    y
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
