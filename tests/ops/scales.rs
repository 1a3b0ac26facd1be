//! Scales of 8 bits at the edges of f32: `1 / scale` overflows below 2.94e-39, and is subnormal above 8.5e37.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::{
    Fp8, KvLayout, KvPages, PageTable, Positions, Qkv, Quantization, Rope, RopeStyle, SlotMapping,
    append_paged_kv, fused_add_rms_norm_quant, gather_paged_kv, gelu_and_mul_quant, layer_norm_quant,
    rms_norm_quant, rope_append_paged_kv, rope_quantize_fp8, silu_and_mul_quant,
};

use crate::devices::{Target, device_tests};
use crate::fp8::{FORMATS, codes};
use crate::support::{Host, Rng, bits, round, seed};

device_tests!(of_pages, of_rope, of_norms_and_activations, without_a_quotient);

/// The least f32, others that are subnormal or hardly are not, ordinary ones, and some up to the largest.
const SCALES: [f32; 19] = [
    1e-45,
    4.2e-45,
    1e-40,
    2.9e-39,
    2.938_736e-39,
    3e-39,
    f32::MIN_POSITIVE,
    1e-30,
    5.421_011e-20,
    0.1,
    1.0,
    7.0,
    -0.3,
    1.844_674_4e19,
    1e30,
    8.6e37,
    1e38,
    3.4e38,
    f32::MAX,
];

/// The code nearest to `x`, by trying all of them: of two that are as near, the one with an even mantissa.
fn nearest(format: Fp8, x: f64) -> u8 {
    let size = x.abs().min(f64::from(format.max()));
    let last = format.encode(format.max());
    let distance = |code: u8| (f64::from(format.decode(code)) - size).abs();
    let code = (0..=last)
        .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))))
        .unwrap_or_default();
    let has_sign = x.is_sign_negative() && !(code == 0 && format == Fp8::E4m3Fnuz);
    if has_sign { code | 0x80 } else { code }
}

/// The relative error that kernels may make in a quotient before they round it to f32.
const CLOSE: f64 = 1.0 / (1_u64 << 46) as f64;

/// The codes of a quotient as f32 rounds it: more than one if it is closer to the middle of two f32 than kernels compute it.
fn near(format: Fp8, quotient: f64) -> [u8; 3] {
    [1.0, 1.0 - CLOSE, 1.0 + CLOSE].map(|by| format.encode((quotient * by) as f32))
}

/// Fails unless `got` are the codes nearest to `x / scale`, computed in f64. A quotient that f32 cannot tell from the middle
/// of two codes may become either of them.
fn check(what: &str, format: Fp8, got: &[u8], x: &[f32], scale: f32) {
    assert_eq!(got.len(), x.len(), "{what}");
    for (&code, &x) in got.iter().zip(x) {
        let exact = f64::from(x) / f64::from(scale);
        if exact.is_nan() {
            assert!(format.decode(code).is_nan(), "{what}: {x:e} / {scale:e} is {code:#x}");
            continue;
        }
        let least = f64::from(f32::EPSILON) / 2.0;
        let allowed = [exact, exact * (1.0 - least), exact * (1.0 + least)].map(|x| nearest(format, x));
        let is_middle = allowed[1] != allowed[2] && f64::from(exact as f32) != exact;
        let is_right = code == allowed[0] || is_middle && allowed.contains(&code);
        let seed = seed();
        assert!(is_right, "{what}: {x:e} / {scale:e} is {code:#x}, expected {allowed:#x?}; seed {seed}");
        // And the same on every device.
        let near = near(format, exact);
        assert!(
            near.contains(&code),
            "{what}: {x:e} / {scale:e} is {code:#x}, expected {near:#x?}; seed {seed}"
        );
    }
}

/// Multiples of a scale, of all sizes and signs, those in the middle of two codes among them, and the ends of f32.
fn numbers(format: Fp8, scale: f32, dtype: DType, rng: &mut Rng) -> Vec<f32> {
    let last = format.encode(format.max());
    let mut numbers = vec![0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    numbers.extend([1e-45, -1e-45, f32::MIN_POSITIVE, 3.0 * scale, -scale, scale / 2.0]);
    while numbers.len() < DIM {
        let code = rng.below(usize::from(last)) as u8;
        let middle = f32::midpoint(format.decode(code), format.decode(code + 1));
        let sign = [1.0, -1.0][rng.below(2)];
        numbers.push(match rng.below(4) {
            0 => middle * scale * sign,
            1 => (middle * scale).next_up() * sign,
            2 => (middle * scale * sign).next_down(),
            _ => rng.normal() * scale * format.max() / 2.0,
        });
    }
    numbers.into_iter().map(|x| round(x, dtype)).collect()
}

const DIM: usize = 96;
const PAGE: usize = 4;

fn scale_tensor(scales: &[f32], target: &Target) -> Tensor<1> {
    Tensor::from_data(TensorData::new(scales.to_vec(), [scales.len()]), (&target.device, DType::F32))
}

/// One page, with a head for each scale; and its table of `tokens` tokens.
fn pages(format: Fp8, scales: &[f32], target: &Target) -> (KvPages, PageTable) {
    let pool = || Tensor::<4, Int>::zeros([1, PAGE, scales.len(), DIM], (&target.device, DType::U8));
    let mut pages = KvPages::new_fp8(pool(), pool(), KvLayout::Nhd, format).expect("pages");
    pages.set_scales(scale_tensor(scales, target), scale_tensor(scales, target)).expect("scales");
    let table = PageTable::new(&[0, 1], &[0], &[1], PAGE, 1, &target.device).expect("valid");
    (pages, table)
}

fn tokens(rows: &[Vec<f32>], dtype: DType, target: &Target) -> Tensor<3> {
    let shape = [1, rows.len(), DIM];
    Host { shape, values: rows.concat(), dtype }.tensor(&target.device)
}

/// The codes of the first token of keys and of values.
fn stored(pages: &KvPages) -> [Vec<u8>; 2] {
    let (k, v) = pages.codes().expect("codes");
    [k, v].map(|pool| codes(pool.clone().slice_dim(1, 0..1)))
}

fn of_pages(target: Target) {
    let rng = &mut Rng::new("scales of pages");
    for (format, dtype) in FORMATS
        .into_iter()
        .map(|format| (format, DType::F32))
        .chain([(Fp8::E4m3, DType::BF16), (Fp8::E5m2, DType::BF16)])
    {
        let what = format!("{format:?} {dtype:?} on {}", target.name);
        let rows = SCALES.map(|scale| numbers(format, scale, dtype, rng));
        let (mut pages, table) = pages(format, &SCALES, &target);
        let slots = SlotMapping::new(&table, &[Some(0)], &[0]).expect("a slot");
        let new = || tokens(&rows, dtype, &target);
        append_paged_kv(&mut pages, new(), new(), &slots).expect("it fits");
        for got in stored(&pages) {
            for (head, (row, scale)) in rows.iter().zip(SCALES).enumerate() {
                check(&what, format, &got[head * DIM..][..DIM], row, scale);
            }
        }

        // And back: a product in f32, rounded to the type.
        let (k, v) = gather_paged_kv(&pages, &table, dtype).expect("it fits");
        for (got, codes) in [k, v].into_iter().zip(stored(&pages)) {
            let heads = codes.chunks_exact(DIM).zip(SCALES);
            let wanted = heads.flat_map(|(codes, scale)| {
                codes.iter().map(move |&code| round(format.decode(code) * scale, dtype))
            });
            for (got, wanted) in bits(got).into_iter().map(f32::from_bits).zip(wanted) {
                let same = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
                assert!(same, "gather {what}: {got:e}, expected {wanted:e}; seed {}", seed());
            }
        }
    }
}

/// Tables that do not rotate: queries and keys become the codes of themselves.
fn of_rope(target: Target) {
    let rng = &mut Rng::new("scales of rope");
    for format in target.thin(2, FORMATS.to_vec()) {
        let what = format!("{format:?} on {}", target.name);
        let table = [vec![1.0; DIM / 2], vec![0.0; DIM / 2]].concat();
        let table = Host { shape: [1, DIM], values: table, dtype: DType::F32 }.tensor(&target.device);
        let rope = Rope::from_cos_sin_cache(table, RopeStyle::Halves).expect("a table");
        let positions = Positions::new(&[0], &target.device).expect("a position");
        let finite = |x: f32| if x.is_finite() { x } else { 0.0 };
        let rows = SCALES.map(|scale| numbers(format, scale, DType::F32, rng));
        let rows = rows.map(|row| row.into_iter().map(finite).collect::<Vec<_>>());
        // A sum with the 0 of the other half: -0 becomes 0.
        let rotated = rows.clone().map(|row| row.into_iter().map(|x| x + 0.0).collect::<Vec<_>>());
        let new = || tokens(&rows, DType::F32, &target);
        let (mut pages, pages_table) = pages(format, &SCALES, &target);
        let slots = SlotMapping::new(&pages_table, &[Some(0)], &[0]).expect("a slot");
        let qkv = Qkv { q: new(), k: new(), v: new() };
        rope_append_paged_kv(&mut pages, qkv, None, &rope, &positions, &slots).expect("it fits");
        let [k, v] = stored(&pages);
        for (head, scale) in SCALES.into_iter().enumerate() {
            let [k, v] = [&k, &v].map(|codes| &codes[head * DIM..][..DIM]);
            check(&format!("values {what}"), format, v, &rows[head], scale);
            let same_zero = |code: u8| if code == 0x80 && format != Fp8::E4m3Fnuz { 0 } else { code };
            let agree = |name: &str, codes: &[u8]| {
                for (&code, &x) in codes.iter().zip(&rotated[head]) {
                    let near = near(format, f64::from(x) / f64::from(scale)).map(same_zero);
                    assert!(near.contains(&same_zero(code)), "{name} {what}: {x:e} / {scale:e} is {code:#x}");
                }
            };
            agree("keys", k);

            let scale_of = |scale| Quantization::new(format, scale_tensor(&[scale], &target));
            let by = scale_of(scale).expect("a scale");
            if head % 5 == 0 {
                let one = || tokens(&rows[head..=head], DType::F32, &target);
                let (q, k) = rope_quantize_fp8(one(), one(), &rope, &positions, &by, &by).expect("it fits");
                for got in [q, k].map(codes) {
                    assert_eq!(got.len(), DIM);
                    agree("rope_quantize_fp8", &got);
                }
            }
        }
    }
}

/// Rows of zeros stay zeros, and others are divided: exactly where the row is, by construction, what it was.
fn of_norms_and_activations(target: Target) {
    let width = 64;
    for format in target.thin(2, FORMATS.to_vec()) {
        let rows = |values: Vec<f32>| -> Tensor<2> {
            let shape = [values.len() / width, width];
            Host { shape, values, dtype: DType::F32 }.tensor(&target.device)
        };
        let vector = |value: f32| Host::full([width], DType::F32, value).tensor(&target.device);
        for scale in SCALES.into_iter().chain([0.0, -0.0]) {
            let what = format!("{format:?}, scale {scale:e}, on {}", target.name);
            let by = Quantization::new(format, scale_tensor(&[scale], &target)).expect("a scale");
            // The root mean square of the second row is 1.
            let x = [vec![0.0; width], [1.0, -1.0].repeat(width / 2)].concat();
            let expected = |factor: f32| -> Vec<u8> {
                let of = |x: f32| format.encode(if x == 0.0 { x } else { x * factor / scale });
                x.iter().map(|&x| of(x)).collect()
            };
            let same_zero =
                |codes: Vec<u8>| codes.into_iter().map(|code| format.decode(code)).collect::<Vec<_>>();
            let agree = |name: &str, got: Tensor<2, Int>, wanted: Vec<u8>| {
                assert_eq!(same_zero(codes(got)), same_zero(wanted), "{name} {what}");
            };
            for factor in [1.0, scale.abs().max(f32::MIN_POSITIVE) * 0.75] {
                let normed = rms_norm_quant(rows(x.clone()), vector(factor), 1e-30, &by);
                agree("rms_norm", normed.expect("it fits"), expected(factor));
                let (normed, _) = fused_add_rms_norm_quant(
                    rows(x.clone()),
                    rows(vec![0.0; 2 * width]),
                    vector(factor),
                    1e-30,
                    &by,
                )
                .expect("it fits");
                agree("fused_add_rms_norm", normed, expected(factor));
                let normed = layer_norm_quant(rows(x.clone()), vector(factor), vector(0.0), 1e-30, &by);
                agree("layer_norm", normed.expect("it fits"), expected(factor));
                // Far from 0 both activations are the identity.
                let gates =
                    [vec![100.0; width], x[..width].to_vec(), vec![100.0; width], x[width..].to_vec()];
                let b = gates.concat();
                let b: Vec<f32> =
                    b.into_iter().map(|x| if x == 100.0 { x } else { x * factor / 100.0 }).collect();
                let product: Vec<f32> = x.iter().map(|x| 100.0 * (x * factor / 100.0)).collect();
                let wanted: Vec<u8> =
                    product.iter().map(|&x| format.encode(if x == 0.0 { x } else { x / scale })).collect();
                let gated = |values: Vec<f32>| {
                    Host { shape: [2, 2 * width], values, dtype: DType::F32 }.tensor(&target.device)
                };
                agree("silu", silu_and_mul_quant(gated(b.clone()), &by).expect("it fits"), wanted.clone());
                agree("gelu", gelu_and_mul_quant(gated(b), &by).expect("it fits"), wanted);
            }
        }
    }
}

/// A scale of 0 keeps zeros and makes all else the largest, one that is not finite makes all NaN.
fn without_a_quotient(target: Target) {
    let scales = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for format in target.thin(2, FORMATS.to_vec()) {
        let what = format!("{format:?} on {}", target.name);
        let mut row = vec![0.0; DIM];
        row[..7].copy_from_slice(&[1e-45, -1.0, f32::MAX, f32::NEG_INFINITY, f32::NAN, -0.0, 3e-39]);
        let (mut pages, table) = pages(format, &scales, &target);
        let slots = SlotMapping::new(&table, &[Some(0)], &[0]).expect("a slot");
        let new = || tokens(&vec![row.clone(); scales.len()], DType::F32, &target);
        append_paged_kv(&mut pages, new(), new(), &slots).expect("it fits");
        for got in stored(&pages) {
            for (head, scale) in scales.into_iter().enumerate() {
                for (&code, &x) in got[head * DIM..][..DIM].iter().zip(&row) {
                    let number = format.decode(code);
                    if x.is_nan() || !scale.is_finite() {
                        assert!(number.is_nan(), "{what}: {x:e} by {scale} is {code:#x}");
                    } else {
                        let sign = x.signum() * scale.signum();
                        let wanted = if x == 0.0 { 0.0 } else { format.max() * sign };
                        assert_eq!(number, wanted, "{what}: {x:e} by {scale}");
                    }
                }
            }
        }
    }
}
