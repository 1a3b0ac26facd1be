//! Bad routers, experts and layers.

use burn::tensor::{DType, Device, Int, Tensor};
use burn_flashinfer::{Activation, MoeRouting, fused_moe, moe_route};

use super::{elsewhere, f64s, foreign, halves, zeros};
use crate::devices::{Target, device_tests};
use crate::support::refused;

device_tests!(routers, layers);

fn needs_no_gradient(op: &str, argument: &str) -> String {
    format!(
        "{op}: `{argument}` requires a gradient, expected a tensor without one: this operation has no backward pass (call \
         `.inner()` for inference)"
    )
}

fn routers(target: Target) {
    let device = &target.device;
    let route = |shape: [usize; 2], options| moe_route(zeros(shape, device), options);
    for experts in [0, 513] {
        refused(
            route([3, experts], MoeRouting::new(1)),
            format!("moe_route: `logits` has shape [3, {experts}], expected from 1 to 512 experts"),
        );
    }
    for (top_k, experts, most) in [(0, 8, 8), (9, 8, 8), (33, 64, 32)] {
        refused(
            route([3, experts], MoeRouting::new(top_k)),
            format!("moe_route: `top_k` is {top_k}, expected from 1 to {most}"),
        );
    }
    refused(route([3, 16], MoeRouting::new(5).groups(4, 1)), "moe_route: `top_k` is 5, expected from 1 to 4");
    for (count, experts) in [(0, 16), (3, 16), (64, 128)] {
        refused(
            route([3, experts], MoeRouting::new(1).groups(count, 1)),
            format!(
                "moe_route: `groups` is {count}, expected from 1 to 32 groups that divide {experts} experts"
            ),
        );
    }
    for chosen in [0, 5] {
        refused(
            route([3, 16], MoeRouting::new(1).groups(4, chosen)),
            format!("moe_route: `chosen groups` is {chosen}, expected from 1 to 4"),
        );
    }
    refused(
        route([3, 16], MoeRouting::new(1).scale(f32::INFINITY)),
        "moe_route: `scale` is inf, expected a finite number",
    );
    refused(
        route([3, 16], MoeRouting::new(1).correction_bias(zeros([15], device))),
        "moe_route: `correction_bias` has shape [15], expected [16], one for each expert",
    );
    refused(
        route([3, 16], MoeRouting::new(1).correction_bias(halves([16], device))),
        "moe_route: `correction_bias` is of type F16, expected F32",
    );
    if device.supports_dtype(DType::F64) {
        refused(
            moe_route(f64s([3, 16], device), MoeRouting::new(1)),
            "moe_route: `logits` is of type F64, expected F32, F16 or BF16",
        );
    }
    let autodiff = device.clone().autodiff();
    let logits = || zeros::<2>([3, 16], &autodiff);
    refused(moe_route(logits().require_grad(), MoeRouting::new(1)), needs_no_gradient("moe_route", "logits"));
    let bias = zeros::<1>([16], &autodiff).require_grad();
    refused(
        moe_route(logits(), MoeRouting::new(1).correction_bias(bias)),
        needs_no_gradient("moe_route", "correction_bias"),
    );
    let (weights, experts) = moe_route(logits(), MoeRouting::new(1)).expect("no gradient");
    assert!(weights.device().is_autodiff() && experts.device().is_autodiff());

    let Some(other) = foreign(&target) else { return };
    refused(
        route([3, 16], MoeRouting::new(1).correction_bias(zeros([16], &other))),
        elsewhere("moe_route", "correction_bias", &other, device),
    );
}

/// The arguments of a call: 4 experts of 6 gates for 3 tokens of 8 elements.
struct Layers {
    x: Tensor<2>,
    gate_up: Tensor<3>,
    down: Tensor<3>,
    weights: Tensor<2>,
    experts: Tensor<2, Int>,
}

impl Layers {
    fn new(device: &Device) -> Self {
        Self {
            x: zeros([3, 8], device),
            gate_up: zeros([4, 12, 8], device),
            down: zeros([4, 8, 6], device),
            weights: zeros([3, 2], device),
            experts: Tensor::zeros([3, 2], (device, DType::I32)),
        }
    }

    fn run(self) -> burn_flashinfer::Result<Tensor<2>> {
        let Self { x, gate_up, down, weights, experts } = self;
        fused_moe(x, gate_up, down, weights, experts, Activation::Silu)
    }
}

fn layers(target: Target) {
    let device = &target.device;
    let good = || Layers::new(device);
    for shape in [[4, 7, 6], [0, 8, 6], [4, 8, 0]] {
        refused(
            Layers { down: zeros(shape, device), ..good() }.run(),
            format!(
                "fused_moe: `down` has shape {shape:?}, expected [experts, 8, inter], as `x`, and no empty axis"
            ),
        );
    }
    for shape in [[4, 11, 8], [3, 12, 8], [4, 12, 7]] {
        refused(
            Layers { gate_up: zeros(shape, device), ..good() }.run(),
            format!("fused_moe: `gate_up` has shape {shape:?}, expected [4, 12, 8], as `x` and `down`"),
        );
    }
    for shape in [[2, 2], [3, 0]] {
        refused(
            Layers { experts: Tensor::zeros(shape, (device, DType::I32)), ..good() }.run(),
            format!(
                "fused_moe: `experts` has shape {shape:?}, expected [3, top_k], at least one for each token"
            ),
        );
    }
    refused(
        Layers { weights: zeros([3, 3], device), ..good() }.run(),
        "fused_moe: `weights` has shape [3, 3], expected [3, 2], as `experts`",
    );
    let other_type =
        |argument| format!("fused_moe: `{argument}` is of type F16, expected F32, as the other arguments");
    refused(Layers { gate_up: halves([4, 12, 8], device), ..good() }.run(), other_type("gate_up"));
    refused(Layers { down: halves([4, 8, 6], device), ..good() }.run(), other_type("down"));
    refused(
        Layers { weights: halves([3, 2], device), ..good() }.run(),
        "fused_moe: `weights` is of type F16, expected F32",
    );
    if device.supports_dtype(DType::F64) {
        refused(
            Layers { x: f64s([3, 8], device), ..good() }.run(),
            "fused_moe: `x` is of type F64, expected F32, F16 or BF16",
        );
    }
    let autodiff = device.clone().autodiff();
    let there = || Layers::new(&autodiff);
    let of = |argument| needs_no_gradient("fused_moe", argument);
    refused(Layers { x: there().x.require_grad(), ..there() }.run(), of("x"));
    refused(Layers { gate_up: there().gate_up.require_grad(), ..there() }.run(), of("gate_up"));
    refused(Layers { down: there().down.require_grad(), ..there() }.run(), of("down"));
    refused(Layers { weights: there().weights.require_grad(), ..there() }.run(), of("weights"));
    let y = there().run().expect("no gradient");
    assert!(y.device().is_autodiff() && !y.is_require_grad());

    let Some(other) = foreign(&target) else { return };
    let far = || Layers::new(&other);
    let away = |argument| elsewhere("fused_moe", argument, &other, device);
    refused(Layers { gate_up: far().gate_up, ..good() }.run(), away("gate_up"));
    refused(Layers { down: far().down, ..good() }.run(), away("down"));
    refused(Layers { weights: far().weights, ..good() }.run(), away("weights"));
    refused(Layers { experts: far().experts, ..good() }.run(), away("experts"));
}
