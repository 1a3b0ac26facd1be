//! The plans of the kernels, on devices of CubeCL.

use burn::backend::{DispatchDevice, cubecl::dtype_to_storage_type};
use burn::tensor::Device;
use burn_flashinfer_kernels::{
    DeviceProfile, Refusal,
    attention::{Alignment, Choice, HeadDims, Limits, Plan, Problem, RequestShape, Split},
};

use super::config::{KvSplit, PlanConfig};
use crate::extension::Launch;
use crate::types::PlannedKeys;

/// Plans a batch on a device of CubeCL; on another there is no plan. With `keys`, the largest number of keys,
/// it also returns the limits of plans of as many requests and queries. `launch` is the former choice, which
/// remains.
pub(super) fn plan(
    device: &Device,
    config: &PlanConfig,
    requests: &[RequestShape],
    launch: Option<&Launch>,
    keys: Option<usize>,
) -> Option<Result<(Plan, Option<Limits>), Refusal>> {
    let device = device.clone().inner();
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return None;
    };
    let profile = DeviceProfile::of(&device.client());
    // Rows as they lie in contiguous tensors: a tensor with others is copied.
    let aligned = |dim: usize| 1 << dim.trailing_zeros().min(6);
    let params = config.params();
    let problem = Problem {
        dims: HeadDims { qk: config.head_dim, vo: config.head_dim_v },
        dtype: dtype_to_storage_type(config.dtype),
        kv_dtype: dtype_to_storage_type(config.dtype),
        q_heads: config.q_heads,
        kv_heads: config.kv_heads,
        scale: params.variant.scale(),
        align: Alignment { qk: aligned(config.head_dim), vo: aligned(config.head_dim_v) },
    };
    let keys_of = PlannedKeys(&*params.variant);
    let split = match config.split {
        KvSplit::Auto => Split::Auto,
        KvSplit::Fixed(keys) => Split::Every(keys),
        KvSplit::Never => Split::Never,
    };
    let choice = launch.and_then(|launch| launch.blueprint).map_or(Choice::Auto, Choice::Exactly);
    Some(Plan::new(&profile, &problem, &keys_of, requests, choice, split).map(|plan| {
        let limits = keys.map(|keys| plan.limits(&profile, &problem, requests, keys, split));
        (plan, limits)
    }))
}
