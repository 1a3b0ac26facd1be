//! The plans of the kernels, on devices of CubeCL.

use burn::backend::{DispatchDevice, cubecl::dtype_to_storage_type};
use burn::tensor::Device;
use burn_flashinfer_kernels::{
    DeviceProfile, Instruction, Refusal,
    attention::{
        Alignment, Blueprint, Choice, Element, HeadDims, Limits, MergeItem, Plan, Problem, RequestShape,
        Split, Tiled, WorkItem,
    },
};

use super::config::{KvSplit, PlanConfig};
use crate::error::{Error, Result};
use crate::extension::Launch;
use crate::types::{AttentionParams, PlannedKeys};

/// A problem and its device, as the planner of the kernels takes them.
struct Question {
    profile: DeviceProfile,
    problem: Problem,
    params: AttentionParams,
    split: Split,
}

impl Question {
    /// None if the device is not one of CubeCL.
    fn new(device: &Device, config: &PlanConfig) -> Option<Self> {
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
            kv_dtype: match config.code {
                Some(format) => Element::Code(format.into()),
                None => Element::Number(dtype_to_storage_type(config.dtype)),
            },
            q_heads: config.q_heads,
            kv_heads: config.kv_heads,
            scale: params.variant.scale(),
            align: Alignment { qk: aligned(config.head_dim), vo: aligned(config.head_dim_v) },
            // Weights without a softmax may be beyond the largest code.
            fp8_mma: config.options.fp8_mma && params.variant.softmax(),
        };
        let split = match config.split {
            KvSplit::Auto => Split::Auto,
            KvSplit::Fixed(keys) => Split::Every(keys),
            KvSplit::Never => Split::Never,
        };
        Some(Self { profile, problem, params, split })
    }

    fn plan(&self, op: &'static str, requests: &[RequestShape], choice: Choice) -> Result<Plan> {
        let Self { profile, problem, params, split } = self;
        let planned = Plan::new(profile, problem, &PlannedKeys(&*params.variant), requests, choice, *split);
        planned.map_err(|refusal: Refusal| {
            let got = format!("more than a kernel can count ({refusal})");
            let expected = "fewer or shorter requests".into();
            Error::Value { op, argument: "batch", got, expected }
        })
    }
}

/// True if the device has kernels for queries of 16 bits that are faster over numbers than over codes: those of Hopper's
/// warpgroups do not read codes, and those of CDNA convert them for each tile of rows, unless they multiply codes.
pub(super) fn are_faster_over_numbers(config: &PlanConfig, device: &Device) -> bool {
    Question::new(device, config).is_some_and(|Question { profile, problem, .. }| {
        let has = |instruction: Instruction| instruction.exists_on(profile.arch);
        config.dtype.size() == 2
            && (has(Instruction::Wgmma) || has(Instruction::MfmaBf16))
            && !Tiled::multiplies_codes(&profile, &problem)
    })
}

/// Plans a batch on a device of CubeCL; on another there is no plan. A `blueprint` is the former choice, which remains.
pub(super) fn plan(
    op: &'static str,
    device: &Device,
    config: &PlanConfig,
    requests: &[RequestShape],
    blueprint: Option<Blueprint>,
) -> Result<Option<Plan>> {
    let choice = blueprint.map_or(Choice::Auto, Choice::Exactly);
    Question::new(device, config).map(|question| question.plan(op, requests, choice)).transpose()
}

/// The launch of every batch of up to so many requests, each of up to `queries` queries and `keys` keys.
pub(super) fn fixed_launch(
    op: &'static str,
    device: &Device,
    config: &PlanConfig,
    [requests, queries, keys]: [usize; 3],
) -> Result<Launch> {
    let Some(question) = Question::new(device, config) else { return Ok(Launch::default()) };
    let Question { profile, problem, split, .. } = &question;
    // A fixed split may be of very many chunks, and its blueprint does not depend on the keys.
    let longest = if matches!(split, Split::Every(_)) { 0 } else { keys };
    let shapes = RequestShape::following((0..requests).map(|_| (queries, longest)), 1);
    let plan = question.plan(op, &shapes, Choice::Auto)?;
    // Each request may be followed by one of the queries that it does not have.
    let shares = if queries > 1 { 2 * requests } else { requests };
    let shapes =
        RequestShape::following((0..shares).map(|at| (if at < requests { queries } else { 0 }, 0)), 1);
    let limits = plan.limits(profile, problem, &shapes, requests.saturating_mul(keys), *split);
    Ok(launch(plan.blueprint(), limits))
}

/// A launch of lists of these lengths.
pub(super) fn launch(blueprint: Blueprint, limits: Limits) -> Launch {
    Launch {
        work_items: 0..limits.work_items * WorkItem::WORDS,
        merges: 0..limits.merges * MergeItem::WORDS,
        merge_rows: limits.merge_rows,
        partial_rows: limits.partial_rows,
        blueprint: Some(blueprint),
        ..Launch::default()
    }
}
