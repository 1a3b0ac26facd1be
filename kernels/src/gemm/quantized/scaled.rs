//! Products of two factors of e4m3.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::super::blueprint::{self, Blueprint};
use super::super::code_scales::Codes;
use super::super::epilogue::Epilogue;
use super::super::launch::{Gemm, launch_checked};
use super::blueprint::KERNEL;
use super::launch::Weight;
use crate::device::tensor::{Result, alignment, contiguous, offset_alignment, rows, shape};
use crate::device::{DeviceProfile, Refusal};
use crate::mma::{E4M3, Scales, WeightFormat};

/// Rows of e4m3 with scales, a weight of e4m3, and what follows their product.
pub struct ScaledGemm {
    /// `[rows, d_in]` of `u8`, OCP's e4m3.
    pub x: TensorBinding,
    /// f32, contiguous: `[1]`, or `[rows]`.
    pub x_scales: TensorBinding,
    /// `[d_out, d_in]`, or `[2 · d_out, d_in]` if it is gated: [`WeightFormat::E4m3`].
    pub weight: Weight,
    /// `[rows, d_out]`, contiguous, of f16, bf16 or f32.
    pub y: TensorBinding,
    /// The epilogue. The bias is of the type of `y`.
    pub epilogue: Epilogue,
}

impl ScaledGemm {
    /// The kernel and its settings, if the device has one for the problem.
    ///
    /// # Errors
    ///
    /// If shapes do not fit each other, or no kernel computes the problem: only Hopper and CDNA3 have one, for rows of whole 16
    /// bytes, and for gates of whole 64 outputs if scales are of blocks.
    pub fn blueprint(&self, device: &DeviceProfile, dtype: ElemType) -> Result<Blueprint> {
        Blueprint::auto(device, &self.problem(dtype)?)
    }

    fn problem(&self, dtype: ElemType) -> Result<blueprint::Problem> {
        let Self { x, x_scales, weight, y, epilogue } = self;
        rows(KERNEL, "x", x, 2)?;
        let [weight_rows, d_in] = weight.extents()?;
        let scales = e4m3_scales(weight.format)?;
        let row_count = x.shape[0];
        if x.shape[1] != d_in {
            return Err(shape(KERNEL, "x", x, format!("rows of {d_in}, as the weight")));
        }
        if x_scales.size() != 1 {
            contiguous(KERNEL, "x_scales", x_scales, &[row_count])?;
        }
        let d_out = epilogue.outputs(KERNEL, "weight", &weight.codes, weight_rows)?;
        let gated = epilogue.gate.is_some();
        contiguous(KERNEL, "y", y, &[row_count, d_out])?;
        let mut align = alignment(x).min(offset_alignment(x, 1)).min(weight.align());
        // Results are stored in vectors of 16 bytes of 16-bit numbers.
        align = align.min(2 * offset_alignment(y, dtype.size()));
        if let Some(bias) = &epilogue.bias {
            contiguous(KERNEL, "bias", bias, &[weight_rows])?;
            align = align.min(2 * offset_alignment(bias, dtype.size()));
        }
        if gated && scales == Scales::Block128 && !d_out.is_multiple_of(64) {
            return Err(Refusal::blueprint(KERNEL, "d_out", d_out, "gates of whole 64 outputs"));
        }
        let product = blueprint::Problem::product([row_count, d_in, d_out], E4M3, align);
        Ok(blueprint::Problem { y_dtype: dtype, gated, ..product })
    }
}

/// The scales of a weight of e4m3, the only format of both factors.
fn e4m3_scales(format: WeightFormat) -> Result<Scales> {
    match format {
        WeightFormat::E4m3(scales) => Ok(scales),
        _ => Err(Refusal::blueprint(KERNEL, "format", format!("{format:?}"), "e4m3")),
    }
}

/// `y = x · weightᵀ`, each times its scales, summed in f32, and its [`Epilogue`]; rounded once to `dtype`. On Hopper the sums of
/// every 128 inputs are f32, those within have 14 bits.
///
/// # Errors
///
/// If shapes do not fit each other, or no kernel computes the problem ([`ScaledGemm::blueprint`]). Nothing is launched then.
pub fn launch_scaled(client: &Client, gemm: ScaledGemm, dtype: ElemType) -> Result<()> {
    let device = DeviceProfile::of(client);
    let problem = gemm.problem(dtype)?;
    let blueprint = Blueprint::auto(&device, &problem)?;
    let ScaledGemm { x, x_scales, weight: Weight { codes, scales, format }, y, epilogue } = gemm;
    let scales = Codes { rows: x_scales, weight: scales, scales: e4m3_scales(format)? };
    let gemm = Gemm { epilogue, ..Gemm::product(x, codes, y) };
    launch_checked(client, gemm, Some(scales), problem, device, blueprint)
}
