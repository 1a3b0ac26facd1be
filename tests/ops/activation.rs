//! Gated activations.

use burn::tensor::Tensor;
use burn_flashinfer::{Result, gelu_and_mul, gelu_tanh_and_mul, reference, silu_and_mul};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, check, round};

device_tests!(shapes, axes_and_views, magnitudes);

/// An activation, its reference, and the function alone in f32.
struct Act {
    name: &'static str,
    oracle: fn(&[f64], usize) -> Result<Vec<f64>>,
    baseline: fn(f32) -> f32,
}

impl Act {
    fn run<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let run = match self.name {
            "silu_and_mul" => silu_and_mul,
            "gelu_and_mul" => gelu_and_mul,
            _ => gelu_tanh_and_mul,
        };
        run(x).expect("it fits")
    }
}

const ACTS: [Act; 3] = [
    Act { name: "silu_and_mul", oracle: reference::silu_and_mul, baseline: |a| a / (1.0 + (-a).exp()) },
    Act {
        name: "gelu_and_mul",
        oracle: reference::gelu_and_mul,
        // There is no `erf` in f32: exact, and rounded once.
        baseline: |a| reference::gelu_and_mul(&[f64::from(a), 1.0], 1).expect("a row")[0] as f32,
    },
    Act {
        name: "gelu_tanh_and_mul",
        oracle: reference::gelu_tanh_and_mul,
        baseline: |a| {
            let u = std::f32::consts::FRAC_2_PI.sqrt() * (a + 0.044715 * a * a * a);
            0.5 * a * (1.0 + u.tanh())
        },
    },
];

fn compare<const D: usize>(what: &str, act: &Act, target: &Target, x: &Host<D>, got: &[f32]) {
    let width = x.shape[D - 1] / 2;
    let oracle = (act.oracle)(&x.f64(), width).expect("whole rows");
    let baseline: Vec<f32> = x
        .values
        .chunks_exact(2 * width)
        .flat_map(|row| {
            let (a, b) = row.split_at(width);
            a.iter().zip(b).map(|(&a, b)| round((act.baseline)(a) * b, x.dtype)).collect::<Vec<_>>()
        })
        .collect();
    let what = format!("{} {what} on {}, {:?} {:?}", act.name, target.name, x.shape, x.dtype);
    check(what, got, &baseline, &oracle, x.dtype);
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("activation shapes");
    for dtype in target.dtypes() {
        for (rows, width) in [(1, 1), (3, 17), (5, 40), (37, 127), (2, 4096), (0, 64), (300, 64)] {
            let x = Host::from_fn([rows, 2 * width], dtype, |_| 3.0 * rng.normal());
            for act in &ACTS {
                let got = act.run(x.tensor(&target.device));
                assert_eq!((got.dims(), got.dtype()), ([rows, width], dtype));
                compare("shapes", act, &target, &x, &Host::of(got).values);
            }
        }
        for act in &ACTS {
            let empty = Tensor::<2>::zeros([3, 0], (&target.device, dtype));
            assert_eq!(act.run(empty).dims(), [3, 0]);
        }
    }
}

fn axes_and_views(target: Target) {
    let rng = &mut Rng::new("activation axes");
    for dtype in target.dtypes() {
        let x1 = Host::random([64], dtype, rng);
        let x3 = Host::random([5, 3, 80], dtype, rng);
        for act in &ACTS {
            let got = act.run(x1.tensor(&target.device));
            compare("one axis", act, &target, &x1, &Host::of(got).values);
            for view in VIEWS {
                let got = act.run(x3.view(view, &target.device));
                compare(&format!("{view:?}"), act, &target, &x3, &Host::of(got).values);
            }
        }
    }
}

/// Where exponentials overflow, where the functions vanish, and what is not a number. A NaN stays in its column.
fn magnitudes(target: Target) {
    for dtype in target.dtypes() {
        let mut a: Vec<f32> = (0..200).map(|i| (i - 100) as f32 * 0.11).collect();
        a.extend([0.0, -0.0, 1e-4, -1e-4, 30.0, -30.0, 90.0, -90.0, 300.0, -300.0, 6e4, -6e4]);
        a.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]);
        let mut row = a.clone();
        row.extend(a.iter().enumerate().map(|(i, _)| if i % 2 == 0 { 0.75 } else { -0.5 }));
        let x = Host::from_fn([1, row.len()], dtype, |i| row[i]);
        for act in &ACTS {
            let got = act.run(x.tensor(&target.device));
            compare("magnitudes", act, &target, &x, &Host::of(got).values);
        }
    }
}
