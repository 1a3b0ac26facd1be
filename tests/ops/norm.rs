//! Root-mean-square norm, plain and as Gemma has it.

use burn::tensor::{Slice, Tensor};
use burn_flashinfer::{Result, gemma_rms_norm, reference, rms_norm};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, check, round};

device_tests!(shapes, axes_and_views, magnitudes, nan_stays_in_its_row);

/// `x`, weight and epsilon to norms.
type Oracle = fn(&[f64], &[f64], f64) -> Result<Vec<f64>>;

/// A norm, what is added to its weight, and its reference.
struct Norm {
    name: &'static str,
    added: f32,
    oracle: Oracle,
}

impl Norm {
    fn run<const D: usize>(&self, x: Tensor<D>, weight: Tensor<1>, epsilon: f32) -> Tensor<D> {
        let run = if self.added == 0.0 { rms_norm } else { gemma_rms_norm };
        run(x, weight, epsilon).expect("it fits")
    }
}

const NORMS: [Norm; 2] = [
    Norm { name: "rms_norm", added: 0.0, oracle: reference::rms_norm },
    Norm { name: "gemma_rms_norm", added: 1.0, oracle: reference::gemma_rms_norm },
];

fn compare<const D: usize>(
    what: &str,
    norm: &Norm,
    target: &Target,
    x: &Host<D>,
    weight: &Host<1>,
    epsilon: f32,
    got: &[f32],
) {
    let oracle = (norm.oracle)(&x.f64(), &weight.f64(), f64::from(epsilon)).expect("whole rows");
    let (width, dtype) = (weight.shape[0], x.dtype);
    let baseline: Vec<f32> = x
        .values
        .chunks_exact(width)
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
            let factor = 1.0 / (mean + epsilon).sqrt();
            row.iter().zip(&weight.values).map(move |(x, w)| round(x * factor * (w + norm.added), dtype))
        })
        .collect();
    check(
        format!("{} {what} on {}, {:?} {:?}", norm.name, target.name, x.shape, x.dtype),
        got,
        &baseline,
        &oracle,
        x.dtype,
    );
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("norm shapes");
    for dtype in target.dtypes() {
        for (rows, width) in [
            (1, 1),
            (3, 17),
            (5, 40),
            (1, 127),
            (2, 1000),
            (37, 128),
            (4, 4096),
            (0, 64),
            (300, 64),
            (2, 8192),
        ] {
            let x = Host::random([rows, width], dtype, rng);
            let weight = Host::random([width], dtype, rng);
            for norm in &NORMS {
                let got = norm.run(x.tensor(&target.device), weight.tensor(&target.device), 1e-6);
                assert_eq!((got.dims(), got.dtype()), ([rows, width], dtype));
                compare("shapes", norm, &target, &x, &weight, 1e-6, &Host::of(got).values);
            }
        }
    }
}

/// Any number of leading axes, for instance for the norm of each head; strided too.
fn axes_and_views(target: Target) {
    let rng = &mut Rng::new("norm axes");
    for dtype in target.dtypes() {
        let weight = Host::random([64], dtype, rng);
        let norm = &NORMS[1];
        let w = || weight.tensor(&target.device);
        let x1 = Host::random([64], dtype, rng);
        let got = norm.run(x1.tensor(&target.device), w(), 1e-5);
        compare("one axis", norm, &target, &x1, &weight, 1e-5, &Host::of(got).values);
        let x4 = Host::random([2, 3, 4, 64], dtype, rng);
        let got = norm.run(x4.tensor(&target.device), w(), 1e-5);
        compare("four axes", norm, &target, &x4, &weight, 1e-5, &Host::of(got).values);
        let x3 = Host::random([5, 3, 64], dtype, rng);
        for view in crate::support::VIEWS {
            let got = norm.run(x3.view(view, &target.device), w(), 1e-5);
            compare(&format!("{view:?}"), norm, &target, &x3, &weight, 1e-5, &Host::of(got).values);
        }
        // Every other weight of a longer row.
        let doubled =
            Host::from_fn([128], dtype, |i| if i % 2 == 0 { weight.values[i / 2] } else { f32::NAN });
        let strided: Tensor<1> = doubled.tensor(&target.device).slice([Slice::new(0, Some(128), 2)]);
        let got = norm.run(x1.tensor(&target.device), strided, 1e-5);
        compare("strided weight", norm, &target, &x1, &weight, 1e-5, &Host::of(got).values);
    }
}

/// Rows of zeros, and of magnitudes whose squares f16 could not hold.
fn magnitudes(target: Target) {
    let rng = &mut Rng::new("norm magnitudes");
    for dtype in target.dtypes() {
        for factor in [0.0, 1e-4, 1.0, 1e4] {
            for epsilon in [0.0, 1e-6, 0.5] {
                if factor == 0.0 && epsilon == 0.0 {
                    continue;
                }
                let x = Host::from_fn([9, 96], dtype, |_| rng.normal() * factor);
                let weight = Host::random([96], dtype, rng);
                for norm in &NORMS {
                    let got = norm.run(x.tensor(&target.device), weight.tensor(&target.device), epsilon);
                    let got = Host::of(got).values;
                    compare(&format!("x {factor} e {epsilon}"), norm, &target, &x, &weight, epsilon, &got);
                }
            }
        }
    }
}

/// A NaN makes its own row NaN, no other.
fn nan_stays_in_its_row(target: Target) {
    let rng = &mut Rng::new("norm nan");
    for dtype in target.dtypes() {
        let mut x = Host::random([5, 40], dtype, rng);
        x.values[2 * 40 + 7] = f32::NAN;
        let weight = Host::random([40], dtype, rng);
        for norm in &NORMS {
            let got = norm.run(x.tensor(&target.device), weight.tensor(&target.device), 1e-6);
            compare("NaN", norm, &target, &x, &weight, 1e-6, &Host::of(got).values);
        }
    }
}
