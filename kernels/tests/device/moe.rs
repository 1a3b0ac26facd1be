//! Mixture of experts: the choice of experts, the sort of their rows, and their layers, against models on the host.

use burn_flashinfer_kernels::activation::Activation;
use burn_flashinfer_kernels::moe::{FusedMoe, Groups, Route, Score, Sort, launch, route, sort};
use cubecl::client::Client;
use cubecl::prelude::TensorBinding;
use cubecl::server::CopyDescriptor;

use crate::host::{Device, Random, TYPES, Type, assert_close, device_tests, ints};

device_tests!(routes, no_number_is_out_of_range, sorts, layers_of_experts);

fn read_ints(client: &Client, tensor: &TensorBinding) -> Vec<i32> {
    let TensorBinding { handle, shape, strides, .. } = tensor.clone();
    let bytes = client.read_one_unchecked_tensor(CopyDescriptor { handle, shape, strides, elem_size: 4 });
    let words = bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()));
    words.take(tensor.size()).collect()
}

fn matrix(data: TensorBinding, [rows, width]: [usize; 2]) -> TensorBinding {
    TensorBinding { shape: [rows, width].into(), strides: [width, 1].into(), ..data }
}

/// A router.
#[derive(Debug, Clone, Copy)]
struct Router {
    experts: usize,
    top_k: usize,
    score: Score,
    biased: bool,
    groups: Option<Groups>,
    renormalise: bool,
    scale: f32,
}

/// The largest first, NaN last, the first of equals first.
fn sorted(mut items: Vec<usize>, by: &[f64]) -> Vec<usize> {
    let key = |i: usize| if by[i].is_nan() { f64::NEG_INFINITY } else { by[i] };
    items.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(by[a].is_nan().cmp(&by[b].is_nan())));
    items
}

/// The smallest distance of neighbours.
fn gap(order: &[usize], by: &[f64]) -> f64 {
    order.windows(2).map(|pair| by[pair[0]] - by[pair[1]]).fold(f64::INFINITY, f64::min)
}

impl Router {
    fn scores(&self, row: &[f64]) -> Vec<f64> {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|l| (l - max).exp()).sum();
        let score = |l: &f64| match self.score {
            Score::Softmax => (l - max).exp() / sum,
            Score::Sigmoid => 1.0 / (1.0 + (-l).exp()),
        };
        row.iter().map(score).collect()
    }

    /// The experts of a row, and how near any comparison of rounded scores was.
    fn choose(&self, row: &[f64], bias: &[f64]) -> (Vec<usize>, f64) {
        let by: Vec<f64> = match self.biased {
            true => self.scores(row).iter().zip(bias).map(|(s, b)| s + b).collect(),
            false => row.to_vec(),
        };
        let mut nearest = f64::INFINITY;
        let mut allowed: Vec<usize> = (0..self.experts).collect();
        if let Some(Groups { count, chosen }) = self.groups {
            let size = self.experts / count;
            let two = self.biased && self.score == Score::Sigmoid && size > 1;
            let of_group = |g: usize| {
                let own = sorted((g * size..(g + 1) * size).collect(), &by);
                by[own[0]] + if two { by[own[1]] } else { 0.0 }
            };
            let scores: Vec<f64> = (0..count).map(of_group).collect();
            let order = sorted((0..count).collect(), &scores);
            nearest = gap(&order, &scores);
            allowed.retain(|e| order[..chosen].contains(&(e / size)));
        }
        let mut order = sorted(allowed, &by);
        order.truncate(self.top_k + 1);
        nearest = nearest.min(gap(&order, &by));
        order.truncate(self.top_k);
        (order, if self.biased { nearest } else { f64::INFINITY })
    }

    fn weights(&self, row: &[f64], chosen: &[usize]) -> Vec<f64> {
        let scores = self.scores(row);
        let sum: f64 = if self.renormalise { chosen.iter().map(|&e| scores[e]).sum() } else { 1.0 };
        chosen.iter().map(|&e| f64::from(self.scale) * scores[e] / sum).collect()
    }

    /// The same in f32.
    fn baseline(&self, row: &[f64], chosen: &[usize]) -> Vec<f64> {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max) as f32;
        let score = |l: f64| match self.score {
            Score::Softmax => (l as f32 - max).exp(),
            Score::Sigmoid => 1.0 / (1.0 + (-l as f32).exp()),
        };
        let all = if self.score == Score::Softmax { row.iter().map(|&l| score(l)).sum() } else { 1.0 };
        let sum: f32 = if self.renormalise { chosen.iter().map(|&e| score(row[e])).sum() } else { all };
        chosen.iter().map(|&e| f64::from(score(row[e]) * (self.scale / sum))).collect()
    }

    fn run(&self, client: &Client, logits: &Device, bias: &[f64], dtype: Type) -> (Vec<f64>, Vec<i32>) {
        let shape = [logits.shape[0], self.top_k];
        let weights = Device::poisoned(client, Type::F32, &shape);
        let experts = matrix(ints(client, &vec![-7; shape[0] * shape[1]]), shape);
        let bias = self.biased.then(|| Device::new(client, Type::F32, bias, &[self.experts]).binding());
        let Self { score, groups, renormalise, scale, .. } = *self;
        let (logits, to) = (logits.binding(), (weights.binding(), experts.clone()));
        let problem = Route { logits, bias, weights: to.0, experts: to.1, score, groups, renormalise, scale };
        route(client, problem, dtype.elem()).expect("launches");
        (weights.read(client), read_ints(client, &experts))
    }
}

const SOFTMAX: Router = Router {
    experts: 8,
    top_k: 2,
    score: Score::Softmax,
    biased: false,
    groups: None,
    renormalise: true,
    scale: 1.0,
};

fn routers() -> Vec<Router> {
    let (softmax, grouped) = (Score::Softmax, |count, chosen| Some(Groups { count, chosen }));
    let sigmoid = Router { score: Score::Sigmoid, ..SOFTMAX };
    vec![
        SOFTMAX,
        Router { experts: 1, top_k: 1, renormalise: false, ..SOFTMAX },
        Router { experts: 128, top_k: 8, ..SOFTMAX },
        Router { experts: 64, top_k: 6, renormalise: false, scale: 16.0, ..SOFTMAX },
        Router { experts: 160, top_k: 6, groups: grouped(8, 3), renormalise: false, ..SOFTMAX },
        Router { experts: 33, top_k: 32, biased: true, ..SOFTMAX },
        Router { experts: 256, top_k: 8, biased: true, groups: grouped(8, 4), scale: 2.5, ..sigmoid },
        Router { experts: 512, top_k: 32, biased: true, ..sigmoid },
        Router { experts: 16, top_k: 1, renormalise: false, ..sigmoid },
        Router { experts: 12, top_k: 4, biased: true, groups: grouped(12, 5), ..sigmoid },
        Router { experts: 21, top_k: 3, biased: true, groups: grouped(3, 1), score: softmax, ..SOFTMAX },
        Router { experts: 500, top_k: 5, groups: grouped(1, 1), ..sigmoid },
    ]
}

/// Rows whose order depends on the rounding of a score are drawn again; without a bias, many logits are equal.
fn routes(client: Client) {
    const NEAR: f64 = 1e-5;
    let mut random = Random::new(41);
    for (i, router) in routers().into_iter().enumerate() {
        for rows in [1, 7] {
            let dtype = TYPES[(i + rows) % 3];
            let bias: Vec<f64> = (0..router.experts).map(|_| random.unit() as f32 as f64).collect();
            let (mut logits, mut wanted) = (vec![], vec![]);
            while wanted.len() < rows {
                let row = random.floats(router.experts, dtype, 4.0);
                let steps: Vec<f64> = row.iter().map(|l| (2.0 * l).round() / 2.0).collect();
                let row = if router.biased || wanted.len() % 2 == 0 { row } else { steps };
                let (chosen, nearest) = router.choose(&row, &bias);
                if nearest > NEAR {
                    logits.extend(row);
                    wanted.push(chosen);
                }
            }
            let strides = [router.experts + 3, 1];
            let tensor = Device::strided(&client, dtype, &logits, &[rows, router.experts], &strides);
            let (weights, experts) = router.run(&client, &tensor, &bias, dtype);
            let what = format!("{router:?}, {rows} rows of {dtype:?}");
            let ids: Vec<i32> = wanted.iter().flatten().map(|&e| e as i32).collect();
            assert_eq!(experts, ids, "{what}");
            let each = || logits.chunks(router.experts).zip(&wanted);
            let oracle: Vec<f64> = each().flat_map(|(row, chosen)| router.weights(row, chosen)).collect();
            let baseline: Vec<f64> = each().flat_map(|(row, chosen)| router.baseline(row, chosen)).collect();
            assert_close(&what, &weights, &oracle, &baseline);
        }
    }
}

/// Whatever logits and biases are, experts are those of a row, and each is there once.
fn no_number_is_out_of_range(client: Client) {
    let mut random = Random::new(42);
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 3e38];
    for router in routers() {
        let rows = 9;
        let mut draw = |row: usize| match row {
            0..6 => odd[row],
            _ => odd[random.below(odd.len())],
        };
        let logits: Vec<f64> = (0..rows * router.experts).map(|at| draw(at / router.experts)).collect();
        let bias: Vec<f64> = (0..router.experts).map(|e| odd[e % odd.len()]).collect();
        let tensor = Device::new(&client, Type::F32, &logits, &[rows, router.experts]);
        let (_, experts) = router.run(&client, &tensor, &bias, Type::F32);
        for row in experts.chunks(router.top_k) {
            let mut once = row.to_vec();
            once.sort_unstable();
            once.dedup();
            let fits =
                once.len() == router.top_k && once.iter().all(|&e| (0..router.experts as i32).contains(&e));
            assert!(fits, "{router:?}: {row:?}");
        }
    }
}

/// Entries of random experts; all of one; of none; numbers that are no expert's.
fn entries(kind: usize, count: usize, experts: usize, random: &mut Random) -> Vec<i32> {
    let one = random.below(experts) as i32;
    let none = [-1, i32::MIN, experts as i32, i32::MAX];
    (0..count)
        .map(|_| match kind {
            0 => random.below(experts) as i32,
            1 => one,
            2 => none[random.below(4)],
            _ if random.below(3) == 0 => none[random.below(4)],
            _ => random.below(experts.div_ceil(2)) as i32,
        })
        .collect()
}

fn sorts(client: Client) {
    let mut random = Random::new(43);
    for (count, experts) in [(1, 1), (1, 300), (5, 3), (64, 8), (777, 60), (2000, 300)] {
        for (kind, tile_rows) in [(0, 1), (1, 4), (2, 16), (3, 64), (0, 128), (1, 128), (3, 1)] {
            let entries = entries(kind, count, experts, &mut random);
            let problem = Sort { entries: ints(&client, &entries), experts, tile_rows };
            let sorted = sort(&client, problem).expect("launches");
            let (mut places, mut items, mut next) = (vec![-1; count], vec![], 0);
            for expert in 0..experts as i32 {
                let first = next;
                for (place, _) in places.iter_mut().zip(&entries).filter(|(_, entry)| **entry == expert) {
                    *place = next;
                    next += 1;
                }
                for row in (first..next).step_by(tile_rows) {
                    items.extend([row, next.min(row + tile_rows as i32), expert]);
                }
            }
            let what = format!("{count} entries of {experts} experts, kind {kind}, tiles of {tile_rows}");
            items.resize(3 * Sort::work_items(count, experts, tile_rows).max(items.len() / 3), 0);
            assert_eq!(read_ints(&client, &sorted.places), places, "{what}");
            assert_eq!(read_ints(&client, &sorted.work_items), items, "{what}");
        }
    }
}

fn silu(a: f64) -> f64 {
    a / (1.0 + (-a).exp())
}

/// Every size of tile that the mean number of rows of an expert asks for.
fn layers_of_experts(client: Client) {
    let mut random = Random::new(44);
    let (experts, top_k) = (5, 2);
    for (i, tokens) in [1, 3, 40, 150, 400].into_iter().enumerate() {
        for kind in [0, 1, 3] {
            let dtype = TYPES[(i + kind) % 3];
            let [hidden, inter] = [[72, 40], [40, 24], [37, 19]][(i + kind) % 3];
            let scale = 1.0 / (hidden as f64).sqrt();
            let x = random.floats(tokens * hidden, dtype, 1.0);
            let gate_up = random.floats(experts * 2 * inter * hidden, dtype, scale);
            let down = random.floats(experts * hidden * inter, dtype, scale);
            let weights = random.floats(tokens * top_k, Type::F32, 1.0);
            let entries = entries(kind, tokens * top_k, experts, &mut random);
            let y = Device::poisoned(&client, dtype, &[tokens, hidden]);
            let moe = FusedMoe {
                x: Device::strided(&client, dtype, &x, &[tokens, hidden], &[hidden + 8, 1]).binding(),
                gate_up: Device::new(&client, dtype, &gate_up, &[experts, 2 * inter, hidden]).binding(),
                down: Device::new(&client, dtype, &down, &[experts, hidden, inter]).binding(),
                weights: Device::new(&client, Type::F32, &weights, &[tokens, top_k]).binding(),
                experts: matrix(ints(&client, &entries), [tokens, top_k]),
                y: y.binding(),
                activation: Activation::Silu,
            };
            launch(&client, moe, dtype.elem()).expect("launches");
            let (mut wanted, mut baseline) = (vec![0.0; x.len()], vec![0.0_f32; x.len()]);
            for (entry, &expert) in entries.iter().enumerate() {
                if !(0..experts as i32).contains(&expert) {
                    continue;
                }
                let (token, expert) = (entry / top_k, expert as usize);
                let x = &x[token * hidden..][..hidden];
                let of = |row: usize| gate_up[(expert * 2 * inter + row) * hidden..][..hidden].iter().zip(x);
                let sum = |row: usize| of(row).map(|(w, x)| w * x).sum::<f64>();
                let sum_f32 = |row: usize| of(row).map(|(&w, &x)| w as f32 * x as f32).sum::<f32>();
                let acts: Vec<f64> = (0..inter).map(|j| silu(sum(j)) * sum(inter + j)).collect();
                let rounded: Vec<f64> = (0..inter)
                    .map(|j| {
                        let (a, b) = (sum_f32(j), sum_f32(inter + j));
                        dtype.round((a / (1.0 + (-a).exp()) * b).into())
                    })
                    .collect();
                for o in 0..hidden {
                    let row = &down[(expert * hidden + o) * inter..][..inter];
                    let at = token * hidden + o;
                    wanted[at] += weights[entry] * row.iter().zip(&acts).map(|(w, a)| w * a).sum::<f64>();
                    let pairs = row.iter().zip(&rounded);
                    let sum: f32 = pairs.map(|(&w, &a)| w as f32 * a as f32).sum();
                    baseline[at] += weights[entry] as f32 * dtype.round(sum.into()) as f32;
                }
            }
            let baseline: Vec<f64> = baseline.into_iter().map(|y| dtype.round(y.into())).collect();
            let what = format!("{tokens} tokens, kind {kind}, {dtype:?}, {hidden} by {inter}");
            assert_close(&what, &y.read(&client), &wanted, &baseline);
        }
    }
}
