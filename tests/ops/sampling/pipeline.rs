//! The pipeline does what its steps do.

use burn::tensor::DType;
use burn_flashinfer::sampling::{
    Draws, FilterOrder, LogitsPipeline, Penalties, Step, apply_penalties, min_p_sampling_from_probs,
    sampling_from_logits, softmax, top_k_top_p_sampling_from_probs, top_p_sampling_from_probs,
};

use super::{draws, floats, integers, tokens};
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, refused};

device_tests!(steps, refused_steps);

fn penalties(target: &Target, rows: usize, vocab: usize, rng: &mut Rng) -> Penalties {
    let counts = |rng: &mut Rng| {
        let counts: Vec<i64> = (0..rows * vocab).map(|_| rng.below(3) as i64).collect();
        integers(&counts, DType::I32, &target.device).reshape([rows, vocab])
    };
    let of = |x: f32| floats(&vec![x; rows], &target.device);
    let (prompt, output) = (counts(rng), counts(rng));
    Penalties { prompt, output, repetition: of(1.2), frequency: of(0.3), presence: of(0.4) }
}

fn steps(target: Target) {
    let rng = &mut Rng::new("pipeline");
    let device = &target.device;
    let (rows, vocab) = (4, 200);
    for dtype in target.dtypes() {
        let logits = Host::from_fn([rows, vocab], dtype, |_| 3.0 * rng.normal());
        let x = || logits.tensor(device);
        let keys = draws(rows, 20, rng);
        let draws = Draws::from_keys(&keys, device).expect("rows fit");
        let penalties = penalties(&target, rows, vocab, rng);
        let t = || floats(&[0.7, 1.0, 0.0, 1.5], device);
        let k = || integers(&[3, 20, 5, 1000], DType::I32, device);
        let p = || floats(&[0.9, 0.5, 0.3, 0.99], device);
        let min_p = || floats(&[0.2, 0.01, 0.5, 0.1], device);
        let run = |steps: Vec<Step>, explained: &str| {
            let pipeline =
                LogitsPipeline::new([steps, vec![Step::Sample(draws.clone())]].concat()).expect("in order");
            assert_eq!(pipeline.explain(), explained);
            tokens(pipeline.run(x()).expect("it fits"), vocab)
        };
        let wanted = |samples: burn_flashinfer::Result<_>| tokens(samples.expect("it fits"), vocab);

        let got = run(vec![], "sample_logits");
        assert_eq!(got, wanted(sampling_from_logits(x(), None, &draws)));
        let got = run(vec![Step::Temperature(t())], "sample_logits");
        assert_eq!(got, wanted(sampling_from_logits(x(), Some(t()), &draws)));
        let steps = vec![Step::Penalties(penalties.clone()), Step::Temperature(t())];
        let penalised = apply_penalties(x(), &penalties).expect("it fits");
        let got = run(steps, "apply_penalties, sample_logits");
        assert_eq!(got, wanted(sampling_from_logits(penalised.clone(), Some(t()), &draws)));

        let steps = vec![Step::Penalties(penalties), Step::Temperature(t()), Step::TopP(p())];
        let probs = softmax(penalised, Some(t())).expect("it fits");
        let got = run(steps, "apply_penalties, softmax, sample_probs by top_p");
        assert_eq!(got, wanted(top_p_sampling_from_probs(probs, p(), &draws)));
        let probs = || softmax(x(), None).expect("it fits");
        let got = run(vec![Step::MinP(min_p())], "softmax, sample_probs by min_p");
        assert_eq!(got, wanted(min_p_sampling_from_probs(probs(), min_p(), &draws)));
        let steps = vec![Step::TopK(k()), Step::TopP(p())];
        let got = run(steps.clone(), "softmax, filter by top_k, sample_probs by top_p");
        let order = FilterOrder::TopKFirst;
        assert_eq!(got, wanted(top_k_top_p_sampling_from_probs(probs(), k(), p(), order, &draws)));
        let joint = LogitsPipeline::new([steps, vec![Step::Sample(draws.clone())]].concat());
        let joint = joint.expect("in order").joint();
        assert_eq!(joint.explain(), "softmax, sample_probs by top_k and top_p");
        let order = FilterOrder::Joint;
        assert_eq!(
            wanted(joint.run(x())),
            wanted(top_k_top_p_sampling_from_probs(probs(), k(), p(), order, &draws))
        );
        // A filter that lets all pass changes nothing.
        let all = Step::MinP(floats(&[0.0; 4], device));
        let got = run(vec![Step::TopP(p()), all], "softmax, sample_probs by top_p and min_p");
        assert_eq!(got, wanted(top_p_sampling_from_probs(probs(), p(), &draws)));
    }
}

fn refused_steps(target: Target) {
    let device = &target.device;
    let t = || Step::Temperature(floats(&[1.0; 2], device));
    let p = || Step::TopP(floats(&[0.5; 2], device));
    let sample = || Step::Sample(Draws::new(1, 0, 2, device).expect("rows fit"));
    for (steps, message) in [
        (vec![], "`steps[0]` is no step, expected Sample, as the last step"),
        (vec![t(), p()], "`steps[2]` is no step, expected Sample, as the last step"),
        (
            vec![p(), t(), sample()],
            "`steps[1]` is Temperature after TopP, expected a step that comes after TopP",
        ),
        (
            vec![t(), t(), sample()],
            "`steps[1]` is Temperature after Temperature, expected a step that comes after Temperature",
        ),
        (vec![sample(), p()], "`steps[1]` is a step, expected no step after Sample"),
    ] {
        refused(LogitsPipeline::new(steps), format!("LogitsPipeline::new: {message}"));
    }
    let logits = Host::full([3, 8], DType::F32, 0.0);
    let run = |steps| LogitsPipeline::new(steps).expect("in order").run(logits.tensor(device));
    refused(
        run(vec![p(), sample()]),
        "LogitsPipeline: `top_p` has shape [2], expected [3], one for each row",
    );
    refused(
        run(vec![t(), sample()]),
        "sampling_from_logits: `temperature` has shape [2], expected [3], one for each row",
    );
    let draws = Draws::new(1, 0, 4, device).expect("rows fit");
    refused(
        run(vec![Step::Sample(draws)]),
        "sampling_from_logits: `draws` is up to row 3, expected below 3, the rows there are",
    );
}
