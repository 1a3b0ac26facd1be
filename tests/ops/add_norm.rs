//! Root-mean-square norm of a sum, in place.

use burn::tensor::Tensor;
use burn_flashinfer::{fused_add_rms_norm, gemma_fused_add_rms_norm, reference};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, address, bits, check, round};

device_tests!(shapes, views, in_place, nan_stays_in_its_row);

fn run<const D: usize>(
    gemma: bool,
    x: Tensor<D>,
    residual: Tensor<D>,
    weight: Tensor<1>,
) -> (Tensor<D>, Tensor<D>) {
    let run = if gemma { gemma_fused_add_rms_norm } else { fused_add_rms_norm };
    run(x, residual, weight, 1e-5).expect("it fits")
}

fn compare<const D: usize>(
    what: &str,
    gemma: bool,
    target: &Target,
    [x, residual]: [&Host<D>; 2],
    weight: &Host<1>,
    (y, sum): (Tensor<D>, Tensor<D>),
) {
    let dtype = x.dtype;
    let what = format!("{what} gemma {gemma} on {}, {:?} {dtype:?}", target.name, x.shape);
    assert_eq!((y.dims(), y.dtype()), (x.shape, dtype), "{what}");
    assert_eq!((sum.dims(), sum.dtype()), (x.shape, dtype), "{what}");
    let oracle = if gemma { reference::gemma_fused_add_rms_norm } else { reference::fused_add_rms_norm };
    let (oracle_y, oracle_sum) =
        oracle(&x.f64(), &residual.f64(), &weight.f64(), f64::from(1e-5_f32)).expect("whole rows");
    let exact: Vec<f32> = x.values.iter().zip(&residual.values).map(|(x, r)| x + r).collect();
    let width = weight.values.len();
    let baseline: Vec<f32> = exact
        .chunks_exact(width)
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
            let factor = 1.0 / (mean + 1e-5).sqrt();
            let added = if gemma { 1.0 } else { 0.0 };
            row.iter().zip(&weight.values).map(move |(x, w)| round(x * factor * (w + added), dtype))
        })
        .collect();
    check(format!("{what}: norm"), &Host::of(y).values, &baseline, &oracle_y, dtype);
    let baseline: Vec<f32> = exact.iter().map(|&x| round(x, dtype)).collect();
    check(format!("{what}: sum"), &Host::of(sum).values, &baseline, &oracle_sum, dtype);
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("add norm shapes");
    for dtype in target.dtypes() {
        for (rows, width) in
            [(1, 1), (3, 17), (5, 40), (1, 127), (37, 128), (4, 4096), (0, 64), (300, 64), (9, 8192)]
        {
            let [x, residual] = [(); 2].map(|()| Host::random([rows, width], dtype, rng));
            let weight = Host::random([width], dtype, rng);
            for gemma in [false, true] {
                let got = run(
                    gemma,
                    x.tensor(&target.device),
                    residual.tensor(&target.device),
                    weight.tensor(&target.device),
                );
                compare("shapes", gemma, &target, [&x, &residual], &weight, got);
            }
        }
    }
}

/// Three axes and strided tensors, of which neither shares its layout with the other.
fn views(target: Target) {
    let rng = &mut Rng::new("add norm views");
    for dtype in target.dtypes() {
        let [x, residual] = [(); 2].map(|()| Host::random([5, 3, 64], dtype, rng));
        let weight = Host::random([64], dtype, rng);
        for (i, view) in VIEWS.into_iter().enumerate() {
            for other in [view, VIEWS[(i + 1) % VIEWS.len()]] {
                let got = run(
                    i % 2 == 0,
                    x.view(view, &target.device),
                    residual.view(other, &target.device),
                    weight.tensor(&target.device),
                );
                compare(&format!("{view:?} {other:?}"), i % 2 == 0, &target, [&x, &residual], &weight, got);
            }
        }
    }
}

/// What nobody else has a clone of is overwritten, a clone never is; not when `x` is the residual either.
fn in_place(target: Target) {
    let rng = &mut Rng::new("add norm in place");
    for dtype in target.dtypes() {
        let [x, residual] = [(); 2].map(|()| Host::random([4, 4, 256], dtype, rng));
        let weight = Host::random([256], dtype, rng);
        let w = || weight.tensor(&target.device);
        for kept in 0..4 {
            let inputs = [&x, &residual].map(|host| host.tensor(&target.device));
            let before = inputs.each_ref().map(address);
            let clones = [1, 2].map(|bit| kept & bit != 0);
            let clones = [0, 1].map(|i| clones[i].then(|| inputs[i].clone()));
            let [a, b] = inputs;
            let (y, sum) = run(false, a, b, w());
            for (i, (result, clone)) in [(&y, &clones[0]), (&sum, &clones[1])].into_iter().enumerate() {
                let moved = address(result) != before[i];
                assert_eq!(moved, clone.is_some(), "{}: result {i} with clones {kept}", target.name);
            }
            compare("in place", false, &target, [&x, &residual], &weight, (y, sum));
            for (clone, host) in clones.into_iter().zip([&x, &residual]) {
                let Some(clone) = clone else { continue };
                assert_eq!(bits(clone), bits(host.tensor(&target.device)), "a clone was overwritten");
            }
        }
        let twice = x.tensor(&target.device);
        let got = run(true, twice.clone(), twice, w());
        compare("twice the same", true, &target, [&x, &x], &weight, got);
    }
}

/// A NaN makes its own row NaN, no other.
fn nan_stays_in_its_row(target: Target) {
    let rng = &mut Rng::new("add norm nan");
    for dtype in target.dtypes() {
        let [mut x, mut residual] = [(); 2].map(|()| Host::random([5, 40], dtype, rng));
        x.values[2 * 40 + 7] = f32::NAN;
        residual.values[3 * 40] = f32::INFINITY;
        let weight = Host::random([40], dtype, rng);
        let got = run(
            false,
            x.tensor(&target.device),
            residual.tensor(&target.device),
            weight.tensor(&target.device),
        );
        compare("NaN", false, &target, [&x, &residual], &weight, got);
    }
}
