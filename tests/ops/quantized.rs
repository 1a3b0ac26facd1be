//! Linear layers on weights of 8 and 4 bits.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    Activation, Fp8, GptqVersion, LinearOptions, QuantizedWeight, WeightFormat, WeightScales,
    matmul_nt_quantized, multiplies_e4m3, quantize_per_token, reference, scaled_linear,
};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, check, refused, round};

device_tests!(
    e4m3,
    both_in_codes,
    rows_with_scales,
    checkpoints_of_int4,
    rounding,
    products_of_codes,
    no_rows,
    views,
    refusals
);

const GROUPS: [usize; 3] = [128, 64, 32];

/// Compares with the sums of these numbers. Of more than 64 rows a backend may round them.
fn compare<const D: usize>(
    what: &str,
    target: &Target,
    x: &Host<D>,
    numbers: &[f32],
    inputs: usize,
    got: &[f32],
) {
    let exact: Vec<f64> = numbers.iter().map(|&number| number.into()).collect();
    let oracle = reference::matmul_nt(&x.f64(), &exact, inputs).expect("whole rows");
    let rounded: Vec<f32> = numbers.iter().map(|&number| round(number, x.dtype)).collect();
    let products = x.values.chunks_exact(inputs).flat_map(|x| {
        let dot = move |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
        rounded.chunks_exact(inputs).map(dot)
    });
    let baseline: Vec<f32> = products.map(|y| round(y, x.dtype)).collect();
    let what = format!("matmul_nt_quantized {what} on {}, {:?} {:?}", target.name, x.shape, x.dtype);
    check(what, got, &baseline, &oracle, x.dtype);
}

fn bytes(codes: Vec<u8>, shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(codes, shape), (device, DType::U8))
}

/// Codes of e4m3, none of them NaN.
fn e4m3_codes(count: usize, rng: &mut Rng) -> Vec<u8> {
    let code = |code: u8| if code & 0x7f == 0x7f { 0x80 } else { code };
    (0..count).map(|_| code(rng.below(256) as u8)).collect()
}

/// Rows and weights of e4m3, with all kinds of scales and epilogues.
fn both_in_codes(target: Target) {
    let rng = &mut Rng::new("rows and weights of e4m3");
    let device = &target.device;
    for (i, [rows, inputs, outputs]) in target
        .thin(2, vec![[1usize, 272, 144], [3, 17, 131], [130, 256, 136], [33, 80, 64]])
        .into_iter()
        .enumerate()
    {
        for (j, scales) in [[1, 1], [2 * outputs, 1], [(2 * outputs).div_ceil(128), inputs.div_ceil(128)]]
            .into_iter()
            .enumerate()
        {
            // Hopper's sums have 14 bits, which f32 would show: the kernels' tests know them.
            let dtypes =
                target.dtypes().into_iter().filter(|dtype| *dtype != DType::F32 || target.name != "cuda");
            let Some(dtype) = dtypes.cycle().nth(i + j) else { return };
            let codes = e4m3_codes(2 * outputs * inputs, rng);
            let x_codes = e4m3_codes(rows * inputs, rng);
            let scale = Host::from_fn(scales, DType::F32, |_| 0.01 + 0.01 * rng.normal().abs());
            let x_scale = Host::from_fn([if j == 1 { 1 } else { rows }], DType::F32, |_| {
                0.001 + 0.001 * rng.normal().abs()
            });
            let [bias, residual] = [2 * outputs, rows * outputs].map(|len| Host::random([len], dtype, rng));
            let number = |code: u8| f64::from(Fp8::E4m3.decode(code));
            let scale_values = &scale.values;
            let of_weight = |at: usize| {
                let (output, input) = (at / inputs, at % inputs);
                let scale = match j {
                    0 => 0,
                    1 => output,
                    _ => output / 128 * inputs.div_ceil(128) + input / 128,
                };
                f64::from(scale_values[scale])
            };
            let w: Vec<f64> = (0..codes.len()).map(|at| number(codes[at]) * of_weight(at)).collect();
            let x: Vec<f64> = (0..x_codes.len())
                .map(|at| number(x_codes[at]) * f64::from(x_scale.values[at / inputs % x_scale.values.len()]))
                .collect();
            let finish = |sums: &[f64]| -> Vec<f64> {
                let half =
                    |row: usize, output| sums[row * 2 * outputs + output] + f64::from(bias.values[output]);
                let each = (0..rows).flat_map(|row| (0..outputs).map(move |output| (row, output)));
                each.map(|(row, output)| {
                    let gate = half(row, output);
                    gate / (1.0 + (-gate).exp()) * half(row, outputs + output)
                        + f64::from(residual.values[row * outputs + output])
                })
                .collect()
            };
            let oracle = finish(&reference::matmul_nt(&x, &w, inputs).expect("whole rows"));
            let sums: Vec<f64> = x
                .chunks_exact(inputs)
                .flat_map(|x| {
                    w.chunks_exact(inputs)
                        .map(move |w| x.iter().zip(w).map(|(x, w)| (x * w) as f32).sum::<f32>().into())
                })
                .collect();
            let baseline: Vec<f32> = finish(&sums).into_iter().map(|y| round(y as f32, dtype)).collect();
            let weight = bytes(codes, [2 * outputs, inputs], device);
            let weight = QuantizedWeight::from_e4m3(weight, scale.tensor(device)).expect("it fits");
            let options = LinearOptions::new()
                .gate(Activation::Silu)
                .bias(bias.tensor(device))
                .residual(residual.tensor(device).reshape([rows, outputs]))
                .output_dtype(dtype);
            let x_codes = bytes(x_codes, [rows, inputs], device);
            let y = scaled_linear(x_codes, x_scale.tensor(device), &weight, options).expect("it fits");
            assert_eq!((y.dims(), y.dtype()), ([rows, outputs], dtype));
            let what = format!("scaled_linear of {rows} {inputs} {outputs}, {scales:?} on {}", target.name);
            check(&what, &Host::of(y).values, &baseline, &oracle, dtype);
        }
    }
}

/// The least scale that reaches each row's largest number, and the nearest codes; zeros, and numbers that are none.
fn rows_with_scales(target: Target) {
    let rng = &mut Rng::new("rows with scales");
    let device = &target.device;
    for dtype in target.dtypes() {
        for (i, shape) in
            target.thin(2, vec![[1, 1], [3, 37], [2, 4096], [130, 256], [1, 20_000]]).into_iter().enumerate()
        {
            let format = [Fp8::E4m3, Fp8::E5m2, Fp8::E4m3Fnuz][i % 3];
            let mut x = Host::<2>::random(shape, dtype, rng);
            let [rows, width] = shape;
            if rows > 2 {
                x.values[..width].fill(0.0);
                x.values[width + 1] = if i % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
            }
            let (codes, scales) = quantize_per_token(x.tensor(device), format).expect("it fits");
            assert_eq!((codes.dims(), codes.dtype(), scales.dims()), (shape, DType::U8, [rows]));
            let codes: Vec<u8> = codes.into_data().try_to_vec().expect("bytes");
            let scales = Host::of(scales).values;
            let what = format!("{format:?} {dtype:?} {shape:?} on {}", target.name);
            for (row, (x, codes)) in x.values.chunks_exact(width).zip(codes.chunks_exact(width)).enumerate() {
                if !x.iter().all(|x| x.is_finite()) {
                    assert!(codes.iter().all(|&code| format.decode(code).is_nan()), "{what}, row {row}");
                    continue;
                }
                let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                let wanted = if largest == 0.0 { 1.0 } else { largest / format.max() };
                let scale = scales[row];
                assert!((scale - wanted).abs() <= 3e-7 * wanted, "{what}, row {row}: {scale}, not {wanted}");
                for (&x, &code) in x.iter().zip(codes) {
                    let error =
                        |code| (f64::from(format.decode(code)) * f64::from(scale) - f64::from(x)).abs();
                    let nearest = error(format.encode(x / scale));
                    assert!(
                        error(code) <= nearest + 1e-6 * f64::from(x.abs()),
                        "{what}, row {row}: {x} is {code}"
                    );
                }
            }
        }
    }
}

fn words(words: Vec<u32>, shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    let words: Vec<i32> = words.into_iter().map(|word| word as i32).collect();
    Tensor::from_data(TensorData::new(words, shape), (device, DType::I32))
}

/// All kinds of scales, few rows and many, and widths that no kernel for few rows takes.
fn e4m3(target: Target) {
    let rng = &mut Rng::new("e4m3 weights");
    for dtype in target.dtypes() {
        let shapes: Vec<[usize; 3]> =
            vec![[1usize, 272, 144], [3, 16, 131], [9, 131, 20], [64, 144, 33], [70, 256, 136]];
        for [rows, inputs, outputs] in target.thin(2, shapes) {
            for scales in [[1, 1], [outputs, 1], [outputs.div_ceil(128), inputs.div_ceil(128)]] {
                let codes: Vec<u8> = (0..outputs * inputs)
                    .map(|_| rng.below(256) as u8)
                    .map(|code| if code & 0x7f == 0x7f { 0x80 } else { code })
                    .collect();
                let scale = Host::from_fn(scales, DType::F32, |_| 0.01 + rng.normal().abs());
                let numbers: Vec<f32> = (0..outputs * inputs)
                    .map(|at| {
                        let (output, input) = (at / inputs, at % inputs);
                        let row = if scales[0] == outputs { output } else { output / 128 };
                        let (row, column) = (row.min(scales[0] - 1), (input / 128).min(scales[1] - 1));
                        Fp8::E4m3.decode(codes[at]) * scale.values[row * scales[1] + column]
                    })
                    .collect();
                let codes = bytes(codes, [outputs, inputs], &target.device);
                let weight =
                    QuantizedWeight::from_e4m3(codes, scale.tensor(&target.device)).expect("it fits");
                assert_eq!(weight.dims(), [outputs, inputs]);
                let x = Host::random([rows, inputs], dtype, rng);
                let y = matmul_nt_quantized(x.tensor(&target.device), &weight).expect("it fits");
                assert_eq!((y.dims(), y.dtype()), ([rows, outputs], dtype));
                compare(&format!("{scales:?}"), &target, &x, &numbers, inputs, &Host::of(y).values);
            }
        }
    }
}

/// AWQ's and GPTQ's layouts of the same codes give the same bits, those of the numbers.
fn checkpoints_of_int4(target: Target) {
    let rng = &mut Rng::new("int4 weights");
    let device = &target.device;
    for (dtype, group) in target.dtypes().into_iter().flat_map(|dtype| GROUPS.map(|group| (dtype, group))) {
        for [rows, inputs, outputs] in
            target.thin(2, vec![[1, 128, 24], [5, 384, 136], [17, 256, 48], [66, 128, 8]])
        {
            let codes: Vec<u32> = (0..outputs * inputs).map(|_| rng.below(16) as u32).collect();
            let groups = inputs / group;
            // GPTQ stores zeros from 1 on.
            let zeros: Vec<u32> = (0..groups * outputs).map(|_| 1 + rng.below(15) as u32).collect();
            let scales = Host::from_fn([groups, outputs], DType::F16, |_| 0.01 + 0.1 * rng.normal().abs());
            let code = |output: usize, input: usize| codes[output * inputs + input];
            let nibbles = |of: &dyn Fn(usize) -> u32| (0..8).fold(0, |word, i| word | of(i) << (4 * i));
            const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
            let mut awq = vec![];
            for (input, word) in (0..inputs).flat_map(|i| (0..outputs / 8).map(move |word| (i, word))) {
                awq.push(nibbles(&|i| code(8 * word + ORDER[i], input)));
            }
            let mut awq_zeros = vec![];
            let mut gptq_zeros = [vec![], vec![]];
            for (group, word) in (0..groups).flat_map(|group| (0..outputs / 8).map(move |word| (group, word)))
            {
                let zero = |output: usize| zeros[group * outputs + 8 * word + output];
                awq_zeros.push(nibbles(&|i| zero(ORDER[i])));
                gptq_zeros[0].push(nibbles(&|i| zero(i) - 1));
                gptq_zeros[1].push(nibbles(&zero));
            }
            let mut gptq = vec![];
            for (word, output) in (0..inputs / 8).flat_map(|word| (0..outputs).map(move |o| (word, o))) {
                gptq.push(nibbles(&|i| code(output, 8 * word + i)));
            }
            let scale = || scales.tensor(device);
            let zero_shape = [groups, outputs / 8];
            let [v1, v2] = gptq_zeros.map(|zeros| words(zeros, zero_shape, device));
            let gptq = words(gptq, [inputs / 8, outputs], device);
            let weights = [
                QuantizedWeight::from_awq(
                    words(awq, [inputs, outputs / 8], device),
                    words(awq_zeros, zero_shape, device),
                    scale(),
                ),
                QuantizedWeight::from_gptq(gptq.clone(), v1, scale(), GptqVersion::V1),
                QuantizedWeight::from_gptq(gptq, v2, scale(), GptqVersion::V2),
            ];
            let x = Host::random([rows, inputs], dtype, rng);
            let [a, b, c] = weights.map(|weight| {
                let weight = weight.expect("it fits");
                assert_eq!(weight.format(), WeightFormat::Int4 { group });
                Host::of(matmul_nt_quantized(x.tensor(device), &weight).expect("it fits"))
            });
            let numbers: Vec<f32> = (0..outputs * inputs)
                .map(|at| {
                    let place = at % inputs / group * outputs + at / inputs;
                    (codes[at] as f32 - zeros[place] as f32) * scales.values[place]
                })
                .collect();
            compare(&format!("groups of {group}"), &target, &x, &numbers, inputs, &a.values);
            assert!(a == b && a == c, "AWQ and GPTQ differ");
        }
    }
}

/// Each weight becomes the nearest code: read back by rows of `x` that are 1 at one input.
fn rounding(target: Target) {
    let rng = &mut Rng::new("rounded weights");
    // Several threads of the host round a part each, if the weight is large.
    let (outputs, inputs) = (if target.name == "flex" { 2100 } else { 20 }, 128);
    let mut weight = Host::random([outputs, inputs], DType::F32, rng);
    // An output of zeros, one of large and one of tiny numbers.
    weight.values[..inputs].fill(0.0);
    weight.values[inputs..2 * inputs].iter_mut().for_each(|w| *w *= 1e30);
    weight.values[2 * inputs..3 * inputs].iter_mut().for_each(|w| *w *= 1e-30);
    let unit =
        Host::from_fn([inputs, inputs], DType::F32, |at| if at % (inputs + 1) == 0 { 1.0 } else { 0.0 });
    let scales =
        [WeightScales::PerChannel, WeightScales::PerTensor, WeightScales::Block128].map(WeightFormat::E4m3);
    for format in scales.into_iter().chain(GROUPS.map(|group| WeightFormat::Int4 { group })) {
        let quantized = QuantizedWeight::quantize(weight.tensor(&target.device), format).expect("it fits");
        let y = Host::of(matmul_nt_quantized(unit.tensor(&target.device), &quantized).expect("it fits"));
        for (output, row) in weight.values.chunks_exact(inputs).enumerate() {
            let largest = match format {
                WeightFormat::E4m3(WeightScales::PerChannel) | WeightFormat::Int4 { .. } => row,
                _ => &weight.values,
            };
            let largest = largest.iter().fold(0f32, |a, b| a.max(b.abs()));
            for (input, &w) in row.iter().enumerate() {
                // Half of a last bit of three of mantissa, or of the smallest unit; or of one of 15 steps.
                let allowed = match format {
                    WeightFormat::E4m3(_) => (w.abs() / 16.0).max(largest / 448.0 / 1024.0),
                    _ => 2.0 * largest / 15.0 * 0.51,
                };
                let got = y.values[input * outputs + output];
                assert!((got - w).abs() <= allowed * 1.001, "{format:?} {output} {input}: {w} became {got}");
            }
        }
    }
}

/// Hopper and MI300X alone multiply codes, of all devices here.
fn products_of_codes(target: Target) {
    let may = target.name == "cuda" || target.name == "rocm";
    assert!(may || !multiplies_e4m3(&target.device), "{}", target.name);
}

fn no_rows(target: Target) {
    for dtype in target.dtypes() {
        let weight = Host::full([32, 128], dtype, 1.0).tensor(&target.device);
        let weight = QuantizedWeight::quantize(weight, WeightFormat::Int4 { group: 128 }).expect("it fits");
        let x = Host::full([0, 128], dtype, 0.0).tensor(&target.device);
        let got = matmul_nt_quantized(x, &weight).expect("it fits");
        assert_eq!((got.dims(), got.dtype()), ([0, 32], dtype));
    }
}

/// Any number of leading axes, views, and codes and scales that are views.
fn views(target: Target) {
    let rng = &mut Rng::new("quantized views");
    let device = &target.device;
    for dtype in target.dtypes() {
        let codes: Vec<u8> = (0..32 * 24).map(|_| rng.below(0x70) as u8).collect();
        let numbers: Vec<f32> = (0..24 * 32)
            .map(|at| Fp8::E4m3.decode(codes[at % 32 * 24 + at / 32]) * (1.0 + (at / 32) as f32))
            .collect();
        let scales = Host::from_fn([1, 24], DType::F32, |at| 1.0 + at as f32).tensor(device).transpose();
        let codes = bytes(codes, [32, 24], device).transpose();
        let weight = QuantizedWeight::from_e4m3(codes, scales).expect("it fits");
        let x = Host::random([3, 5, 32], dtype, rng);
        for view in VIEWS {
            let got = matmul_nt_quantized(x.view(view, device), &weight).expect("it fits");
            assert_eq!(got.dims(), [3, 5, 24]);
            compare(&format!("{view:?}"), &target, &x, &numbers, 32, &Host::of(got).values);
        }
    }
}

fn refusals(target: Target) {
    let device = &target.device;
    let floats = |shape: [usize; 2]| Host::full(shape, DType::F32, 1.0).tensor(device);
    let codes = |shape: [usize; 2]| bytes(vec![0; shape[0] * shape[1]], shape, device);
    let ints = |shape: [usize; 2]| words(vec![0; shape[0] * shape[1]], shape, device);
    refused(
        QuantizedWeight::from_e4m3(ints([8, 16]), floats([1, 1])).map(drop),
        "QuantizedWeight::from_e4m3: `codes` is of type I32, expected U8",
    );
    refused(
        QuantizedWeight::from_e4m3(codes([8, 0]), floats([1, 1])).map(drop),
        "QuantizedWeight::from_e4m3: `codes` has shape [8, 0], expected no empty axis",
    );
    refused(
        QuantizedWeight::from_e4m3(codes([200, 16]), floats([1, 16])).map(drop),
        "QuantizedWeight::from_e4m3: `scales` has shape [1, 16], expected [1, 1], [200, 1] or [2, 1] for [200, 16]",
    );
    refused(
        QuantizedWeight::from_awq(codes([128, 1]), ints([1, 1]), floats([1, 8])).map(drop),
        "QuantizedWeight::from_awq: `qweight` is of type U8, expected I32, U32 or I64",
    );
    refused(
        QuantizedWeight::from_awq(ints([128, 1]), ints([1, 2]), floats([1, 8])).map(drop),
        "QuantizedWeight::from_awq: `qzeros` has shape [1, 2], expected [1, 1]",
    );
    refused(
        QuantizedWeight::from_gptq(ints([16, 8]), ints([1, 1]), floats([1, 9]), GptqVersion::V1).map(drop),
        "QuantizedWeight::from_gptq: `scales` has shape [1, 9], expected [in / group, 8] of 128 inputs",
    );
    refused(
        QuantizedWeight::from_gptq(ints([16, 8]), ints([8, 1]), floats([8, 8]), GptqVersion::V1).map(drop),
        "QuantizedWeight::from_gptq: `scales` has shape [8, 8], expected groups of 32, 64 or 128 inputs, and a multiple of \
         128; not groups of 16 of 128",
    );
    let infinite = Host::full([1, 8], DType::F32, f32::INFINITY).tensor(device);
    refused(
        QuantizedWeight::from_awq(ints([128, 1]), ints([1, 1]), infinite).map(drop),
        "QuantizedWeight::from_awq: `scales[0]` is inf, expected a finite number",
    );
    let int4 = WeightFormat::Int4 { group: 128 };
    refused(
        QuantizedWeight::quantize(floats([8, 64]), int4).map(drop),
        "QuantizedWeight::quantize: `weight` has shape [8, 64], expected groups of 32, 64 or 128 inputs, and a multiple of \
         128; not groups of 128 of 64",
    );
    refused(
        QuantizedWeight::quantize(Host::full([1, 128], DType::F32, f32::NAN).tensor(device), int4).map(drop),
        "QuantizedWeight::quantize: `weight[0]` is NaN, expected a finite number",
    );
    let weight = QuantizedWeight::quantize(floats([8, 128]), int4).expect("it fits");
    refused(
        matmul_nt_quantized(floats([2, 64]), &weight),
        "matmul_nt_quantized: `x` has shape [2, 64], expected […, 128], as `weight` [8, 128]",
    );
    let rows = || bytes(vec![0; 256], [2, 128], device);
    let scale = |len: usize| Host::<1>::full([len], DType::F32, 1.0).tensor(device);
    refused(
        scaled_linear(rows(), scale(1), &weight, LinearOptions::new()),
        "scaled_linear: `weight` is of Int4 { group: 128 }, expected of e4m3",
    );
    let e4m3 = WeightFormat::E4m3(WeightScales::PerTensor);
    let weight = QuantizedWeight::quantize(floats([8, 128]), e4m3).expect("it fits");
    refused(
        scaled_linear(rows(), scale(3), &weight, LinearOptions::new()),
        "scaled_linear: `x_scales` has shape [3], expected [1] or [2], one for each row of `x`",
    );
    refused(
        scaled_linear(rows(), scale(1), &weight, LinearOptions::new().bias(scale(7))),
        "scaled_linear: `bias` has shape [7], expected [8], as rows of `weight`",
    );
}
