//! Variants of the caller's, whose two halves must say the same on every device.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, AttentionVariant, InputLengths, KvLayout, KvPages, KvSplit, Request, Row,
    SharedVariant, VariantInputs, cascade_attention, single_prefill,
};

use crate::cascade::{cascade, sharing};
use crate::devices::{Target, device_tests};
use crate::problem::Case;
use crate::setting::{Setting, Tensors, got};
use crate::support::{Host, Rng, refused};

device_tests!(
    every_hook_says_the_same_on_every_device,
    without_a_softmax,
    the_identity_for_values_gives_the_weights,
    a_cascade_without_a_softmax,
    long_requests_of_a_variant,
    what_a_variant_cannot_do_is_refused
);

/// Every hook at once: a bias by distance and head, single keys masked by request, an initial `(m, l)`, and a factor on
/// the output. Its tensors are a slope, a sink and a factor of each query head, and a number of each request.
#[derive(Debug, Clone, Copy)]
struct Everything {
    scale: f32,
    q_heads: usize,
    causal: bool,
    window_left: Option<usize>,
    sinks: bool,
}

impl AttentionVariant for Everything {
    fn scale(&self) -> f32 {
        self.scale
    }

    fn keys(&self, request: &Request, query: usize) -> Range<usize> {
        request.causal_window(query, self.causal, self.window_left)
    }

    fn logit(&self, product: f64, row: &Row<'_>, key: usize) -> f64 {
        product - f64::from(row.floats[row.q_head]) * (row.position() - key as i64).abs() as f64
    }

    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        !(key + row.query + row.ints[row.request.index] as usize).is_multiple_of(3)
    }

    fn input_lengths(&self, q_heads: usize) -> InputLengths {
        InputLengths { floats: Some(3 * q_heads), ints: None }
    }

    fn start(&self, row: &Row<'_>) -> (f64, f64) {
        let sink = f64::from(row.floats[self.q_heads + row.q_head]);
        if self.sinks { (sink, 1.0) } else { (f64::NEG_INFINITY, 0.0) }
    }

    fn finish(&self, output: f64, row: &Row<'_>) -> f64 {
        output * f64::from(row.floats[2 * self.q_heads + row.q_head])
    }

    #[cfg(feature = "cube")]
    fn kernels(&self) -> Option<&dyn burn_flashinfer::kernels::Kernels> {
        Some(self)
    }
}

#[cfg(feature = "cube")]
mod device {
    use burn_flashinfer::kernels::cubecl::{self, prelude::*};
    use burn_flashinfer::kernels::{
        Call, CausalWindow, Inputs, Kernels, Math, QueryRow, RequestShape, Result, Variant,
    };

    use super::{Everything, Sigmoid};

    #[derive(CubeType, CubeLaunch)]
    pub struct Args {
        floats: Box<[f32]>,
        ints: Box<[i32]>,
        scale: f32,
        q_heads: usize,
        sinks: u32,
        mask: CausalWindow,
    }

    #[cube]
    impl Variant for Everything {
        type Args = Args;

        fn scale(args: &Args) -> f32 {
            args.scale
        }

        fn keys(args: &Args, request: &RequestShape, query: usize) -> (usize, usize) {
            args.mask.keys(request, query)
        }

        fn logit<M: Math>(args: &Args, product: f32, row: &QueryRow, key: usize) -> f32 {
            product - args.floats[row.q_head] * f32::cast_from((row.position() - key as i32).abs())
        }

        fn keep(args: &Args, row: &QueryRow, key: usize) -> bool {
            !(key + row.query + args.ints[row.request] as usize).is_multiple_of(3usize)
        }

        fn start(args: &Args, row: &QueryRow) -> (f32, f32) {
            let sink = args.floats[args.q_heads + row.q_head];
            let has = args.sinks == 1;
            (select(has, sink, f32::NEG_INFINITY), select(has, 1.0f32, 0.0f32))
        }

        fn finish(args: &Args, output: f32, row: &QueryRow) -> f32 {
            output * args.floats[2 * args.q_heads + row.q_head]
        }
    }

    impl Kernels for Everything {
        fn launch(&self, call: Call<'_>) -> Result<()> {
            let Inputs { floats: Some(floats), ints: Some(ints), .. } = call.inputs().clone() else {
                panic!("the tests give both tensors");
            };
            let mask = CausalWindow::new(self.causal, self.window_left);
            let args = || {
                let [floats, ints] = [&floats, &ints].map(|tensor| tensor.clone().into_buffer_arg());
                ArgsLaunch::new(floats, ints, self.scale, self.q_heads, self.sinks.into(), mask.launch())
            };
            // SAFETY: `Everything::setting` gives each head three floats, and each request an integer.
            unsafe { call.run::<Self>(args) }
        }
    }

    #[derive(CubeType, CubeLaunch)]
    pub struct SigmoidArgs {
        scale: f32,
        bias: f32,
        masks_keys: u32,
        mask: CausalWindow,
    }

    #[cube]
    impl Variant for Sigmoid {
        type Args = SigmoidArgs;
        const SOFTMAX: bool = false;

        fn scale(_args: &SigmoidArgs) -> f32 {
            1.0f32
        }

        fn keys(args: &SigmoidArgs, request: &RequestShape, query: usize) -> (usize, usize) {
            args.mask.keys(request, query)
        }

        fn logit<M: Math>(args: &SigmoidArgs, product: f32, _row: &QueryRow, _key: usize) -> f32 {
            let logit = product * args.scale + args.bias;
            1.0f32 / (1.0f32 + M::exp2(-logit * std::f32::consts::LOG2_E))
        }

        fn keep(args: &SigmoidArgs, row: &QueryRow, key: usize) -> bool {
            !(args.masks_keys == 1 && key == 2 * row.query)
        }
    }

    impl Kernels for Sigmoid {
        fn launch(&self, call: Call<'_>) -> Result<()> {
            let mask = CausalWindow::new(self.causal, self.window_left);
            let args =
                || SigmoidArgsLaunch::new(self.scale, self.bias, self.masks_keys.into(), mask.launch());
            // SAFETY: no hook indexes a tensor.
            unsafe { call.run::<Self>(args) }
        }
    }
}

impl Everything {
    fn setting(label: &str, case: &Case, sinks: bool) -> Setting {
        let rng = &mut Rng::new(&format!("{label} {sinks}"));
        let q_heads = case.kv_heads * case.group;
        let mut floats: Vec<f32> = (0..q_heads).map(|_| 0.05 * rng.normal().abs()).collect();
        floats.extend((0..2 * q_heads).map(|_| rng.normal()));
        let variant = Everything {
            scale: 1.0 / (case.dim as f32).sqrt(),
            q_heads,
            causal: case.causal,
            window_left: case.window,
            sinks,
        };
        let ints = case.lengths.iter().map(|_| rng.below(100) as i32).collect();
        Setting {
            problem: case.problem(label),
            options: AttentionOptions::new().variant(variant).return_lse(true),
            tensors: Tensors { floats, ints, ..Tensors::default() },
        }
    }
}

/// Sigmoid attention: `p = σ(scale q·k + bias)`, which nothing normalises.
#[derive(Debug, Clone, Copy)]
struct Sigmoid {
    scale: f32,
    bias: f32,
    causal: bool,
    window_left: Option<usize>,
    /// Masks single keys, by their places in the request.
    masks_keys: bool,
}

impl AttentionVariant for Sigmoid {
    fn scale(&self) -> f32 {
        1.0
    }

    fn softmax(&self) -> bool {
        false
    }

    fn keys(&self, request: &Request, query: usize) -> Range<usize> {
        request.causal_window(query, self.causal, self.window_left)
    }

    fn logit(&self, product: f64, _row: &Row<'_>, _key: usize) -> f64 {
        1.0 / (1.0 + (-(product * f64::from(self.scale) + f64::from(self.bias))).exp())
    }

    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        !(self.masks_keys && key == 2 * row.query)
    }

    fn over_shared(&self) -> Option<SharedVariant> {
        Some(SharedVariant::new(Self { causal: false, window_left: None, ..*self }))
    }

    #[cfg(feature = "cube")]
    fn kernels(&self) -> Option<&dyn burn_flashinfer::kernels::Kernels> {
        Some(self)
    }
}

impl Sigmoid {
    fn setting(label: &str, case: &Case) -> Setting {
        let variant = Sigmoid {
            scale: 1.0 / (case.dim as f32).sqrt(),
            bias: -1.0,
            causal: case.causal,
            window_left: case.window,
            masks_keys: true,
        };
        Setting {
            problem: case.problem(label),
            options: AttentionOptions::new().variant(variant),
            tensors: Tensors::default(),
        }
    }
}

/// Decoding and prefill, ragged and in pages, alone and split, of heads that matrix cores take and of heads that none takes.
fn every_hook_says_the_same_on_every_device(target: Target) {
    for dtype in target.dtypes() {
        let lengths: &[(usize, usize)] = &[(1, 70), (5, 5), (1, 0), (0, 9), (37, 150)];
        let masks = [(false, None), (true, None), (true, Some(19))];
        let cases = [64, 40].into_iter().flat_map(|dim| masks.map(move |mask| (dim, mask))).collect();
        for (dim, (causal, window)) in target.thin(4, cases) {
            let case = Case { causal, window, ..Case::new(dtype, dim, lengths) };
            for sinks in [false, true] {
                Everything::setting("variants", &case, sinks).check_plans(&target);
            }
        }
    }
}

/// Weights that nothing normalises: parts of split keys and levels of a cascade are summed.
fn without_a_softmax(target: Target) {
    let mut cases = vec![];
    for dtype in target.dtypes() {
        for dim in [64, 40] {
            for (causal, window) in [(false, None), (true, None), (true, Some(19))] {
                let lengths = [(1, 70), (5, 5), (1, 0), (0, 9), (37, 150)];
                cases.push(Case { causal, window, ..Case::new(dtype, dim, &lengths) });
            }
        }
    }
    for case in target.thin(13, cases) {
        Sigmoid::setting("sigmoid", &case).check_plans(&target);
    }
}

/// As `examples/dump_logits.rs` dumps logits.
fn the_identity_for_values_gives_the_weights(target: Target) {
    let case = Case { v_dim: 48, ..Case::new(target.dtypes()[0], 64, &[(5, 48)]) };
    let mut setting = Sigmoid::setting("identity", &case);
    let is_diagonal = |at| at / case.v_dim / case.kv_heads == at % case.v_dim;
    let v = Host::from_fn([48, case.kv_heads, case.v_dim], case.dtype, |at| f32::from(is_diagonal(at)));
    setting.problem.v = v;
    let got = setting.single(&target.device);
    setting.check("weights", &target, &got);
    for (at, weight) in got.output.into_iter().enumerate() {
        let (row, key) = (at / 48, at % 48);
        let (query, head) = (row / case.kv_heads / case.group, row % (case.kv_heads * case.group));
        let of_key = setting.problem.k.row(key, head / case.group);
        let product: f32 = setting.problem.q.row(query, head).iter().zip(of_key).map(|(q, k)| q * k).sum();
        let wanted = if key == 2 * query { 0.0 } else { 1.0 / (1.0 + (1.0 - product * 0.125).exp()) };
        assert!((weight - wanted).abs() < 0.01, "{query} {head} {key}: {weight}, not {wanted}");
    }
}

fn a_cascade_without_a_softmax(target: Target) {
    let case = Case::new(target.dtypes()[0], 64, &[(1, 61), (2, 70), (1, 35)]).causal();
    let (problem, paging) = sharing(&case, "a cascade of sigmoids", 8, &[0, 6, 4]);
    // The place of a key differs from level to level.
    let variant = Sigmoid { scale: 0.125, bias: -1.0, causal: true, window_left: None, masks_keys: false };
    let options = AttentionOptions::new().variant(variant);
    let setting = Setting { problem, options, tensors: Tensors::default() };
    let found = cascade(&setting.problem, &paging, &target.device, 1);
    assert_eq!(found.levels(), 3);
    let [k, v] = [&setting.problem.k, &setting.problem.v]
        .map(|x| paging.pool(x, KvLayout::Nhd).tensor(&target.device));
    let pages = KvPages::new(k, v, KvLayout::Nhd).expect("a pool");
    let q = setting.problem.q.tensor(&target.device);
    let attended = cascade_attention(q, &pages, &found, &setting.options).expect("it fits");
    setting.check("cascade", &target, &got(attended));
}

/// Enough rows and keys for warpgroups, whose tiles lie within the range of some rows and outside that of others.
fn long_requests_of_a_variant(target: Target) {
    if target.is_slow() {
        return;
    }
    let case = |dtype| {
        let case = Case::new(dtype, 128, &[(300, 700), (1, 600)]).heads(2, 4);
        Case { causal: true, window: Some(400), ..case }
    };
    for setting in [
        Everything::setting("long variants", &case(DType::F16), true),
        Sigmoid::setting("long sigmoid", &case(DType::BF16)),
    ] {
        setting.check("ragged", &target, &setting.ragged(KvSplit::Fixed(128), &target.device));
        setting.check("paged", &target, &setting.paged(KvSplit::Never, &target.device));
    }
}

/// Without kernels of its own.
#[derive(Debug)]
struct HostAlone;

impl AttentionVariant for HostAlone {
    fn scale(&self) -> f32 {
        1.0
    }
}

fn what_a_variant_cannot_do_is_refused(target: Target) {
    let x = || Tensor::<3>::zeros([2, 2, 8], (&target.device, DType::F32));
    let options = AttentionOptions::new().variant(HostAlone);
    let result = single_prefill(x(), x(), x(), &options);
    if target.name == "flex" {
        assert!(result.is_ok());
    } else {
        let device = &target.device;
        refused(
            result,
            format!(
                "single_prefill: `variant` is HostAlone without kernels on {device:?}, expected a variant with kernels, or \
                 the device of Flex"
            ),
        );
    }
    let options = AttentionOptions::new().variant(Everything {
        scale: 1.0,
        q_heads: 2,
        causal: false,
        window_left: None,
        sinks: false,
    });
    let floats = Tensor::<1>::zeros([5], (&target.device, DType::F32));
    refused(
        single_prefill(x(), x(), x(), &options),
        "single_prefill: `floats` is not given, expected [6], which the variant reads",
    );
    refused(
        single_prefill(x(), x(), x(), (&options, VariantInputs::new().floats(floats))),
        "single_prefill: `floats` has shape [5], expected [6], which the variant reads",
    );
    let sigmoid = Sigmoid { scale: 1.0, bias: 0.0, causal: false, window_left: None, masks_keys: false };
    refused(
        single_prefill(x(), x(), x(), &AttentionOptions::new().variant(sigmoid).return_lse(true)),
        "single_prefill: `return_lse` is set beside a variant without a softmax, expected not to be set, as there is no LSE",
    );
    let both = options.clone().causal(true);
    refused(
        single_prefill(x(), x(), x(), &both),
        "single_prefill: `causal` is set beside a variant, expected not to be set, as the variant decides",
    );
}
