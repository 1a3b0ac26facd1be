use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::blueprint::{Blueprint, Dot, Problem, Skinny, Tiled, WarpSpecialized, element, storage};
use super::code_scales::Codes;
use super::dot::{self, PLANES};
use super::epilogue::Epilogue;
use super::hopper::{self, Matrices};
use super::machine::KERNEL;
use super::normed::{NormArgsLaunch, RmsNorm};
use super::settings::{NormStyle, SkinnySettings};
use super::{skinny, tiled};
use crate::device::grid::cover;
use crate::device::tensor::{
    Result, addresses, alignment, buffer, contiguous, divisor, offset_alignment, rows, shape, vector,
    with_axis, with_shape,
};
use crate::device::{DeviceProfile, Refusal};
use crate::mma::{GemmMma, check_numbers, on_unit};
use crate::norm::{self, Norm, Scaling};

/// Rows, a weight in the order of checkpoints, and what follows their product.
pub struct Gemm {
    /// `[rows, d_in]`.
    pub x: TensorBinding,
    /// `[d_out, d_in]`, or `[2 · d_out, d_in]` if it is gated; of the type of `x`.
    pub weight: TensorBinding,
    /// `[rows, d_out]`, contiguous.
    pub y: TensorBinding,
    /// The norm of `x` before the product.
    pub norm: Option<RmsNorm>,
    /// The epilogue.
    pub epilogue: Epilogue,
    /// A row's bits do not depend on the rows beside it.
    pub batch_invariant: bool,
}

/// The types of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dtypes {
    /// That of `x`, `weight` and the bias. With [`FloatKind::TF32`] they are f32, and are multiplied as TF32 by
    /// instructions that do.
    pub x: ElemType,
    /// That of `y`: the same, or f32.
    pub y: ElemType,
}

impl From<ElemType> for Dtypes {
    fn from(dtype: ElemType) -> Self {
        Self { x: dtype, y: storage(dtype) }
    }
}

impl Gemm {
    /// The product alone.
    pub fn product(x: TensorBinding, weight: TensorBinding, y: TensorBinding) -> Self {
        Self { x, weight, y, norm: None, epilogue: Epilogue::default(), batch_invariant: false }
    }

    /// The problem of the tensors.
    ///
    /// # Errors
    ///
    /// If shapes or types do not fit each other.
    pub fn problem(&self, dtypes: impl Into<Dtypes>) -> Result<Problem> {
        let Self { x, weight, y, norm, epilogue, batch_invariant } = self;
        let Dtypes { x: dtype, y: y_dtype } = dtypes.into();
        check_numbers(KERNEL, dtype)?;
        if y_dtype != storage(dtype) && y_dtype != ElemType::Float(FloatKind::F32) {
            return Err(Refusal::blueprint(KERNEL, "y_dtype", format!("{y_dtype:?}"), "that of `x`, or f32"));
        }
        rows(KERNEL, "x", x, 2)?;
        rows(KERNEL, "weight", weight, 2)?;
        let ([rows, d_in], weight_rows) = ([x.shape[0], x.shape[1]], weight.shape[0]);
        if weight.shape[1] != d_in {
            return Err(shape(KERNEL, "weight", weight, format!("rows of {d_in}, as `x`")));
        }
        let d_out = epilogue.outputs(KERNEL, "weight", weight, weight_rows)?;
        contiguous(KERNEL, "y", y, &[rows, d_out])?;
        let aligned = |tensor, size| alignment(tensor).min(offset_alignment(tensor, size));
        let mut align = aligned(x, dtype.size()).min(aligned(weight, dtype.size()));
        align = align.min(offset_alignment(y, y_dtype.size()));
        if let Some(bias) = &epilogue.bias {
            contiguous(KERNEL, "bias", bias, &[weight_rows])?;
            align = align.min(offset_alignment(bias, dtype.size()));
        }
        if let Some(RmsNorm { weight, .. }) = norm {
            contiguous(KERNEL, "norm", weight, &[d_in])?;
            align = align.min(offset_alignment(weight, dtype.size()));
        }
        let (gated, normed, batch_invariant) = (epilogue.gate.is_some(), norm.is_some(), *batch_invariant);
        Ok(Problem { rows, d_in, d_out, dtype, y_dtype, gated, normed, batch_invariant, align })
    }
}

/// `y = x · weightᵀ`, summed in f32, and its [`Epilogue`]; rounded once.
///
/// # Errors
///
/// If shapes or types do not fit each other, or no kernel computes the problem ([`Blueprint::auto`]). Nothing is launched
/// then.
pub fn launch(client: &Client, gemm: Gemm, dtypes: impl Into<Dtypes>) -> Result<()> {
    let device = DeviceProfile::of(client);
    let problem = gemm.problem(dtypes)?.on(&device);
    let blueprint = Blueprint::auto(&device, &problem)?;
    launch_checked(client, gemm, None, problem, device, blueprint)
}

/// [`launch`] with exactly this blueprint.
///
/// # Errors
///
/// If shapes or types do not fit each other, or the blueprint does not fit the problem or the device. Nothing is launched
/// then.
pub fn launch_with(
    client: &Client,
    gemm: Gemm,
    dtypes: impl Into<Dtypes>,
    blueprint: Blueprint,
) -> Result<()> {
    let problem = gemm.problem(dtypes)?;
    let device = DeviceProfile::of(client);
    match &blueprint {
        Blueprint::Dot(dot) => dot.check(&device)?,
        Blueprint::Skinny(skinny) => skinny.check(&device, &problem)?,
        Blueprint::Tiled(tiled) => tiled.check(&device, &problem, false)?,
        Blueprint::WarpSpecialized(specialized) => specialized.check(&device, &problem, false)?,
    }
    launch_checked(client, gemm, None, problem, device, blueprint)
}

/// Launches a blueprint that fits the problem and the device. `codes` are the scales of factors of e4m3.
pub(super) fn launch_checked(
    client: &Client,
    gemm: Gemm,
    codes: Option<Codes>,
    problem: Problem,
    device: DeviceProfile,
    blueprint: Blueprint,
) -> Result<()> {
    if gemm.y.size() == 0 {
        return Ok(());
    }
    let size = problem.dtype.size();
    let address = addresses(&[(&gemm.x, size), (&gemm.weight, size), (&gemm.y, problem.y_dtype.size())]);
    let gemm = match blueprint {
        Blueprint::Skinny(Skinny { norm: true, .. }) => gemm,
        _ => normalised(client, gemm, storage(problem.dtype))?,
    };
    let launch = Launch { client, gemm, codes, problem, device, address };
    match blueprint {
        Blueprint::Dot(dot) => launch.dot(dot),
        Blueprint::Skinny(skinny) => on_unit!(skinny.unit, |U| launch.skinny::<U>(skinny)),
        Blueprint::Tiled(tiled) => on_unit!(tiled.unit, |U| launch.tiled::<U>(tiled)),
        Blueprint::WarpSpecialized(specialized) => launch.warp_specialized(specialized),
    }
}

/// The product of rows that another kernel normalises, if they are to be.
fn normalised(client: &Client, gemm: Gemm, dtype: ElemType) -> Result<Gemm> {
    let Gemm { x, weight, y, norm, epilogue, batch_invariant } = gemm;
    let x = match norm {
        None => x,
        Some(RmsNorm { weight, epsilon, one_more }) => {
            let (rows, d_in) = (x.shape[0], x.shape[1]);
            let normed = with_shape(buffer(client, rows * d_in, dtype.size()), [rows, d_in]);
            let scaling = if one_more { Scaling::GemmaRms(weight) } else { Scaling::Rms(weight) };
            let norm = Norm { x, add: None, scaling, y: Some(normed.clone()), quantized: None, epsilon };
            norm::launch(client, norm, dtype, dtype)?;
            normed
        }
    };
    Ok(Gemm { x, weight, y, norm: None, epilogue, batch_invariant })
}

/// A checked product on its way to the device.
struct Launch<'a> {
    client: &'a Client,
    gemm: Gemm,
    codes: Option<Codes>,
    problem: Problem,
    device: DeviceProfile,
    address: AddressType,
}

/// Rows of tiles that are multiplied side by side.
const GROUP: usize = 8;

impl Launch<'_> {
    fn dot(self, dot: Dot) -> Result<()> {
        let Problem { rows, d_in, d_out, dtype, y_dtype, align, .. } = self.problem;
        let Gemm { x, weight, y, epilogue, .. } = self.gemm;
        let (epilogue, steps) = epilogue.unzip(&self.device, d_out);
        let lanes = self.device.plane;
        let elements = vector(self.client, dtype, &[d_in], align);
        let cubes = d_out.div_ceil(PLANES as usize) * rows.div_ceil(dot.rows);
        let cubes = cover(KERNEL, cubes, self.device.max_cubes)?;
        // SAFETY: a plane beyond the last row of the weight or of `x` stops. Vectors are below `d_in / N`, which `N`
        // divides, in rows below those of the weight and of `x`; results go to `y` at rows and outputs within its
        // shape.
        unsafe {
            dot::dot::launch_unchecked(
                self.client,
                cubes,
                CubeDim::new_2d(lanes, PLANES),
                self.address,
                elements,
                x.into_tensor_arg(),
                weight.into_tensor_arg(),
                y.into_buffer_arg(),
                epilogue,
                d_in / elements,
                dot.rows,
                lanes as usize,
                steps,
                [storage(dtype), y_dtype],
            );
        }
        Ok(())
    }

    fn skinny<U: GemmMma>(self, skinny: Skinny) -> Result<()> {
        let Problem { d_in, d_out, dtype, y_dtype, .. } = self.problem;
        let Gemm { x, weight, y, norm, epilogue, .. } = self.gemm;
        let (epilogue, steps) = epilogue.unzip(&self.device, d_out);
        let tiles = skinny.tiles(&self.problem);
        let style = |norm: &RmsNorm| if norm.one_more { NormStyle::Gemma } else { NormStyle::Plain };
        let settings =
            SkinnySettings { tiles, cluster: skinny.cluster, steps, norm: norm.as_ref().map(style) };
        let epsilon = norm.as_ref().map_or(0.0, |norm| norm.epsilon);
        let gains = norm.map(|norm| norm.weight.into_buffer_arg());
        let cubes = d_out.div_ceil(tiles.rows::<U>() / steps.halves()) * skinny.cluster;
        // Along one axis, so that a cluster is a run of cubes and there is none beyond the last.
        let cubes = cover(KERNEL, cubes, [self.device.max_cubes[0], 1, 1])?;
        // SAFETY: there is no cube beyond the last tile of outputs. Rows of the weight and of `x`, and their inputs, are
        // clamped to the shapes where they are read, and compared with them where results are written. Vectors of 16
        // bytes divide inputs and strides, as was checked. Shared memory is indexed by rows and vectors of the tiles
        // that sized it, as `x_copy` and `w_copy` hand them out or cut them off, and by parts it was sized for too.
        unsafe {
            skinny::skinny::launch_unchecked::<U>(
                self.client,
                cubes,
                CubeDim::new_2d(U::PLANE as u32, tiles.planes() as u32),
                self.address,
                divisor(d_out, 4),
                with_axis(x, 0).into_tensor_arg(),
                weight.into_tensor_arg(),
                y.into_buffer_arg(),
                epilogue,
                NormArgsLaunch::new(gains.into(), epsilon),
                d_in,
                settings,
                [storage(dtype), y_dtype],
            );
        }
        Ok(())
    }

    fn tiled<U: GemmMma>(self, tiled: Tiled) -> Result<()> {
        let Problem { rows, d_in, d_out, dtype, y_dtype, gated, .. } = self.problem;
        let Gemm { x, weight, y, epilogue, .. } = self.gemm;
        let (epilogue, steps) = epilogue.unzip_scaled(&self.device, d_out, self.codes);
        let tiles = tiled.tiles(dtype, false, gated);
        let columns = tiles.columns::<U>() / steps.halves();
        let cubes = rows.div_ceil(tiles.rows::<U>()) * d_out.div_ceil(columns);
        let cubes = cover(KERNEL, cubes, self.device.max_cubes)?;
        // SAFETY: a cube beyond the last tile stops. Rows, inputs and outputs are clamped to the shapes where they are
        // read, and compared with them where they are written. Vectors of 16 bytes divide every extent and stride, as
        // was checked. Scales are of rows and outputs that are written, and of blocks of a cube's first output and of
        // the inputs. Shared memory is indexed by rows and vectors of the tiles that sized it, as `x_copy` and `w_copy`
        // hand them out or cut them off.
        unsafe {
            tiled::tiled::launch_unchecked::<U>(
                self.client,
                cubes,
                CubeDim::new_2d(U::PLANE as u32, tiles.planes() as u32),
                self.address,
                x.into_tensor_arg(),
                with_axis(weight, 0).into_tensor_arg(),
                y.into_buffer_arg(),
                epilogue,
                d_in,
                GROUP,
                tiles,
                steps,
                [element(dtype, y_dtype), y_dtype],
            );
        }
        Ok(())
    }

    fn warp_specialized(self, specialized: WarpSpecialized) -> Result<()> {
        let Problem { dtype, y_dtype, .. } = self.problem;
        let Gemm { x, weight, y, epilogue, .. } = self.gemm;
        let weights = with_axis(weight, 0);
        let codes = self.codes;
        let matrices = Matrices { x, weights, y, work_items: None, by_input: false, codes, epilogue };
        // SAFETY: there are no work items.
        unsafe { hopper::launch(self.client, matrices, [dtype, y_dtype], specialized) }
    }
}
