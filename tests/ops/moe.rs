//! Mixture of experts: the layers of the experts that tokens choose.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::{Activation, MoeRouting, fused_moe, moe_route, reference};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, check, round};

device_tests!(layers, distributions, no_expert, views_and_neighbours, not_a_number, empty);

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

/// Layers of experts, and the choice of each token.
struct Case {
    x: Host<2>,
    gate_up: Host<3>,
    down: Host<3>,
    weights: Host<2>,
    chosen: Vec<i32>,
    activation: Activation,
}

impl Case {
    /// `[tokens, top_k, experts, hidden, inter]`
    fn random(shape: [usize; 5], dtype: DType, rng: &mut Rng) -> Self {
        let [tokens, top_k, experts, hidden, inter] = shape;
        let scale = (hidden as f32).sqrt().recip();
        let mut scaled = |shape: [usize; 3]| Host::from_fn(shape, dtype, |_| rng.normal() * scale);
        let (gate_up, down) = (scaled([experts, 2 * inter, hidden]), scaled([experts, hidden, inter]));
        Self {
            x: Host::random([tokens, hidden], dtype, rng),
            gate_up,
            down,
            weights: Host::random([tokens, top_k], DType::F32, rng),
            chosen: (0..tokens * top_k).map(|_| rng.below(experts) as i32).collect(),
            activation: ACTIVATIONS[rng.below(3)],
        }
    }

    fn experts(&self, target: &Target) -> Tensor<2, Int> {
        let data = TensorData::new(self.chosen.clone(), self.weights.shape);
        Tensor::from_data(data, (&target.device, DType::I32))
    }

    fn run(&self, target: &Target) -> Tensor<2> {
        let device = &target.device;
        let (x, gate_up, down) =
            (self.x.tensor(device), self.gate_up.tensor(device), self.down.tensor(device));
        let (weights, experts) = (self.weights.tensor(device), self.experts(target));
        fused_moe(x, gate_up, down, weights, experts, self.activation).expect("it fits")
    }

    fn check(&self, what: &str, target: &Target, got: Tensor<2>) {
        let (dtype, [_, hidden, inter]) = (self.x.dtype, self.down.shape);
        assert_eq!((got.dims(), got.dtype()), (self.x.shape, dtype));
        let (gate_up, down) = (&self.gate_up.f64()[..], &self.down.f64()[..]);
        let layers = reference::ExpertLayers { gate_up, down, hidden, inter, activation: self.activation };
        let chosen: Vec<i64> = self.chosen.iter().map(|&e| e.into()).collect();
        let oracle = reference::fused_moe(&self.x.f64(), layers, &self.weights.f64(), &chosen);
        let what = format!(
            "fused_moe {what} on {}, {:?}, {hidden} by {inter}, {:?} of {dtype:?}, {:?}",
            target.name, self.weights.shape, self.down.shape, self.activation
        );
        check(what, &Host::of(got).values, &self.baseline(), &oracle.expect("it fits"), dtype);
    }

    /// Plain loops in f32, rounded where the operation rounds.
    fn baseline(&self) -> Vec<f32> {
        let ([_, hidden], [experts, _, inter], dtype) = (self.x.shape, self.down.shape, self.x.dtype);
        let [_, top_k] = self.weights.shape;
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let mut y = vec![0.0_f32; self.x.values.len()];
        for (entry, &expert) in self.chosen.iter().enumerate() {
            let Some(expert) = usize::try_from(expert).ok().filter(|&e| e < experts) else { continue };
            let token = entry / top_k;
            let x = &self.x.values[token * hidden..][..hidden];
            let matrix = &self.gate_up.values[expert * 2 * inter * hidden..][..2 * inter * hidden];
            let sums: Vec<f64> = matrix.chunks_exact(hidden).map(|row| dot(row, x).into()).collect();
            let activated = match self.activation {
                Activation::Silu => reference::silu_and_mul(&sums, inter),
                Activation::Gelu => reference::gelu_and_mul(&sums, inter),
                Activation::GeluTanh => reference::gelu_tanh_and_mul(&sums, inter),
            };
            let activated: Vec<f32> =
                activated.expect("it fits").into_iter().map(|a| round(a as f32, dtype)).collect();
            let matrix = &self.down.values[expert * hidden * inter..][..hidden * inter];
            for (y, row) in y[token * hidden..][..hidden].iter_mut().zip(matrix.chunks_exact(inter)) {
                *y += self.weights.values[entry] * round(dot(row, &activated), dtype);
            }
        }
        y.into_iter().map(|y| round(y, dtype)).collect()
    }
}

/// Numbers of tokens for which there are tiles of each size, and shapes that a matrix unit takes and refuses.
fn layers(target: Target) {
    let rng = &mut Rng::new("moe layers");
    for (i, dtype) in target.dtypes().into_iter().enumerate() {
        let shapes = vec![
            [1, 2, 8, 64, 40],
            [3, 1, 1, 17, 5],
            [7, 3, 5, 72, 136],
            [33, 2, 4, 40, 24],
            [90, 4, 6, 64, 48],
            [200, 2, 3, 24, 40],
            [50, 6, 70, 16, 8],
            [2, 32, 9, 1, 1],
        ];
        for (j, shape) in target.thin(4, shapes).into_iter().enumerate() {
            let mut case = Case::random(shape, dtype, rng);
            case.activation = ACTIVATIONS[(i + j) % 3];
            let got = case.run(&target);
            case.check("layers", &target, got.clone());
            assert_eq!(bits(got), bits(case.run(&target)), "{} {shape:?}", target.name);
        }
    }
}

/// All tokens choose one expert, or the last one only, or most of them one.
fn distributions(target: Target) {
    let rng = &mut Rng::new("moe distributions");
    for dtype in target.dtypes() {
        for most in target.thin(3, vec![0, 3, 7]) {
            for tokens in [5, 80] {
                let mut case = Case::random([tokens, 2, 8, 32, 24], dtype, rng);
                for chosen in &mut case.chosen {
                    *chosen = if tokens == 5 || rng.below(4) > 0 { most } else { *chosen };
                }
                case.check("distributions", &target, case.run(&target));
            }
        }
    }
}

/// Numbers that are no expert's add nothing, of any type of integers; so each of two devices may have half of the experts.
fn no_expert(target: Target) {
    let rng = &mut Rng::new("moe no expert");
    for dtype in target.dtypes() {
        for tokens in [1, 20, 100] {
            let mut case = Case::random([tokens, 4, 6, 40, 16], dtype, rng);
            let none = [-1, 6, i32::MIN, i32::MAX];
            for (at, chosen) in case.chosen.iter_mut().enumerate() {
                // The first token has no expert at all.
                *chosen = if at < 4 || rng.below(2) == 0 { none[at % 4] } else { *chosen };
            }
            case.check("no expert", &target, case.run(&target));
            for first in [0, 3] {
                let part = |all: &Host<3>| {
                    let [_, a, b] = all.shape;
                    let values = all.values[first * a * b..(first + 3) * a * b].to_vec();
                    Host { shape: [3, a, b], values, dtype }
                };
                let half = Case {
                    x: case.x.clone(),
                    gate_up: part(&case.gate_up),
                    down: part(&case.down),
                    weights: case.weights.clone(),
                    chosen: case.chosen.iter().map(|e| e.saturating_sub(first as i32)).collect(),
                    activation: case.activation,
                };
                half.check("half of the experts", &target, half.run(&target));
            }
        }
    }
    if target.device.supports_dtype(DType::I64) {
        let mut case = Case::random([3, 2, 4, 8, 8], DType::F32, rng);
        let wide = [1_i64 << 32, 2, -1, 3 - (1 << 32), 0, 1];
        case.chosen = vec![-1, 2, -1, -1, 0, 1];
        let device = &target.device;
        let experts = Tensor::from_data(TensorData::new(wide.to_vec(), [3, 2]), (device, DType::I64));
        let (gate_up, down) = (case.gate_up.tensor(device), case.down.tensor(device));
        let (x, weights) = (case.x.tensor(device), case.weights.tensor(device));
        let got = fused_moe(x, gate_up, down, weights, experts, case.activation).expect("it fits");
        case.check("I64", &target, got);
    }
}

/// Rows and matrices that are views into tensors of NaN, between operations of Burn.
fn views_and_neighbours(target: Target) {
    let rng = &mut Rng::new("moe views");
    let device = &target.device;
    for dtype in target.dtypes() {
        for (shape, gap) in [([6, 2, 3, 24, 16], 8), ([60, 2, 3, 40, 24], 8), ([60, 2, 3, 24, 16], 3)] {
            let case = Case::random(shape, dtype, rng);
            let [tokens, _, experts, hidden, inter] = shape;
            let padded = Host::from_fn([tokens, hidden + gap], dtype, |at| {
                let (row, column) = (at / (hidden + gap), at % (hidden + gap));
                if column < hidden { case.x.values[row * hidden + column] } else { f32::NAN }
            });
            let x = padded.tensor(device).slice([0..tokens, 0..hidden]);
            let matrices = |all: &Host<3>, [a, b]: [usize; 2]| {
                let padded = Host::from_fn([experts + 1, a + 1, b + gap], dtype, |at| {
                    let (column, row, matrix) =
                        (at % (b + gap), at / (b + gap) % (a + 1), at / (b + gap) / (a + 1));
                    let is_there = column < b && row < a && matrix < experts;
                    if is_there { all.values[(matrix * a + row) * b + column] } else { f32::NAN }
                });
                padded.tensor(device).slice([0..experts, 0..a, 0..b])
            };
            let gate_up = matrices(&case.gate_up, [2 * inter, hidden]);
            // The axes of the other order.
            let down = case.down.tensor(device).swap_dims(1, 2).mul_scalar(2.0).swap_dims(1, 2);
            let (weights, experts) = (case.weights.tensor(device).mul_scalar(0.5), case.experts(&target));
            let got = fused_moe(
                x,
                gate_up,
                down,
                weights,
                experts.clone().add_scalar(1).sub_scalar(1),
                case.activation,
            );
            case.check(&format!("views, gap {gap}"), &target, got.expect("it fits").mul_scalar(1.0));
        }
    }
}

/// A NaN stays in its row, and with the tokens of its expert.
fn not_a_number(target: Target) {
    let rng = &mut Rng::new("moe NaN");
    for dtype in target.dtypes() {
        for tokens in [4, 70] {
            let mut case = Case::random([tokens, 2, 5, 32, 24], dtype, rng);
            for (at, chosen) in case.chosen.iter_mut().enumerate() {
                *chosen = if at < 2 { 4 } else { *chosen % 3 };
            }
            case.x.values[32 + 5] = f32::NAN;
            case.down.values[4 * 32 * 24 + 7] = f32::NAN;
            // An expert that no token has chosen.
            case.gate_up.values[3 * 48 * 32..][..48 * 32].fill(f32::NAN);
            case.check("NaN", &target, case.run(&target));
        }
    }
}

/// No tokens: no result, but of the right shape and type.
fn empty(target: Target) {
    let device = &target.device;
    for dtype in target.dtypes() {
        let logits = Tensor::<2>::zeros([0, 8], (device, dtype));
        let (weights, experts) = moe_route(logits, MoeRouting::new(2)).expect("it fits");
        assert_eq!((weights.dims(), weights.dtype()), ([0, 2], DType::F32));
        assert_eq!((experts.dims(), experts.dtype()), ([0, 2], DType::I32));
        let x = Tensor::<2>::zeros([0, 16], (device, dtype));
        let (gate_up, down) = (
            Tensor::<3>::zeros([8, 16, 16], (device, dtype)),
            Tensor::<3>::zeros([8, 16, 8], (device, dtype)),
        );
        let y = fused_moe(x, gate_up, down, weights, experts, Activation::Silu).expect("it fits");
        assert_eq!((y.dims(), y.dtype()), ([0, 16], dtype));
    }
}
