//! Linear layers on weights of 8 and 4 bits.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::DeviceProfile;
use burn_flashinfer_kernels::gemm::quantized::{self, QuantizedGemm, ScaledGemm, Scales, Weight};
use burn_flashinfer_kernels::gemm::{self, Dtypes, Epilogue};
use burn_flashinfer_kernels::quantize::{self, Quantize};

use super::activation::function;
use super::linear::{burns_product, linear, sum_or_empty};
use super::tensor::{dense, empty_like, in_rows, launched};
use crate::extension::{MaybeFloats, ScaledRows};
use crate::types::{Fp8, LinearParams, WeightFormat, WeightScales};

/// The weight of the kernels.
fn weight_of(codes: CubeTensor, scales: CubeTensor, format: WeightFormat) -> Weight {
    let format = match format {
        WeightFormat::E4m3(scales) => quantized::WeightFormat::E4m3(match scales {
            WeightScales::PerTensor => Scales::PerTensor,
            WeightScales::PerChannel => Scales::PerChannel,
            WeightScales::Block128 => Scales::Block128,
        }),
        WeightFormat::Int4 { group } => quantized::WeightFormat::Int4 { group },
    };
    let (d_out, d_in) = (codes.meta.shape()[0], codes.meta.shape()[1] * 8 / format.bits());
    let mut scales = into_contiguous(scales).binding();
    let shape = format.scales(d_out, d_in);
    // `[1, 1]` and `[out, 1]` without the last axis.
    scales.strides = scales.strides[..shape.len()].to_vec().into();
    scales.shape = shape.into();
    Weight { codes: in_rows(codes).binding(), scales, format }
}

/// The numbers of a weight `[out, in]`, in the type `dtype`.
fn numbers(like: &CubeTensor, weight: Weight, [d_out, d_in]: [usize; 2], dtype: DType) -> CubeTensor {
    let numbers = empty_like(like, [d_out, d_in].into(), dtype);
    let element = dtype_to_storage_type(dtype);
    launched(quantized::dequantize(&like.client, weight, numbers.clone().binding(), element));
    numbers
}

pub(super) fn matmul_nt_quantized(
    x: CubeTensor,
    codes: CubeTensor,
    scales: CubeTensor,
    format: WeightFormat,
) -> CubeTensor {
    let ([rows, d_in], d_out) = ([x.meta.shape()[0], x.meta.shape()[1]], codes.meta.shape()[0]);
    let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
    let weight = weight_of(codes, scales, format);
    if rows > 0 && !gemm::is_for(&DeviceProfile::of(&client), rows) {
        let numbers = numbers(&x, weight, [d_out, d_in], x.dtype);
        return burns_product(x, numbers);
    }
    let y = empty_like(&x, [rows, d_out].into(), x.dtype);
    if rows > 0 {
        let gemm = QuantizedGemm { x: in_rows(x).binding(), weight, y: y.clone().binding() };
        launched(quantized::launch(&client, gemm, dtype));
    }
    y
}

pub(super) fn quantize_rows(x: CubeTensor, format: Fp8) -> ScaledRows<CubeBackend> {
    let shape = x.meta.shape().clone();
    let codes = empty_like(&x, shape.clone(), DType::U8);
    let scales = empty_like(&x, [shape[0]].into(), DType::F32);
    if shape[0] > 0 {
        let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
        let (x, y, scales) = (in_rows(x).binding(), codes.clone().binding(), scales.clone().binding());
        launched(quantize::launch(&client, Quantize { x, y, scales, format: format.into() }, dtype));
    }
    ScaledRows { codes, scales }
}

pub(super) fn scaled_linear(
    x: ScaledRows<CubeBackend>,
    [codes, scales]: [CubeTensor; 2],
    bias: MaybeFloats<CubeBackend>,
    residual: MaybeFloats<CubeBackend>,
    format: WeightFormat,
    params: LinearParams,
) -> CubeTensor {
    let ScaledRows { codes: x, scales: x_scales } = x;
    let [rows, d_in] = [x.meta.shape()[0], x.meta.shape()[1]];
    let weight_rows = codes.meta.shape()[0];
    let (add, y) = sum_or_empty(residual, &x, [rows, params.outputs(weight_rows)], params.dtype);
    if rows == 0 {
        return y;
    }
    let (client, dtype) = (x.client.clone(), dtype_to_storage_type(params.dtype));
    let gate = params.gate.map(function);
    let gemm = ScaledGemm {
        x: in_rows(x.clone()).binding(),
        x_scales: into_contiguous(x_scales).binding(),
        weight: weight_of(codes, scales, format),
        y: y.clone().binding(),
        epilogue: Epilogue { bias: dense(bias), gate, soft_cap: params.soft_cap, add },
    };
    if gemm.blueprint(&DeviceProfile::of(&client), dtype).is_ok() {
        launched(quantized::launch_scaled(&client, gemm, dtype));
        return y;
    }
    let ScaledGemm { x: codes, x_scales, weight, epilogue, .. } = gemm;
    // Rows with scales are a weight too.
    let of_rows = if x_scales.size() == 1 { Scales::PerTensor } else { Scales::PerChannel };
    let of_x = Weight { codes, scales: x_scales, format: quantized::WeightFormat::E4m3(of_rows) };
    let x_numbers = numbers(&x, of_x, [rows, d_in], DType::F32);
    let weight = numbers(&x, weight, [weight_rows, d_in], DType::F32);
    let product = LinearParams { gate: None, soft_cap: None, dtype: DType::F32, ..params };
    let none = || MaybeFloats::None;
    let sums = into_contiguous(linear(x_numbers, weight, none(), none(), none(), product));
    let dtypes = Dtypes { x: dtype, y: dtype };
    launched(gemm::finish(&client, sums.binding(), y.clone().binding(), epilogue, dtypes));
    y
}
