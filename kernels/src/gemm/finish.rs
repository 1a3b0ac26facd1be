//! The epilogue alone, for sums that another library's product has made.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::epilogue::{Epilogue, EpilogueArgs, Steps, store_at};
use super::launch::Dtypes;
use super::machine::KERNEL;
use crate::device::DeviceProfile;
use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, contiguous};

#[cube(launch_unchecked, address_type = "dynamic")]
fn finish_sums<E: Float, Y: Float>(
    sums: &[f32],
    y: &mut [Vector<Y, Const<1>>],
    epilogue: &EpilogueArgs<E>,
    total: usize,
    #[comptime] steps: Steps,
    #[define(E, Y)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS >= total {
        terminate!();
    }
    let (row, output) = (ABSOLUTE_POS / epilogue.d_out, ABSOLUTE_POS % epilogue.d_out);
    let halves = comptime!(steps.halves());
    let at = row * halves * epilogue.d_out + output;
    let up = sums[at + comptime!(halves - 1) * epilogue.d_out];
    let finished = epilogue.finish::<Const<1>>(Vector::new(sums[at]), Vector::new(up), output, steps);
    store_at::<Y, Const<1>>(y, ABSOLUTE_POS, finished, steps);
}

/// Makes `y` `[rows, d_out]` of `sums` `[rows, d_out]`, or `[rows, 2 · d_out]` if it is gated: f32, contiguous.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn finish(
    client: &Client,
    sums: TensorBinding,
    y: TensorBinding,
    epilogue: Epilogue,
    dtypes: Dtypes,
) -> Result<()> {
    let (rows, d_out) = (y.shape[0], y.shape[1]);
    let width = d_out * if epilogue.gate.is_some() { 2 } else { 1 };
    contiguous(KERNEL, "sums", &sums, &[rows, width])?;
    contiguous(KERNEL, "y", &y, &[rows, d_out])?;
    if let Some(bias) = &epilogue.bias {
        contiguous(KERNEL, "bias", bias, &[width])?;
    }
    let total = y.size();
    if total == 0 {
        return Ok(());
    }
    let (epilogue, steps) = epilogue.unzip(&DeviceProfile::of(client), d_out);
    let (count, dim) = elementwise(KERNEL, client, total)?;
    let address = addresses(&[(&sums, 4), (&y, dtypes.y.size())]);
    // SAFETY: a unit beyond `total` stops; below it rows and outputs are within `y`, and so are its sums and biases within
    // theirs.
    unsafe {
        finish_sums::launch_unchecked(
            client,
            count,
            dim,
            address,
            sums.into_buffer_arg(),
            y.into_buffer_arg(),
            epilogue,
            total,
            steps,
            [dtypes.x, dtypes.y],
        );
    }
    Ok(())
}
