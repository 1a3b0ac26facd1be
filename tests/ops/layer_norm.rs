//! Normalisation to mean 0 and variance 1.

use burn::tensor::DType;
use burn_flashinfer::{layer_norm, reference};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, check, round};

device_tests!(shapes, axes_and_views, magnitudes);

const EPSILON: f32 = 1e-5;

fn compare<const D: usize>(
    what: &str,
    target: &Target,
    x: &Host<D>,
    [gamma, beta]: [&Host<1>; 2],
    got: &[f32],
) {
    let oracle = reference::layer_norm(&x.f64(), &gamma.f64(), &beta.f64(), f64::from(EPSILON));
    let (width, dtype) = (gamma.shape[0], x.dtype);
    let baseline: Vec<f32> = x
        .values
        .chunks_exact(width)
        .flat_map(|row| {
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width as f32;
            let factor = 1.0 / (variance + EPSILON).sqrt();
            let scaled = row.iter().zip(&gamma.values).map(move |(x, gamma)| (x - mean) * factor * gamma);
            scaled.zip(&beta.values).map(move |(x, beta)| round(x + beta, dtype))
        })
        .collect();
    check(
        format!("layer_norm {what} on {}, {:?} {:?} by {:?}", target.name, x.shape, x.dtype, gamma.dtype),
        got,
        &baseline,
        &oracle.expect("whole rows"),
        x.dtype,
    );
}

fn run<const D: usize>(what: &str, target: &Target, x: &Host<D>, columns: [&Host<1>; 2]) {
    let [gamma, beta] = columns.map(|column| column.tensor(&target.device));
    let got = layer_norm(x.tensor(&target.device), gamma, beta, EPSILON).expect("it fits");
    assert_eq!((got.dims(), got.dtype()), (x.shape, x.dtype));
    compare(what, target, x, columns, &Host::of(got).values);
}

/// With columns in the type of the rows, and in f32.
fn shapes(target: Target) {
    let rng = &mut Rng::new("layer norm shapes");
    for dtype in target.dtypes() {
        for (rows, width) in [(1, 1), (3, 17), (5, 40), (37, 128), (4, 4096), (0, 64), (300, 64), (9, 8192)] {
            let x = Host::random([rows, width], dtype, rng);
            for of_columns in [dtype, DType::F32] {
                let columns = [(); 2].map(|()| Host::random([width], of_columns, rng));
                run("shapes", &target, &x, columns.each_ref());
            }
        }
    }
}

fn axes_and_views(target: Target) {
    let rng = &mut Rng::new("layer norm axes");
    for dtype in target.dtypes() {
        let columns = [(); 2].map(|()| Host::random([64], dtype, rng));
        run("one axis", &target, &Host::random([64], dtype, rng), columns.each_ref());
        let x = Host::random([5, 3, 64], dtype, rng);
        for view in VIEWS {
            let [gamma, beta] = columns.each_ref().map(|column| column.tensor(&target.device));
            let got = layer_norm(x.view(view, &target.device), gamma, beta, EPSILON).expect("it fits");
            compare(&format!("{view:?}"), &target, &x, columns.each_ref(), &Host::of(got).values);
        }
    }
}

/// Rows whose mean is much larger than their deviation, constant rows, and a NaN, which stays in its row.
fn magnitudes(target: Target) {
    let rng = &mut Rng::new("layer norm magnitudes");
    for dtype in target.dtypes() {
        let columns = [(); 2].map(|()| Host::random([96], dtype, rng));
        for mean in [0.0, 100.0, -3000.0] {
            for deviation in [0.0, 1e-3, 1.0, 1e3] {
                let x = Host::from_fn([5, 96], dtype, |_| mean + deviation * rng.normal());
                run(&format!("{mean} and {deviation}"), &target, &x, columns.each_ref());
            }
        }
        let mut x = Host::random([5, 96], dtype, rng);
        x.values[2 * 96 + 7] = f32::NAN;
        run("NaN", &target, &x, columns.each_ref());
    }
}
