//! Limits and element types of a device.

use std::cell::RefCell;

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn_cubecl::{CubeDevice, cubecl::ir::features::TypeUsage};
use burn_flashinfer_kernels::{Arch, Instruction, bits};

pub(crate) use burn_flashinfer_kernels::sampling::MAX_TOP_K;

/// The memory of a device, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct DeviceMemory {
    /// Bytes of one tensor.
    pub largest: u64,
    /// Bytes of all tensors together, if it is known.
    pub all: Option<u64>,
}

/// The limits that every operation compares with. CubeCL tells them under a lock that the device's thread takes as well.
#[derive(Clone, Copy)]
struct Limits {
    /// The types of [`FLOATS`] that it takes.
    floats: [bool; FLOATS.len()],
    memory: DeviceMemory,
}

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

impl Limits {
    /// The limits of a device, asked for once on each thread.
    fn of(device: &CubeDevice) -> Self {
        thread_local! {
            static KNOWN: RefCell<Vec<(CubeDevice, Limits)>> = const { RefCell::new(Vec::new()) };
        }
        let known = KNOWN
            .with_borrow(|known| known.iter().find(|(known, _)| known == device).map(|&(_, limits)| limits));
        known.unwrap_or_else(|| {
            let client = device.client();
            let properties = client.properties();
            let takes = |dtype| {
                let usage = properties.type_usage(dtype_to_storage_type(dtype));
                usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
            };
            let memory = DeviceMemory {
                largest: properties.memory.max_page_size,
                all: properties.memory.max_memory(),
            };
            let limits = Self { floats: FLOATS.map(takes), memory };
            KNOWN.with_borrow_mut(|known| known.push((device.clone(), limits)));
            limits
        })
    }
}

/// The element types that `device` takes instead, if it cannot take `dtype`.
///
/// The kernels load and store elements and convert them to f32, no more: so a device may take bf16 here although it has
/// no bf16 arithmetic.
pub(crate) fn unsupported_dtype(device: &CubeDevice, dtype: DType) -> Option<String> {
    let floats = || FLOATS.into_iter().zip(Limits::of(device).floats).filter(|&(_, taken)| taken);
    if floats().any(|(taken, _)| taken == dtype) {
        return None;
    }
    let others: Vec<_> = floats().map(|(dtype, _)| format!("{dtype:?}")).collect();
    Some(format!("{} on {device:?}", others.join(" or ")))
}

/// True if the fp8 formats of `device` are those without a negative zero.
pub(crate) fn has_fnuz(device: &CubeDevice) -> bool {
    Instruction::CvtFp8Fnuz.exists_on(Arch::of(&device.client()))
}

/// True if a kernel for `device` multiplies codes of e4m3.
pub(crate) fn multiplies_e4m3(device: &CubeDevice) -> bool {
    let arch = Arch::of(&device.client());
    Instruction::Wgmma.exists_on(arch) || Instruction::MfmaFp8.exists_on(arch)
}

/// True if `device` has integers of 64 bits.
pub(crate) fn has_wide_integers(device: &CubeDevice) -> bool {
    let client = device.client();
    client.properties().type_usage(dtype_to_storage_type(DType::U64)).contains(TypeUsage::Arithmetic)
}

/// The memory of `device`.
pub(crate) fn memory(device: &CubeDevice) -> DeviceMemory {
    Limits::of(device).memory
}

/// True if `device` has tensors of bytes.
pub(crate) fn has_bytes(device: &CubeDevice) -> bool {
    bits::has_bytes(&device.client())
}
