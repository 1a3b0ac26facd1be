use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::blueprint::{Blueprint, Dot, KERNEL, Problem, Skinny, Tiled, WarpSpecialized};
use super::dot::{self, PLANES};
use super::hopper::{self, CONSUMERS, MAP_VECS, PRODUCERS, ROWS};
use super::{skinny, tiled};
use crate::device::DeviceProfile;
use crate::device::grid::cover;
use crate::device::tensor::{
    Result, addresses, alignment, buffer, contiguous, divisor, offset_alignment, rows, shape, vector,
    with_axis,
};
use crate::mma::{GemmMma, on_unit};

/// Rows, and a weight in the order of checkpoints. All floats are of one type.
pub struct Gemm {
    /// `[rows, d_in]`.
    pub x: TensorBinding,
    /// `[d_out, d_in]`.
    pub weight: TensorBinding,
    /// `[rows, d_out]`, contiguous.
    pub y: TensorBinding,
}

impl Gemm {
    /// The problem of the tensors.
    ///
    /// # Errors
    ///
    /// If the shapes do not fit each other.
    pub fn problem(&self, dtype: ElemType) -> Result<Problem> {
        let Self { x, weight, y } = self;
        rows(KERNEL, "x", x, 2)?;
        rows(KERNEL, "weight", weight, 2)?;
        let ([rows, d_in], d_out) = ([x.shape[0], x.shape[1]], weight.shape[0]);
        if weight.shape[1] != d_in {
            return Err(shape(KERNEL, "weight", weight, format!("rows of {d_in}, as `x`")));
        }
        contiguous(KERNEL, "y", y, &[rows, d_out])?;
        let aligned = |tensor| alignment(tensor).min(offset_alignment(tensor, dtype.size()));
        Ok(Problem { rows, d_in, d_out, dtype, align: aligned(x).min(aligned(weight)) })
    }
}

/// `y = x · weightᵀ`, summed in f32 and rounded once.
///
/// # Errors
///
/// If the shapes do not fit each other, or no kernel computes the problem ([`Blueprint::auto`]). Nothing is launched then.
pub fn launch(client: &Client, gemm: Gemm, dtype: ElemType) -> Result<()> {
    let problem = gemm.problem(dtype)?;
    let blueprint = Blueprint::auto(&DeviceProfile::of(client), &problem)?;
    launch_checked(client, gemm, problem, blueprint)
}

/// [`launch`] with exactly this blueprint.
///
/// # Errors
///
/// If the shapes do not fit each other, or the blueprint does not fit the problem or the device. Nothing is launched then.
pub fn launch_with(client: &Client, gemm: Gemm, dtype: ElemType, blueprint: Blueprint) -> Result<()> {
    let problem = gemm.problem(dtype)?;
    let device = DeviceProfile::of(client);
    match &blueprint {
        Blueprint::Dot(dot) => dot.check(&device)?,
        Blueprint::Skinny(skinny) => skinny.check(&device, &problem)?,
        Blueprint::Tiled(tiled) => tiled.check(&device, &problem, false)?,
        Blueprint::WarpSpecialized(specialized) => specialized.check(&device, &problem)?,
    }
    launch_checked(client, gemm, problem, blueprint)
}

/// Launches a blueprint that fits the problem and the device.
fn launch_checked(client: &Client, gemm: Gemm, problem: Problem, blueprint: Blueprint) -> Result<()> {
    if gemm.y.size() == 0 {
        return Ok(());
    }
    let size = problem.dtype.size();
    let address = addresses(&[(&gemm.x, size), (&gemm.weight, size), (&gemm.y, size)]);
    let launch = Launch { client, gemm, problem, device: DeviceProfile::of(client), address };
    match blueprint {
        Blueprint::Dot(dot) => launch.dot(dot),
        Blueprint::Skinny(skinny) => on_unit!(skinny.unit, |U| launch.skinny::<U>(skinny)),
        Blueprint::Tiled(tiled) => on_unit!(tiled.unit, |U| launch.tiled::<U>(tiled)),
        Blueprint::WarpSpecialized(specialized) => launch.warp_specialized(specialized),
    }
}

/// A checked product on its way to the device.
struct Launch<'a> {
    client: &'a Client,
    gemm: Gemm,
    problem: Problem,
    device: DeviceProfile,
    address: AddressType,
}

/// Rows of tiles that are multiplied side by side.
const GROUP: usize = 8;

impl Launch<'_> {
    fn dot(self, dot: Dot) -> Result<()> {
        let Problem { rows, d_in, d_out, dtype, align } = self.problem;
        let Gemm { x, weight, y } = self.gemm;
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
                d_in / elements,
                dot.rows,
                lanes as usize,
                dtype,
            );
        }
        Ok(())
    }

    fn skinny<U: GemmMma>(self, skinny: Skinny) -> Result<()> {
        let Problem { d_in, d_out, dtype, .. } = self.problem;
        let Gemm { x, weight, y } = self.gemm;
        let tiles = skinny.tiles(&self.problem);
        let cubes = d_out.div_ceil(tiles.rows::<U>()) * skinny.cluster;
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
                d_in,
                tiles,
                skinny.cluster,
                dtype,
            );
        }
        Ok(())
    }

    fn tiled<U: GemmMma>(self, tiled: Tiled) -> Result<()> {
        let Problem { rows, d_in, d_out, dtype, .. } = self.problem;
        let Gemm { x, weight, y } = self.gemm;
        let tiles = tiled.tiles(dtype, false);
        let cubes = rows.div_ceil(tiles.rows::<U>()) * d_out.div_ceil(tiles.columns::<U>());
        let cubes = cover(KERNEL, cubes, self.device.max_cubes)?;
        // SAFETY: a cube beyond the last tile stops. Rows, inputs and outputs are clamped to the shapes where they are
        // read, and compared with them where they are written. Vectors of 16 bytes divide every extent and stride, as
        // was checked. Shared memory is indexed by rows and vectors of the tiles that sized it, as `x_copy` and
        // `w_copy` hand them out or cut them off.
        unsafe {
            tiled::tiled::launch_unchecked::<U>(
                self.client,
                cubes,
                CubeDim::new_2d(U::PLANE as u32, tiles.planes() as u32),
                self.address,
                x.into_tensor_arg(),
                with_axis(weight, 0).into_tensor_arg(),
                y.into_buffer_arg(),
                d_in,
                GROUP,
                tiles,
                dtype,
            );
        }
        Ok(())
    }

    fn warp_specialized(self, specialized: WarpSpecialized) -> Result<()> {
        let Problem { rows, d_in, d_out, .. } = self.problem;
        let Gemm { x, weight, y } = self.gemm;
        let tiles = specialized.tiles(&self.problem);
        let total = rows.div_ceil(ROWS) * d_out.div_ceil(tiles.outputs);
        let cubes = match tiles.cluster {
            1 => total.min(self.device.cores.unwrap_or(1)),
            cluster => total * cluster,
        };
        let cubes = cover(KERNEL, cubes, [self.device.max_cubes[0], 1, 1])?;
        let maps = buffer(self.client, 2 * MAP_VECS, 16);
        // SAFETY: two warps make a descriptor each, in shared memory of two and in the buffer of two. They know the
        // shapes of `x` and `weight`, beyond which copies read nothing; vectors of 16 bytes divide every extent and
        // stride, as was checked. Each cube, or cluster, takes tiles below their number; rows and outputs are compared
        // with the shape of `y` where they are written. A part is not larger than the stages, of which there are 3.
        unsafe {
            hopper::make_maps::launch_unchecked(
                self.client,
                CubeCount::Static(1, 1, 1),
                CubeDim::new_2d(32, 2),
                self.address,
                x.into_tensor_arg(),
                weight.into_tensor_arg(),
                maps.clone().into_buffer_arg(),
                d_in,
                tiles.outputs as u32,
            );
            hopper::warp_specialized::launch_unchecked(
                self.client,
                cubes,
                CubeDim::new_2d(32, (PRODUCERS + CONSUMERS) as u32),
                self.address,
                maps.into_buffer_arg(),
                y.into_buffer_arg(),
                rows,
                d_in,
                d_out,
                specialized.group,
                tiles,
            );
        }
        Ok(())
    }
}
