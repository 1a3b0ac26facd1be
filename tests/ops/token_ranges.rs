//! Spans that see themselves, and items that do not see each other.
#![allow(clippy::single_range_in_vec_init, reason = "the spans of a request with one")]

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, DecodeStep, Items, KvSplit, PagedKvCache, PlanConfig, Spans,
    VariantInputs, single_prefill,
};

use crate::devices::{Target, device_tests};
use crate::problem::Case;
use crate::setting::{Setting, Tensors};
use crate::support::{Host, Rng, refused};

device_tests!(
    spans,
    items,
    long_requests_with_ranges,
    items_are_alone,
    spans_are_masks,
    refuses_ranges_that_do_not_fit
);

/// A prompt with two images, the second the end of what there is so far; one that goes on within an image; decoding.
fn of_images() -> (Vec<(usize, usize)>, Spans) {
    let spans = Spans::new(&[vec![3..20, 41..60], vec![10..30], vec![], vec![0..9]]);
    (vec![(50, 57), (7, 22), (5, 5), (1, 90)], spans.expect("spans"))
}

/// The prompt from its beginning; from the middle of an item on; from a delimiter on.
fn of_items() -> (Vec<(usize, usize)>, Items) {
    let items = Items::new(&[(20, vec![3, 2, 0, 14]), (30, vec![5, 40]), (3, vec![4, 4])]);
    (vec![(44, 44), (20, 60), (6, 14)], items.expect("items"))
}

fn settings(case: &Case, options: impl Fn(AttentionOptions) -> AttentionOptions) -> Setting {
    let rng = &mut Rng::new("ranges");
    let heads = case.kv_heads * case.group;
    let sinks = (0..if case.window.is_some() { heads } else { 0 }).map(|_| rng.normal()).collect();
    let tensors = Tensors { sinks, ..Tensors::default() };
    Setting { problem: case.problem("ranges"), options: options(case.options()), tensors }
}

/// Each with every type, window and kind of kernel.
fn cases(target: &Target, lengths: &[(usize, usize)]) -> Vec<Case> {
    let case = |dtype, dim, window| Case { window, ..Case::new(dtype, dim, lengths).causal() };
    let dtypes = target.dtypes();
    let all = dtypes.into_iter().rev().flat_map(|dtype| {
        [(64, None), (40, Some(8)), (128, Some(11))].map(|(dim, window)| case(dtype, dim, window))
    });
    target.thin(17, all.collect())
}

fn spans(target: Target) {
    let (lengths, spans) = of_images();
    for case in cases(&target, &lengths) {
        settings(&case, |options| options.spans(spans.clone())).check_plans(&target);
    }
}

fn items(target: Target) {
    let (lengths, items) = of_items();
    for case in cases(&target, &lengths) {
        settings(&case, |options| options.items(items.clone())).check_plans(&target);
    }
}

fn long_requests_with_ranges(target: Target) {
    if target.is_slow() || target.is_checked() {
        return;
    }
    let case = Case { causal: true, ..Case::new(DType::BF16, 128, &[(700, 700)]).heads(1, 4) };
    let images = Spans::new(&[vec![100..350, 400..470]]).expect("spans");
    let documents = Items::new(&[(150, vec![100, 211, 236])]).expect("items");
    for setting in [
        settings(&case, |options| options.spans(images.clone())),
        settings(&case, |options| options.items(documents.clone())),
    ] {
        for split in [KvSplit::Never, KvSplit::Fixed(128)] {
            setting.check("ragged", &target, &setting.ragged(split, &target.device));
            setting.check("paged", &target, &setting.paged(split, &target.device));
        }
    }
}

/// By definition: an item's rows are those of a prompt of the prefix and this item alone, without the delimiter.
fn items_are_alone(target: Target) {
    let (prefix, lengths) = (6, [3, 2, 4]);
    let tokens = prefix + lengths.iter().map(|len| len + 1).sum::<usize>() + 1;
    let rng = &mut Rng::new("alone");
    let mut host = |heads: usize| Host::random([tokens, heads, 32], DType::F32, rng);
    let (q, k, v) = (host(4), host(2), host(2));
    let items = Items::new(&[(prefix, lengths.to_vec())]).expect("items");
    let device = &target.device;
    let options = AttentionOptions::new().causal(true);
    let [all_q, all_k, all_v] = [&q, &k, &v].map(|x| x.tensor(device));
    let found = single_prefill(all_q, all_k, all_v, &options.clone().items(items)).expect("it fits");
    let found = Host::of(found.output);
    let mut first = prefix + 1;
    for len in lengths {
        let own = |x: &Host<3>| {
            let (before, item) = (x.tokens(0..prefix), x.tokens(first..first + len));
            Tensor::cat(vec![before.tensor(device), item.tensor(device)], 0)
        };
        let alone = single_prefill(own(&q), own(&k), own(&v), &options).expect("it fits");
        let alone = Host::of(alone.output).tokens(prefix..prefix + len);
        let near = |(x, y): (&f32, &f32)| (x - y).abs() < 1e-5;
        assert!(alone.values.iter().zip(&found.tokens(first..first + len).values).all(near));
        first += len + 1;
    }
}

/// By definition: a span of all tokens is no mask, one of a token is a causal mask, and another sees as far as its end.
fn spans_are_masks(target: Target) {
    let rng = &mut Rng::new("masks");
    let mut host = |heads: usize| Host::random([9, heads, 32], DType::F32, rng).tensor(&target.device);
    let (q, k, v) = (host(4), host(2), host(2));
    let causal = AttentionOptions::new().causal(true);
    let run = |tokens: usize, options: &AttentionOptions| {
        let part = |x: &Tensor<3>| x.clone().slice(0..tokens);
        Host::of(single_prefill(part(&q), part(&k), part(&v), options).expect("it fits").output)
    };
    let with = |spans| run(9, &causal.clone().spans(Spans::new(&[spans]).expect("spans")));
    let near = |got: Host<3>, expected: Host<3>| {
        assert!(got.values.iter().zip(&expected.values).all(|(x, y)| (x - y).abs() < 1e-5));
    };
    near(with(vec![0..9]), run(9, &AttentionOptions::new()));
    near(with(vec![4..5]), run(9, &causal));
    near(with(vec![2..6]).tokens(2..6), run(6, &AttentionOptions::new()).tokens(2..6));
    near(with(vec![2..6]).tokens(6..9), run(9, &causal).tokens(6..9));
}

fn refuses_ranges_that_do_not_fit(target: Target) {
    refused(
        Spans::new(&[vec![], vec![3..7, 6..9]]),
        "Spans::new: `requests` is 6..9 in request 1, expected a span from 7 on that is not empty",
    );
    refused(
        Items::new(&[(1, vec![usize::MAX])]),
        format!(
            "Items::new: `requests` is an item of {0} tokens in request 0, expected at most {0} tokens in a request",
            usize::MAX
        ),
    );
    let device = &target.device;
    let x = || Tensor::<3>::zeros([2, 2, 8], (device, DType::F32));
    let spans = |requests: usize| Spans::new(&vec![vec![0..2]; requests]).expect("spans");
    let options = AttentionOptions::new();
    refused(
        single_prefill(x(), x(), x(), &options.clone().spans(spans(1))),
        "single_prefill: `spans` is set without `causal`, expected a causal mask",
    );
    let causal = options.causal(true);
    let items = Items::new(&[(1, vec![]), (1, vec![])]).expect("items");
    refused(
        single_prefill(x(), x(), x(), &causal.clone().items(items)),
        "single_prefill: `items` is of 2 requests, expected of 1 requests, as the batch",
    );
    let given = VariantInputs::new().ints(Tensor::zeros([3], device));
    let with_spans = causal.clone().spans(spans(1));
    refused(
        single_prefill(x(), x(), x(), (&with_spans, given)),
        "single_prefill: `ints` is given, expected none, as no variant reads it",
    );
    let cache =
        PagedKvCache::new(&CacheConfig::new(1, 4, 4, 2, 8).dtype(DType::F32), device).expect("a cache");
    let config = PlanConfig::new(2, 2, 8, DType::F32).options(with_spans);
    refused(
        DecodeStep::new(&config, 1, 4, &cache),
        "DecodeStep::new: `spans` is set, expected none, as the requests of a step change",
    );
}
