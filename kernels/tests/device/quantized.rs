//! Linear layers on weights of 8 and 4 bits, by every kernel that the device has.

use burn_flashinfer_kernels::gemm::quantized::{
    Blueprint, FewRows, QuantizedGemm, Scales, Weight, WeightFormat, dequantize, launch, launch_with,
};
use burn_flashinfer_kernels::{DeviceProfile, Instruction};
use burn_flashinfer_kernels::{MmaKind, Refusal, gemm::is_for};
use cubecl::client::Client;

use crate::host::{Device, Random, Type, assert_close, binding, device_tests};

device_tests!(codes_as_operands, chosen_kernels, every_code, weights_as_numbers);

const FORMATS: [WeightFormat; 6] = [
    WeightFormat::E4m3(Scales::PerTensor),
    WeightFormat::E4m3(Scales::PerChannel),
    WeightFormat::E4m3(Scales::Block128),
    WeightFormat::Int4 { group: 128 },
    WeightFormat::Int4 { group: 64 },
    WeightFormat::Int4 { group: 32 },
];

/// The number of an e4m3 code by definition.
pub fn e4m3(code: u8) -> f64 {
    let (e, m) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = if e == 0 { m / 8.0 * 2f64.powi(-6) } else { (1.0 + m / 8.0) * 2f64.powi(e - 7) };
    let size = if code & 0x7f == 0x7f { f64::NAN } else { size };
    if code < 0x80 { size } else { -size }
}

/// A weight in codes, with garbage between its rows, and its exact numbers.
pub struct Coded {
    bytes: Vec<u8>,
    row: usize,
    /// Bits.
    pub scales: Vec<u32>,
    shape: [usize; 2],
    format: WeightFormat,
    pub numbers: Vec<f64>,
}

impl Coded {
    pub fn new(random: &mut Random, [d_out, d_in]: [usize; 2], format: WeightFormat, gap: usize) -> Self {
        let code = |random: &mut Random| match format {
            WeightFormat::E4m3(_) => match random.below(256) as u8 {
                0x7f | 0xff => 0x80,
                code => code,
            },
            WeightFormat::Int4 { .. } => random.below(16) as u8,
        };
        let codes: Vec<u8> = (0..d_out * d_in).map(|_| code(random)).collect();
        Self::of(random, codes, [d_out, d_in], format, gap)
    }

    pub fn of(
        random: &mut Random,
        codes: Vec<u8>,
        shape: [usize; 2],
        format: WeightFormat,
        gap: usize,
    ) -> Self {
        let [d_out, d_in] = shape;
        let scales = (0..format.scales(d_out, d_in).iter().product()).map(|_| {
            let scale = (0.01 + 0.02 * random.unit().abs()) as f32;
            match format {
                WeightFormat::E4m3(_) => scale.to_bits(),
                WeightFormat::Int4 { .. } => scale.to_bits() & 0xffff_ff00 | random.below(17) as u32,
            }
        });
        let scales: Vec<u32> = scales.collect();
        let row = d_in * format.bits() / 8;
        let mut bytes = vec![0xff; d_out * (row + gap)];
        let mut numbers = vec![];
        for (output, codes) in codes.chunks_exact(d_in).enumerate() {
            let bytes = &mut bytes[output * (row + gap)..][..row];
            match format {
                WeightFormat::E4m3(of) => {
                    bytes.copy_from_slice(codes);
                    numbers.extend(codes.iter().enumerate().map(|(input, &code)| {
                        let scale = match of {
                            Scales::PerTensor => 0,
                            Scales::PerChannel => output,
                            Scales::Block128 => output / 128 * d_in.div_ceil(128) + input / 128,
                        };
                        e4m3(code) * f64::from(f32::from_bits(scales[scale]))
                    }));
                }
                WeightFormat::Int4 { group } => {
                    bytes.fill(0);
                    for (input, &code) in codes.iter().enumerate() {
                        // Word `4 t + j` of a block has the inputs from `32 j + 8 t` on, even ones in its low half.
                        let (block, j, t, i) = (input / 128, input / 32 % 4, input / 8 % 4, input % 8);
                        let nibble = i / 2 + i % 2 * 4;
                        let word = block * 16 + 4 * t + j;
                        bytes[4 * word + nibble / 2] |= code << (nibble % 2 * 4);
                        let scale = scales[input / group * d_out + output];
                        let zero = f64::from(scale & 0xff);
                        let scale = f64::from(f32::from_bits(scale & 0xffff_ff00));
                        numbers.push((f64::from(code) - zero) * scale);
                    }
                }
            }
        }
        Self { bytes, row: row + gap, scales, shape, format, numbers }
    }

    pub fn weight(&self, client: &Client) -> Weight {
        let [d_out, d_in] = self.shape;
        let scales: Vec<u8> = self.scales.iter().flat_map(|word| word.to_le_bytes()).collect();
        let shape = self.format.scales(d_out, d_in);
        let strides = crate::host::contiguous(&shape);
        Weight {
            codes: binding(
                &client.create_from_slice(&self.bytes),
                &[d_out, d_in * self.format.bits() / 8],
                &[self.row, 1],
            ),
            scales: binding(&client.create_from_slice(&scales), &shape, &strides),
            format: self.format,
        }
    }
}

/// Checks a product: by this kernel for few rows, or by the one that is chosen.
fn check(
    client: &Client,
    random: &mut Random,
    [rows, d_in, d_out]: [usize; 3],
    dtype: Type,
    format: WeightFormat,
    few: Option<FewRows>,
) {
    // Rows of a gap that keeps vectors of 16 bytes, where they are ones.
    let gap = if d_in % 16 == 0 { 16 } else { 3 };
    let coded = Coded::new(random, [d_out, d_in], format, gap);
    let x = random.floats(rows * d_in, dtype, 1.0);
    let y = Device::poisoned(client, dtype, &[rows, d_out]);
    let gemm = QuantizedGemm {
        x: Device::strided(client, dtype, &x, &[rows, d_in], &[d_in + 8, 1]).binding(),
        weight: coded.weight(client),
        y: y.binding(),
    };
    let problem = gemm.problem(dtype.elem()).expect("it fits");
    let blueprint = match few {
        Some(few) => Blueprint::FewRows(few),
        None => Blueprint::auto(&DeviceProfile::of(client), &problem).expect("there is one"),
    };
    match few {
        Some(_) => launch_with(client, gemm, dtype.elem(), blueprint),
        None => launch(client, gemm, dtype.elem()),
    }
    .expect("launches");
    let rounded: Vec<f64> = match blueprint {
        Blueprint::FewRows(_) => coded.numbers,
        Blueprint::Dequantized(_) => coded.numbers.iter().map(|&number| dtype.round(number)).collect(),
    };
    let (mut wanted, mut baseline) = (vec![], vec![]);
    for (row, output) in (0..rows).flat_map(|row| (0..d_out).map(move |output| (row, output))) {
        let pairs = (0..d_in).map(|i| (x[row * d_in + i], rounded[output * d_in + i]));
        wanted.push(pairs.clone().map(|(x, w)| x * w).sum());
        let sum: f32 = pairs.map(|(x, w)| x as f32 * w as f32).sum();
        baseline.push(dtype.round(sum.into()));
    }
    let what = format!("{dtype:?} {format:?} {rows} x {d_in} x {d_out} {blueprint:?}");
    assert_close(&what, &y.read(client), &wanted, &baseline);
}

/// The unit that multiplies codes, with rows of its tiles and stages; none on a CPU.
fn unit(client: &Client) -> Option<(MmaKind, usize, usize)> {
    let hardware = &client.properties().hardware;
    match (hardware.num_cpu_cores, hardware.plane_size_max) {
        (Some(_), _) => None,
        (None, 32) => Some((MmaKind::MmaSync, 8, 3)),
        (None, _) => Some((MmaKind::Mfma16, 16, 1)),
    }
}

fn codes_as_operands(client: Client) {
    let mut random = Random::new(71);
    let Some((unit, tile, stages)) = unit(&client) else {
        refused_on_a_cpu(&client, &mut random);
        return;
    };
    let has_clusters = Instruction::Wgmma.exists_on(DeviceProfile::of(&client).arch);
    for (i, format) in FORMATS.into_iter().enumerate() {
        // Rows, inputs of e4m3, blocks of int4, outputs; tiles and planes of outputs, planes of inputs, blocks of each.
        for (j, (rows, inputs, blocks, d_out, [output_tiles, output_planes, depth_planes, deep], cluster)) in
            [
                (1, 272, 3, 36, [1, 1, 4, 1], 1),
                (3, 16, 1, 132, [1, 2, 1, 1], 1),
                (19, 1040, 9, 300, [2, 2, 1, 2], 2),
                (64, 400, 4, 80, [2, 1, 2, 1], 1),
                (8, 1408, 11, 20, [3, 1, 1, 1], 4),
            ]
            .into_iter()
            .enumerate()
        {
            let d_in = if format.bits() == 8 { inputs } else { 128 * blocks };
            // Some e4m3 has outputs that are no multiple of 4.
            let d_out = if format.bits() == 8 && j % 2 == 0 { d_out - 1 } else { d_out };
            let few = FewRows {
                unit,
                output_tiles,
                output_planes,
                row_tiles: usize::div_ceil(rows, tile),
                depth_planes,
                depth: 128 * depth_planes * deep,
                stages,
                cluster: if has_clusters { cluster } else { 1 },
            };
            let dtype = [Type::F16, Type::BF16][(i + j) % 2];
            check(&client, &mut random, [rows, d_in, d_out], dtype, format, Some(few));
        }
    }
}

fn refused_on_a_cpu(client: &Client, random: &mut Random) {
    let coded = Coded::new(random, [16, 128], FORMATS[0], 0);
    let [x, y] = [128, 16].map(|width| Device::poisoned(client, Type::BF16, &[1, width]));
    let gemm = QuantizedGemm { x: x.binding(), weight: coded.weight(client), y: y.binding() };
    let few = FewRows {
        unit: MmaKind::MmaSync,
        output_tiles: 1,
        output_planes: 1,
        row_tiles: 1,
        depth_planes: 1,
        depth: 128,
        stages: 2,
        cluster: 1,
    };
    let refused = launch_with(client, gemm, Type::BF16.elem(), Blueprint::FewRows(few));
    assert!(
        matches!(refused, Err(Refusal::Instruction { instruction: Instruction::MmaSync, .. })),
        "{refused:?}"
    );
}

fn chosen_kernels(client: Client) {
    let mut random = Random::new(72);
    if !is_for(&DeviceProfile::of(&client), 1) {
        return;
    }
    for (i, format) in FORMATS.into_iter().enumerate() {
        let e4m3 = format.bits() == 8;
        for (rows, inputs, d_out) in
            [(1, 512, 64), (5, 640, 528), (16, 256, 200), (33, 128, 72), (70, 256, 136)]
        {
            let d_in = if e4m3 { inputs + 16 } else { inputs };
            let dtype = [Type::F16, Type::BF16, Type::F32][(i + rows) % 3];
            check(&client, &mut random, [rows, d_in, d_out], dtype, format, None);
        }
        // No vectors of 16 bytes.
        let d_in = if e4m3 { 133 } else { 128 };
        check(&client, &mut random, [4, d_in, 131], Type::BF16, format, None);
    }
}

/// Every code times 1, by the conversion to an operand: the exact number, or NaN.
fn every_code(client: Client) {
    let mut random = Random::new(73);
    let Some((unit, _, stages)) = unit(&client) else { return };
    for (dtype, format) in [Type::F16, Type::BF16]
        .into_iter()
        .flat_map(|dtype| [FORMATS[0], FORMATS[3]].map(|format| (dtype, format)))
    {
        let count = 1 << format.bits();
        // Output `o` has code `o` at an input of its own, and elsewhere 0, or for int4 the code that is subtracted.
        let d_in = 128;
        let mut codes = vec![0u8; count * d_in];
        for output in 0..count {
            codes[output * d_in + output * 37 % d_in] = output as u8;
        }
        let mut coded = Coded::of(&mut random, codes, [count, d_in], format, 0);
        coded.scales.fill(1f32.to_bits());
        let y = Device::poisoned(&client, dtype, &[1, count]);
        let x = Device::new(&client, dtype, &vec![1.0; d_in], &[1, d_in]);
        let gemm = QuantizedGemm { x: x.binding(), weight: coded.weight(&client), y: y.binding() };
        let few = FewRows {
            unit,
            output_tiles: 1,
            output_planes: 1,
            row_tiles: 1,
            depth_planes: 1,
            depth: 128,
            stages,
            cluster: 1,
        };
        launch_with(&client, gemm, dtype.elem(), Blueprint::FewRows(few)).expect("launches");
        for (code, got) in y.read(&client).into_iter().enumerate() {
            let wanted = if format.bits() == 8 { e4m3(code as u8) } else { code as f64 };
            assert!(got == wanted || got.is_nan() && wanted.is_nan(), "{dtype:?} {format:?} {code}: {got}");
        }
    }
}

fn weights_as_numbers(client: Client) {
    let mut random = Random::new(74);
    for format in FORMATS {
        for dtype in [Type::F32, Type::F16, Type::BF16] {
            for [d_out, inputs] in [[1, 128], [37, 256], [130, 384]] {
                let d_in = if format.bits() == 8 && d_out > 1 { inputs + d_out } else { inputs };
                let coded = Coded::new(&mut random, [d_out, d_in], format, 4);
                let numbers = Device::poisoned(&client, dtype, &[d_out, d_in]);
                dequantize(&client, coded.weight(&client), numbers.binding(), dtype.elem())
                    .expect("launches");
                let got = numbers.read(&client);
                for (at, (&got, &exact)) in got.iter().zip(&coded.numbers).enumerate() {
                    // The product is rounded to f32, and then to the type of 16 bits.
                    let wanted = dtype.round(f64::from(exact as f32));
                    assert_eq!(got, wanted, "{dtype:?} {format:?} {d_out} x {d_in} at {at}");
                }
            }
        }
    }
}
