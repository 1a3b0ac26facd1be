//! Launches of a mixture of experts.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn::tensor::Shape;
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_flashinfer_kernels::moe::{self, FusedMoe, Groups, Route, Score};

use super::activation::function;
use super::tensor::{dense, empty_like, in_rows, index, launched};
use crate::extension::MaybeFloats;
use crate::types::{Activation, RouterScore, RoutingParams};

/// `ops` checks against these.
const _: () = assert!(
    RoutingParams::MAX_EXPERTS == moe::MAX_EXPERTS
        && RoutingParams::MAX_TOP_K == moe::MAX_TOP_K
        && RoutingParams::MAX_GROUPS == moe::MAX_GROUPS
);

pub(super) fn route(
    logits: CubeTensor,
    bias: MaybeFloats<CubeBackend>,
    params: RoutingParams,
) -> (CubeTensor, CubeTensor) {
    let shape: Shape = [logits.meta.shape()[0], params.top_k].into();
    let weights = empty_like(&logits, shape.clone(), DType::F32);
    let experts = empty_like(&logits, shape, DType::I32);
    let (client, dtype) = (logits.client.clone(), dtype_to_storage_type(logits.dtype));
    let route = Route {
        logits: in_rows(logits).binding(),
        bias: dense(bias),
        weights: weights.clone().binding(),
        experts: experts.clone().binding(),
        score: match params.score {
            RouterScore::Softmax => Score::Softmax,
            RouterScore::Sigmoid => Score::Sigmoid,
        },
        groups: params.groups.map(|groups| Groups { count: groups.count, chosen: groups.chosen }),
        renormalise: params.renormalise,
        scale: params.scale,
    };
    launched(moe::route(&client, route, dtype));
    (weights, experts)
}

pub(super) fn fused_moe(
    x: CubeTensor,
    gate_up: CubeTensor,
    down: CubeTensor,
    weights: CubeTensor,
    experts: CubeTensor,
    activation: Activation,
) -> CubeTensor {
    let y = empty_like(&x, x.meta.shape().clone(), x.dtype);
    let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
    let moe = FusedMoe {
        x: in_rows(x).binding(),
        gate_up: in_rows(gate_up).binding(),
        down: in_rows(down).binding(),
        weights: into_contiguous(weights).binding(),
        experts: index(experts),
        y: y.clone().binding(),
        activation: function(activation),
    };
    launched(moe::launch(&client, moe, dtype));
    y
}
