use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::super::blueprint::WarpSpecialized;
use super::super::code_scales::Codes;
use super::super::epilogue::Epilogue;
use super::kernel::warp_specialized;
use super::row_tiles::{RowTilesLaunch, WORK_WORDS};
use super::tiles::{CONSUMERS, PRODUCERS, ROWS};
use crate::device::DeviceProfile;
use crate::device::grid::cover;
use crate::device::tensor::{Result, addresses, with_axis};
use crate::gemm::{blueprint::element, machine::KERNEL};
use crate::isa::nvidia::tensor_map;

/// Rows, their matrices, and what follows their products.
pub(crate) struct Matrices {
    /// `[rows, d_in]`.
    pub x: TensorBinding,
    /// `[matrices, weight rows, d_in]`, or by input `[matrices, d_in, weight rows]`.
    pub weights: TensorBinding,
    /// `[rows, d_out]`, contiguous.
    pub y: TensorBinding,
    /// First row, end of the rows, and matrix of each tile of up to [`ROWS`] rows. Without them all rows have the first
    /// matrix.
    pub work_items: Option<TensorBinding>,
    /// The rows of a matrix are its inputs.
    pub by_input: bool,
    /// The scales of factors of e4m3.
    pub codes: Option<Codes>,
    /// The epilogue.
    pub epilogue: Epilogue,
}

/// Launches a blueprint that fits. `y_dtype` is `dtype`, or f32.
///
/// # Safety
///
/// The rows of a work item are within `x`, its matrix is within `weights`, and no row is in two of them.
pub(crate) unsafe fn launch(
    client: &Client,
    matrices: Matrices,
    [dtype, y_dtype]: [ElemType; 2],
    specialized: WarpSpecialized,
) -> Result<()> {
    let Matrices { x, weights, y, work_items, by_input, codes, epilogue } = matrices;
    let device = DeviceProfile::of(client);
    let (rows, d_in, d_out) = (x.shape[0], x.shape[1], y.shape[1]);
    let (epilogue, steps) = epilogue.unzip_scaled(&device, d_out, codes);
    let tiles = specialized.tiles([dtype, y_dtype], by_input, steps);
    let count = work_items.as_ref().map_or(rows.div_ceil(ROWS), |items| items.size() / WORK_WORDS);
    let total = count * d_out.div_ceil(tiles.columns());
    let cubes = match tiles.cluster {
        1 => total.min(device.cores.unwrap_or(1)),
        cluster => total * cluster,
    };
    // Along one axis, so that there is no cube beyond the last.
    let cubes = cover(KERNEL, cubes, [device.max_cubes[0], 1, 1])?;
    let address = addresses(&[(&x, dtype.size()), (&weights, dtype.size()), (&y, y_dtype.size())]);
    let work_items = work_items.map(TensorBinding::into_buffer_arg);
    let (boxes, _) = tiles.weight_boxes();
    // SAFETY: tensor maps know the shapes of `x` and `weights`, beyond which copies read nothing; vectors of 16 bytes divide
    // every extent and stride, as was checked. Each cube, or cluster, takes tiles below their number. Rows are compared with
    // the end of the tile's, which by the contract are within `y`, and outputs with `d_out`. A part is not larger than the
    // stages, of which there are 3.
    unsafe {
        warp_specialized::launch_unchecked(
            client,
            cubes,
            CubeDim::new_2d(32, (PRODUCERS + CONSUMERS) as u32),
            address,
            tensor_map(with_axis(x, 0), dtype, &[1, ROWS, tiles.inputs()]),
            tensor_map(weights, dtype, &boxes),
            y.into_buffer_arg(),
            epilogue,
            RowTilesLaunch::new(count, rows, work_items.into()),
            d_in,
            specialized.group,
            tiles,
            element(dtype, y_dtype),
        );
    }
    Ok(())
}
