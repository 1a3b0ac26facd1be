//! A sample of Burn's own operations, which share their devices with ours. Were one of them wrong on a device, so would
//! be models that this crate's operations are right in; and on a simulated device they test the simulator.
#![cfg(feature = "cube")]

use burn::tensor::activation::{gelu, sigmoid, silu, softmax};
use burn::tensor::module::{attention, embedding};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Distribution, IndexingUpdateOp, Int, Tensor, TensorData, s};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, check, epsilon, read, round, say, seed};

device_tests!(
    elementwise,
    conversions,
    reductions,
    movement,
    matrix_products,
    burns_attention,
    random_numbers
);

/// Fails unless each number is as near to f64's as a few roundings to `dtype` leave it.
fn close(what: &str, target: &Target, dtype: DType, got: &[f32], oracle: &[f64]) {
    assert_eq!(got.len(), oracle.len(), "{what}");
    for (at, (&got, &oracle)) in got.iter().zip(oracle).enumerate() {
        let allowed = 4.0 * epsilon(dtype) * oracle.abs().max(1.0);
        assert!(
            (f64::from(got) - oracle).abs() <= allowed,
            "{what} on {}, {dtype:?}: element {at} is {got}, expected {oracle}; seed {}",
            target.name,
            seed()
        );
    }
}

type Unary = (&'static str, fn(Tensor<2>) -> Tensor<2>, fn(f64) -> f64);

const UNARY: [Unary; 13] = [
    ("exp", Tensor::exp, f64::exp),
    ("log", |x| (x.abs() + 0.1).log(), |x| (x.abs() + 0.1).ln()),
    ("sqrt", |x| x.abs().sqrt(), |x| x.abs().sqrt()),
    ("recip", |x| (x.abs() + 1).recip(), |x| 1.0 / (x.abs() + 1.0)),
    ("tanh", Tensor::tanh, f64::tanh),
    ("sin", Tensor::sin, f64::sin),
    ("cos", Tensor::cos, f64::cos),
    ("floor", Tensor::floor, f64::floor),
    ("round", Tensor::round, f64::round_ties_even),
    ("clamp", |x| x.clamp(-0.5, 0.75), |x| x.clamp(-0.5, 0.75)),
    ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
    ("silu", silu, |x| x / (1.0 + (-x).exp())),
    // By the difference of its argument's sign: erf itself is not in std.
    ("gelu - gelu of -x", |x| gelu(x.clone()) - gelu(-x), |x| x),
];

fn elementwise(target: Target) {
    let rng = &mut Rng::new("burn elementwise");
    for dtype in target.dtypes() {
        let x = Host::random([7, 37], dtype, rng);
        for (name, op, oracle) in UNARY {
            let oracle: Vec<f64> = x.values.iter().map(|&x| oracle(x.into())).collect();
            close(name, &target, dtype, &read(op(x.tensor(&target.device))), &oracle);
        }
        // The second row of factors stands for all.
        let y = Host::random([1, 37], dtype, rng);
        let pairs = x.values.iter().enumerate().map(|(at, &x)| (f64::from(x), f64::from(y.values[at % 37])));
        let [x, y] = [x.tensor(&target.device), y.tensor(&target.device)];
        let got = (x.clone() * y.clone() - x.clone() / (y.clone().abs() + 1)) * 0.5;
        let oracle: Vec<f64> = pairs.clone().map(|(x, y)| (x * y - x / (y.abs() + 1.0)) * 0.5).collect();
        close("arithmetic", &target, dtype, &read(got), &oracle);
        let got =
            x.clone().mask_where(x.clone().greater(y.clone().expand([7, 37])), y.clone().expand([7, 37]));
        let oracle: Vec<f64> = pairs.map(|(x, y)| x.min(y)).collect();
        close("mask_where", &target, dtype, &read(got), &oracle);
    }
}

fn conversions(target: Target) {
    let rng = &mut Rng::new("burn conversions");
    let x = Host::from_fn([515], DType::F32, |_| rng.normal() * 1000.0);
    for dtype in target.dtypes() {
        let rounded: Vec<u32> = x.values.iter().map(|&x| round(x, dtype).to_bits()).collect();
        assert_eq!(bits(x.tensor(&target.device).cast(dtype)), rounded, "{dtype:?} on {}", target.name);
    }
    let integers: Vec<i32> = x.values.iter().map(|&x| x as i32).collect();
    let got = x.tensor(&target.device).int().into_data().convert::<i32>();
    assert_eq!(got.try_to_vec::<i32>().expect("converted"), integers, "{}", target.name);
    let data = TensorData::new(integers.clone(), [515]);
    let got = Tensor::<1, Int>::from_data(data, &target.device);
    let got = ((got * 3 + 7) / 5).float();
    let oracle: Vec<f64> = integers.iter().map(|&x| f64::from((x * 3 + 7) / 5)).collect();
    close("integers", &target, DType::F32, &read(got), &oracle);
}

fn reductions(target: Target) {
    let rng = &mut Rng::new("burn reductions");
    for dtype in target.dtypes() {
        let (rows, width) = (5, 300);
        let x = Host::random([rows, width], dtype, rng);
        let lines: Vec<Vec<f64>> = x.f64().chunks(width).map(<[f64]>::to_vec).collect();
        let device = || x.tensor(&target.device);
        let by_line = |f: fn(&[f64]) -> f64| lines.iter().map(|line| f(line)).collect::<Vec<_>>();
        close(
            "mean",
            &target,
            dtype,
            &read(device().mean_dim(1)),
            &by_line(|line| line.iter().sum::<f64>() / line.len() as f64),
        );
        close(
            "max",
            &target,
            dtype,
            &read(device().max_dim(1)),
            &by_line(|line| line.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        );
        let largest = device().argmax(1).into_data().convert::<i64>();
        let by_index: Vec<i64> = lines
            .iter()
            .map(|line| (0..width).fold(0, |best, at| if line[at] > line[best] { at } else { best }) as i64)
            .collect();
        assert_eq!(largest.try_to_vec::<i64>().expect("converted"), by_index, "{}", target.name);
        let columns: Vec<f64> = (0..width).map(|at| lines.iter().map(|line| line[at]).sum::<f64>()).collect();
        close("sum of columns", &target, dtype, &read(device().sum_dim(0)), &columns);
        let shares: Vec<f64> = lines
            .iter()
            .flat_map(|line| {
                let sum: f64 = line.iter().map(|x| x.exp()).sum();
                line.iter().map(move |x| x.exp() / sum)
            })
            .collect();
        close("softmax", &target, dtype, &read(softmax(device(), 1)), &shares);
    }
}

fn movement(target: Target) {
    let rng = &mut Rng::new("burn movement");
    for dtype in target.dtypes() {
        let x = Host::random([4, 6, 10], dtype, rng);
        let at = |a: usize, b: usize, c: usize| x.values[(a * 6 + b) * 10 + c];
        let tensor = || x.tensor(&target.device);
        let same = |what: &str, got: Vec<f32>, oracle: Vec<f32>| {
            assert_eq!(got, oracle, "{what} on {}, {dtype:?}", target.name);
        };
        let over = |a: usize, b: usize, c: usize, f: &dyn Fn(usize, usize, usize) -> f32| {
            (0..a * b * c).map(|i| f(i / c / b, i / c % b, i % c)).collect::<Vec<_>>()
        };
        let swapped = read(tensor().permute([2, 0, 1]).reshape([10, 4, 6]));
        same("permute", swapped, over(10, 4, 6, &|c, a, b| at(a, b, c)));
        let slice = read(tensor().slice(s![1..3, 2.., 3..8]));
        same("slice", slice, over(2, 4, 5, &|a, b, c| at(a + 1, b + 2, c + 3)));
        let assigned = read(
            tensor().slice_assign(s![0..1, 0..6, 9..10], Tensor::zeros([1, 6, 1], (&target.device, dtype))),
        );
        same(
            "slice_assign",
            assigned,
            over(4, 6, 10, &|a, b, c| if (a, c) == (0, 9) { 0.0 } else { at(a, b, c) }),
        );
        let joined = read(Tensor::cat(vec![tensor(), tensor().slice(s![.., 0..2, ..])], 1));
        same("cat", joined, over(4, 8, 10, &|a, b, c| at(a, b % 6, c)));
        let rows = Tensor::<1, Int>::from_data([5, 0, 5], &target.device);
        same("select", read(tensor().select(1, rows)), over(4, 3, 10, &|a, b, c| at(a, [5, 0, 5][b], c)));
        let picks: Vec<i32> = (0..40).map(|_| rng.below(10) as i32).collect();
        let indices = Tensor::<3, Int>::from_data(TensorData::new(picks.clone(), [4, 1, 10]), &target.device);
        let picked = read(tensor().slice(s![.., 0..1, ..]).gather(2, indices.clone()));
        same("gather", picked, over(4, 1, 10, &|a, _, c| at(a, 0, picks[a * 10 + c] as usize)));
        let ones = Tensor::ones([4, 1, 10], (&target.device, dtype));
        let counts = Tensor::<3>::zeros([4, 1, 10], (&target.device, dtype));
        let counts = read(counts.scatter(2, indices, ones, IndexingUpdateOp::Add));
        let count =
            |a: usize, c: usize| picks[a * 10..][..10].iter().filter(|&&pick| pick as usize == c).count();
        same("scatter", counts, over(4, 1, 10, &|a, _, c| count(a, c) as f32));
        let table = tensor().reshape([24, 10]);
        let tokens = Tensor::<2, Int>::from_data([[23, 0], [7, 7]], &target.device);
        let found = read(embedding(table, tokens));
        same("embedding", found, over(1, 4, 10, &|_, b, c| x.values[[23, 0, 7, 7][b] * 10 + c]));
    }
}

/// Adds up the products of pairs.
type Sum<'a> = &'a dyn Fn(&mut dyn Iterator<Item = (f32, f32)>) -> f64;

fn matrix_products(target: Target) {
    let rng = &mut Rng::new("burn matmul");
    if !cfg!(feature = "autotune") && target.name != "flex" {
        // See `naive_matmul` in src/backend/cube/linear.rs; `linear` tests products there.
        say("without autotuning Burn has only a kernel for products that wants too much shared memory");
        return;
    }
    // NVIDIA's devices round the factors of a product in f32 to TF32.
    let dtypes = target.dtypes().into_iter().filter(|&dtype| dtype != DType::F32 || target.name != "cuda");
    for dtype in dtypes {
        for (batches, rows, depth, columns) in
            target.thin(2, vec![(1, 1, 64, 48), (3, 33, 70, 17), (1, 128, 64, 96)])
        {
            let a = Host::random([batches, rows, depth], dtype, rng);
            let b = Host::random([batches, depth, columns], dtype, rng);
            let product = |sum: Sum| {
                let mut all = Vec::new();
                for i in 0..batches * rows * columns {
                    let (batch, row, column) = (i / columns / rows, i / columns % rows, i % columns);
                    let pair = |k| {
                        (
                            a.values[(batch * rows + row) * depth + k],
                            b.values[(batch * depth + k) * columns + column],
                        )
                    };
                    all.push(sum(&mut (0..depth).map(pair)));
                }
                all
            };
            let oracle = product(&|pairs| pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum());
            let baseline = product(&|pairs| round(pairs.map(|(a, b)| a * b).sum(), dtype).into());
            let baseline: Vec<f32> = baseline.into_iter().map(|x| x as f32).collect();
            let got = read(a.tensor(&target.device).matmul(b.tensor(&target.device)));
            let what =
                format!("matmul on {}, {batches} x {rows} x {depth} x {columns} {dtype:?}", target.name);
            check(&what, &got, &baseline, &oracle, dtype);
            let turned =
                b.tensor(&target.device).swap_dims(1, 2).matmul(a.tensor(&target.device).swap_dims(1, 2));
            check(format!("{what}, transposed"), &read(turned.swap_dims(1, 2)), &baseline, &oracle, dtype);
        }
    }
}

/// Burn's own attention, against its parts.
fn burns_attention(target: Target) {
    let rng = &mut Rng::new("burn attention");
    let [q, k, v] = [9, 33, 33].map(|tokens| Host::random([1, 2, tokens, 32], DType::F32, rng));
    let [q, k, v] = [q, k, v].map(|host| host.tensor(&target.device));
    let logits = q.clone().matmul(k.clone().swap_dims(2, 3)) / 32f32.sqrt();
    let parts = softmax(logits, 3).matmul(v.clone());
    let oracle: Vec<f64> = read(parts).into_iter().map(f64::from).collect();
    let got = read(attention(q, k, v, None, None, AttentionModuleOptions::default()));
    // Where f32 is multiplied as TF32, its parts are too, in another order.
    let dtype = if target.name == "cuda" { DType::F16 } else { DType::F32 };
    close("attention", &target, dtype, &got, &oracle);
}

/// The numbers are in their range, their mean and variance are what they should be, and no two draws are the same.
fn random_numbers(target: Target) {
    const COUNT: usize = 20_000;
    target.device.seed(seed());
    let moments = |values: &[f32]| {
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / COUNT as f64;
        (mean, values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / COUNT as f64)
    };
    let draw = |distribution| read(Tensor::<1>::random([COUNT], distribution, &target.device));
    let uniform = draw(Distribution::Uniform(-1.0, 3.0));
    assert!(uniform.iter().all(|x| (-1.0..=3.0).contains(x)), "{}", target.name);
    // Six standard deviations of the mean, and of the variance.
    let (mean, variance) = moments(&uniform);
    let n = (COUNT as f64).sqrt();
    assert!((mean - 1.0).abs() < 6.0 * (16.0_f64 / 12.0).sqrt() / n, "mean {mean} on {}", target.name);
    assert!((variance - 16.0 / 12.0).abs() < 6.0 * 1.2 / n, "variance {variance} on {}", target.name);
    let normal = draw(Distribution::Normal(0.5, 2.0));
    let (mean, variance) = moments(&normal);
    assert!((mean - 0.5).abs() < 6.0 * 2.0 / n, "mean {mean} on {}", target.name);
    assert!(
        (variance - 4.0).abs() < 6.0 * 4.0 * 2.0_f64.sqrt() / n,
        "variance {variance} on {}",
        target.name
    );
    assert_ne!(draw(Distribution::Uniform(-1.0, 3.0)), uniform, "{}", target.name);
}
