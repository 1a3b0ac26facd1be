//! What the compiler wrote about the kernels of a code object: the map of the note `NT_AMDGPU_METADATA`,
//! see <https://llvm.org/docs/AMDGPUUsage.html#code-object-v5-metadata>.

use super::msgpack::Value;
use super::{Argument, ArgumentKind, HiddenKind, LoadError};

/// A kernel as the metadata describes it.
pub(super) struct KernelMetadata<'a> {
    pub(super) name: &'a str,
    /// Name of its descriptor.
    pub(super) symbol: &'a str,
    pub(super) kernarg_size: u32,
    pub(super) group_segment_size: u32,
    pub(super) private_segment_size: u32,
    pub(super) wavefront_size: u32,
    pub(super) max_flat_workgroup_size: u32,
    pub(super) arguments: Vec<Argument>,
    pub(super) hidden: Vec<(HiddenKind, u32)>,
}

pub(super) fn kernels(note: &[u8]) -> Result<Vec<KernelMetadata<'_>>, LoadError> {
    let root = Value::parse(note).ok_or(LoadError::Metadata("not MessagePack"))?;
    let kernels = root.get("amdhsa.kernels").and_then(Value::array);
    kernels.ok_or(LoadError::Metadata("no amdhsa.kernels"))?.iter().map(kernel).collect()
}

fn kernel<'a>(kernel: &Value<'a>) -> Result<KernelMetadata<'a>, LoadError> {
    let text = |key| kernel.get(key).and_then(Value::text).ok_or(LoadError::Metadata(key));
    let integer = |key| kernel.get(key).and_then(Value::integer).ok_or(LoadError::Metadata(key));
    let mut arguments = Vec::new();
    let mut hidden = Vec::new();
    for argument in kernel.get(".args").and_then(Value::array).unwrap_or_default() {
        let integer = |key| argument.get(key).and_then(Value::integer).ok_or(LoadError::Metadata(key));
        let kind = argument.get(".value_kind").and_then(Value::text);
        let kind = kind.ok_or(LoadError::Metadata(".value_kind"))?;
        let offset = integer(".offset")?;
        if let Some(kind) = kind.strip_prefix("hidden_") {
            hidden.push((hidden_kind(kind)?, offset));
        } else {
            arguments.push(Argument { offset, size: integer(".size")?, kind: argument_kind(kind)? });
        }
    }
    Ok(KernelMetadata {
        name: text(".name")?,
        symbol: text(".symbol")?,
        kernarg_size: integer(".kernarg_segment_size")?,
        group_segment_size: integer(".group_segment_fixed_size")?,
        private_segment_size: integer(".private_segment_fixed_size")?,
        wavefront_size: integer(".wavefront_size")?,
        max_flat_workgroup_size: integer(".max_flat_workgroup_size")?,
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
