//! Merging attention states.

use burn::tensor::{Bool, DType, Device, Tensor};
use burn_flashinfer::reference::{self, State};
use burn_flashinfer::{
    Indptr, merge_state, merge_state_in_place, merge_states, variable_length_merge_states,
};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, address, bits, check, round};

device_tests!(
    shapes,
    many,
    variable_lengths,
    empty_states,
    far_apart,
    nan_stays_in_its_row,
    views,
    as_one_by_one,
    masks,
    in_place
);

/// States in rows: outputs `[rows, heads, head_dim]` and their LSE `[rows, heads]`.
#[derive(Debug, Clone)]
struct States {
    v: Host<3>,
    s: Host<2>,
}

impl States {
    fn random(shape: [usize; 3], dtype: DType, spread: f32, rng: &mut Rng) -> Self {
        let s = Host::from_fn([shape[0], shape[1]], DType::F32, |_| rng.normal() * spread);
        Self { v: Host::random(shape, dtype, rng), s }
    }

    /// Some of them did not see a key, and hold NaN.
    fn with_gaps(shape: [usize; 3], dtype: DType, rng: &mut Rng) -> Self {
        let mut states = Self::random(shape, dtype, 3.0, rng);
        for row in 0..shape[0] * shape[1] {
            if rng.below(3) == 0 {
                states.s.values[row] = f32::NEG_INFINITY;
                states.v.values[row * shape[2]..(row + 1) * shape[2]].fill(f32::NAN);
            }
        }
        states
    }

    fn tensors(&self, device: &Device) -> (Tensor<3>, Tensor<2>) {
        (self.v.tensor(device), self.s.tensor(device))
    }

    /// As `states` states of each token.
    fn stacked(&self, states: usize, device: &Device) -> (Tensor<4>, Tensor<3>) {
        let (v, s) = self.tensors(device);
        let [rows, heads, dim] = self.v.shape;
        (v.reshape([rows / states, states, heads, dim]), s.reshape([rows / states, states, heads]))
    }

    fn rows(&self, range: std::ops::Range<usize>) -> Self {
        let heads = self.s.shape[1];
        let values = self.s.values[range.start * heads..range.end * heads].to_vec();
        let s = Host { shape: [range.len(), heads], values, dtype: DType::F32 };
        Self { v: self.v.tokens(range), s }
    }

    /// The first half of the rows, and the second.
    fn halves(&self) -> [Self; 2] {
        let tokens = self.v.shape[0] / 2;
        [self.rows(0..tokens), self.rows(tokens..2 * tokens)]
    }

    fn reference(&self) -> State {
        State { output: self.v.heads(), lse: self.s.f64() }
    }

    /// What the rows named for each token become, in f32, rounded once.
    fn merged(&self, tokens: impl Iterator<Item = Vec<usize>>) -> Self {
        let [_, heads, dim] = self.v.shape;
        let (mut v, mut s, mut count) = (vec![], vec![], 0);
        for rows in tokens {
            count += 1;
            for head in 0..heads {
                let lse = |row: usize| self.s.values[row * heads + head];
                let counting = || rows.iter().copied().filter(|&row| lse(row) != f32::NEG_INFINITY);
                let highest = counting().map(lse).fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = counting().map(|row| (lse(row) - highest).exp2()).sum();
                s.push(if sum == 0.0 { f32::NEG_INFINITY } else { highest + sum.log2() });
                v.extend((0..dim).map(|at| {
                    let part = |row: usize| match (lse(row) - highest).exp2() {
                        0.0 => 0.0,
                        weight => weight / sum * self.v.row(row, head)[at],
                    };
                    round(counting().map(part).sum(), self.v.dtype)
                }));
            }
        }
        Self {
            v: Host { shape: [count, heads, dim], values: v, dtype: self.v.dtype },
            s: Host { shape: [count, heads], values: s, dtype: DType::F32 },
        }
    }

    /// Two of each token, the first half of the rows and the second.
    fn merged_halves(&self) -> Self {
        let tokens = self.v.shape[0] / 2;
        self.merged((0..tokens).map(|token| vec![token, token + tokens]))
    }

    fn check_halves(&self, what: &str, target: &Target, got: (Tensor<3>, Tensor<2>)) {
        let [a, b] = self.halves().map(|half| half.reference());
        let oracle = reference::merge_state(&a, &b).expect("states that fit");
        compare(what, target, got, &oracle, &self.merged_halves());
    }
}

fn compare(what: &str, target: &Target, (v, s): (Tensor<3>, Tensor<2>), oracle: &State, baseline: &States) {
    let (v, s) = (Host::of(v), Host::of(s));
    let dtype = baseline.v.dtype;
    let what = format!("{what} on {}, {:?} {dtype:?}", target.name, v.shape);
    assert_eq!((v.shape, v.dtype), (baseline.v.shape, dtype), "{what}");
    assert_eq!((s.shape, s.dtype), (baseline.s.shape, DType::F32), "{what}");
    check(format!("{what}: output"), &v.values, &baseline.v.values, oracle.output.values(), dtype);
    check(format!("{what}: LSE"), &s.values, &baseline.s.values, &oracle.lse, DType::F32);
}

fn two(states: &States, device: &Device) -> (Tensor<3>, Tensor<2>) {
    let [(v_a, s_a), (v_b, s_b)] = states.halves().map(|half| half.tensors(device));
    merge_state(v_a, s_a, v_b, s_b).expect("states that fit")
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("merge shapes");
    for dtype in target.dtypes() {
        for [tokens, heads, dim] in
            [[1, 1, 1], [17, 3, 40], [37, 8, 128], [5, 7, 96], [0, 4, 64], [3, 2, 256], [2, 1, 1100]]
        {
            for spread in [1.0, 20.0, 1e4] {
                let states = States::random([2 * tokens, heads, dim], dtype, spread, rng);
                states.check_halves("two", &target, two(&states, &target.device));
            }
        }
    }
}

/// Any number of states: none, one (which comes back as it is), many.
fn many(target: Target) {
    let rng = &mut Rng::new("merge many");
    for dtype in target.dtypes() {
        for (tokens, count, heads, dim) in
            [(7, 1, 3, 40), (5, 2, 8, 128), (3, 5, 1, 17), (1, 100, 7, 64), (64, 3, 4, 256), (0, 3, 2, 64)]
        {
            for spread in [1.0, 20.0] {
                let states = States::random([tokens * count, heads, dim], dtype, spread, rng);
                let (v, s) = states.stacked(count, &target.device);
                let got = merge_states(v, s).expect("states that fit");
                let each: Vec<State> = (0..count)
                    .map(|state| {
                        let rows = (0..tokens).map(|token| vec![token * count + state]);
                        states.merged(rows).reference()
                    })
                    .collect();
                if count == 1 {
                    assert_eq!(bits(got.0.clone()), bits(states.v.tensor(&target.device)));
                    assert_eq!(bits(got.1.clone()), bits(states.s.tensor(&target.device)));
                }
                let oracle = reference::merge_states(&each).expect("states that fit");
                let rows = (0..tokens).map(|token| (token * count..(token + 1) * count).collect());
                compare(&format!("{count} states"), &target, got, &oracle, &states.merged(rows));
            }
        }
        let v = Tensor::zeros([3, 0, 2, 8], (&target.device, dtype));
        let s = Tensor::zeros([3, 0, 2], (&target.device, DType::F32));
        nothing(merge_states(v, s).expect("no states"), [3, 2, 8], dtype);
    }
}

/// No state of any token.
fn nothing((v, s): (Tensor<3>, Tensor<2>), shape: [usize; 3], dtype: DType) {
    let [tokens, heads, _] = shape;
    assert_eq!(Host::of(v), Host::full(shape, dtype, 0.0));
    assert_eq!(Host::of(s), Host::full([tokens, heads], DType::F32, f32::NEG_INFINITY));
}

fn ragged(what: &str, target: &Target, states: &States, lengths: &[usize], (v, s): (Tensor<3>, Tensor<2>)) {
    let indptr = Indptr::from_lengths(lengths, &target.device).expect("valid");
    let got = variable_length_merge_states(v, s, &indptr).expect("states that fit");
    let oracle = reference::variable_length_merge_states(&states.reference(), indptr.as_slice());
    let rows = indptr.as_slice().windows(2).map(|pair| (pair[0]..pair[1]).collect());
    compare(what, target, got, &oracle.expect("a row pointer"), &states.merged(rows));
}

/// As many states as a token has: some none, some hundreds.
fn variable_lengths(target: Target) {
    let rng = &mut Rng::new("merge variable lengths");
    for dtype in target.dtypes() {
        for (heads, dim) in [(3, 40), (8, 128), (1, 17)] {
            for most in [2, 9, 200] {
                let lengths: Vec<usize> = (0..1 + rng.below(20)).map(|_| rng.below(most)).collect();
                let rows = lengths.iter().sum();
                let states = States::with_gaps([rows, heads, dim], dtype, rng);
                let tensors = states.tensors(&target.device);
                ragged(&format!("{lengths:?}"), &target, &states, &lengths, tensors);
            }
        }
        let indptr = Indptr::from_lengths(&[0, 0], &target.device).expect("valid");
        let v = Tensor::zeros([0, 2, 8], (&target.device, dtype));
        let s = Tensor::zeros([0, 2], (&target.device, DType::F32));
        let got = variable_length_merge_states(v, s, &indptr).expect("no states");
        nothing(got, [2, 2, 8], dtype);
    }
}

/// A state without keys does not count, not even if its output is NaN; none that counts gives 0 and -inf.
fn empty_states(target: Target) {
    let rng = &mut Rng::new("merge empty");
    for dtype in target.dtypes() {
        let states = States::with_gaps([24, 2, 40], dtype, rng);
        states.check_halves("empty", &target, two(&states, &target.device));
        let (v, s) = states.stacked(3, &target.device);
        let got = merge_states(v, s).expect("states that fit");
        let indptr: Vec<usize> = (0..=8).map(|token| 3 * token).collect();
        let oracle = reference::variable_length_merge_states(&states.reference(), &indptr);
        let rows = (0..8).map(|token| (3 * token..3 * token + 3).collect());
        compare("empty", &target, got, &oracle.expect("a row pointer"), &states.merged(rows));
    }
}

/// LSE so far apart that one state vanishes, and LSE of huge magnitude.
fn far_apart(target: Target) {
    for dtype in target.dtypes() {
        let v = Host::from_fn([8, 1, 32], dtype, |at| if at < 4 * 32 { 1.0 } else { -2.0 });
        let s = vec![3e4, -3e5, 200.0, -1e38, -3e4, -3e5, -200.0, 1e38];
        let states = States { v, s: Host { shape: [8, 1], values: s, dtype: DType::F32 } };
        states.check_halves("far apart", &target, two(&states, &target.device));
    }
}

/// A NaN that counts makes its own row NaN, no other.
fn nan_stays_in_its_row(target: Target) {
    let rng = &mut Rng::new("merge nan");
    for dtype in target.dtypes() {
        let mut states = States::random([10, 2, 40], dtype, 2.0, rng);
        states.v.values[3 * 80 + 7] = f32::NAN;
        states.v.values[6 * 80 + 50] = f32::INFINITY;
        states.check_halves("NaN", &target, two(&states, &target.device));
        ragged("NaN", &target, &states, &[4, 0, 6], states.tensors(&target.device));
    }
}

/// Strided outputs and LSE.
fn views(target: Target) {
    let rng = &mut Rng::new("merge views");
    let device = &target.device;
    for dtype in target.dtypes() {
        let states = States::random([14, 4, 40], dtype, 2.0, rng);
        // A transposed view of the transposed numbers.
        let transposed = |s: &Host<2>| {
            let [rows, heads] = s.shape;
            let values = (0..heads).flat_map(|h| (0..rows).map(move |t| (t, h)));
            let values = values.map(|(t, h)| s.values[t * heads + h]).collect();
            Host { shape: [heads, rows], values, dtype: DType::F32 }.tensor(device).transpose()
        };
        for view in VIEWS {
            let tensors = |half: &States| (half.v.view(view, device), transposed(&half.s));
            let [(v_a, s_a), (v_b, s_b)] = states.halves().each_ref().map(tensors);
            let got = merge_state(v_a, s_a, v_b, s_b).expect("states that fit");
            states.check_halves(&format!("{view:?}"), &target, got);
            ragged(&format!("{view:?}"), &target, &states, &[5, 2, 0, 7], tensors(&states));
        }
        // The axis of the states before that of the tokens: the second state of each lies 7 rows behind the first.
        let (v, s) = states.stacked(7, device);
        let got = merge_states(v.swap_dims(0, 1), s.swap_dims(0, 1)).expect("states that fit");
        states.check_halves("swapped axes", &target, got);
    }
}

/// Merged at once is as near to the truth as merged one by one.
fn as_one_by_one(target: Target) {
    let rng = &mut Rng::new("merge one by one");
    for dtype in target.dtypes() {
        let states = States::with_gaps([6 * 5, 3, 40], dtype, rng);
        let (v, s) = states.stacked(6, &target.device);
        let state = |at| {
            let s: Tensor<2> = s.clone().narrow(1, at, 1).squeeze_dim(1);
            (v.clone().narrow(1, at, 1).squeeze_dim(1), s)
        };
        let folded = (1..6).fold(state(0), |(v, s), at| {
            let (v_other, s_other) = state(at);
            merge_state_in_place(v, s, v_other, s_other, None).expect("states that fit")
        });
        let folded = States { v: Host::of(folded.0), s: Host::of(folded.1) };
        let got = merge_states(v.clone(), s.clone()).expect("states that fit");
        let oracle = reference::variable_length_merge_states(&states.reference(), &[0, 6, 12, 18, 24, 30]);
        compare("one by one", &target, got, &oracle.expect("a row pointer"), &folded);
    }
}

/// Tokens that the mask leaves out keep their bits, NaN too.
fn masks(target: Target) {
    let rng = &mut Rng::new("merge mask");
    for dtype in target.dtypes() {
        for (tokens, heads, dim) in [(9, 3, 40), (33, 2, 128), (4, 1, 17)] {
            let states = States::with_gaps([2 * tokens, heads, dim], dtype, rng);
            let [a, b] = states.halves();
            for kept in [false, true] {
                let mask: Vec<bool> = (0..tokens).map(|_| rng.below(2) == 0).collect();
                let (v, s) = a.tensors(&target.device);
                // A clone that lives on makes the result one of its own.
                let clones = kept.then(|| (v.clone(), s.clone()));
                let (v_other, s_other) = b.tensors(&target.device);
                let masked = Tensor::<1, Bool>::from_data(&mask[..], &target.device);
                let (v, s) = merge_state_in_place(v, s, v_other, s_other, Some(masked)).expect("it fits");
                drop(clones);
                let (got_v, got_s) = (Host::of(v.clone()), Host::of(s.clone()));
                let wide = |values: &[f32], token: usize, width: usize| -> Vec<u32> {
                    values[token * width..][..width].iter().map(|x| x.to_bits()).collect()
                };
                for token in (0..tokens).filter(|&token| !mask[token]) {
                    let width = heads * dim;
                    assert_eq!(wide(&got_v.values, token, width), wide(&a.v.values, token, width));
                    assert_eq!(wide(&got_s.values, token, heads), wide(&a.s.values, token, heads));
                }
                let [a, b] = [&a, &b].map(States::reference);
                let oracle = reference::merge_state_in_place(&a, &b, &mask).expect("it fits");
                let rows = (0..tokens).map(|t| if mask[t] { vec![t, t + tokens] } else { vec![t] });
                compare("masked", &target, (v, s), &oracle, &states.merged(rows));
            }
        }
    }
}

/// What nobody else has a clone of is overwritten, a clone never is; not when both states are one either.
fn in_place(target: Target) {
    let rng = &mut Rng::new("merge in place");
    let device = &target.device;
    for dtype in target.dtypes() {
        let states = States::random([8, 64, 64], dtype, 3.0, rng);
        let [a, b] = states.halves();
        for kept in 0..4 {
            let (v, s) = a.tensors(device);
            let before = [address(&v), address(&s)];
            let clones = (kept & 1 != 0).then(|| v.clone());
            let lse_clones = (kept & 2 != 0).then(|| s.clone());
            let (v_other, s_other) = b.tensors(device);
            let others = (v_other.clone(), s_other.clone());
            let (v, s) = merge_state_in_place(v, s, v_other, s_other, None).expect("it fits");
            let moved = [address(&v) != before[0], address(&s) != before[1]];
            let what = format!("{} with clones {kept}", target.name);
            assert_eq!(moved, [clones.is_some(), lse_clones.is_some()], "{what}");
            states.check_halves(&what, &target, (v, s));
            for (clone, host) in [(clones, &a.v), (Some(others.0), &b.v)] {
                assert!(clone.is_none_or(|clone| bits(clone) == bits(host.tensor(device))), "{what}");
            }
            for (clone, host) in [(lse_clones, &a.s), (Some(others.1), &b.s)] {
                assert!(clone.is_none_or(|clone| bits(clone) == bits(host.tensor(device))), "{what}");
            }
        }
        let (v, s) = a.tensors(device);
        let twice = [a.reference(), a.reference()];
        let got = merge_state_in_place(v.clone(), s.clone(), v, s, None).expect("it fits");
        let oracle = reference::merge_state(&twice[0], &twice[1]).expect("it fits");
        compare("twice the same", &target, got, &oracle, &a.merged((0..4).map(|t| vec![t, t])));
    }
}
