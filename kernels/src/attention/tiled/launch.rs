use cubecl::{client::Client, ir::FloatKind, prelude::*};

use super::super::batch::TableArgs;
use super::super::blueprint::Problem;
use super::super::launch::Operands;
use super::blueprint::{Tiled, Unit};
use super::combine::{PartialsLaunch, combine};
use super::kernel::{TiledParamsLaunch, Variant, tiled};
use crate::grid::{cover, elementwise};
use crate::tensor::addresses;
use crate::unit::{MatrixUnit, Mfma16, Mfma32, MmaSync, Scalar1, Scalar32, Scalar64};
use crate::{DeviceProfile, Result};

const KERNEL: &str = "attention";

/// Runs the tiled kernel, and with a chunk [`combine`] after it. `operands` and `blueprint` have been checked.
pub(in super::super) fn launch(
    client: &Client,
    operands: Operands,
    table: impl Fn() -> TableArgs,
    problem: &Problem,
    blueprint: Tiled,
) -> Result<()> {
    match blueprint.unit {
        Unit::MmaSync => launch_on::<MmaSync>(client, operands, table, problem, blueprint),
        Unit::Mfma16 => launch_on::<Mfma16>(client, operands, table, problem, blueprint),
        Unit::Mfma32 => launch_on::<Mfma32>(client, operands, table, problem, blueprint),
        Unit::Scalar1 => launch_on::<Scalar1>(client, operands, table, problem, blueprint),
        Unit::Scalar32 => launch_on::<Scalar32>(client, operands, table, problem, blueprint),
        Unit::Scalar64 => launch_on::<Scalar64>(client, operands, table, problem, blueprint),
    }
}

fn launch_on<U: MatrixUnit>(
    client: &Client,
    operands: Operands,
    table: impl Fn() -> TableArgs,
    problem: &Problem,
    blueprint: Tiled,
) -> Result<()> {
    let Operands { q, k, v, output, lse, causal, window_left, soft_cap, scale } = operands;
    let tiles = blueprint.tiles(problem);
    let rows = blueprint.rows();
    let group = problem.group();
    let (tokens, keys) = (q.shape[0], k.shape[1]);
    let single = problem.requests == 1 && matches!(table(), TableArgs::Single);
    let longest = problem.most_rows().div_ceil(rows);
    let pieces = match (blueprint.chunk, single) {
        (Some(chunk), true) => problem.keys.div_ceil(chunk),
        (Some(chunk), false) => problem.keys / chunk + problem.requests,
        (None, true) => longest,
        (None, false) => tokens * group / rows + problem.requests,
    };
    let row_tiles = if blueprint.chunk.is_some() { longest } else { 1 };
    let device = DeviceProfile::of(client);
    let cubes = pieces * problem.kv_heads * row_tiles;
    let count = cover(KERNEL, cubes, device.max_cubes)?;
    let size = problem.dtype.size();
    let address = addresses(&[(&q, size), (&k, size), (&v, size), (&output, size)]);
    let dim = CubeDim::new_2d(U::PLANE as u32, tiles.planes() as u32);
    let params = TiledParamsLaunch::new(
        scale,
        soft_cap.unwrap_or(0.0),
        window_left,
        causal as u32,
        group,
        pieces,
        blueprint.chunk.unwrap_or(0),
        row_tiles,
    );
    let variant = Variant { split: blueprint.chunk.is_some(), soft_cap: soft_cap.is_some() };
    let f32 = FloatKind::F32.into();

    let Some(chunk) = blueprint.chunk else {
        // SAFETY: a cube beyond the last piece, or with none of its request's rows, stops. Rows are clamped to the
        // request's own, so queries are read, and output and lse written, at tokens and heads within the shapes that
        // `check` compared. Keys are clamped below the last one that a row sees; their pages and offsets are in bounds
        // by the contract on index tensors. Quads stay within a head, which they divide, and every stride is a
        // multiple of them. Shared memory is indexed by rows, keys and quads of the tiles that sized it.
        unsafe {
            tiled::launch_unchecked::<U>(
                client,
                count,
                dim,
                address,
                q.into_tensor_arg(),
                k.into_tensor_arg(),
                v.into_tensor_arg(),
                output.into_tensor_arg(),
                lse.map(TensorBinding::into_buffer_arg).into(),
                table(),
                params,
                tiles,
                variant,
                [problem.dtype, problem.dtype],
            );
        }
        return Ok(());
    };

    let partial_rows = pieces * problem.kv_heads * row_tiles * rows;
    let partial = buffer(client, &[partial_rows, problem.dims.vo]);
    let sums = buffer(client, &[partial_rows, 2]);
    let (kv_heads, q_heads) = (problem.kv_heads, problem.q_heads);
    let address = address.max(addresses(&[(&partial, 4)]));
    let vectors = problem.dims.vo / 4;
    let total = tokens * q_heads * vectors;
    let (combine_count, combine_dim) = elementwise(KERNEL, client, total)?;
    let partials = PartialsLaunch::new(
        if soft_cap.is_some() { 1.0 } else { scale },
        chunk,
        row_tiles * rows,
        q_heads,
        kv_heads,
        tokens,
        keys,
        total,
    );
    // SAFETY: as above, and partial results are written and read at a row of a tile of a piece, for which there is room.
    // A row reads those chunks that its request's keys reach into, each of which a cube has written.
    unsafe {
        tiled::launch_unchecked::<U>(
            client,
            count,
            dim,
            address,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            Some(sums.clone().into_buffer_arg()).into(),
            table(),
            params,
            tiles,
            variant,
            [problem.dtype, f32],
        );
        combine::launch_unchecked(
            client,
            combine_count,
            combine_dim,
            address,
            partial.into_buffer_arg(),
            sums.into_buffer_arg(),
            output.into_buffer_arg(),
            lse.map(TensorBinding::into_buffer_arg).into(),
            table(),
            partials,
            vectors,
            problem.dtype,
        );
    }
    Ok(())
}

/// A contiguous f32 buffer with anything in it.
fn buffer(client: &Client, shape: &[usize]) -> TensorBinding {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let handle = client.empty(shape.iter().product::<usize>() * 4);
    // SAFETY: the buffer is as long as the shape at these strides.
    unsafe { TensorBinding::from_raw_parts(handle, strides.into(), shape.to_vec().into()) }
}
