use cubecl::{client::Client, ir::AddressType, prelude::*};

use super::super::buffers::{OutputsLaunch, QkvLaunch};
use super::super::checked::{Operands, scales_arguments};
use super::super::kv_table::TableArgs;
use super::super::mask::Mask;
use super::super::variant::Variant;
use super::Portable;
use super::kernel::attention;
use crate::device::grid::cover;
use crate::device::tensor::addresses;
use crate::device::{DeviceProfile, Result};
use crate::problem::Problem;

/// Runs the portable kernel. `operands` and `blueprint` have been checked.
pub(in super::super) fn launch<V: Variant>(
    client: &Client,
    operands: Operands,
    table: TableArgs,
    mask: Option<Mask>,
    args: <V::Args as LaunchArg>::RuntimeArg,
    problem: &Problem,
    blueprint: Portable,
) -> Result<()> {
    let Operands { q, k, v, output, lse, scales } = operands;
    let rows = q.shape[0] * problem.q_heads;
    let device = DeviceProfile::of(client);
    let cubes = cover("attention", rows.div_ceil(blueprint.rows as usize), device.max_cubes)?;
    let (size, kv_size) = (problem.dtype.size(), problem.kv_dtype.size());
    let mut address = addresses(&[(&q, size), (&k, kv_size), (&v, kv_size), (&output, size)]);
    if let Some(scales) = &scales {
        address = address.max(addresses(&[(&scales.k, 4), (&scales.v, 4)]));
    }
    if let Some(mask) = &mask {
        address = address.max(addresses(&[(&mask.bits.words, 4)]));
    }
    if device.cpu_cores.is_some() {
        // On a CPU CubeCL 0.11 stores indices in 64 bits but counts shared memory of them by the address type.
        address = AddressType::U64;
    }
    let (q, k, v) = (q.into_tensor_arg(), k.into_tensor_arg(), v.into_tensor_arg());
    let (scales, token_scales) = scales_arguments(scales);
    let qkv = QkvLaunch::new(q, k, v, table, scales, token_scales);
    let lse = lse.map(TensorBinding::into_buffer_arg);
    let outputs = OutputsLaunch::new(output.into_buffer_arg(), lse.into(), ComptimeOptionArgs::None, 0);

    // SAFETY: a unit beyond the last row stops. A row reads q and writes output and lse at (token, head),
    // within the shapes that `check` compared. Keys of k and v are below kv_len; their pages and offsets are
    // in bounds by the contract on index tensors. A mask has a bit for each query and key, by its contract. Column loads stay below the head dimensions, which the
    // vectors divide. Shared memory is indexed by keys < tile and columns of the query, within the part of
    // the row. Scales are one, one for each key head, or as keys and values but for their last axis.
    unsafe {
        attention::launch_unchecked::<V>(
            client,
            cubes,
            CubeDim::new_1d(blueprint.rows * blueprint.units),
            address,
            blueprint.qk_vector,
            blueprint.vo_vector,
            qkv,
            outputs,
            mask.map(Mask::argument).into(),
            args,
            problem.dims,
            blueprint,
            problem.kv_dtype,
            [problem.dtype, problem.kv_dtype.storage()],
        );
    }
    Ok(())
}
