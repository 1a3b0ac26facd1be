//! Merging attention states.

use burn::tensor::DType;
use burn_flashinfer::merge_state;
use burn_flashinfer::reference::{self, State};

use crate::support::{Host, Rng, Target, VIEWS, check, devices, round};

type Pair = (Host<3>, Host<2>);

fn state(v: &Host<3>, s: &Host<2>) -> State {
    State { output: v.heads(), lse: s.f64() }
}

fn run(what: &str, target: &Target, (v_a, s_a): &Pair, (v_b, s_b): &Pair) {
    let (v, s) = merge_state(
        v_a.tensor(&target.device),
        s_a.tensor(&target.device),
        v_b.tensor(&target.device),
        s_b.tensor(&target.device),
    )
    .expect("states that fit");
    assert_eq!((v.dtype(), s.dtype()), (v_a.dtype, DType::F32));
    compare(what, target, (v_a, s_a), (v_b, s_b), (&Host::of(v).values, &Host::of(s).values));
}

fn compare(
    what: &str,
    target: &Target,
    (v_a, s_a): (&Host<3>, &Host<2>),
    (v_b, s_b): (&Host<3>, &Host<2>),
    (got_v, got_s): (&[f32], &[f32]),
) {
    let oracle = reference::merge_state(&state(v_a, s_a), &state(v_b, s_b)).expect("states that fit");
    let dim = v_a.shape[2];
    let (mut v, mut s) = (Vec::new(), Vec::new());
    for (row, (&s_a, &s_b)) in s_a.values.iter().zip(&s_b.values).enumerate() {
        let m = s_a.max(s_b);
        let [w_a, w_b] = [s_a, s_b].map(|s| if s == f32::NEG_INFINITY { 0.0 } else { (s - m).exp2() });
        s.push(m + (w_a + w_b).log2());
        for i in row * dim..(row + 1) * dim {
            let part = |w: f32, v: f32| if w == 0.0 { 0.0 } else { w / (w_a + w_b) * v };
            v.push(round(part(w_a, v_a.values[i]) + part(w_b, v_b.values[i]), v_a.dtype));
        }
    }
    let what = format!("merge {what} on {}, {:?} {:?}", target.name, v_a.shape, v_a.dtype);
    check(format!("{what}: output"), got_v, &v, oracle.output.values(), v_a.dtype);
    check(format!("{what}: LSE"), got_s, &s, &oracle.lse, DType::F32);
}

fn pair(shape: [usize; 3], dtype: DType, spread: f32, rng: &mut Rng) -> Pair {
    let [tokens, heads, _] = shape;
    let s = Host::from_fn([tokens, heads], DType::F32, |_| rng.normal() * spread);
    (Host::random(shape, dtype, rng), s)
}

#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn shapes() {
    let rng = &mut Rng::new("merge shapes");
    for target in devices() {
        for dtype in target.dtypes() {
            for shape in [[1, 1, 1], [17, 3, 40], [37, 8, 128], [5, 7, 96], [0, 4, 64], [3, 2, 256]] {
                for spread in [1.0, 20.0, 1e4] {
                    let (a, b) = (pair(shape, dtype, spread, rng), pair(shape, dtype, spread, rng));
                    run("random", &target, &a, &b);
                }
            }
        }
    }
}

/// A state without keys does not count, not even if its output is NaN; two give 0 and -inf.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn empty_states() {
    let rng = &mut Rng::new("merge empty");
    for target in devices() {
        for dtype in target.dtypes() {
            let shape = [6, 2, 40];
            let (mut a, mut b) = (pair(shape, dtype, 3.0, rng), pair(shape, dtype, 3.0, rng));
            for row in 0..12 {
                for (state, bit) in [(&mut a, 1), (&mut b, 2)] {
                    if row & bit != 0 {
                        state.1.values[row] = f32::NEG_INFINITY;
                        state.0.values[row * 40..(row + 1) * 40].fill(f32::NAN);
                    }
                }
            }
            run("empty", &target, &a, &b);
            run("empty", &target, &b, &a);
        }
    }
}

/// LSE so far apart that one state vanishes, and LSE of huge magnitude.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn far_apart() {
    for target in devices() {
        for dtype in target.dtypes() {
            let v = |x| Host::full([4, 1, 32], dtype, x);
            let s = |values: [f32; 4]| Host { shape: [4, 1], values: values.to_vec(), dtype: DType::F32 };
            let a = (v(1.0), s([3e4, -3e5, 200.0, -1e38]));
            let b = (v(-2.0), s([-3e4, -3e5, -200.0, 1e38]));
            run("far apart", &target, &a, &b);
        }
    }
}

/// Strided outputs and LSE; the same bits as contiguous ones.
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn views() {
    let rng = &mut Rng::new("merge views");
    for target in devices() {
        for dtype in target.dtypes() {
            let (a, b) = (pair([7, 4, 40], dtype, 2.0, rng), pair([7, 4, 40], dtype, 2.0, rng));
            for view in VIEWS {
                let v = |v: &Host<3>| v.view(view, &target.device);
                // A transposed view of the transposed numbers.
                let s = |s: &Host<2>| {
                    let values = (0..4).flat_map(|h| (0..7).map(move |t| (t, h)));
                    let values = values.map(|(t, h)| s.values[t * 4 + h]).collect();
                    Host { shape: [4, 7], values, dtype: DType::F32 }.tensor(&target.device).transpose()
                };
                let (got_v, got_s) = merge_state(v(&a.0), s(&a.1), v(&b.0), s(&b.1)).expect("they fit");
                let got = (Host::of(got_v).values, Host::of(got_s).values);
                let what = format!("{view:?}");
                compare(&what, &target, (&a.0, &a.1), (&b.0, &b.1), (&got.0, &got.1));
            }
        }
    }
}
