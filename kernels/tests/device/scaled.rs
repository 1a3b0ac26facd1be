//! Products of rows and weights both of e4m3, on the devices that multiply codes.

use burn_flashinfer_kernels::activation::Activation;
use burn_flashinfer_kernels::gemm::quantized::{ScaledGemm, Scales, Weight, WeightFormat, launch_scaled};
use burn_flashinfer_kernels::gemm::{self, Epilogue, Gemm};
use burn_flashinfer_kernels::{DeviceProfile, Instruction, Refusal};
use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
};

use crate::host::{Device, Random, Type, assert_close, device_tests};
use crate::quantized::{Coded, e4m3};

device_tests!(both_factors_in_codes, every_code_of_both_factors, refusals);

/// The matrix unit that multiplies codes.
#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Hopper,
    Cdna3,
    None,
}

fn unit(client: &Client) -> Unit {
    let arch = DeviceProfile::of(client).arch;
    if Instruction::Wgmma.exists_on(arch) {
        Unit::Hopper
    } else if Instruction::MfmaFp8.exists_on(arch) {
        Unit::Cdna3
    } else {
        Unit::None
    }
}

/// The sum as Hopper's matrix unit has it: products, and the sum of those before, are cut off at 13 bits below the largest.
/// The sum of 128 is added to the others in f32.
/// Source: DeepSeek-AI, *DeepSeek-V3 Technical Report*, 2024, 3.3.2 and 3.5.2.
fn by_e4m3_unit(products: impl Iterator<Item = f64>) -> f64 {
    let products: Vec<f64> = products.collect();
    let mut sum = 0f32;
    for block in products.chunks(128) {
        let mut part = 0.0;
        for few in block.chunks(32) {
            let all = few.iter().copied().chain([part]);
            let largest = all.clone().fold(0f64, |largest, x| largest.max(x.abs()));
            let last = if largest > 0.0 { 2f64.powf(largest.log2().floor() - 13.0) } else { 1.0 };
            part = all.map(|x| (x / last).trunc() * last).sum();
        }
        sum += part as f32;
    }
    f64::from(sum)
}

/// Rows in codes, with every kind of scales and epilogue.
fn both_factors_in_codes(client: Client) {
    let mut random = Random::new(75);
    let unit = unit(&client);
    for (i, ([rows, d_in, d_out], gate, y_type)) in [
        ([1, 16, 16], None, Type::BF16),
        ([129, 272, 144], Some(Activation::Silu), Type::BF16),
        ([300, 1024, 320], None, Type::F16),
        ([70, 400, 128], Some(Activation::GeluTanh), Type::F32),
        ([257, 128, 1040], None, Type::BF16),
    ]
    .into_iter()
    .enumerate()
    {
        let cap = (i == 3).then_some(20.0);
        for (j, scales) in [Scales::PerTensor, Scales::PerChannel, Scales::Block128].into_iter().enumerate() {
            // On the simulator most of the time goes into compiling.
            if unit == Unit::Cdna3 && i != 2 && (i + j) % 3 != 2 {
                continue;
            }
            if gate.is_some() && scales == Scales::Block128 && d_out % 64 != 0 {
                continue;
            }
            let weight_rows = if gate.is_some() { 2 * d_out } else { d_out };
            let weight = Coded::new(&mut random, [weight_rows, d_in], WeightFormat::E4m3(scales), 16);
            let of_x = if i % 2 == 0 { Scales::PerChannel } else { Scales::PerTensor };
            let x = Coded::new(&mut random, [rows, d_in], WeightFormat::E4m3(of_x), 32);
            let Weight { codes, scales: x_scales, .. } = x.weight(&client);
            let bias = random.floats(weight_rows, y_type, 1.0);
            let residual = random.floats(rows * d_out, y_type, 1.0);
            let y = Device::new(&client, y_type, &residual, &[rows, d_out]);
            let epilogue = Epilogue {
                bias: Some(Device::new(&client, y_type, &bias, &[weight_rows]).binding()),
                gate,
                soft_cap: cap.map(|cap| cap as f32),
                add: true,
            };
            let weight_binding = weight.weight(&client);
            let gemm = ScaledGemm { x: codes, x_scales, weight: weight_binding, y: y.binding(), epilogue };
            let launched = launch_scaled(&client, gemm, y_type.elem());
            if unit == Unit::None {
                assert!(matches!(launched, Err(Refusal::Instruction { .. })), "{launched:?}");
                continue;
            }
            launched.expect("launches");
            let (mut wanted, mut baseline) = (vec![], vec![]);
            for (row, output) in (0..rows).flat_map(|row| (0..d_out).map(move |output| (row, output))) {
                let products = |output: usize| {
                    let x = &x.numbers[row * d_in..][..d_in];
                    x.iter().zip(&weight.numbers[output * d_in..][..d_in]).map(|(x, w)| x * w)
                };
                let finish = |sum: f64, up: f64| {
                    let sum = sum + bias[output];
                    let act = |a: f64| match gate {
                        Some(Activation::GeluTanh) => {
                            let u = (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044_715 * a * a * a);
                            a / 2.0 * (1.0 + u.tanh())
                        }
                        _ => a / (1.0 + (-a).exp()),
                    };
                    let y = if gate.is_some() { act(sum) * (up + bias[d_out + output]) } else { sum };
                    let y = cap.map_or(y, |cap: f64| cap * (y / cap).tanh());
                    y + residual[row * d_out + output]
                };
                let up = if gate.is_some() { d_out + output } else { output };
                wanted.push(finish(products(output).sum(), products(up).sum()));
                let sum = |output| match unit {
                    Unit::Hopper => by_e4m3_unit(products(output)),
                    _ => f64::from(products(output).map(|product| product as f32).sum::<f32>()),
                };
                baseline.push(y_type.round(finish(sum(output), sum(up))));
            }
            let what = format!("{rows} {d_in} {d_out} {gate:?} {scales:?} {y_type:?}");
            assert_close(&what, &y.read(&client), &wanted, &baseline);
        }
    }
}

/// Every code times 1 or -1, as a row and as a weight, among zeros of both signs: the exact number. NaN stays in its row.
fn every_code_of_both_factors(client: Client) {
    if unit(&client) == Unit::None {
        return;
    }
    let mut random = Random::new(76);
    let (ones, d_in) = (32, 144);
    let zero = |at: usize| if at.is_multiple_of(3) { 0x80 } else { 0 };
    let mut all: Vec<u8> = (0..256 * d_in).map(zero).collect();
    for code in 0..256 {
        all[code * d_in + code * 37 % d_in] = code as u8;
    }
    let signs: Vec<u8> = (0..ones * d_in).map(|at| if at / d_in % 2 == 0 { 0x38 } else { 0xb8 }).collect();
    let format = WeightFormat::E4m3(Scales::PerTensor);
    let [mut all, mut signs] = [(all, 256), (signs, ones)]
        .map(|(codes, rows)| Coded::of(&mut random, codes, [rows, d_in], format, 16));
    for coded in [&mut all, &mut signs] {
        coded.scales.fill(1f32.to_bits());
    }
    for is_weight in [false, true] {
        let (x, weight, shape) =
            if is_weight { (&signs, &all, [ones, 256]) } else { (&all, &signs, [256, ones]) };
        let y = Device::poisoned(&client, Type::F32, &shape);
        let Weight { codes: x, scales: x_scales, .. } = x.weight(&client);
        let (weight, epilogue) = (weight.weight(&client), Epilogue::default());
        let gemm = ScaledGemm { x, x_scales, weight, y: y.binding(), epilogue };
        launch_scaled(&client, gemm, Type::F32.elem()).expect("launches");
        for (at, got) in y.read(&client).into_iter().enumerate() {
            let (row, output) = (at / shape[1], at % shape[1]);
            let (code, sign) = if is_weight { (output, row) } else { (row, output) };
            let wanted = if sign % 2 == 0 { e4m3(code as u8) } else { -e4m3(code as u8) };
            assert!(got == wanted || got.is_nan() && wanted.is_nan(), "{is_weight} {code:x} {sign}: {got}");
        }
    }
}

/// Problems without a kernel are refused in these words, and so are codes in place of numbers.
fn refusals(client: Client) {
    let unit = unit(&client);
    let mut random = Random::new(77);
    let mut refused = |[rows, d_in, weight_rows]: [usize; 3], scales, gate: Option<Activation>| {
        let weight = Coded::new(&mut random, [weight_rows, d_in], WeightFormat::E4m3(scales), 0);
        let weight = weight.weight(&client);
        let x = Coded::new(&mut random, [rows, d_in], WeightFormat::E4m3(Scales::PerTensor), 0);
        let Weight { codes: x, scales: x_scales, .. } = x.weight(&client);
        let d_out = if gate.is_some() { weight_rows / 2 } else { weight_rows };
        let y = Device::poisoned(&client, Type::BF16, &[rows, d_out]).binding();
        let epilogue = Epilogue { gate, ..Epilogue::default() };
        let gemm = ScaledGemm { x, x_scales, weight, y, epilogue };
        gemm.blueprint(&DeviceProfile::of(&client), Type::BF16.elem())
            .err()
            .map(|refusal| refusal.to_string())
    };
    let blocks_of_gates = refused([4, 128, 96], Scales::Block128, Some(Activation::Silu));
    let expected = "quantized gemm: d_out of 48 cannot run, expected gates of whole 64 outputs";
    assert_eq!(blocks_of_gates.as_deref(), Some(expected));
    if unit != Unit::None {
        assert_eq!(refused([4, 128, 96], Scales::PerChannel, Some(Activation::Silu)), None);
        for (shape, setting) in [([4, 136, 64], "d_in of 136"), ([4, 128, 72], "d_out of 72")] {
            let expected = format!("gemm: {setting} cannot run, expected a multiple of 16");
            assert_eq!(refused(shape, Scales::PerTensor, None), Some(expected));
        }
    }
    let [x, weight, y] = [(); 3].map(|()| Device::poisoned(&client, Type::BF16, &[32, 32]).binding());
    let launched = gemm::launch(&client, Gemm::product(x, weight, y), ElemType::Float(FloatKind::E4M3));
    assert!(matches!(launched, Err(Refusal::Blueprint { setting: "dtype", .. })), "{launched:?}");
}
