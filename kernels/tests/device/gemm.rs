//! Linear layers, by every kernel that the device has.

use burn_flashinfer_kernels::gemm::{
    Blueprint, Dot, Gemm, Skinny, Tiled, WarpSpecialized, launch, launch_with,
};
use burn_flashinfer_kernels::{DeviceProfile, Instruction, MmaKind, Refusal};
use cubecl::client::Client;

use crate::host::{Device, Random, Type, assert_close, device_tests};

device_tests!(few_rows, tiles, warpgroups);

/// A problem with gaps of NaN between rows, its result in f64, and that of f32 sums.
struct Case {
    x: Vec<f64>,
    weight: Vec<f64>,
    shape: [usize; 3],
    dtype: Type,
}

impl Case {
    fn new(random: &mut Random, shape: [usize; 3], dtype: Type) -> Self {
        let [rows, d_in, d_out] = shape;
        let x = random.floats(rows * d_in, dtype, 1.0);
        Self { x, weight: random.floats(d_out * d_in, dtype, 1.0), shape, dtype }
    }

    fn gemm(&self, client: &Client, y: &Device) -> Gemm {
        let [rows, d_in, d_out] = self.shape;
        let strided =
            |data, rows| Device::strided(client, self.dtype, data, &[rows, d_in], &[d_in + 8, 1]).binding();
        Gemm { x: strided(&self.x, rows), weight: strided(&self.weight, d_out), y: y.binding() }
    }

    /// Checks the kernel, or the one that is chosen.
    fn check(&self, client: &Client, blueprint: Option<Blueprint>) {
        let ([rows, d_in, d_out], dtype) = (self.shape, self.dtype);
        let y = Device::poisoned(client, dtype, &[rows, d_out]);
        let gemm = self.gemm(client, &y);
        match blueprint {
            Some(blueprint) => launch_with(client, gemm, dtype.elem(), blueprint),
            None => launch(client, gemm, dtype.elem()),
        }
        .expect("launches");
        let (mut wanted, mut baseline) = (vec![], vec![]);
        for (row, output) in (0..rows).flat_map(|row| (0..d_out).map(move |output| (row, output))) {
            let pairs = (0..d_in).map(|i| (self.x[row * d_in + i], self.weight[output * d_in + i]));
            wanted.push(pairs.clone().map(|(x, w)| x * w).sum());
            let sum: f32 = pairs.map(|(x, w)| x as f32 * w as f32).sum();
            baseline.push(dtype.round(sum.into()));
        }
        let what = format!("{dtype:?} {:?} {blueprint:?}", self.shape);
        assert_close(&what, &y.read(client), &wanted, &baseline);
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
                // A tile of one lane has one output.
                let output_tiles = if unit == MmaKind::Scalar1 { 4 * output_tiles } else { output_tiles };
                Case::new(&mut random, shape, dtype).check(
                    &client,
                    Some(Blueprint::Skinny(Skinny {
                        unit,
                        output_tiles,
                        output_planes,
                        row_tiles: row_tiles * (1 + i),
                        depth_planes,
                        depth_vecs,
                        stages,
                        cluster,
                    })),
                );
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
                Case::new(&mut random, shape, dtype).check(&client, Some(Blueprint::Tiled(tiled)));
            }
            if !on_cpu {
                for shape in [[4, 57, 19], [21, 57, 19], [100, 72, 136], [17, 200, 1048]] {
                    Case::new(&mut random, shape, dtype).check(&client, None);
                }
                Case::new(&mut random, [6, 37, 50], dtype)
                    .check(&client, Some(Blueprint::Dot(Dot { rows: 4 })));
            }
        }
    }
}

fn warpgroups(client: Client) {
    let mut random = Random::new(62);
    if !is_hopper(&client) {
        let case = Case::new(&mut random, [129, 64, 64], Type::BF16);
        let y = Device::poisoned(&client, case.dtype, &[129, 64]);
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
    ] {
        let blueprint = Blueprint::WarpSpecialized(WarpSpecialized { outputs, stages: 4, cluster, group: 2 });
        Case::new(&mut random, shape, dtype).check(&client, Some(blueprint));
    }
}
