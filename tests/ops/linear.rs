//! Linear layers.

use burn::tensor::DType;
use burn_flashinfer::{
    Activation, LinearOptions, gemma_rms_norm_linear, linear, matmul_nt, reference, rms_norm_linear,
};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, bits, check, round, seed};

device_tests!(
    shapes,
    no_rows,
    axes_and_views,
    sums_in_f32,
    epilogues,
    residual_in_place,
    normalised,
    large_rows_of_norms,
    batch_invariant,
    tf32
);

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

/// Factors of f32 that may be rounded to TF32.
fn tf32(target: Target) {
    let rng = &mut Rng::new("TF32");
    for [rows, in_dim, out_dim] in
        target.thin(2, vec![[1, 64, 64], [20, 72, 136], [130, 200, 264], [33, 17, 37]])
    {
        let x = Host::<2>::random([rows, in_dim], DType::F32, rng);
        let weight = Host::random([out_dim, in_dim], DType::F32, rng);
        let options = LinearOptions::new().tf32(true);
        let got = linear(x.tensor(&target.device), weight.tensor(&target.device), options).expect("it fits");
        let oracle = reference::matmul_nt(&x.f64(), &weight.f64(), in_dim).expect("whole rows");
        let rounded = |x: f32| f32::from_bits((x.to_bits() + 0x1000) & !0x1fff);
        let products = x.values.chunks_exact(in_dim).flat_map(|x| {
            let dot = move |w: &[f32]| x.iter().zip(w).map(|(&x, &w)| rounded(x) * rounded(w)).sum::<f32>();
            weight.values.chunks_exact(in_dim).map(dot)
        });
        let baseline: Vec<f32> = products.collect();
        let what = format!("TF32 of {rows} {in_dim} {out_dim} on {}", target.name);
        check(&what, &Host::of(got).values, &baseline, &oracle, DType::F32);
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

/// A sum with its bias, gated, capped, and added to the residual.
fn finished(sums: &[f64], bias: &[f64], residual: Option<&[f64]>, gated: bool, cap: Option<f64>) -> Vec<f64> {
    let sums: Vec<f64> =
        sums.chunks_exact(bias.len()).flat_map(|row| row.iter().zip(bias).map(|(a, b)| a + b)).collect();
    let sums = if gated { reference::silu_and_mul(&sums, bias.len() / 2).expect("whole rows") } else { sums };
    let capped = sums.into_iter().map(|s| cap.map_or(s, |cap| cap * (s / cap).tanh()));
    match residual {
        None => capped.collect(),
        Some(residual) => capped.zip(residual).map(|(s, old)| s + old).collect(),
    }
}

/// Every step with every other, in the type of `x` and in f32.
fn epilogues(target: Target) {
    let rng = &mut Rng::new("linear epilogues");
    let shapes = [[1, 64, 48], [9, 40, 34], [70, 136, 96]];
    for dtype in target.dtypes() {
        let cases = (0..16).map(|i| (shapes[i % 3], [i & 1 > 0, i & 2 > 0, i & 4 > 0, i & 8 > 0])).collect();
        for ([rows, in_dim, out_dim], [gated, capped, added, wide]) in target.thin(5, cases) {
            let weight_rows = if gated { 2 * out_dim } else { out_dim };
            let output_dtype = if wide { DType::F32 } else { dtype };
            let x = Host::random([rows, in_dim], dtype, rng);
            let weight = Host::random([weight_rows, in_dim], dtype, rng);
            let bias = Host::random([weight_rows], dtype, rng);
            let residual = Host::random([rows, out_dim], output_dtype, rng);
            let mut epilogue =
                LinearOptions::new().bias(bias.tensor(&target.device)).output_dtype(output_dtype);
            if gated {
                epilogue = epilogue.gate(Activation::Silu);
            }
            if capped {
                epilogue = epilogue.soft_cap(3.0);
            }
            if added {
                epilogue = epilogue.residual(residual.tensor(&target.device));
            }
            let got = linear(x.tensor(&target.device), weight.tensor(&target.device), epilogue);
            let got = got.expect("it fits");
            assert_eq!((got.dims(), got.dtype()), ([rows, out_dim], output_dtype));

            let of_sums = |sums: &[f64]| {
                let residual = added.then(|| residual.f64());
                finished(sums, &bias.f64(), residual.as_deref(), gated, capped.then_some(3.0))
            };
            let oracle = of_sums(&reference::matmul_nt(&x.f64(), &weight.f64(), in_dim).expect("whole rows"));
            let sums: Vec<f64> = x
                .values
                .chunks_exact(in_dim)
                .flat_map(|x| {
                    let dot = move |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
                    weight.values.chunks_exact(in_dim).map(dot)
                })
                .map(f64::from)
                .collect();
            let baseline: Vec<f32> = of_sums(&sums).iter().map(|&y| round(y as f32, output_dtype)).collect();
            let what = format!(
                "linear on {}, {rows} x {in_dim} x {out_dim} {dtype:?}, gated {gated}, capped {capped}, added {added}, \
                 {output_dtype:?}",
                target.name
            );
            check(what, &Host::of(got).values, &baseline, &oracle, output_dtype);
        }
    }
}

/// A residual with another owner is not written.
fn residual_in_place(target: Target) {
    let rng = &mut Rng::new("linear residual");
    let dtype = target.dtypes()[0];
    let (x, weight) = (Host::random([3, 40], dtype, rng), Host::random([16, 40], dtype, rng));
    let residual = Host::random([3, 16], dtype, rng);
    let (kept, owned) = (residual.tensor(&target.device), residual.tensor(&target.device));
    let run = |residual| {
        let epilogue = LinearOptions::new().residual(residual);
        let y = linear(x.tensor(&target.device), weight.tensor(&target.device), epilogue);
        Host::of(y.expect("it fits")).values
    };
    let (shared, in_place) = (run(kept.clone()), run(owned));
    assert_eq!(shared, in_place);
    assert_eq!(Host::of(kept).values, residual.values);
}

/// The norm of each row and its product, in one kernel or two.
fn normalised(target: Target) {
    let rng = &mut Rng::new("normalised linear");
    let epsilon = 1e-5;
    for dtype in target.dtypes() {
        for (i, [rows, in_dim, out_dim]) in target
            .thin(2, vec![[1, 264, 40], [3, 40, 17], [31, 1000, 48], [70, 136, 96]])
            .into_iter()
            .enumerate()
        {
            let x = Host::random([rows, in_dim], dtype, rng);
            let norm = Host::random([in_dim], dtype, rng);
            let weight = Host::random([out_dim, in_dim], dtype, rng);
            let (x_tensor, w) = (x.tensor(&target.device), weight.tensor(&target.device));
            let g = norm.tensor(&target.device);
            let gemma = i % 2 == 1;
            let got = match gemma {
                true => gemma_rms_norm_linear(x_tensor, g, epsilon, w, LinearOptions::new()),
                false => rms_norm_linear(x_tensor, g, epsilon, w, LinearOptions::new()),
            };
            let rms = if gemma { reference::gemma_rms_norm } else { reference::rms_norm };
            let normed = rms(&x.f64(), &norm.f64(), f64::from(epsilon)).expect("whole rows");
            let oracle = reference::matmul_nt(&normed, &weight.f64(), in_dim).expect("whole rows");
            let rounded: Vec<f32> = normed.iter().map(|&x| round(x as f32, dtype)).collect();
            let sums = rounded.chunks_exact(in_dim).flat_map(|x| {
                let dot = move |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
                weight.values.chunks_exact(in_dim).map(dot)
            });
            let baseline: Vec<f32> = sums.map(|y| round(y, dtype)).collect();
            let what = format!(
                "rms_norm_linear on {}, {rows} x {in_dim} x {out_dim} {dtype:?}, Gemma {gemma}",
                target.name
            );
            check(what, &Host::of(got.expect("it fits")).values, &baseline, &oracle, dtype);
        }
    }
}

/// Rows times gains beyond the largest f16, whose norms are small: no infinity.
fn large_rows_of_norms(target: Target) {
    for dtype in target.dtypes() {
        let x = Host::full([2, 64], dtype, 6e4);
        let (norm, weight) = (Host::full([64], dtype, 8.0), Host::full([8, 64], dtype, 0.125));
        let (x, norm) = (x.tensor(&target.device), norm.tensor(&target.device));
        let got = rms_norm_linear(x, norm, 1e-5, weight.tensor(&target.device), LinearOptions::new());
        let got = Host::of(got.expect("it fits")).values;
        assert!(got.iter().all(|y| (y - 64.0).abs() < 0.5), "{} {dtype:?}: {got:?}", target.name);
    }
}

/// The bits of a row are the same alone and in any batch, with norm, gate and residual.
fn batch_invariant(target: Target) {
    let rng = &mut Rng::new("batch-invariant linear");
    for dtype in target.dtypes() {
        let (all, in_dim, out_dim) = (130, 328, 64);
        let x = Host::random([all, in_dim], dtype, rng);
        let norm = Host::random([in_dim], dtype, rng);
        let weight = Host::random([2 * out_dim, in_dim], dtype, rng);
        let residual = Host::random([all, out_dim], dtype, rng);
        let run = |rows: usize| {
            let of = |host: &Host<2>| host.tensor(&target.device).narrow(0, 0, rows);
            let options =
                LinearOptions::new().gate(Activation::Silu).residual(of(&residual)).batch_invariant(true);
            let (norm, weight) = (norm.tensor(&target.device), weight.tensor(&target.device));
            bits(rms_norm_linear(of(&x), norm, 1e-5, weight, options).expect("it fits"))
        };
        let whole = run(all);
        for rows in target.thin(3, vec![1, 5, 16, 17, 33, 64, 65]) {
            let got = run(rows);
            assert!(got == whole[..got.len()], "{}: {rows} rows of {dtype:?}, seed {}", target.name, seed());
        }
    }
}
