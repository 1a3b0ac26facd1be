//! The largest numbers of each row: there is one answer, and every device gives it.

use burn::tensor::{DType, Int, Slice, Tensor};
use burn_flashinfer::reference;
use burn_flashinfer::sampling::top_k;

use crate::devices::{Target, device_tests, devices};
use crate::support::{Host, Rng};

device_tests!(in_order, views, the_first_of_many_equals);

/// Rows of few different numbers, or many, among them all special ones; of the last rows one is `-inf` and one NaN.
fn rows([rows, vocab]: [usize; 2], dtype: DType, rng: &mut Rng) -> Host<2> {
    const SPECIAL: [f32; 6] = [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1e-7];
    Host::from_fn([rows, vocab], dtype, |i| {
        let x = 4.0 * rng.normal();
        match i / vocab {
            row if row > 2 && row + 1 == rows => f32::NAN,
            row if row > 2 && row + 2 == rows => f32::NEG_INFINITY,
            row if row % 2 == 1 => x.round(),
            _ if rng.below(8) == 0 => SPECIAL[rng.below(6)],
            _ => x,
        }
    })
}

fn compare(what: &str, target: &Target, x: &Host<2>, k: usize, (values, ids): (Tensor<2>, Tensor<2, Int>)) {
    let [rows, vocab] = x.shape;
    let what = format!("{what}, {k} of {vocab} {:?} on {}", x.dtype, target.name);
    assert_eq!((values.dims(), values.dtype()), ([rows, k], x.dtype), "{what}");
    assert_eq!((ids.dims(), ids.dtype()), ([rows, k], DType::I32), "{what}");
    let values = Host::of(values).values;
    let ids: Vec<usize> = ids.into_data().iter::<i64>().map(|id| id as usize).collect();
    for (row, numbers) in x.f64().chunks_exact(vocab).enumerate() {
        let oracle = reference::top_k(numbers, k).expect("k fits");
        assert_eq!(ids[row * k..(row + 1) * k], oracle, "{what}, row {row}");
        for (value, &id) in values[row * k..].iter().zip(&oracle) {
            let own = x.values[row * vocab + id];
            let same = value.to_bits() == own.to_bits() || (value.is_nan() && own.is_nan());
            assert!(same, "{what}, row {row}: {value} is not number {id}, {own}");
        }
    }
}

fn in_order(target: Target) {
    let rng = &mut Rng::new("top_k");
    for dtype in target.dtypes() {
        let cases = vec![
            ([8, 1], 1),
            ([6, 17], 1),
            ([6, 17], 17),
            ([9, 111], 50),
            ([5, 1000], 1000),
            ([3, 16384], 40),
            ([0, 8], 3),
            ([5, 4099], 100),
            ([2, 32000], 1),
            ([4, 3001], 2048),
            ([2, 65536], 500),
            ([300, 64], 3),
        ];
        for (shape, k) in target.thin(3, cases) {
            let x = rows(shape, dtype, rng);
            compare("rows", &target, &x, k, top_k(x.tensor(&target.device), k).expect("it fits"));
        }
    }
}

/// Flex has no limit but the row.
#[cfg(feature = "flex")]
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn as_many_as_there_are() {
    let rng = &mut Rng::new("top_k all");
    for target in devices().into_iter().filter(|target| target.name == "flex") {
        let x = rows([4, 5003], DType::F32, rng);
        compare("all", &target, &x, 5003, top_k(x.tensor(&target.device), 5003).expect("it fits"));
    }
}

/// Rows with gaps, and a transposed matrix.
fn views(target: Target) {
    let rng = &mut Rng::new("top_k views");
    let device = &target.device;
    let x = rows([6, 40], DType::F32, rng);
    let wide = Host::from_fn([6, 48], DType::F32, |i| match i % 48 {
        column @ 3..43 => x.values[i / 48 * 40 + column - 3],
        _ => f32::INFINITY,
    });
    let tall = Host::from_fn([40, 6], DType::F32, |i| x.values[i % 6 * 40 + i / 6]);
    let cut = wide.tensor(device).slice([Slice::from(0..6), Slice::from(3..43)]);
    compare("a slice", &target, &x, 7, top_k(cut, 7).expect("it fits"));
    let turned = tall.tensor(device).transpose();
    compare("transposed", &target, &x, 7, top_k(turned, 7).expect("it fits"));
}

/// More equals than there is room for in shared memory: the first of them count.
fn the_first_of_many_equals(target: Target) {
    let x = Host::from_fn([2, 9001], DType::F32, |i| match i % 9001 {
        at if at % 1000 == 999 => 2.0,
        at if i > 9000 && at % 3 == 0 => f32::NAN,
        _ => 1.0,
    });
    compare("equals", &target, &x, 60, top_k(x.tensor(&target.device), 60).expect("it fits"));
}
