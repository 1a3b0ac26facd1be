//! Limits and element types of a device.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn_cubecl::{CubeDevice, cubecl::ir::features::TypeUsage};
use burn_flashinfer_kernels::{Arch, Instruction, bits};

pub(crate) use burn_flashinfer_kernels::sampling::MAX_TOP_K;

/// The memory of a device, in bytes.
pub(crate) struct DeviceMemory {
    /// Bytes of one tensor.
    pub largest: u64,
    /// Bytes of all tensors together, if it is known.
    pub all: Option<u64>,
}

/// The element types that `device` takes instead, if it cannot take `dtype`.
///
/// The kernels load and store elements and convert them to f32, no more: so a device may take bf16 here although it has
/// no bf16 arithmetic.
pub(crate) fn unsupported_dtype(device: &CubeDevice, dtype: DType) -> Option<String> {
    let client = device.client();
    let takes = |dtype| {
        let usage = client.properties().type_usage(dtype_to_storage_type(dtype));
        usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
    };
    if takes(dtype) {
        return None;
    }
    let others: Vec<_> = [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .filter(|&other| takes(other))
        .map(|dtype| format!("{dtype:?}"))
        .collect();
    Some(format!("{} on {device:?}", others.join(" or ")))
}

/// True if the fp8 formats of `device` are those without a negative zero.
pub(crate) fn has_fnuz(device: &CubeDevice) -> bool {
    Instruction::CvtFp8Fnuz.exists_on(Arch::of(&device.client()))
}

/// True if `device` has integers of 64 bits.
pub(crate) fn has_wide_integers(device: &CubeDevice) -> bool {
    let client = device.client();
    client.properties().type_usage(dtype_to_storage_type(DType::U64)).contains(TypeUsage::Arithmetic)
}

/// The memory of `device`.
pub(crate) fn memory(device: &CubeDevice) -> DeviceMemory {
    let client = device.client();
    let memory = &client.properties().memory;
    DeviceMemory { largest: memory.max_page_size, all: memory.max_memory() }
}

/// True if `device` has tensors of bytes.
pub(crate) fn has_bytes(device: &CubeDevice) -> bool {
    bits::has_bytes(&device.client())
}
