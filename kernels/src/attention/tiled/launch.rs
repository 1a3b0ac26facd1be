use cubecl::{
    client::Client,
    ir::{AddressType, ElemType},
    prelude::*,
};

use super::super::buffers::{OutputsLaunch, QkvLaunch};
use super::super::checked::{KvScales, Operands, scales_arguments};
use super::super::hopper::{box_rows, tensor_maps, warp_specialized};
use super::super::kv_table::TableArgs;
use super::super::mask::Mask;
use super::super::plan::persistent::cubes_for;
use super::super::plan::{DevicePlan, MergeItem, WorkItem, WorkListLaunch};
use super::super::variant::Variant;
use super::blueprint::Tiled;
use super::combine::{CombineParamsLaunch, combine};
use super::kernel::{TileConfig, tiled};
use crate::device::grid::{cover, elementwise};
use crate::device::tensor::{addresses, buffer, contiguous, shape};
use crate::mma::{
    Mfma16, Mfma32, MfmaFp8Of16, MfmaFp8Of32, Mma, MmaKind, MmaSync, Scalar1, Scalar32, Scalar64, TileShape,
};
use crate::problem::Problem;
use crate::{DeviceProfile, Refusal, Result};

const KERNEL: &str = "attention";

/// The arguments of both kernels.
struct KernelLaunch<'a, V: Variant> {
    client: &'a Client,
    cubes: CubeCount,
    dim: CubeDim,
    address: AddressType,
    operands: Operands,
    workspace: Option<TensorBinding>,
    partial_rows: usize,
    work_items: TensorBinding,
    count: usize,
    mask: Option<Mask>,
    table: TableArgs,
    args: <V::Args as LaunchArg>::RuntimeArg,
    group: usize,
    config: TileConfig,
    dtype: ElemType,
}

impl<V: Variant> KernelLaunch<'_, V> {
    /// [`tiled`].
    fn tiled<M: Mma, F: Mma>(self) {
        let Operands { q, k, v, output, lse, scales } = self.operands;
        let list = work_list(self.work_items, self.count, self.group, self.mask);
        let (q, k, v) = (q.into_tensor_arg(), k.into_tensor_arg(), v.into_tensor_arg());
        let (scales, token_scales) = scales_arguments(scales);
        let qkv = QkvLaunch::new(q, k, v, self.table, scales, token_scales);
        // SAFETY: a cube beyond the last work item, or with one that has no rows, stops. By the contract on
        // plans a work item lies within its request, and that within the tokens. Rows are clamped to the
        // request's own, so queries are read, and output and lse written, at tokens and heads within the
        // shapes that `check` compared. Keys are clamped below the end of the work item, which no request's
        // keys reach beyond; their pages and offsets are in bounds by the contract on index tensors. Vectors
        // of 16 bytes stay within a head, which they divide, and every stride is a multiple of them. Shared
        // memory is indexed by rows, keys and vectors of the tiles that sized it. Partial results go to rows
        // of the workspace below `partial_rows`, by the contract. A mask has a bit for each query and key, a tile of
        // padding, and an entry for each tile of a work item, by its contract.
        // Scales are one, one for each key head, or as keys and values but for their last axis.
        unsafe {
            tiled::launch_unchecked::<M, F, V>(
                self.client,
                self.cubes,
                self.dim,
                self.address,
                qkv,
                outputs(output, lse, self.workspace, self.partial_rows),
                list,
                self.args,
                self.config,
                self.dtype,
            );
        }
    }

    /// [`warp_specialized`].
    fn specialized(self) {
        let Operands { q, k, v, output, lse, scales } = self.operands;
        let list = work_list(self.work_items, self.count, self.group, self.mask);
        let tiles = self.config.prefill;
        let page_size = matches!(self.table, TableArgs::Paged(_)).then(|| k.shape[1]);
        let box_rows = box_rows(tiles.keys / tiles.cluster, page_size);
        let maps = tensor_maps([&k, &v], box_rows, self.dtype);
        let (q, k, v) = (q.into_tensor_arg(), k.into_tensor_arg(), v.into_tensor_arg());
        let (scales, token_scales) = scales_arguments(scales);
        let qkv = QkvLaunch::new(q, k, v, self.table, scales, token_scales);
        // SAFETY: as above. TMA boxes are copied where a tile's keys are all of the request. None reaches beyond a page,
        // since it begins at a multiple of a divisor of the page size.
        unsafe {
            warp_specialized::launch_unchecked::<V>(
                self.client,
                self.cubes,
                self.dim,
                self.address,
                qkv,
                maps,
                outputs(output, lse, self.workspace, self.partial_rows),
                list,
                self.args,
                tiles,
                self.dtype,
            );
        }
    }
}

/// The launch argument of the work items.
fn work_list(items: TensorBinding, count: usize, group: usize, mask: Option<Mask>) -> WorkListLaunch {
    WorkListLaunch::new(items.into_buffer_arg(), count, group, mask.map(Mask::argument).into())
}

/// The launch argument of the outputs.
fn outputs<E: Float>(
    output: TensorBinding,
    lse: Option<TensorBinding>,
    workspace: Option<TensorBinding>,
    partial_rows: usize,
) -> OutputsLaunch<E> {
    OutputsLaunch::new(
        output.into_buffer_arg(),
        lse.map(TensorBinding::into_buffer_arg).into(),
        workspace.map(TensorBinding::into_buffer_arg).into(),
        partial_rows,
    )
}

/// Runs the kernel of the blueprint, and [`combine`] after it if there is something to merge. `operands` and blueprints
/// have been checked.
pub(in super::super) fn launch<V: Variant>(
    client: &Client,
    operands: Operands,
    (table, mask): (TableArgs, Option<Mask>),
    args: impl Fn() -> <V::Args as LaunchArg>::RuntimeArg,
    problem: &Problem,
    (prefill, decode): (Tiled, Option<Tiled>),
    planned: DevicePlan,
) -> Result<()> {
    if prefill.fp8_mma && !V::SOFTMAX {
        let expected = "a variant with a softmax, whose weights are at most 1";
        return Err(Refusal::blueprint(KERNEL, "fp8_mma", "no softmax", expected));
    }
    if prefill.fp8_mma && operands.scales.as_ref().is_some_and(KvScales::are_of_tokens) {
        let expected = "scales of all tokens: weights times others may be beyond the largest code";
        return Err(Refusal::blueprint(KERNEL, "fp8_mma", "scales of tokens", expected));
    }
    let DevicePlan { work_items, merges, merge_rows, partial_rows, longest_walk, workspace, .. } = planned;
    let length = |argument, list: &TensorBinding, words| {
        contiguous(KERNEL, argument, list, &[list.size()])?;
        match list.size() % words {
            0 => Ok(list.size() / words),
            _ => Err(shape(KERNEL, argument, list, format!("[{words} numbers each]"))),
        }
    };
    let Some(work_items) = work_items else {
        return Err(Refusal::Missing { kernel: KERNEL, argument: "work_items" });
    };
    let count = length("work_items", &work_items, WorkItem::WORDS)?;
    let merge_count = match &merges {
        Some(merges) => length("merges", merges, MergeItem::WORDS)?,
        None => 0,
    };
    let vo = problem.dims.vo;
    let workspace = (partial_rows > 0)
        .then(|| workspace.unwrap_or_else(|| buffer(client, partial_rows * (vo + 2), size_of::<f32>())));
    if let Some(workspace) = &workspace {
        contiguous(KERNEL, "workspace", workspace, &[workspace.size()])?;
        let needed = partial_rows * (vo + 2);
        if workspace.size() < needed {
            return Err(shape(KERNEL, "workspace", workspace, format!("[{needed}] or more")));
        }
    }

    let device = DeviceProfile::of(client);
    let (kv_heads, q_heads) = (problem.kv_heads, problem.q_heads);
    let items = count * kv_heads;
    let in_all = match prefill.unit {
        MmaKind::Wgmma => cubes_for(items, longest_walk, device.cores, prefill.cluster),
        _ => items,
    };
    let cubes = cover(KERNEL, in_all, device.max_cubes)?;
    let (size, kv_size) = (problem.dtype.size(), problem.kv_dtype.size());
    let mut address = addresses(&[
        (&operands.q, size),
        (&operands.k, kv_size),
        (&operands.v, kv_size),
        (&operands.output, size),
    ]);
    if let Some(workspace) = &workspace {
        address = address.max(addresses(&[(workspace, 4)]));
    }
    if let Some(scales) = &operands.scales {
        address = address.max(addresses(&[(&scales.k, 4), (&scales.v, 4)]));
    }
    if let Some(mask) = &mask {
        address = address.max(addresses(&[(&mask.bits.words, 4)]));
    }
    let dim = CubeDim::new_2d(device.plane, prefill.planes() as u32);
    let (output, lse) = (operands.output.clone(), operands.lse.clone());
    let machine = problem.kv_dtype.machine(client);
    let tiles = |tiled: Tiled| TileShape { machine, ..tiled.tiles(problem) };
    let launch = KernelLaunch::<V> {
        client,
        cubes,
        dim,
        address,
        operands,
        workspace: workspace.clone(),
        partial_rows,
        work_items,
        count,
        mask,
        table,
        args: args(),
        group: problem.group(),
        config: TileConfig { prefill: tiles(prefill), decode: decode.map(tiles) },
        dtype: problem.dtype,
    };
    match (prefill.unit, decode.map(|decode| decode.unit)) {
        (MmaKind::MmaSync, _) => launch.tiled::<MmaSync, MmaSync>(),
        (MmaKind::Wgmma, _) => launch.specialized(),
        (MmaKind::Mfma16, _) if prefill.fp8_mma => launch.tiled::<MfmaFp8Of16, MfmaFp8Of16>(),
        (MmaKind::Mfma32, Some(MmaKind::Mfma16)) if prefill.fp8_mma => launch.tiled::<MfmaFp8Of32, Mfma16>(),
        (MmaKind::Mfma32, _) if prefill.fp8_mma => launch.tiled::<MfmaFp8Of32, MfmaFp8Of32>(),
        (MmaKind::Mfma16, _) => launch.tiled::<Mfma16, Mfma16>(),
        (MmaKind::Mfma32, Some(MmaKind::Mfma16)) => launch.tiled::<Mfma32, Mfma16>(),
        (MmaKind::Mfma32, _) => launch.tiled::<Mfma32, Mfma32>(),
        (MmaKind::Scalar1, _) => launch.tiled::<Scalar1, Scalar1>(),
        (MmaKind::Scalar32, _) => launch.tiled::<Scalar32, Scalar32>(),
        (MmaKind::Scalar64, _) => launch.tiled::<Scalar64, Scalar64>(),
    }

    let (Some(merges), Some(workspace)) = (merges, workspace) else {
        return Ok(());
    };
    let vectors = vo / 4;
    let total = merge_count * kv_heads * merge_rows * vectors;
    let (cubes, dim) = elementwise(KERNEL, client, total)?;
    let params = CombineParamsLaunch::new(q_heads, kv_heads, merge_rows, total);
    // SAFETY: a unit beyond the last merge, or beyond its rows, stops. By the contract on plans a merge lies within its
    // request, and its chunks within the rows of the workspace, each of which a cube has written.
    unsafe {
        combine::launch_unchecked::<V>(
            client,
            cubes,
            dim,
            address,
            workspace.into_buffer_arg(),
            outputs(output, lse, None, partial_rows),
            merges.into_buffer_arg(),
            args(),
            params,
            vectors,
            problem.dtype,
        );
    }
    Ok(())
}
