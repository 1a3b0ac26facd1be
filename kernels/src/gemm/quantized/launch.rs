use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::super::epilogue::Epilogue;
use super::super::launch::{Gemm, launch_with as launch_dense};
use super::super::normed::NormArgsLaunch;
use super::blueprint::{Blueprint, FewRows, KERNEL, Problem, check_format, on_code_unit};
use super::{dequantize as kernels, few_rows};
use crate::device::grid::{cover, elementwise};
use crate::device::tensor::{
    Result, addresses, alignment, buffer, contiguous, divisor, offset_alignment, rows, shape, vector,
    with_shape,
};
use crate::device::{DeviceProfile, Refusal};
use crate::mma::{CodeMma, Mfma16, MmaKind, MmaSync, WeightFormat};

const U8: ElemType = ElemType::UInt(cubecl::ir::UIntKind::U8);

/// A weight of 8 or 4 bits.
pub struct Weight {
    /// `[d_out, bytes]` of `u8`, see [`WeightFormat`].
    pub codes: TensorBinding,
    /// f32, contiguous, in the shape that [`WeightFormat::scales`] names.
    pub scales: TensorBinding,
    /// The format of both.
    pub format: WeightFormat,
}

/// Rows, and a weight. `x` and `y` are of one type.
pub struct QuantizedGemm {
    /// `[rows, d_in]`.
    pub x: TensorBinding,
    /// `[d_out, d_in]` in codes.
    pub weight: Weight,
    /// `[rows, d_out]`, contiguous.
    pub y: TensorBinding,
}

impl Weight {
    /// Outputs and inputs.
    pub(super) fn extents(&self) -> Result<[usize; 2]> {
        let Self { codes, scales, format } = self;
        rows(KERNEL, "codes", codes, 2)?;
        let (d_out, d_in) = (codes.shape[0], codes.shape[1] * 8 / format.bits());
        check_format(*format, d_in)?;
        contiguous(KERNEL, "scales", scales, &format.scales(d_out, d_in))?;
        Ok([d_out, d_in])
    }

    /// The largest power of 2 of bytes at which rows of codes, and scales, begin.
    pub(super) fn align(&self) -> usize {
        let codes = alignment(&self.codes).min(offset_alignment(&self.codes, 1));
        codes.min(4 * offset_alignment(&self.scales, 4))
    }
}

impl QuantizedGemm {
    /// The problem of the tensors.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit each other or the format.
    pub fn problem(&self, dtype: ElemType) -> Result<Problem> {
        let Self { x, weight, y } = self;
        rows(KERNEL, "x", x, 2)?;
        let [d_out, d_in] = weight.extents()?;
        if x.shape[1] != d_in {
            return Err(shape(KERNEL, "x", x, format!("rows of {d_in}, as the weight")));
        }
        contiguous(KERNEL, "y", y, &[x.shape[0], d_out])?;
        let align = alignment(x).min(offset_alignment(x, dtype.size()));
        let weight_align = weight.align();
        Ok(Problem { rows: x.shape[0], d_in, d_out, dtype, format: weight.format, align, weight_align })
    }
}

/// `y = x · weightᵀ`, summed in f32 and rounded once.
///
/// # Errors
///
/// If the shapes do not fit each other, or no kernel computes the problem ([`Blueprint::auto`]). Nothing is launched then.
pub fn launch(client: &Client, gemm: QuantizedGemm, dtype: ElemType) -> Result<()> {
    let problem = gemm.problem(dtype)?;
    let device = DeviceProfile::of(client);
    let blueprint = Blueprint::auto(&device, &problem)?;
    launch_checked(client, gemm, &problem, &device, blueprint)
}

/// [`launch`] with exactly this blueprint.
///
/// # Errors
///
/// If the shapes do not fit each other, or the blueprint does not fit the problem or the device. The product is not launched
/// then.
pub fn launch_with(
    client: &Client,
    gemm: QuantizedGemm,
    dtype: ElemType,
    blueprint: Blueprint,
) -> Result<()> {
    let problem = gemm.problem(dtype)?;
    let device = DeviceProfile::of(client);
    if let Blueprint::FewRows(few) = &blueprint {
        few.check(&device, &problem)?;
    }
    launch_checked(client, gemm, &problem, &device, blueprint)
}

/// Launches a blueprint whose kernel for few rows fits the problem and the device. The dense one is checked by its launch.
fn launch_checked(
    client: &Client,
    gemm: QuantizedGemm,
    problem: &Problem,
    device: &DeviceProfile,
    blueprint: Blueprint,
) -> Result<()> {
    let dtype = problem.dtype;
    if gemm.y.size() == 0 {
        return Ok(());
    }
    match blueprint {
        Blueprint::FewRows(few) => {
            on_code_unit!(few.unit, |U| launch_few::<U>(client, gemm, problem, device, few))
        }
        Blueprint::Dequantized(dense) => {
            let QuantizedGemm { x, weight, y } = gemm;
            let scratch = buffer(client, problem.d_out * problem.d_in, dtype.size());
            let scratch = with_shape(scratch, [problem.d_out, problem.d_in]);
            dequantize(client, weight, scratch.clone(), dtype)?;
            launch_dense(client, Gemm::product(x, scratch, y), dtype, dense)
        }
    }
}

fn launch_few<U: CodeMma>(
    client: &Client,
    gemm: QuantizedGemm,
    problem: &Problem,
    device: &DeviceProfile,
    few: FewRows,
) -> Result<()> {
    let QuantizedGemm { x, weight: Weight { codes, scales, .. }, y } = gemm;
    let tiles = few.tiles(device, problem);
    let (epilogue, steps) = Epilogue::default().unzip(device, problem.d_out);
    let size = problem.dtype.size();
    let address = addresses(&[(&x, size), (&codes, 1), (&scales, 4), (&y, size)]);
    let cubes = problem.d_out.div_ceil(tiles.tiles.rows::<U>()) * few.cluster;
    // Along one axis, so that a cluster is a run of cubes and there is none beyond the last.
    let cubes = cover(KERNEL, cubes, [device.max_cubes[0], 1, 1])?;
    // SAFETY: there is no cube beyond the last tile of outputs. Outputs, rows of `x`, inputs and groups are clamped to the
    // shapes where they are read, and compared with them where results are written. Vectors of 16 bytes divide inputs and
    // strides, and the outputs of int4, as was checked; so do the scales' shapes, which `problem` compared. Shared memory
    // is indexed by rows and vectors of the operands that sized a stage, and by parts it was sized for too.
    unsafe {
        few_rows::few_rows::launch_unchecked::<U>(
            client,
            cubes,
            CubeDim::new_2d(U::PLANE as u32, tiles.tiles.planes() as u32),
            address,
            divisor(problem.d_out, 4),
            codes.into_tensor_arg(),
            scales.clone().into_buffer_arg(),
            scales.into_tensor_arg(),
            x.into_tensor_arg(),
            y.into_buffer_arg(),
            epilogue,
            NormArgsLaunch::new(ComptimeOptionArgs::None, 0.0),
            problem.d_in,
            tiles,
            steps,
            few.cluster,
            problem.dtype,
        );
    }
    Ok(())
}

/// The weight as numbers of type `dtype`, each rounded once: `numbers` is `[d_out, d_in]`, contiguous.
///
/// # Errors
///
/// If the shapes do not fit each other or the format. Nothing is launched then.
pub fn dequantize(client: &Client, weight: Weight, numbers: TensorBinding, dtype: ElemType) -> Result<()> {
    let [d_out, d_in] = weight.extents()?;
    contiguous(KERNEL, "numbers", &numbers, &[d_out, d_in])?;
    let align = weight.align();
    let Weight { codes, scales, format } = weight;
    if numbers.size() == 0 {
        return Ok(());
    }
    let address = addresses(&[(&codes, 1), (&scales, 4), (&numbers, dtype.size())]);
    let write = vector(client, dtype, &[d_in], offset_alignment(&numbers, dtype.size()));
    match format {
        WeightFormat::E4m3(of) => {
            let width = write.min(vector(client, U8, &[d_in], align));
            let total = numbers.size() / width;
            let (count, dim) = elementwise(KERNEL, client, total)?;
            // SAFETY: a unit beyond the last vector stops. Others read codes of an output below their number and write to
            // the same place of as many numbers; the shape of the scales has that output and the block of each input.
            unsafe {
                kernels::dequantize_e4m3::launch_unchecked(
                    client,
                    count,
                    dim,
                    address,
                    width,
                    codes.into_tensor_arg(),
                    scales.into_buffer_arg(),
                    numbers.into_buffer_arg(),
                    d_in / width,
                    total,
                    of,
                    dtype,
                );
            }
        }
        WeightFormat::Int4 { .. } => {
            if align < 4 {
                return Err(Refusal::blueprint(KERNEL, "bytes", align, "rows of whole words"));
            }
            let (words, total) = (d_in / 8, numbers.size() / 8);
            let (count, dim) = elementwise(KERNEL, client, total)?;
            // SAFETY: a unit beyond the last word stops. Others read a word of an output below their number, as rows are
            // whole blocks of 16 words. They write to the eight inputs of the word, which are within that block, and read
            // the scale of the group of these, which the shape of the scales has.
            unsafe {
                kernels::dequantize_int4::launch_unchecked(
                    client,
                    count,
                    dim,
                    address,
                    write.min(8),
                    codes.into_tensor_arg(),
                    scales.into_tensor_arg(),
                    numbers.into_buffer_arg(),
                    words,
                    total,
                    format,
                    dtype,
                );
            }
        }
    }
    Ok(())
}
