//! Linear layers, by every kernel that the device has.

use burn_flashinfer_kernels::activation::Activation;
use burn_flashinfer_kernels::gemm::{
    Blueprint, Dot, Dtypes, Epilogue, Gemm, RmsNorm, Skinny, TF32, Tiled, WarpSpecialized, launch,
    launch_with,
};
use burn_flashinfer_kernels::{DeviceProfile, Instruction, MmaKind, Refusal};
use cubecl::client::Client;

use crate::host::{Device, Random, Type, assert_close, device_tests};

device_tests!(few_rows, tiles, warpgroups, tf32);

/// The norm before the product, and the epilogue.
#[derive(Debug, Clone, Copy)]
struct Steps {
    norm: bool,
    bias: bool,
    gate: Option<Activation>,
    soft_cap: Option<f32>,
    add: bool,
    /// `y` is f32.
    wide: bool,
}

const EPSILON: f32 = 1e-5;
const ONE_MORE: bool = true;
const PLAIN: Steps = Steps { norm: false, bias: false, gate: None, soft_cap: None, add: false, wide: false };
const EPILOGUES: [Steps; 6] = [
    Steps { gate: Some(Activation::Silu), ..PLAIN },
    Steps { bias: true, wide: true, ..PLAIN },
    Steps { bias: true, gate: Some(Activation::GeluTanh), add: true, ..PLAIN },
    Steps { norm: true, add: true, ..PLAIN },
    Steps { norm: true, gate: Some(Activation::Silu), ..PLAIN },
    Steps { gate: Some(Activation::Gelu), soft_cap: Some(2.0), add: true, wide: true, ..PLAIN },
];

/// A problem with gaps of NaN between rows, its result in f64, and that of f32 sums.
struct Case {
    x: Vec<f64>,
    weight: Vec<f64>,
    gains: Vec<f64>,
    bias: Vec<f64>,
    residual: Vec<f64>,
    shape: [usize; 3],
    dtype: Type,
    steps: Steps,
    /// f32 is multiplied as TF32, where the device does.
    tf32: bool,
}

impl Case {
    /// Rows, inputs and outputs of `shape`.
    fn new(random: &mut Random, shape: [usize; 3], dtype: Type, steps: Steps) -> Self {
        let [rows, d_in, d_out] = shape;
        let weight_rows = if steps.gate.is_some() { 2 * d_out } else { d_out };
        let x = random.floats(rows * d_in, dtype, 1.0);
        let weight = random.floats(weight_rows * d_in, dtype, 1.0);
        let gains = random.floats(d_in, dtype, 1.0);
        let bias = random.floats(weight_rows, dtype, 1.0);
        let residual = random.floats(rows * d_out, if steps.wide { Type::F32 } else { dtype }, 1.0);
        Self { x, weight, gains, bias, residual, shape, dtype, steps, tf32: false }
    }

    /// A factor as the instruction takes it.
    fn operand(&self, x: f64) -> f64 {
        if !self.tf32 {
            return self.dtype.round(x);
        }
        // To nearest, ties away from zero: ten bits of the fraction stay.
        f64::from(f32::from_bits(((x as f32).to_bits() + 0x1000) & !0x1fff))
    }

    fn y_type(&self) -> Type {
        if self.steps.wide { Type::F32 } else { self.dtype }
    }

    fn y(&self, client: &Client) -> Device {
        let shape = [self.shape[0], self.shape[2]];
        match self.steps.add {
            true => Device::new(client, self.y_type(), &self.residual, &shape),
            false => Device::poisoned(client, self.y_type(), &shape),
        }
    }

    fn gemm(&self, client: &Client, y: &Device) -> Gemm {
        let [rows, d_in, _] = self.shape;
        let strided =
            |data, rows| Device::strided(client, self.dtype, data, &[rows, d_in], &[d_in + 8, 1]).binding();
        let bias = || Device::new(client, self.dtype, &self.bias, &[self.bias.len()]).binding();
        Gemm {
            x: strided(&self.x, rows),
            weight: strided(&self.weight, self.bias.len()),
            y: y.binding(),
            norm: self.steps.norm.then(|| RmsNorm {
                weight: Device::new(client, self.dtype, &self.gains, &[d_in]).binding(),
                epsilon: EPSILON,
                one_more: ONE_MORE,
            }),
            epilogue: Epilogue {
                bias: self.steps.bias.then(bias),
                gate: self.steps.gate,
                soft_cap: self.steps.soft_cap,
                add: self.steps.add,
            },
            batch_invariant: false,
        }
    }

    /// `x`, or its norm.
    fn normed(&self) -> Vec<f64> {
        let d_in = self.shape[1];
        if !self.steps.norm {
            return self.x.clone();
        }
        let of_row = |row: &[f64]| {
            let square = row.iter().map(|x| x * x).sum::<f64>() / d_in as f64;
            let factor = 1.0 / (square + f64::from(EPSILON)).sqrt();
            let gain = |gain: &f64| if ONE_MORE { gain + 1.0 } else { *gain };
            row.iter().zip(&self.gains).map(|(x, g)| x * factor * gain(g)).collect::<Vec<f64>>()
        };
        self.x.chunks_exact(d_in).flat_map(of_row).collect()
    }

    /// The output of a row, from its sum with a row of the weight and that with the other half's.
    fn finish(&self, sum: f64, up: f64, row: usize, output: usize) -> f64 {
        let Steps { bias, gate, soft_cap, add, .. } = self.steps;
        let d_out = self.shape[2];
        let with_bias = |sum, at: usize| if bias { sum + self.bias[at] } else { sum };
        let mut y = with_bias(sum, output);
        if let Some(activation) = gate {
            y = act(activation, y) * with_bias(up, d_out + output);
        }
        if let Some(cap) = soft_cap {
            y = f64::from(cap) * (y / f64::from(cap)).tanh();
        }
        if add { y + self.residual[row * d_out + output] } else { y }
    }

    /// Checks the kernel, or the one that is chosen.
    fn check(&self, client: &Client, blueprint: Option<Blueprint>) {
        let [rows, d_in, d_out] = self.shape;
        let y = self.y(client);
        let gemm = self.gemm(client, &y);
        let x = if self.tf32 { TF32 } else { self.dtype.elem() };
        let dtypes = Dtypes { x, y: self.y_type().elem() };
        match blueprint {
            Some(blueprint) => launch_with(client, gemm, dtypes, blueprint),
            None => launch(client, gemm, dtypes),
        }
        .expect("launches");
        let (mut wanted, mut baseline) = (vec![], vec![]);
        let normed = self.normed();
        for (row, output) in (0..rows).flat_map(|row| (0..d_out).map(move |output| (row, output))) {
            let weight = |output: usize| self.weight[output * d_in..][..d_in].iter();
            let x = &normed[row * d_in..][..d_in];
            let exact = |output| x.iter().zip(weight(output)).map(|(x, w)| x * w).sum::<f64>();
            let sum = |output| {
                let products = x.iter().zip(weight(output)).map(|(&x, &w)| self.operand(x) * self.operand(w));
                if self.tf32 || self.steps.wide && self.dtype != Type::F32 {
                    by_matrix_unit(products)
                } else {
                    f64::from(products.map(|product| product as f32).sum::<f32>())
                }
            };
            let up = if self.steps.gate.is_some() { d_out + output } else { output };
            wanted.push(self.finish(exact(output), exact(up), row, output));
            let rounded = self.finish(sum(output), sum(up), row, output);
            baseline.push(self.y_type().round(rounded));
        }
        let what = format!("{:?} {:?} {:?} {blueprint:?}", self.dtype, self.shape, self.steps);
        assert_close(&what, &y.read(client), &wanted, &baseline);
    }
}

/// The sum as matrix units have it: 16 products at a time, cut off to f32 and not rounded. An f32 output shows the difference.
/// Source: Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores", 2021.
fn by_matrix_unit(products: impl Iterator<Item = f64>) -> f64 {
    let products: Vec<f64> = products.collect();
    products.chunks(16).fold(0.0, |sum, few| {
        let sum = sum + few.iter().sum::<f64>();
        let rounded = sum as f32;
        let is_beyond = f64::from(rounded).abs() > sum.abs();
        f64::from(if is_beyond { f32::from_bits(rounded.to_bits() - 1) } else { rounded })
    })
}

fn act(activation: Activation, a: f64) -> f64 {
    match activation {
        Activation::Silu => a / (1.0 + (-a).exp()),
        Activation::Gelu => a * normal_cdf(a),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044_715 * a * a * a);
            a / 2.0 * (1.0 + u.tanh())
        }
    }
}

/// `Φ(a)`, by Simpson's rule.
fn normal_cdf(a: f64) -> f64 {
    let (steps, end) = (400, a.clamp(-9.0, 9.0));
    let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let h = end / f64::from(steps);
    let weight = |i| {
        if i == 0 || i == steps {
            1.0
        } else if i % 2 == 1 {
            4.0
        } else {
            2.0
        }
    };
    0.5 + h / 3.0 * (0..=steps).map(|i| weight(i) * density(f64::from(i) * h)).sum::<f64>()
}

/// Each kernel with a plain store, and with some other epilogue of [`EPILOGUES`].
fn check(random: &mut Random, client: &Client, shape: [usize; 3], dtype: Type, blueprint: Option<Blueprint>) {
    let other = EPILOGUES[random.below(EPILOGUES.len())];
    let on_cpu = client.properties().hardware.num_cpu_cores.is_some();
    // A CPU compiles each for seconds.
    let all = if on_cpu && random.below(2) == 0 {
        vec![PLAIN]
    } else if on_cpu {
        vec![other]
    } else {
        vec![PLAIN, other]
    };
    for steps in all {
        Case::new(random, shape, dtype, steps).check(client, blueprint);
    }
}

/// Hopper's warpgroups and clusters are there.
fn is_hopper(client: &Client) -> bool {
    Instruction::Wgmma.exists_on(DeviceProfile::of(client).arch)
}

/// The units of a device, and the types that each is tried with.
fn units(client: &Client) -> Vec<(MmaKind, Vec<Type>)> {
    let half = vec![Type::F16, Type::BF16];
    let any = vec![Type::F32, Type::BF16];
    let hardware = &client.properties().hardware;
    match (hardware.num_cpu_cores, hardware.plane_size_max) {
        (Some(_), _) => vec![(MmaKind::Scalar1, any)],
        (None, 32) => vec![(MmaKind::MmaSync, half), (MmaKind::Scalar32, any)],
        (None, _) => vec![(MmaKind::Mfma16, half.clone()), (MmaKind::Mfma32, half), (MmaKind::Scalar64, any)],
    }
}

fn few_rows(client: Client) {
    let mut random = Random::new(61);
    for (unit, dtypes) in units(&client) {
        // Tiles have 8 columns, two of which are loaded together, or 16, or 4 on a CPU.
        let (stages, row_tiles) = match unit {
            MmaKind::MmaSync => (3, 2),
            MmaKind::Scalar1 => (1, 2),
            _ => (1, 1),
        };
        for (i, dtype) in dtypes.into_iter().enumerate() {
            for (shape, output_tiles, output_planes, depth_planes, cluster) in [
                ([1, 264, 37], 1, 1, 4, 1),
                ([3, 72, 130], 1, 2, 1, 1),
                ([7, 1000, 66], 2, 1, 2, 2),
                ([1, 8, 1], 1, 2, 2, 4),
            ] {
                let shape: [usize; 3] = shape;
                // Without clusters the same inputs by one cube.
                let cluster = if is_hopper(&client) { cluster } else { 1 };
                let depth_vecs = 4 * depth_planes * (1 + i);
                // A tile of one lane has one output, and outputs are stored in fours.
                let output_tiles = if unit == MmaKind::Scalar1 { 8 * output_tiles } else { output_tiles };
                let blueprint = Blueprint::Skinny(Skinny {
                    unit,
                    output_tiles,
                    output_planes,
                    row_tiles: row_tiles * (1 + i),
                    depth_planes,
                    depth_vecs,
                    stages,
                    cluster,
                    norm: dtype != Type::F16,
                });
                check(&mut random, &client, shape, dtype, Some(blueprint));
                if cluster > 1 || shape[0] == 3 {
                    let normed = Steps { norm: true, bias: true, gate: Some(Activation::Silu), ..PLAIN };
                    Case::new(&mut random, shape, dtype, normed).check(&client, Some(blueprint));
                }
            }
        }
    }
}

fn tiles(client: Client) {
    let mut random = Random::new(63);
    let on_cpu = client.properties().hardware.num_cpu_cores.is_some();
    for (unit, dtypes) in units(&client) {
        let (stages, depth_vecs) = if unit == MmaKind::MmaSync { (3, 4) } else { (1, 4) };
        for (i, dtype) in dtypes.into_iter().enumerate() {
            for (shape, row_planes, column_planes) in
                [([3, 40, 8], 1, 1), ([70, 136, 48], 2, 1), ([9, 72, 200], 1, 2)]
            {
                let tiled = Tiled {
                    unit,
                    row_tiles: 1 + i,
                    column_tiles: 2,
                    row_planes,
                    column_planes,
                    depth_vecs,
                    stages,
                };
                check(&mut random, &client, shape, dtype, Some(Blueprint::Tiled(tiled)));
            }
            if !on_cpu {
                for shape in [[4, 57, 19], [21, 57, 19], [100, 72, 136], [17, 200, 1048]] {
                    check(&mut random, &client, shape, dtype, None);
                }
                let dot = Blueprint::Dot(Dot { rows: 4 });
                check(&mut random, &client, [6, 37, 50], dtype, Some(dot));
            }
        }
    }
}

fn warpgroups(client: Client) {
    let mut random = Random::new(62);
    if !is_hopper(&client) {
        let case = Case::new(&mut random, [129, 64, 64], Type::BF16, PLAIN);
        let y = case.y(&client);
        let blueprint = WarpSpecialized { outputs: 64, stages: 4, cluster: 1, group: 1 };
        let blueprint = Blueprint::WarpSpecialized(blueprint);
        let refused = launch_with(&client, case.gemm(&client, &y), case.dtype.elem(), blueprint);
        assert!(
            matches!(refused, Err(Refusal::Instruction { instruction: Instruction::Wgmma, .. })),
            "{refused:?}"
        );
        return;
    }
    for (dtype, shape, outputs, cluster) in [
        (Type::BF16, [1, 8, 8], 256, 1),
        (Type::F16, [129, 200, 264], 256, 1),
        (Type::BF16, [300, 328, 520], 256, 2),
        (Type::F16, [700, 64, 1000], 128, 4),
        (Type::BF16, [65, 2000, 40], 64, 8),
        (Type::BF16, [70, 1024, 96], 96, 1),
        (Type::BF16, [140, 136, 224], 224, 1),
    ] {
        let blueprint = Blueprint::WarpSpecialized(WarpSpecialized { outputs, stages: 4, cluster, group: 2 });
        for steps in [PLAIN].into_iter().chain(EPILOGUES) {
            Case::new(&mut random, shape, dtype, steps).check(&client, Some(blueprint));
        }
    }
}

/// f32 as TF32, by every kernel that multiplies it; exactly, where none does.
fn tf32(client: Client) {
    let mut random = Random::new(64);
    let device = DeviceProfile::of(&client);
    let mut check = |shape, steps, blueprint: Option<Blueprint>| {
        Case { tf32: true, ..Case::new(&mut random, shape, Type::F32, steps) }.check(&client, blueprint);
    };
    let other = EPILOGUES[2];
    if device.plane > 1 {
        for shape in [[3, 37, 19], [20, 72, 136], [130, 72, 136]] {
            check(shape, PLAIN, None);
            check(shape, other, None);
        }
    }
    if Instruction::MmaSync.exists_on(device.arch) {
        let tiled = |row_tiles, depth_vecs| Tiled {
            unit: MmaKind::MmaSync,
            row_tiles,
            column_tiles: 2,
            row_planes: 2,
            column_planes: 1,
            depth_vecs,
            stages: 3,
        };
        check([70, 136, 48], PLAIN, Some(Blueprint::Tiled(tiled(1, 4))));
        check([9, 72, 200], other, Some(Blueprint::Tiled(tiled(2, 8))));
        let skinny = Skinny {
            unit: MmaKind::MmaSync,
            output_tiles: 2,
            output_planes: 1,
            row_tiles: 2,
            depth_planes: 2,
            depth_vecs: 8,
            stages: 3,
            cluster: 1,
            norm: false,
        };
        check([7, 1000, 66], PLAIN, Some(Blueprint::Skinny(skinny)));
        check([7, 1000, 66], other, Some(Blueprint::Skinny(skinny)));
    }
    if is_hopper(&client) {
        for (shape, outputs, cluster) in
            [([129, 200, 264], 256, 1), ([300, 328, 520], 128, 2), ([70, 1024, 96], 96, 1)]
        {
            let blueprint = WarpSpecialized { outputs, stages: 4, cluster, group: 2 };
            for steps in [PLAIN].into_iter().chain(EPILOGUES) {
                check(shape, steps, Some(Blueprint::WarpSpecialized(blueprint)));
            }
        }
    }
}
