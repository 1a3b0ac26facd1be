//! Linear layers.

use burn_flashinfer::{matmul_nt, reference};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, check, round};

device_tests!(shapes, no_rows, axes_and_views, sums_in_f32);

fn compare<const D: usize>(what: &str, target: &Target, x: &Host<D>, weight: &Host<2>, got: &[f32]) {
    let [_, in_dim] = weight.shape;
    let oracle = reference::matmul_nt(&x.f64(), &weight.f64(), in_dim).expect("whole rows");
    let products = x.values.chunks_exact(in_dim).flat_map(|x| {
        let dot = move |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
        weight.values.chunks_exact(in_dim).map(dot)
    });
    let baseline: Vec<f32> = products.map(|y| round(y, x.dtype)).collect();
    let what =
        format!("matmul_nt {what} on {}, {:?} x {:?} {:?}", target.name, x.shape, weight.shape, x.dtype);
    check(what, got, &baseline, &oracle, x.dtype);
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("linear shapes");
    for dtype in target.dtypes() {
        let shapes = vec![
            [1, 64, 64],
            [1, 1, 1],
            [1, 17, 37],
            [2, 54, 97],
            [1, 1000, 127],
            [3, 40, 513],
            [7, 256, 96],
            [17, 127, 54],
            [33, 64, 128],
            [97, 80, 17],
            [128, 256, 64],
        ];
        for [rows, in_dim, out_dim] in target.thin(2, shapes) {
            let x = Host::random([rows, in_dim], dtype, rng);
            let weight = Host::random([out_dim, in_dim], dtype, rng);
            let got = matmul_nt(x.tensor(&target.device), weight.tensor(&target.device)).expect("it fits");
            assert_eq!((got.dims(), got.dtype()), ([rows, out_dim], dtype));
            compare("shapes", &target, &x, &weight, &Host::of(got).values);
        }
    }
}

/// No rows: no result, but of the right shape.
fn no_rows(target: Target) {
    for dtype in target.dtypes() {
        let (x, weight) = (Host::full([0, 64], dtype, 0.0), Host::full([32, 64], dtype, 1.0));
        let got = matmul_nt(x.tensor(&target.device), weight.tensor(&target.device)).expect("it fits");
        assert_eq!((got.dims(), got.dtype()), ([0, 32], dtype));
        assert!(Host::of(got).values.is_empty());
    }
}

/// Any number of leading axes, and views.
fn axes_and_views(target: Target) {
    let rng = &mut Rng::new("linear axes");
    for dtype in target.dtypes() {
        let weight = Host::random([17, 40], dtype, rng);
        let w = || weight.tensor(&target.device);
        let x1 = Host::random([40], dtype, rng);
        let got = matmul_nt(x1.tensor(&target.device), w()).expect("it fits");
        assert_eq!(got.dims(), [17]);
        compare("one axis", &target, &x1, &weight, &Host::of(got).values);
        let x3 = Host::random([3, 5, 40], dtype, rng);
        for view in VIEWS {
            let got = matmul_nt(x3.view(view, &target.device), w()).expect("it fits");
            assert_eq!(got.dims(), [3, 5, 17]);
            compare(&format!("{view:?}"), &target, &x3, &weight, &Host::of(got).values);
        }
        // A weight that is the transpose of another tensor.
        let values =
            (0..40).flat_map(|i| (0..17).map(move |o| (o, i))).map(|(o, i)| weight.values[o * 40 + i]);
        let stored = Host { shape: [40, 17], values: values.collect(), dtype };
        let got = matmul_nt(x3.tensor(&target.device), stored.tensor(&target.device).transpose());
        compare("transposed weight", &target, &x3, &weight, &Host::of(got.expect("it fits")).values);
    }
}

/// Sums are f32: 4096 products of 1 and 1 are 4096 in f16 and bf16, where a sum in bf16 would stop at 256.
fn sums_in_f32(target: Target) {
    for dtype in target.dtypes() {
        for rows in [1, 16] {
            let (x, weight) = (Host::full([rows, 4096], dtype, 1.0), Host::full([16, 4096], dtype, 1.0));
            let got = matmul_nt(x.tensor(&target.device), weight.tensor(&target.device)).expect("it fits");
            assert!(Host::of(got).values.iter().all(|&y| y == 4096.0), "{} {dtype:?}", target.name);
        }
    }
}
