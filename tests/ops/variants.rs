//! Variants of the caller's, whose two halves must say the same on every device.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, AttentionVariant, Indptr, KvLayout, KvPages, KvSplit, PagedPlan, PlanConfig,
    RaggedPlan, Request, Row, VariantInputs, single_prefill,
};

use crate::devices::{Target, device_tests};
use crate::oracle::check_variant;
use crate::problem::{Case, Got, Problem};
use crate::support::{Rng, refused};

device_tests!(
    every_hook_says_the_same_on_every_device,
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

    use super::Everything;

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
            let Inputs { floats: Some(floats), ints: Some(ints) } = call.inputs().clone() else {
                panic!("the tests give both tensors");
            };
            let mask = CausalWindow::new(self.causal, self.window_left);
            let args = || {
                let [floats, ints] = [&floats, &ints].map(|tensor| tensor.clone().into_buffer_arg());
                ArgsLaunch::new(floats, ints, self.scale, self.q_heads, self.sinks.into(), mask.launch())
            };
            // SAFETY: `Setting` gives each head three floats, and each request an integer.
            unsafe { call.run::<Self>(args) }
        }
    }
}

/// A problem with the tensors of its variant.
struct Setting {
    problem: Problem,
    variant: Everything,
    floats: Vec<f32>,
    ints: Vec<i32>,
}

impl Setting {
    fn new(label: &str, case: &Case, sinks: bool) -> Self {
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
        Self { problem: case.problem(label), variant, floats, ints }
    }

    fn options(&self) -> AttentionOptions {
        AttentionOptions::new().variant(self.variant).return_lse(true)
    }

    fn config(&self) -> PlanConfig {
        let case = &self.problem.case;
        PlanConfig::new(case.kv_heads * case.group, case.kv_heads, case.dim, case.dtype)
            .head_dim_v(case.v_dim)
            .options(self.options())
    }

    fn inputs(&self, device: &Device) -> VariantInputs {
        let floats = Tensor::from_data(TensorData::from(&self.floats[..]), (device, DType::F32));
        let ints = Tensor::<1, Int>::from_data(TensorData::from(&self.ints[..]), (device, DType::I32));
        VariantInputs::new().floats(floats).ints(ints)
    }

    fn check(&self, what: &str, target: &Target, got: &Got) {
        check_variant(what, target, &self.problem, &self.variant, (&self.floats, &self.ints), got);
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
                let setting = Setting::new("variants", &case, sinks);
                let device = &target.device;
                setting.check("ragged", &target, &ragged(&setting, KvSplit::Auto, device));
                setting.check("split", &target, &ragged(&setting, KvSplit::Fixed(16), device));
                setting.check("paged", &target, &paged(&setting, KvSplit::Auto, device));
            }
        }
    }
}

/// Enough rows and keys for warpgroups, whose tiles lie within the range of some rows and outside that of others.
fn long_requests_of_a_variant(target: Target) {
    if target.is_slow() {
        return;
    }
    for dtype in [DType::F16, DType::BF16] {
        let case = Case::new(dtype, 128, &[(300, 700), (1, 600)]).heads(2, 4);
        let case = Case { causal: true, window: Some(400), ..case };
        let setting = Setting::new("long variants", &case, true);
        for split in [KvSplit::Never, KvSplit::Fixed(128)] {
            setting.check("ragged", &target, &ragged(&setting, split, &target.device));
            setting.check("paged", &target, &paged(&setting, split, &target.device));
        }
    }
}

fn ragged(setting: &Setting, split: KvSplit, device: &Device) -> Got {
    let Problem { q, k, v, .. } = &setting.problem;
    let [qo, kv] = [setting.problem.qo_indptr(), setting.problem.kv_indptr()]
        .map(|rows| Indptr::new(&rows, device).expect("valid"));
    let plan = RaggedPlan::new(&setting.config().split(split), &qo, &kv).expect("a plan");
    let [q, k, v] = [q, k, v].map(|x| x.tensor(device));
    Got::of(plan.run_with(q, k, v, setting.inputs(device)).expect("runs"))
}

fn paged(setting: &Setting, split: KvSplit, device: &Device) -> Got {
    let Problem { q, k, v, .. } = &setting.problem;
    let paging = setting.problem.paging(16);
    let pool = |x| paging.pool(x, KvLayout::Hnd).tensor(device);
    let pages = KvPages::new(pool(k), pool(v), KvLayout::Hnd).expect("a pool");
    let qo = Indptr::new(&setting.problem.qo_indptr(), device).expect("valid");
    let plan = PagedPlan::new(&setting.config().split(split), &qo, &paging.table(device)).expect("a plan");
    Got::of(plan.run_with(q.tensor(device), &pages, setting.inputs(device)).expect("runs"))
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
    let both = options.causal(true);
    refused(
        single_prefill(x(), x(), x(), &both),
        "single_prefill: `causal` is set beside a variant, expected not to be set, as the variant decides",
    );
}
