//! What the compiler wrote about the kernels of a code object: the map of the note `NT_AMDGPU_METADATA`,
//! see <https://llvm.org/docs/AMDGPUUsage.html#code-object-v5-metadata>.

use rmpv::Value;
use rmpv::decode::read_value_with_max_depth;

use super::{Argument, ArgumentKind, HiddenKind, LoadError};

/// A kernel as the metadata describes it.
pub(super) struct KernelMetadata {
    pub(super) name: String,
    /// Name of its descriptor.
    pub(super) symbol: String,
    pub(super) kernarg_size: u32,
    pub(super) group_segment_size: u32,
    pub(super) private_segment_size: u32,
    pub(super) wavefront_size: u32,
    pub(super) max_flat_workgroup_size: u32,
    pub(super) arguments: Vec<Argument>,
    pub(super) hidden: Vec<(HiddenKind, u32)>,
}

pub(super) fn kernels(mut note: &[u8]) -> Result<Vec<KernelMetadata>, LoadError> {
    // The metadata nests four deep; a limit keeps a damaged file from using up the stack.
    let root =
        read_value_with_max_depth(&mut note, 32).map_err(|_| LoadError::Metadata("not MessagePack"))?;
    let kernels = root["amdhsa.kernels"].as_array();
    kernels.ok_or(LoadError::Metadata("no amdhsa.kernels"))?.iter().map(kernel).collect()
}

fn text<'a>(value: &'a Value, key: &'static str) -> Result<&'a str, LoadError> {
    value[key].as_str().ok_or(LoadError::Metadata(key))
}

fn integer(value: &Value, key: &'static str) -> Result<u32, LoadError> {
    value[key].as_u64().and_then(|value| value.try_into().ok()).ok_or(LoadError::Metadata(key))
}

fn kernel(kernel: &Value) -> Result<KernelMetadata, LoadError> {
    let mut arguments = Vec::new();
    let mut hidden = Vec::new();
    for argument in kernel[".args"].as_array().into_iter().flatten() {
        let (kind, offset) = (text(argument, ".value_kind")?, integer(argument, ".offset")?);
        if let Some(kind) = kind.strip_prefix("hidden_") {
            hidden.push((hidden_kind(kind)?, offset));
        } else {
            arguments.push(Argument {
                offset,
                size: integer(argument, ".size")?,
                kind: argument_kind(kind)?,
            });
        }
    }
    Ok(KernelMetadata {
        name: text(kernel, ".name")?.into(),
        symbol: text(kernel, ".symbol")?.into(),
        kernarg_size: integer(kernel, ".kernarg_segment_size")?,
        group_segment_size: integer(kernel, ".group_segment_fixed_size")?,
        private_segment_size: integer(kernel, ".private_segment_fixed_size")?,
        wavefront_size: integer(kernel, ".wavefront_size")?,
        max_flat_workgroup_size: integer(kernel, ".max_flat_workgroup_size")?,
        arguments,
        hidden,
    })
}

fn argument_kind(kind: &str) -> Result<ArgumentKind, LoadError> {
    Ok(match kind {
        "by_value" => ArgumentKind::Value,
        "global_buffer" => ArgumentKind::Buffer,
        _ => return Err(LoadError::UnsupportedArgument(kind.into())),
    })
}

fn hidden_kind(kind: &str) -> Result<HiddenKind, LoadError> {
    use HiddenKind as Kind;
    Ok(match kind {
        "none" => Kind::None,
        "block_count_x" => Kind::BlockCountX,
        "block_count_y" => Kind::BlockCountY,
        "block_count_z" => Kind::BlockCountZ,
        "group_size_x" => Kind::GroupSizeX,
        "group_size_y" => Kind::GroupSizeY,
        "group_size_z" => Kind::GroupSizeZ,
        "remainder_x" => Kind::RemainderX,
        "remainder_y" => Kind::RemainderY,
        "remainder_z" => Kind::RemainderZ,
        "global_offset_x" => Kind::GlobalOffsetX,
        "global_offset_y" => Kind::GlobalOffsetY,
        "global_offset_z" => Kind::GlobalOffsetZ,
        "grid_dims" => Kind::GridDims,
        "printf_buffer" => Kind::PrintfBuffer,
        "hostcall_buffer" => Kind::HostcallBuffer,
        "heap_v1" => Kind::Heap,
        "default_queue" => Kind::DefaultQueue,
        "completion_action" => Kind::CompletionAction,
        "multigrid_sync_arg" => Kind::MultigridSync,
        "dynamic_lds_size" => Kind::DynamicLdsSize,
        "private_base" => Kind::PrivateBase,
        "shared_base" => Kind::SharedBase,
        "queue_ptr" => Kind::QueuePtr,
        _ => return Err(LoadError::UnsupportedArgument(format!("hidden_{kind}"))),
    })
}
