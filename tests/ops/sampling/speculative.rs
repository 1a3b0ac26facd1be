//! Speculative sampling along a chain of drafted tokens.

use burn::tensor::{DType, Device, Tensor};
use burn_flashinfer::reference::{self, Chain};
use burn_flashinfer::sampling::{Draws, chain_speculative_sampling};

use super::{integers, ints, row};
use crate::devices::{Target, device_tests, devices};
use crate::support::{Host, Rng, say};

device_tests!(shapes, certainties, nothing_is_lost);

/// Drafts and what judges them.
struct Problem {
    requests: usize,
    drafted: usize,
    vocab: usize,
    draft: Vec<f32>,
    ids: Vec<i64>,
    target: Vec<f32>,
}

/// What became of one draft.
#[derive(Debug, Clone, PartialEq)]
struct Judged {
    ids: Vec<i64>,
    accepted: i64,
    emitted: i64,
    valid: bool,
}

impl Problem {
    fn random(requests: usize, drafted: usize, vocab: usize, rng: &mut Rng) -> Self {
        let mut rows = |count: usize| (0..count).flat_map(|_| row(vocab, 1.5, rng)).collect::<Vec<_>>();
        let (draft, target) = (rows(requests * drafted), rows(requests * (drafted + 1)));
        let ids = (0..requests * drafted).map(|_| rng.below(vocab) as i64).collect();
        Self { requests, drafted, vocab, draft, ids, target }
    }

    fn run(&self, seed: u64, device: &Device) -> Vec<Judged> {
        let (n, vocab) = (self.drafted, self.vocab);
        let host = |values: &[f32], tokens: usize| -> Tensor<3> {
            Host { shape: [self.requests, tokens, vocab], values: values.to_vec(), dtype: DType::F32 }
                .tensor(device)
        };
        let ids = integers(&self.ids, DType::I32, device).reshape([self.requests, n]);
        let draws = Draws::new(seed, 3, self.requests, device).expect("rows fit");
        let (draft, target) = (host(&self.draft, n), host(&self.target, n + 1));
        let got = chain_speculative_sampling(draft, ids, target, &draws).expect("it fits");
        assert_eq!((got.ids.dims(), got.ids.dtype()), ([self.requests, n + 1], DType::I32));
        let ids = ints(got.ids.reshape([self.requests * (n + 1)]));
        let valid: Vec<bool> = got.valid.into_data().iter::<bool>().collect();
        let counts = ints(got.accepted).into_iter().zip(ints(got.emitted)).zip(valid);
        ids.chunks_exact(n + 1)
            .zip(counts)
            .map(|(ids, ((accepted, emitted), valid))| Judged { ids: ids.to_vec(), accepted, emitted, valid })
            .collect()
    }

    fn oracle(&self, request: usize) -> Chain {
        let (n, vocab) = (self.drafted, self.vocab);
        reference::chain_speculative_sampling(
            &self.draft[request * n * vocab..][..n * vocab],
            &self.ids[request * n..][..n],
            &self.target[request * (n + 1) * vocab..][..(n + 1) * vocab],
            vocab,
        )
        .expect("it fits")
    }

    /// Fails unless `judged` can be.
    fn check(&self, request: usize, judged: &Judged, what: &str) {
        let chain = self.oracle(request);
        let draft = &self.ids[request * self.drafted..][..self.drafted];
        let what = format!("{what}, request {request} of {} tokens: {judged:?} for {draft:?}", self.vocab);
        let emitted = judged.emitted as usize;
        assert!(emitted <= self.drafted && judged.emitted <= judged.accepted, "{what}");
        let surely = chain.accepted.iter().filter(|&&p| p >= 1.0).count();
        let possibly = chain.accepted.iter().filter(|&&p| p > 0.0).count();
        assert!((surely..=possibly).contains(&(judged.accepted as usize)), "{what}");
        assert_eq!(judged.ids[..emitted], draft[..emitted], "{what}");
        assert!(chain.accepted[..emitted].iter().all(|&p| p > 0.0), "{what}");
        assert!(chain.accepted.get(emitted).is_none_or(|&p| p < 1.0), "{what}");
        assert!(judged.ids[emitted + 1..].iter().all(|&id| id == -1), "{what}");
        let next = judged.ids[emitted];
        match &chain.next[emitted] {
            Some(next_probs) => assert!(judged.valid && next_probs[next as usize] > 0.0, "{what}"),
            None => assert!(!judged.valid && next == 0, "{what}"),
        }
    }
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("speculative shapes");
    for (requests, drafted, vocab) in
        target.thin(2, vec![(1, 1, 1), (40, 3, 2), (20, 5, 17), (9, 1, 111), (30, 4, 1000), (2, 3, 32000)])
    {
        let problem = Problem::random(requests, drafted, vocab, rng);
        let got = problem.run(rng.bits(), &target.device);
        for (request, judged) in got.iter().enumerate() {
            problem.check(request, judged, target.name);
        }
    }
    let none = Problem::random(0, 3, 40, rng);
    assert_eq!(none.run(1, &target.device), []);
}

/// What the target surely draws is accepted, what it never draws is not; a draft like the target is always accepted. A NaN
/// in the row that is drawn from makes its request not valid, and a token outside the vocabulary is not accepted.
fn certainties(target: Target) {
    let rng = &mut Rng::new("speculative certainties");
    let (n, vocab) = (4, 40);
    let mut problem = Problem::random(8, n, vocab, rng);
    for request in 0..8 {
        let draft = request * n * vocab;
        let judge = request * (n + 1) * vocab;
        let one_hot = |probs: &mut [f32], id: usize| {
            probs.fill(0.0);
            probs[id] = 1.0;
        };
        for i in 0..n {
            // The target would write `request + i`.
            one_hot(&mut problem.target[judge + i * vocab..][..vocab], request + i);
            one_hot(&mut problem.draft[draft + i * vocab..][..vocab], request + i);
            problem.ids[request * n + i] = (request + i) as i64;
        }
        one_hot(&mut problem.target[judge + n * vocab..][..vocab], 39);
        let wrong = &mut problem.ids[request * n..][..n];
        match request {
            1 => wrong[2] = 30,
            2 => wrong[0] = -1,
            3 => wrong[3] = 40,
            4 => wrong[1] = i64::from(i32::MAX),
            5 => problem.target[judge + n * vocab + 7] = f32::NAN,
            6 => problem.target[judge + 2 * vocab + 6 + 2] = f32::NAN,
            _ => {}
        }
        if (1..5).contains(&request) {
            // Draft and target differ where the draft is wrong, or nothing would be left to draw.
            let at = [2, 0, 3, 1][request - 1];
            one_hot(&mut problem.draft[draft + at * vocab..][..vocab], 30);
        }
    }
    let got = problem.run(rng.bits(), &target.device);
    for (request, judged) in got.iter().enumerate() {
        let chain: Vec<i64> = (0..4).map(|i| (request + i) as i64).collect();
        let (emitted, valid) =
            [(4, true), (2, true), (0, true), (3, true), (1, true), (4, false), (2, false), (4, true)]
                [request];
        let next = match (valid, emitted) {
            (false, _) => 0,
            (_, 4) => 39,
            (_, emitted) => (request + emitted) as i64,
        };
        let mut ids = chain[..emitted].to_vec();
        ids.push(next);
        ids.resize(5, -1);
        let accepted = if emitted == 4 { 4 } else { 3 };
        let wanted = Judged { ids, accepted, emitted: emitted as i64, valid };
        assert_eq!(judged, &wanted, "request {request} on {}", target.name);
    }
}

/// What comes out is distributed as the target, whatever the draft: the first token of each request by the first row.
fn nothing_is_lost(target: Target) {
    let requests = if target.name == "flex" { 1 << 17 } else { 1 << 11 };
    let (n, vocab) = (2, 12);
    let p: Vec<f32> = (0..vocab).map(|id| [0.02, 0.2, 0.0, 0.11][id % 4]).collect();
    let q: Vec<f32> = (0..vocab).map(|id| [0.05, 0.1, 0.15, 0.0333][(id + id / 4) % 4]).collect();
    let [p, q] = [p, q].map(|row| {
        let sum: f32 = row.iter().sum();
        row.into_iter().map(|p| p / sum).collect::<Vec<f32>>()
    });
    // The draft is drawn from its own distribution, by the host.
    let mut state = 99_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut u = (state >> 40) as f32 / (1 << 24) as f32;
        let id = p.iter().position(|&p| {
            u -= p;
            u < 0.0
        });
        id.unwrap_or(0) as i64
    };
    let problem = Problem {
        requests,
        drafted: n,
        vocab,
        ids: (0..requests * n).map(|_| draw()).collect(),
        draft: p.repeat(requests * n),
        target: q.repeat(requests * (n + 1)),
    };
    let got = problem.run(17, &target.device);
    for (request, judged) in got.iter().enumerate().step_by(requests / 64) {
        problem.check(request, judged, target.name);
    }
    let mut statistic = 0.0;
    for (id, &q) in q.iter().enumerate() {
        let count = got.iter().filter(|judged| judged.ids[0] == id as i64).count() as f64;
        let expected = f64::from(q) * requests as f64;
        statistic += (count - expected).powi(2) / expected;
    }
    let deviations = (statistic - 11.0) / 22.0_f64.sqrt();
    say(format!("speculative on {}: {deviations:+.2} sigma, {requests} requests", target.name));
    assert!(deviations < 4.0, "{}: {deviations} sigma", target.name);
    // A token is accepted with probability Σ min(p, q).
    let expected: f64 = p.iter().zip(&q).map(|(p, q)| f64::from(p.min(*q))).sum();
    let accepted: i64 = got.iter().map(|judged| judged.accepted).sum();
    let share = accepted as f64 / (requests * n) as f64;
    let sigma = (expected * (1.0 - expected) / (requests * n) as f64).sqrt();
    assert!((share - expected).abs() < 5.0 * sigma, "{}: {share} accepted of {expected}", target.name);
}

/// Flex and the other devices of the build judge alike, and a request alone as in a batch.
#[cfg(feature = "flex")]
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn devices_agree() {
    let rng = &mut Rng::new("speculative devices");
    let flex = Device::flex();
    for target in devices() {
        for (requests, drafted, vocab) in [(30, 3, 17), (10, 4, 1000), (2, 2, 4099)] {
            let problem = Problem::random(requests, drafted, vocab, rng);
            let seed = rng.bits();
            assert_eq!(problem.run(seed, &target.device), problem.run(seed, &flex), "{}", target.name);
        }
    }
}
