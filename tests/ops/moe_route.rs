//! The choice of experts for each token.

use burn::tensor::{DType, Int, Tensor};
use burn_flashinfer::RouterScore::{Sigmoid, Softmax};
use burn_flashinfer::extension::{ExpertGroups, RoutingParams};
use burn_flashinfer::{MoeRouting, RouterScore, moe_route, reference};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, check};

device_tests!(routers, not_a_number, chosen_alone);

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
        // Every third is tried on devices that check, every sixth on slow ones.
        Router::new([8, 2], Softmax, None),
        Router::new([1, 1], Sigmoid, None),
        Router::new([64, 6], Softmax, None),
        Router::new([32, 3], Softmax, Some([32, 4])).biased(rng),
        Router::new([45, 32], Softmax, Some([3, 3])),
        Router::new([128, 8], Softmax, None).biased(rng),
        Router::new([256, 8], Sigmoid, Some([8, 4])).biased(rng),
        Router::new([35, 4], Sigmoid, Some([7, 4])).biased(rng),
        Router::new([12, 5], Sigmoid, Some([12, 6])).biased(rng),
        Router::new([512, 32], Sigmoid, None),
        Router::new([16, 4], Sigmoid, Some([4, 2])),
    ]
}

fn routers(target: Target) {
    let rng = &mut Rng::new("moe routers");
    let device = &target.device;
    for dtype in target.dtypes() {
        for router in target.thin(6, all_routers(rng)) {
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
fn not_a_number(target: Target) {
    let rng = &mut Rng::new("moe routers NaN");
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX];
    let device = &target.device;
    for router in target.thin(4, all_routers(rng)) {
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
