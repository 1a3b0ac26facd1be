//! Bad arguments of softmax and sampling.

use burn::tensor::{DType, Device, Int, Tensor};
use burn_flashinfer::sampling::{
    DrawKey, Draws, FilterOrder, Penalties, apply_penalties, chain_speculative_sampling,
    min_p_sampling_from_probs, sampling_from_logits, sampling_from_probs, softmax, top_k, top_k_mask_logits,
    top_k_renorm_probs, top_k_sampling_from_probs, top_k_top_p_sampling_from_logits,
    top_k_top_p_sampling_from_probs, top_p_renorm_probs, top_p_sampling_from_probs,
};

use super::{elsewhere, f64s, foreign, halves, zeros};
use crate::devices::{Target, device_tests};
use crate::support::refused;

device_tests!(
    types,
    shapes,
    the_most_likely,
    the_largest,
    penalties,
    speculative,
    draws,
    mixed_devices,
    gradients
);

fn k(rows: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::ones([rows], (device, DType::I32))
}

fn types(target: Target) {
    let device = &target.device;
    let draws = Draws::new(1, 0, 2, device).expect("rows fit");
    let (z, z1) = (|| zeros([2, 8], device), || zeros([2], device));
    let (h, h1) = (|| halves([2, 8], device), || halves([2], device));
    let f32s = |op: &str, argument: &str| format!("{op}: `{argument}` is of type F16, expected F32");
    refused(sampling_from_probs(h(), &draws), f32s("sampling_from_probs", "probs"));
    refused(top_k_sampling_from_probs(h(), k(2, device), &draws), f32s("top_k_sampling_from_probs", "probs"));
    refused(top_p_sampling_from_probs(z(), h1(), &draws), f32s("top_p_sampling_from_probs", "top_p"));
    refused(min_p_sampling_from_probs(z(), h1(), &draws), f32s("min_p_sampling_from_probs", "min_p"));
    refused(softmax(h(), Some(h1())), f32s("softmax", "temperature"));
    refused(sampling_from_logits(h(), Some(h1()), &draws), f32s("sampling_from_logits", "temperature"));
    if target.device.supports_dtype(DType::F64) {
        let d = || f64s([2, 8], device);
        let message = |op: &str, argument: &str| {
            format!("{op}: `{argument}` is of type F64, expected F32, F16 or BF16")
        };
        refused(softmax(d(), None), message("softmax", "logits"));
        refused(sampling_from_logits(d(), None, &draws), message("sampling_from_logits", "logits"));
        refused(top_p_sampling_from_probs(d(), z1(), &draws), message("top_p_sampling_from_probs", "probs"));
    }
}

fn shapes(target: Target) {
    let device = &target.device;
    let draws = Draws::new(1, 0, 2, device).expect("rows fit");
    let (z, short) = (|| zeros([2, 8], device), || zeros([1], device));
    let message = |op: &str, argument: &str| {
        format!("{op}: `{argument}` has shape [1], expected [2], one for each row")
    };
    refused(
        top_k_sampling_from_probs(z(), k(1, device), &draws),
        message("top_k_sampling_from_probs", "top_k"),
    );
    refused(top_p_sampling_from_probs(z(), short(), &draws), message("top_p_sampling_from_probs", "top_p"));
    refused(min_p_sampling_from_probs(z(), short(), &draws), message("min_p_sampling_from_probs", "min_p"));
    refused(softmax(z(), Some(short())), message("softmax", "temperature"));
    refused(sampling_from_logits(z(), Some(short()), &draws), message("sampling_from_logits", "temperature"));
    let message = |op: &str, argument: &str| {
        format!("{op}: `{argument}` has shape [2, 0], expected from 1 to i32::MAX tokens")
    };
    let empty = || zeros([2, 0], device);
    refused(softmax(empty(), None), message("softmax", "logits"));
    refused(sampling_from_logits(empty(), None, &draws), message("sampling_from_logits", "logits"));
    refused(sampling_from_probs(empty(), &draws), message("sampling_from_probs", "probs"));
    refused(
        sampling_from_probs(zeros([1, (1 << 22) + 1], device), &draws),
        "sampling_from_probs: `probs` has shape [1, 4194305], expected at most 4194304 tokens",
    );
}

const ORDERS: [FilterOrder; 2] = [FilterOrder::TopKFirst, FilterOrder::Joint];

fn the_most_likely(target: Target) {
    let device = &target.device;
    let draws = Draws::new(1, 0, 2, device).expect("rows fit");
    let (z, z1, short) = (|| zeros([2, 8], device), || zeros([2], device), || zeros([1], device));
    let (h, h1, k2) = (|| halves([2, 8], device), || halves([2], device), || k(2, device));
    let each = |op: &str, argument: &str| {
        format!("{op}: `{argument}` has shape [1], expected [2], one for each row")
    };
    refused(top_k_mask_logits(z(), k(1, device)), each("top_k_mask_logits", "top_k"));
    refused(top_k_renorm_probs(z(), k(1, device)), each("top_k_renorm_probs", "top_k"));
    refused(top_p_renorm_probs(z(), short()), each("top_p_renorm_probs", "top_p"));
    let f32s = |op: &str, argument: &str| format!("{op}: `{argument}` is of type F16, expected F32");
    refused(top_k_renorm_probs(h(), k2()), f32s("top_k_renorm_probs", "probs"));
    refused(top_p_renorm_probs(h(), z1()), f32s("top_p_renorm_probs", "probs"));
    refused(top_p_renorm_probs(z(), h1()), f32s("top_p_renorm_probs", "top_p"));
    for order in ORDERS {
        let op = "top_k_top_p_sampling_from_probs";
        let run = |probs, top_k, top_p| top_k_top_p_sampling_from_probs(probs, top_k, top_p, order, &draws);
        refused(run(h(), k2(), z1()), f32s(op, "probs"));
        refused(run(z(), k(1, device), z1()), each(op, "top_k"));
        refused(run(z(), k2(), short()), each(op, "top_p"));
        refused(run(z(), k2(), h1()), f32s(op, "top_p"));
        let op = "top_k_top_p_sampling_from_logits";
        let run = |logits, t, top_k, top_p| {
            top_k_top_p_sampling_from_logits(logits, t, top_k, top_p, order, &draws)
        };
        refused(run(h(), Some(short()), k2(), z1()), each(op, "temperature"));
        refused(run(h(), None, k(1, device), z1()), each(op, "top_k"));
        refused(run(h(), None, k2(), h1()), f32s(op, "top_p"));
        let empty = format!("{op}: `logits` has shape [2, 0], expected from 1 to i32::MAX tokens");
        refused(run(zeros([2, 0], device), None, k2(), z1()), empty);
    }
    let empty = || zeros([2, 0], device);
    let message = |op: &str, argument: &str| {
        format!("{op}: `{argument}` has shape [2, 0], expected from 1 to i32::MAX tokens")
    };
    refused(top_k_mask_logits(empty(), k2()), message("top_k_mask_logits", "logits"));
    refused(top_k_renorm_probs(empty(), k2()), message("top_k_renorm_probs", "probs"));
    refused(top_p_renorm_probs(empty(), z1()), message("top_p_renorm_probs", "probs"));
    let Some(other) = foreign(&target) else { return };
    let elsewhere = |op: &str, argument: &str| elsewhere(op, argument, &other, device);
    refused(top_k_mask_logits(z(), k(2, &other)), elsewhere("top_k_mask_logits", "top_k"));
    refused(top_k_renorm_probs(z(), k(2, &other)), elsewhere("top_k_renorm_probs", "top_k"));
    refused(top_p_renorm_probs(z(), zeros([2], &other)), elsewhere("top_p_renorm_probs", "top_p"));
}

fn the_largest(target: Target) {
    let device = &target.device;
    let z = || zeros([2, 8], device);
    for k in [0, 9] {
        let message = format!("top_k: `k` is {k}, expected from 1 to 8, the numbers of a row");
        refused(top_k(z(), k), message);
    }
    let empty = "top_k: `x` has shape [2, 0], expected from 1 to i32::MAX tokens";
    refused(top_k(zeros([2, 0], device), 1), empty);
    if target.name != "flex" {
        let message = format!("top_k: `k` is 2049, expected at most 2048 on {device:?}");
        refused(top_k(zeros([2, 3000], device), 2049), message);
    }
    if device.supports_dtype(DType::F64) {
        refused(top_k(f64s([2, 8], device), 1), "top_k: `x` is of type F64, expected F32, F16 or BF16");
    }
}

fn penalties(target: Target) {
    let device = &target.device;
    let counts = |device| Tensor::<2, Int>::zeros([2, 8], (device, DType::I32));
    let of = |device| Penalties {
        prompt: counts(device),
        output: counts(device),
        repetition: zeros([2], device),
        frequency: zeros([2], device),
        presence: zeros([2], device),
    };
    let z = || zeros([2, 8], device);
    let op = "apply_penalties";
    let short = || zeros([1], device);
    for (argument, penalties) in [
        ("repetition", Penalties { repetition: short(), ..of(device) }),
        ("frequency", Penalties { frequency: short(), ..of(device) }),
        ("presence", Penalties { presence: short(), ..of(device) }),
    ] {
        let message = format!("{op}: `{argument}` has shape [1], expected [2], one for each row");
        refused(apply_penalties(z(), &penalties), message);
    }
    let few = || Tensor::<2, Int>::zeros([2, 7], (device, DType::I32));
    for (argument, penalties) in [
        ("prompt", Penalties { prompt: few(), ..of(device) }),
        ("output", Penalties { output: few(), ..of(device) }),
    ] {
        let message = format!("{op}: `{argument}` has shape [2, 7], expected [2, 8], as `logits`");
        refused(apply_penalties(z(), &penalties), message);
    }
    refused(
        apply_penalties(z(), &Penalties { presence: halves([2], device), ..of(device) }),
        "apply_penalties: `presence` is of type F16, expected F32",
    );
    refused(
        apply_penalties(zeros([2, 0], device), &of(device)),
        "apply_penalties: `logits` has shape [2, 0], expected from 1 to i32::MAX tokens",
    );
    let Some(other) = foreign(&target) else { return };
    let elsewhere = |argument: &str| elsewhere(op, argument, &other, device);
    let penalties = Penalties { output: counts(&other), ..of(device) };
    refused(apply_penalties(z(), &penalties), elsewhere("output"));
    let penalties = Penalties { frequency: zeros([2], &other), ..of(device) };
    refused(apply_penalties(z(), &penalties), elsewhere("frequency"));
}

fn speculative(target: Target) {
    let device = &target.device;
    let op = "chain_speculative_sampling";
    let run = |draft: [usize; 3], ids: [usize; 2], judge: [usize; 3], draws: &Draws| {
        let ids = Tensor::<2, Int>::zeros(ids, (device, DType::I32));
        chain_speculative_sampling(zeros(draft, device), ids, zeros(judge, device), draws)
    };
    let draws = Draws::new(1, 0, 2, device).expect("rows fit");
    for (draft, ids, judge, message) in [
        ([2, 3, 8], [2, 4], [2, 4, 8], "`draft_ids` has shape [2, 4], expected [2, 3], as `draft_probs`"),
        (
            [2, 3, 8],
            [2, 3],
            [2, 3, 8],
            "`target_probs` has shape [2, 3, 8], expected [2, 4, 8], one token more than `draft_probs`",
        ),
        (
            [2, 0, 8],
            [2, 0],
            [2, 1, 8],
            "`draft_probs` has shape [2, 0, 8], expected at least 1 drafted token, and from 1 to 4194304 in the vocabulary",
        ),
        (
            [2, 3, 0],
            [2, 3],
            [2, 4, 0],
            "`draft_probs` has shape [2, 3, 0], expected at least 1 drafted token, and from 1 to 4194304 in the vocabulary",
        ),
    ] {
        refused(run(draft, ids, judge, &draws), format!("{op}: {message}"));
    }
    let twice = DrawKey::default();
    for (draws, count) in [(Draws::new(1, 0, 3, device), 3), (Draws::from_keys(&[twice, twice], device), 2)] {
        let message =
            format!("{op}: `draws` is {count} draws, expected one from each of 2 requests, in order");
        refused(run([2, 3, 8], [2, 3], [2, 4, 8], &draws.expect("rows fit")), message);
    }
    let ids = || Tensor::<2, Int>::zeros([2, 3], (device, DType::I32));
    refused(
        chain_speculative_sampling(halves([2, 3, 8], device), ids(), zeros([2, 4, 8], device), &draws),
        format!("{op}: `draft_probs` is of type F16, expected F32"),
    );
    refused(
        chain_speculative_sampling(zeros([2, 3, 8], device), ids(), halves([2, 4, 8], device), &draws),
        format!("{op}: `target_probs` is of type F16, expected F32"),
    );
    let Some(other) = foreign(&target) else { return };
    refused(
        chain_speculative_sampling(zeros([2, 3, 8], device), ids(), zeros([2, 4, 8], &other), &draws),
        elsewhere(op, "target_probs", &other, device),
    );
}

fn draws(target: Target) {
    let device = &target.device;
    let key = |row| DrawKey { row, ..DrawKey::default() };
    let draws = Draws::from_keys(&[key(0), key(2), key(1)], device).expect("rows fit");
    let message = |op: &str| format!("{op}: `draws` is up to row 2, expected below 2, the rows there are");
    let z = || zeros([2, 8], device);
    refused(sampling_from_probs(z(), &draws), message("sampling_from_probs"));
    refused(sampling_from_logits(z(), None, &draws), message("sampling_from_logits"));
    refused(
        Draws::from_keys(&[key(0), key(1 << 31)], device),
        "Draws::from_keys: `keys[1]` is 2147483648, expected at most 2147483647",
    );
}

fn mixed_devices(target: Target) {
    let device = &target.device;
    let Some(other) = foreign(&target) else { return };
    let [near, far] = [device, &other].map(|device| Draws::new(1, 0, 2, device).expect("rows fit"));
    let z = || zeros([2, 8], device);
    let elsewhere = |op: &str, argument: &str| elsewhere(op, argument, &other, device);
    refused(sampling_from_probs(z(), &far), elsewhere("sampling_from_probs", "draws"));
    refused(sampling_from_logits(z(), None, &far), elsewhere("sampling_from_logits", "draws"));
    refused(
        top_k_sampling_from_probs(z(), k(2, &other), &near),
        elsewhere("top_k_sampling_from_probs", "top_k"),
    );
    refused(
        top_p_sampling_from_probs(z(), zeros([2], &other), &near),
        elsewhere("top_p_sampling_from_probs", "top_p"),
    );
    refused(softmax(z(), Some(zeros([2], &other))), elsewhere("softmax", "temperature"));
}

fn gradients(target: Target) {
    let device = &target.device.clone().autodiff();
    let draws = Draws::new(1, 0, 2, device).expect("rows fit");
    let message = |op: &str, argument: &str| {
        format!(
            "{op}: `{argument}` requires a gradient, expected a tensor without one: this operation has no \
             backward pass (call `.inner()` for inference)"
        )
    };
    let (z, g) = (|| Tensor::<2>::ones([2, 8], device), || Tensor::<2>::ones([2, 8], device).require_grad());
    let g1 = || Tensor::<1>::ones([2], device).require_grad();
    refused(softmax(g(), None), message("softmax", "logits"));
    refused(softmax(z(), Some(g1())), message("softmax", "temperature"));
    refused(sampling_from_logits(g(), None, &draws), message("sampling_from_logits", "logits"));
    refused(sampling_from_probs(g(), &draws), message("sampling_from_probs", "probs"));
    refused(top_p_sampling_from_probs(z(), g1(), &draws), message("top_p_sampling_from_probs", "top_p"));
    refused(top_k_mask_logits(g(), k(2, device)), message("top_k_mask_logits", "logits"));
    refused(top_k(g(), 2), message("top_k", "x"));
    refused(top_k_renorm_probs(g(), k(2, device)), message("top_k_renorm_probs", "probs"));
    refused(top_p_renorm_probs(z(), g1()), message("top_p_renorm_probs", "top_p"));
    for order in ORDERS {
        let (k, p) = (|| k(2, device), || Tensor::<1>::ones([2], device));
        refused(
            top_k_top_p_sampling_from_logits(g(), None, k(), p(), order, &draws),
            message("top_k_top_p_sampling_from_logits", "logits"),
        );
        refused(
            top_k_top_p_sampling_from_probs(z(), k(), g1(), order, &draws),
            message("top_k_top_p_sampling_from_probs", "top_p"),
        );
        let _ = top_k_top_p_sampling_from_probs(z(), k(), p(), order, &draws).expect("it fits");
    }
    let (values, ids) = top_k(z(), 2).expect("it fits");
    assert!(values.device().is_autodiff() && !values.is_require_grad());
    assert_eq!(ids.into_data().iter::<i32>().collect::<Vec<_>>(), [0, 1, 0, 1], "{}", target.name);
    assert!(top_k_mask_logits(z(), k(2, device)).expect("it fits").device().is_autodiff());
    // Without one they run as on the device inside.
    let plain = &target.device;
    let inside = Draws::new(1, 0, 2, plain).expect("rows fit");
    let outside = sampling_from_logits(z(), None, &draws).expect("it fits").ids;
    let inside = sampling_from_logits(Tensor::ones([2, 8], plain), None, &inside).expect("it fits").ids;
    assert_eq!(outside.into_data(), inside.into_data(), "{}", target.name);
    let outside = min_p_sampling_from_probs(z(), Tensor::ones([2], device), &draws).expect("it fits");
    let draws = Draws::new(1, 0, 2, plain).expect("rows fit");
    let ones = Tensor::ones([2, 8], plain);
    let inside = min_p_sampling_from_probs(ones, Tensor::ones([2], plain), &draws).expect("it fits");
    assert_eq!(outside.ids.into_data(), inside.ids.into_data(), "{}", target.name);
    let probs = softmax(z(), None).expect("it fits");
    assert!(probs.device().is_autodiff() && !probs.is_require_grad());
}
