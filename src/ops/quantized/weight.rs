//! A weight in codes, and the layouts of checkpoints.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::pack::{int4_codes, quantized};
use crate::check;
use crate::error::{Error, Result};
use crate::types::{WeightFormat, WeightScales, int4};

/// The zeros of a GPTQ checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GptqVersion {
    /// Stored less 1: `gptq`, which almost all checkpoints have.
    V1,
    /// Stored as they are: `gptq_v2`.
    V2,
}

/// A weight `[out, in]` of 8 or 4 bits, on a device, for [`matmul_nt_quantized`](crate::matmul_nt_quantized).
///
/// It is made once: e4m3 stays as checkpoints have it, and int4 is packed anew on the host.
#[derive(Debug, Clone)]
#[must_use]
pub struct QuantizedWeight {
    /// `[out, bytes]`.
    codes: Tensor<2, Int>,
    /// [`WeightFormat::scales`].
    scales: Tensor<2>,
    format: WeightFormat,
    dims: [usize; 2],
}

/// Words of eight nibbles on the host: `[rows, columns]`.
struct Words {
    words: Vec<u32>,
    columns: usize,
}

impl Words {
    /// # Errors
    ///
    /// If the words are not of 32 bits, or not this many, or the device does not return them.
    fn read(
        op: &'static str,
        argument: &'static str,
        tensor: Tensor<2, Int>,
        wanted: [usize; 2],
    ) -> Result<Self> {
        if !matches!(tensor.dtype(), DType::I32 | DType::U32 | DType::I64) {
            let (got, expected) = (format!("{:?}", tensor.dtype()), "I32, U32 or I64".into());
            return Err(Error::Dtype { op, argument, got, expected });
        }
        if tensor.dims() != wanted {
            return Err(check::shape(op, argument, &tensor.dims(), format!("{wanted:?}")));
        }
        let words =
            on_host(op, argument, tensor.try_into_data())?.iter::<i64>().map(|word| word as u32).collect();
        Ok(Self { words, columns: wanted[1] })
    }

    /// Nibble `nibble` of a word.
    fn at(&self, row: usize, column: usize, nibble: usize) -> u32 {
        self.words[row * self.columns + column] >> (4 * nibble) & 15
    }
}

fn on_host<E: std::fmt::Display>(
    op: &'static str,
    argument: &'static str,
    data: std::result::Result<TensorData, E>,
) -> Result<TensorData> {
    data.map_err(|error| Error::Read {
        op,
        argument,
        got: error.to_string(),
        expected: "its elements".into(),
    })
}

/// The place of output `i` of eight in a word of AWQ.
const AWQ: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl QuantizedWeight {
    /// A weight of e4m3 codes (OCP, `U8`) `[out, in]`: `code · scale`. `scales` are f32, f16 or bf16: `[1, 1]`, `[out, 1]`, or
    /// `[out / 128, in / 128]` with both rounded up, which are `weight_scale` and `weight_scale_inv` of checkpoints.
    ///
    /// # Errors
    ///
    /// If types, shapes or devices do not fit together, or `scales` requires a gradient.
    pub fn from_e4m3(codes: Tensor<2, Int>, scales: Tensor<2>) -> Result<Self> {
        const OP: &str = "QuantizedWeight::from_e4m3";
        let device = codes.device();
        check::codes(OP, "codes", &codes)?;
        check_scales(OP, &scales, &device)?;
        let dims = not_empty(OP, "codes", codes.dims())?;
        let formats = [WeightScales::PerTensor, WeightScales::PerChannel, WeightScales::Block128];
        let found = formats.map(WeightFormat::E4m3).into_iter().find(|it| it.scales(dims) == scales.dims());
        let Some(format) = found else {
            let [outputs, inputs] = dims;
            let [rows, columns] = dims.map(|extent| extent.div_ceil(WeightFormat::BLOCK));
            let expected = format!("[1, 1], [{outputs}, 1] or [{rows}, {columns}] for [{outputs}, {inputs}]");
            return Err(check::shape(OP, "scales", &scales.dims(), expected));
        };
        Ok(Self { codes, scales: scales.cast(DType::F32), format, dims })
    }

    /// The weight of an AWQ checkpoint (`gemm`, 4 bits): `qweight` `[in, out / 8]`, `qzeros` `[in / group, out / 8]`, and
    /// `scales` `[in / group, out]`. A word has eight outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on.
    ///
    /// # Errors
    ///
    /// If types, shapes or devices do not fit together, a group is not of 32, 64 or 128 inputs, these are no multiple of 128,
    /// or a scale is not finite.
    pub fn from_awq(qweight: Tensor<2, Int>, qzeros: Tensor<2, Int>, scales: Tensor<2>) -> Result<Self> {
        const OP: &str = "QuantizedWeight::from_awq";
        let [inputs, words] = qweight.dims();
        let dims = not_empty(OP, "qweight", [8 * words, inputs])?;
        let packed = Int4::new(OP, &qweight, qzeros, scales, dims)?;
        let qweight = Words::read(OP, "qweight", qweight, [inputs, words])?;
        let code = |output: usize, input| qweight.at(input, output / 8, AWQ[output % 8]);
        packed.weight(code, |zeros, group, output| zeros.at(group, output / 8, AWQ[output % 8]))
    }

    /// The weight of a GPTQ checkpoint (4 bits, inputs in order: `desc_act` false): `qweight` `[in / 8, out]`, a word having
    /// eight inputs from the lowest bits on, `qzeros` `[in / group, out / 8]` with eight outputs in a word, and `scales`
    /// `[in / group, out]`.
    ///
    /// # Errors
    ///
    /// As [`from_awq`](Self::from_awq).
    pub fn from_gptq(
        qweight: Tensor<2, Int>,
        qzeros: Tensor<2, Int>,
        scales: Tensor<2>,
        version: GptqVersion,
    ) -> Result<Self> {
        const OP: &str = "QuantizedWeight::from_gptq";
        let [words, outputs] = qweight.dims();
        let dims = not_empty(OP, "qweight", [outputs, 8 * words])?;
        let packed = Int4::new(OP, &qweight, qzeros, scales, dims)?;
        let qweight = Words::read(OP, "qweight", qweight, [words, outputs])?;
        let more = if version == GptqVersion::V1 { 1 } else { 0 };
        let code = |output, input: usize| qweight.at(input / 8, output, input % 8);
        packed.weight(code, |zeros, group, output| zeros.at(group, output / 8, output % 8) + more)
    }

    /// A weight `[out, in]` rounded to the nearest codes, on the host. The scales are the least that reach the largest
    /// weight, in size for e4m3, and on both sides of 0 for int4.
    ///
    /// # Errors
    ///
    /// If the weight is empty, not of floats, not finite or requires a gradient, or if int4 has groups that are not of 32, 64
    /// or 128 inputs, or inputs that are no multiple of 128.
    pub fn quantize(weight: Tensor<2>, format: WeightFormat) -> Result<Self> {
        const OP: &str = "QuantizedWeight::quantize";
        let (dims, device) = (not_empty(OP, "weight", weight.dims())?, weight.device());
        check::Floats::first(OP, "weight", &weight)?;
        check::bytes(OP, "weight", &device)?;
        if let WeightFormat::Int4 { group } = format {
            check_groups(OP, "weight", weight.dims(), dims[1], group)?;
        }
        let numbers: Vec<f32> = on_host(OP, "weight", weight.try_into_data())?.iter().collect();
        let (codes, scales) = quantized(OP, &numbers, dims, format)?;
        Ok(Self::on_device(&device, codes, scales, format, dims))
    }

    fn on_device(
        device: &Device,
        codes: Vec<u8>,
        scales: Vec<f32>,
        format: WeightFormat,
        dims: [usize; 2],
    ) -> Self {
        let shape = [dims[0], codes.len() / dims[0]];
        let codes = TensorData::new(codes, shape);
        let codes = Tensor::from_data(codes, (device, DType::U8));
        let scales = TensorData::new(scales, format.scales(dims));
        Self { codes, scales: Tensor::from_data(scales, (device, DType::F32)), format, dims }
    }

    /// Outputs and inputs.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The format of its elements.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The device that it is on.
    pub fn device(&self) -> Device {
        self.codes.device()
    }

    /// Codes and scales.
    pub(super) fn tensors(&self) -> (Tensor<2, Int>, Tensor<2>) {
        (self.codes.clone(), self.scales.clone())
    }
}

/// Scales and zeros of a checkpoint of int4.
struct Int4 {
    op: &'static str,
    device: Device,
    zeros: Words,
    scales: Vec<f32>,
    group: usize,
    dims: [usize; 2],
}

impl Int4 {
    fn new(
        op: &'static str,
        qweight: &Tensor<2, Int>,
        qzeros: Tensor<2, Int>,
        scales: Tensor<2>,
        dims: [usize; 2],
    ) -> Result<Self> {
        let ([outputs, inputs], device) = (dims, qweight.device());
        check::device(op, "qweight", &device)?;
        check::bytes(op, "qweight", &device)?;
        check::same_device(op, "qzeros", &qzeros.device(), &device)?;
        check_scales(op, &scales, &device)?;
        let [groups, columns] = scales.dims();
        if columns != outputs || groups == 0 || !inputs.is_multiple_of(groups) {
            let expected = format!("[in / group, {outputs}] of {inputs} inputs");
            return Err(check::shape(op, "scales", &scales.dims(), expected));
        }
        let group = inputs / groups;
        check_groups(op, "scales", scales.dims(), inputs, group)?;
        let zeros = Words::read(op, "qzeros", qzeros, [groups, outputs.div_ceil(8)])?;
        let scales: Vec<f32> = on_host(op, "scales", scales.try_into_data())?.iter().collect();
        if let Some(at) = scales.iter().position(|scale| !scale.is_finite()) {
            let (got, expected) = (scales[at].to_string(), "a finite number".into());
            return Err(Error::Index { op, argument: "scales", at, got, expected });
        }
        Ok(Self { op, device, zeros, scales, group, dims })
    }

    /// The weight of these codes and zeros.
    fn weight(
        self,
        code: impl Fn(usize, usize) -> u32 + Sync,
        zero: impl Fn(&Words, usize, usize) -> u32,
    ) -> Result<QuantizedWeight> {
        let Self { op, device, zeros, scales, group, dims } = self;
        let codes = int4_codes(op, dims, code)?;
        let of_group =
            |(at, scale): (usize, f32)| int4::scale(scale, zero(&zeros, at / dims[0], at % dims[0]));
        let scales = scales.into_iter().enumerate().map(of_group).collect();
        Ok(QuantizedWeight::on_device(&device, codes, scales, WeightFormat::Int4 { group }, dims))
    }
}

fn check_scales(op: &'static str, scales: &Tensor<2>, device: &Device) -> Result<()> {
    check::same_device(op, "scales", &scales.device(), device)?;
    check::float(op, "scales", scales.dtype(), device)?;
    check::no_gradient(op, "scales", scales)
}

fn check_groups(
    op: &'static str,
    argument: &'static str,
    got: [usize; 2],
    inputs: usize,
    group: usize,
) -> Result<()> {
    if [32, 64, 128].contains(&group) && inputs.is_multiple_of(WeightFormat::BLOCK) {
        return Ok(());
    }
    let expected =
        format!("groups of 32, 64 or 128 inputs, and a multiple of 128; not groups of {group} of {inputs}");
    Err(check::shape(op, argument, &got, expected))
}

fn not_empty(op: &'static str, argument: &'static str, dims: [usize; 2]) -> Result<[usize; 2]> {
    if dims.contains(&0) { Err(check::shape(op, argument, &dims, "no empty axis")) } else { Ok(dims) }
}
