//! Mixture of experts: routers, and the layers of the experts that they choose.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::RouterScore::{Sigmoid, Softmax};
use burn_flashinfer::extension::{ExpertGroups, RoutingParams};
use burn_flashinfer::{Activation, MoeRouting, RouterScore, fused_moe, moe_route, reference};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, check, round};

device_tests!(
    routers,
    not_a_number_in_a_router,
    chosen_alone,
    layers,
    distributions,
    no_expert,
    views_and_neighbours,
    not_a_number_in_a_layer,
    empty
);

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

/// The options of a router, and the number of its experts.
#[derive(Debug, Clone)]
struct Router {
    experts: usize,
    params: RoutingParams,
    bias: Option<Host<1>>,
}

impl Router {
    fn new([experts, top_k]: [usize; 2], score: RouterScore, groups: Option<[usize; 2]>) -> Self {
        let groups = groups.map(|[count, chosen]| ExpertGroups { count, chosen });
        let params = RoutingParams { top_k, score, groups, renormalise: experts % 2 == 0, scale: 1.0 };
        Self { experts, params, bias: None }
    }

    fn biased(mut self, rng: &mut Rng) -> Self {
        self.bias = Some(Host::random([self.experts], DType::F32, rng));
        self.params.scale = 2.5;
        self
    }

    fn options(&self, target: &Target) -> MoeRouting {
        let RoutingParams { top_k, score, groups, renormalise, scale } = self.params;
        let mut options = MoeRouting::new(top_k).score(score).renormalise(renormalise).scale(scale);
        if let Some(ExpertGroups { count, chosen }) = groups {
            options = options.groups(count, chosen);
        }
        match &self.bias {
            Some(bias) => options.correction_bias(bias.tensor(&target.device)),
            None => options,
        }
    }

    fn reference(&self, logits: &[f64]) -> (Vec<f64>, Vec<usize>) {
        let bias = self.bias.as_ref().map(Host::f64);
        reference::moe_route(logits, self.experts, bias.as_deref(), &self.params).expect("it fits")
    }

    /// A row of random logits. With a bias scores are rounded before they are compared: experts that are chosen by the
    /// last digits are none of the operation's promises, and such a row is drawn again.
    fn row(&self, dtype: DType, rng: &mut Rng) -> Vec<f32> {
        loop {
            let row = Host::<1>::random([self.experts], dtype, rng).values;
            if self.bias.is_none() || self.is_clear(&row) {
                return row;
            }
        }
    }

    /// The choice is the same after a change of each logit by far more than a rounding changes a score.
    fn is_clear(&self, row: &[f32]) -> bool {
        let of = |sign: f64| {
            let moved = row.iter().enumerate().map(|(i, &l)| {
                let way = if i % 2 == 0 { sign } else { -sign };
                f64::from(l) + way * 1e-4
            });
            self.reference(&moved.collect::<Vec<_>>()).1
        };
        let exact: Vec<f64> = row.iter().map(|&l| f64::from(l)).collect();
        let chosen = self.reference(&exact).1;
        of(1.0) == chosen && of(-1.0) == chosen && self.gaps_are_wide(&exact, &chosen)
    }

    /// No two neighbours of the chosen ones, and the next, are within a rounding of each other.
    fn gaps_are_wide(&self, row: &[f64], chosen: &[usize]) -> bool {
        let bias = self.bias.as_ref().map_or(vec![0.0; self.experts], Host::f64);
        let all = RoutingParams {
            top_k: self.experts,
            groups: None,
            renormalise: false,
            scale: 1.0,
            ..self.params
        };
        let (weights, order) = reference::moe_route(row, self.experts, Some(&bias), &all).expect("it fits");
        let by: Vec<f64> = order.iter().zip(&weights).map(|(&e, w)| w + bias[e]).collect();
        let last = chosen.iter().filter_map(|e| order.iter().position(|o| o == e)).max().unwrap_or(0);
        by.windows(2).take(last + 1).all(|pair| pair[0] - pair[1] > 1e-5)
    }

    /// The same in f32.
    fn baseline(&self, row: &[f32], chosen: &[usize]) -> Vec<f32> {
        let RoutingParams { score, renormalise, scale, .. } = self.params;
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let score = |l: f32| if score == Softmax { (l - max).exp() } else { 1.0 / (1.0 + (-l).exp()) };
        let all = if self.params.score == Softmax { row.iter().map(|&l| score(l)).sum() } else { 1.0 };
        let whole = if renormalise { chosen.iter().map(|&e| score(row[e])).sum() } else { all };
        chosen.iter().map(|&e| score(row[e]) / whole * scale).collect()
    }
}

fn ints(tensor: Tensor<2, Int>) -> Vec<i32> {
    assert_eq!(tensor.dtype(), DType::I32);
    tensor.into_data().iter::<i32>().collect()
}

fn all_routers(rng: &mut Rng) -> Vec<Router> {
    vec![
        Router::new([8, 2], Softmax, None),
        Router::new([1, 1], Sigmoid, None),
        Router::new([64, 6], Softmax, None),
        Router::new([128, 8], Softmax, None).biased(rng),
        Router::new([45, 32], Softmax, Some([3, 3])),
        Router::new([256, 8], Sigmoid, Some([8, 4])).biased(rng),
        Router::new([512, 32], Sigmoid, None),
        Router::new([35, 4], Sigmoid, Some([7, 4])).biased(rng),
        Router::new([12, 5], Sigmoid, Some([12, 6])).biased(rng),
        Router::new([32, 3], Softmax, Some([32, 4])).biased(rng),
        Router::new([16, 4], Sigmoid, Some([4, 2])),
    ]
}

fn routers(target: Target) {
    let rng = &mut Rng::new("moe routers");
    let device = &target.device;
    for dtype in target.dtypes() {
        for router in target.thin(3, all_routers(rng)) {
            for rows in [1, 9] {
                let mut values: Vec<f32> = (0..rows).flat_map(|_| router.row(dtype, rng)).collect();
                if router.bias.is_none() {
                    // Many equal ones.
                    values
                        .iter_mut()
                        .skip(router.experts * (rows / 2))
                        .for_each(|l| *l = (*l * 2.0).round() / 2.0);
                }
                let logits = Host { shape: [rows, router.experts], values, dtype };
                let options = router.options(&target);
                let (weights, experts) = moe_route(logits.tensor(device), options.clone()).expect("it fits");
                assert_eq!((weights.dims(), weights.dtype()), ([rows, router.params.top_k], DType::F32));
                let (oracle, chosen) = router.reference(&logits.f64());
                let what = format!("moe_route on {}, {rows} rows of {dtype:?}, {router:?}", target.name);
                let experts = ints(experts);
                assert_eq!(experts, chosen.iter().map(|&e| e as i32).collect::<Vec<_>>(), "{what}");
                let rows = logits.values.chunks_exact(router.experts);
                let baseline: Vec<f32> = rows
                    .zip(chosen.chunks_exact(router.params.top_k))
                    .flat_map(|(row, chosen)| router.baseline(row, chosen))
                    .collect();
                check(&what, &Host::of(weights.clone()).values, &baseline, &oracle, DType::F32);

                // Every other column of a larger tensor.
                let shape = [logits.shape[0], 2 * router.experts];
                let wide =
                    Host::from_fn(
                        shape,
                        dtype,
                        |at| {
                            if at % 2 == 0 { logits.values[at / 2] } else { f32::NAN }
                        },
                    );
                let [rows, columns] = shape;
                let view = wide.tensor(device).reshape([rows, columns / 2, 2]).slice([
                    0..rows,
                    0..columns / 2,
                    0..1,
                ]);
                let (again, same) = moe_route(view.reshape([rows, columns / 2]), options).expect("it fits");
                assert_eq!((bits(again), ints(same)), (bits(weights), experts), "{what}");
            }
        }
    }
}

/// NaN is chosen last, and whatever numbers there are, the experts are those of a row, each once.
fn not_a_number_in_a_router(target: Target) {
    let rng = &mut Rng::new("moe routers NaN");
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX];
    let device = &target.device;
    for router in target.thin(2, all_routers(rng)) {
        let experts = router.experts;
        let logits = Host::from_fn([8, experts], DType::F32, |at| match at / experts {
            row @ 0..6 => odd[row],
            _ => odd[rng.below(6)],
        });
        let mut router = router;
        if let Some(bias) = &mut router.bias {
            bias.values[0] = f32::NAN;
            bias.values[experts - 1] = f32::INFINITY;
        }
        let (_, chosen) = moe_route(logits.tensor(device), router.options(&target)).expect("it fits");
        for row in ints(chosen).chunks_exact(router.params.top_k) {
            let mut once = row.to_vec();
            once.sort_unstable();
            once.dedup();
            let fits = once.len() == row.len() && once.iter().all(|&e| (0..experts as i32).contains(&e));
            assert!(fits, "{} {router:?}: {row:?}", target.name);
        }
    }
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let data = [[nan, 1.0, nan, 0.0], [-inf, -inf, -inf, -inf], [inf, 0.0, -inf, 1.0]];
    let (weights, experts) =
        moe_route(Tensor::from_data(data, device), MoeRouting::new(3).softmax_of_chosen()).expect("it fits");
    assert_eq!(ints(experts), [1, 3, 0, 0, 1, 2, 0, 3, 1], "{}", target.name);
    let weights = Host::of(weights).values;
    assert!(weights[..3].iter().all(|w| w.is_nan()), "{weights:?}");
    assert_eq!(weights[3..], [0.0, 0.0, 0.0, 1.0, 0.0, 0.0], "{}", target.name);
}

/// A softmax over the chosen alone is exact where one over all has no digits left.
fn chosen_alone(target: Target) {
    let logits = Tensor::<2>::from_data([[-300.0, 4.0, -1.0, 4.0, 3.0]], &target.device);
    let (weights, experts) = moe_route(logits, MoeRouting::new(2).softmax_of_chosen()).expect("it fits");
    assert_eq!((ints(experts), Host::of(weights).values), (vec![1, 3], vec![0.5, 0.5]));
}

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
        for (j, shape) in target.thin(3, shapes).into_iter().enumerate() {
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
        for most in [0, 3, 7] {
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
fn not_a_number_in_a_layer(target: Target) {
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
