use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
};

use super::blueprint::{Blueprint, Plain, Problem};
use super::work::WORK_WORDS;
use super::{plain, tiled};
use crate::device::grid::cover;
use crate::device::tensor::{
    Result, addresses, alignment, buffer, contiguous, offset_alignment, rows, shape, vector, with_shape,
};
use crate::device::{DeviceProfile, Refusal};
use crate::gemm::{Dtypes, Epilogue, Matrices, Tiled, finish, launch_matrices};
use crate::mma::{GemmMma, check_numbers, on_unit};

const KERNEL: &str = "segment_gemm";
const F32: ElemType = ElemType::Float(FloatKind::F32);

/// Rows, and the matrices that segments of them are multiplied with. All floats are of one type.
pub struct SegmentGemm {
    /// `[rows, d_in]`.
    pub x: TensorBinding,
    /// `[matrices, d_in, d_out]`, or with `by_input` false `[matrices, d_out, d_in]`; twice as many outputs with a gate.
    pub weights: TensorBinding,
    /// `[rows, d_out]`, contiguous. Rows that no work item has are not defined.
    pub y: TensorBinding,
    /// `[work items, 3]` of `i32`, contiguous, as one axis: first row of each work item, end of its rows, and its
    /// matrix. An item of zeros has no rows.
    pub work_items: TensorBinding,
    /// Largest number of rows of a work item, at least 1: up to 4 for plain multiplications, or 16, 64 or 128
    /// for tiles.
    pub tile_rows: usize,
    /// The rows of a matrix are its inputs.
    pub by_input: bool,
    /// The epilogue, one for all matrices.
    pub epilogue: Epilogue,
}

/// Runs all work items.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
///
/// # Safety
///
/// Each work item is empty, or has up to `tile_rows` rows, all within `x`. Its matrix is within `weights`. No row is
/// in two of them.
pub unsafe fn launch(client: &Client, gemm: SegmentGemm, dtype: ElemType) -> Result<()> {
    let SegmentGemm { x, weights, y, work_items, tile_rows, by_input, epilogue } = &gemm;
    check_numbers(KERNEL, dtype)?;
    rows(KERNEL, "x", x, 2)?;
    rows(KERNEL, "weights", weights, 3)?;
    let (d_in, outputs) = match by_input {
        true => (weights.shape[1], weights.shape[2]),
        false => (weights.shape[2], weights.shape[1]),
    };
    let d_out = epilogue.outputs(KERNEL, "weights", weights, outputs)?;
    if x.shape[1] != d_in {
        return Err(shape(KERNEL, "x", x, format!("rows of {d_in}, as `weights`")));
    }
    contiguous(KERNEL, "y", y, &[x.shape[0], d_out])?;
    contiguous(KERNEL, "work_items", work_items, &[work_items.size()])?;
    if !work_items.size().is_multiple_of(WORK_WORDS) {
        return Err(shape(KERNEL, "work_items", work_items, format!("[{WORK_WORDS} words each]")));
    }
    if *tile_rows == 0 || weights.size() == 0 {
        return Err(Refusal::Range { kernel: KERNEL, argument: "tile_rows or weights", got: 0, limit: 0 });
    }
    if y.size() == 0 || work_items.size() == 0 {
        return Ok(());
    }
    let aligned = |tensor| alignment(tensor).min(offset_alignment(tensor, dtype.size()));
    let mut align = aligned(x).min(aligned(weights)).min(offset_alignment(y, dtype.size()));
    if let Some(bias) = &epilogue.bias {
        contiguous(KERNEL, "bias", bias, &[outputs])?;
        align = align.min(offset_alignment(bias, dtype.size()));
    }
    let problem = Problem {
        d_in,
        d_out,
        dtype,
        align,
        by_input: *by_input,
        tile_rows: *tile_rows,
        work_items: work_items.size() / WORK_WORDS,
        gated: epilogue.gate.is_some(),
    };
    match Blueprint::auto(&DeviceProfile::of(client), &problem) {
        Blueprint::Plain(plain) => launch_plain_and_finish(client, gemm, &problem, plain),
        Blueprint::WarpSpecialized(specialized) => {
            let SegmentGemm { x, weights, y, work_items, by_input, epilogue, .. } = gemm;
            let work_items = Some(work_items);
            let matrices = Matrices { x, weights, y, work_items, by_input, codes: None, epilogue };
            // SAFETY: the contract of work items is the caller's. A tile has as many rows.
            unsafe { launch_matrices(client, matrices, [dtype; 2], specialized) }
        }
        Blueprint::Tiled(tiled) => {
            on_unit!(tiled.unit, |U| launch_tiled::<U>(client, gemm, &problem, tiled))
        }
    }
}

fn launch_tiled<U: GemmMma>(
    client: &Client,
    gemm: SegmentGemm,
    problem: &Problem,
    tiled: Tiled,
) -> Result<()> {
    let SegmentGemm { x, weights, y, work_items, by_input, epilogue, .. } = gemm;
    let Problem { d_in, d_out, dtype, gated, .. } = *problem;
    let device = DeviceProfile::of(client);
    let (epilogue, steps) = epilogue.unzip(&device, d_out);
    let tiles = tiled.tiles(dtype, by_input, gated);
    let count = work_items.size() / WORK_WORDS;
    let cubes = count * d_out.div_ceil(tiles.columns::<U>() / steps.halves());
    let cubes = cover(KERNEL, cubes, device.max_cubes)?;
    let size = dtype.size();
    let address = addresses(&[(&x, size), (&weights, size), (&y, size)]);
    // SAFETY: a cube beyond the last work item, or with an empty one, stops. By the contract rows are within `x` and
    // `y` and matrices within `weights`. Rows, inputs and outputs are clamped to those of the work item and
    // of the matrix where they are read, and compared with them where they are written. Vectors of 16 bytes
    // divide every extent and stride, as the blueprint was chosen for. Shared memory is indexed by rows and
    // vectors of the tiles that sized it, as `x_copy` and `w_copy` hand them out or cut them off.
    unsafe {
        tiled::segment_gemm::launch_unchecked::<U>(
            client,
            cubes,
            CubeDim::new_2d(U::PLANE as u32, tiles.planes() as u32),
            address,
            x.into_tensor_arg(),
            weights.into_tensor_arg(),
            y.into_buffer_arg(),
            work_items.into_buffer_arg(),
            epilogue,
            count,
            d_in,
            tiles,
            steps,
            dtype,
        );
    }
    Ok(())
}

/// The plain kernel has no epilogue: with one it stores its sums, in f32, for another launch.
fn launch_plain_and_finish(
    client: &Client,
    mut gemm: SegmentGemm,
    problem: &Problem,
    plain: Plain,
) -> Result<()> {
    let epilogue = std::mem::take(&mut gemm.epilogue);
    if epilogue.is_empty() {
        return launch_plain(client, gemm, problem, problem.dtype, plain);
    }
    let (y, rows, width) = (gemm.y.clone(), gemm.y.shape[0], problem.outputs());
    let sums = with_shape(buffer(client, rows * width, size_of::<f32>()), [rows, width]);
    gemm.y = sums.clone();
    launch_plain(client, gemm, problem, F32, plain)?;
    finish(client, sums, y, epilogue, Dtypes { x: problem.dtype, y: problem.dtype })
}

fn launch_plain(
    client: &Client,
    gemm: SegmentGemm,
    problem: &Problem,
    y_dtype: ElemType,
    plain: Plain,
) -> Result<()> {
    let SegmentGemm { x, weights, y, work_items, .. } = gemm;
    let (Problem { d_in, dtype, align, .. }, d_out) = (*problem, problem.outputs());
    let count = work_items.size() / WORK_WORDS;
    let limit = DeviceProfile::of(client).max_cubes;
    let size = dtype.size();
    let address = addresses(&[(&x, size), (&weights, size), (&y, y_dtype.size())]);
    let (across, parts) = (plain.across as u32, plain.parts as u32);
    if problem.by_input {
        let weights_align = alignment(&weights).min(offset_alignment(&weights, size));
        let lanes = vector(client, dtype, &[d_out], weights_align);
        let vectors = d_out / lanes;
        let cubes = cover(KERNEL, count * vectors.div_ceil(plain.across), limit)?;
        // SAFETY: a cube beyond the last work item stops, and an empty one has no rows. By the contract on work items rows are within `x`
        // and `y` and matrices within `weights`; rows and columns are clamped where they are read, and
        // compared where they are written. Inputs are below `d_in`. The width divides `d_out`, strides and
        // offset. Shared memory has a place for each unit.
        unsafe {
            plain::by_input::launch_unchecked(
                client,
                cubes,
                CubeDim::new_2d(across, parts),
                address,
                lanes,
                x.into_tensor_arg(),
                weights.into_tensor_arg(),
                y.into_buffer_arg(),
                work_items.into_buffer_arg(),
                count,
                d_in,
                vectors,
                plain,
                [dtype, y_dtype],
            );
        }
    } else {
        let lanes = vector(client, dtype, &[d_in], align);
        let cubes = cover(KERNEL, count * d_out.div_ceil(plain.across), limit)?;
        // SAFETY: as above, with inputs in vectors below `d_in / N`, the width dividing `d_in`, strides and offsets.
        unsafe {
            plain::by_output::launch_unchecked(
                client,
                cubes,
                CubeDim::new_1d(across * parts),
                address,
                lanes,
                x.into_tensor_arg(),
                weights.into_tensor_arg(),
                y.into_buffer_arg(),
                work_items.into_buffer_arg(),
                count,
                d_in / lanes,
                d_out,
                plain,
                [dtype, y_dtype],
            );
        }
    }
    Ok(())
}
