//! Steps of trees, captured and not, against plans with the same trees as custom masks.

use burn::tensor::{DType, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, DecodeGraph, DecodeStep, PagedKvCache, PagedPlan, PlanConfig, Positions, Rope,
    RopeConfig, SequenceId, TokenTree, append_paged_kv, apply_rope,
};

use super::steps::{DIM, HEADS, LAYERS, Model, REQUESTS, VOCAB};
use crate::devices::{Target, device_tests};
use crate::support::{Rng, bits, check, epsilon, read};
use crate::token_trees::{random_parents, sees};

device_tests!(trees_in_steps);

/// The new tokens of a sequence, and their tree.
#[derive(Debug, Clone)]
struct Draft {
    tokens: Vec<u32>,
    parents: Vec<Option<usize>>,
    tree: Option<TokenTree>,
}

impl Draft {
    /// A tree, or now and then tokens in order.
    fn random(rng: &mut Rng, most: usize) -> Self {
        let tokens: Vec<u32> =
            (0..most - rng.below(most.div_ceil(2))).map(|_| rng.below(VOCAB) as u32).collect();
        let has_tree = rng.below(4) > 0;
        let parents = match has_tree {
            true => random_parents(rng, tokens.len()),
            false => (0..tokens.len()).map(|at| at.checked_sub(1)).collect(),
        };
        let tree = has_tree.then(|| TokenTree::new(&parents).expect("a tree"));
        Self { tokens, parents, tree }
    }

    fn of_step(&self) -> (Vec<u32>, Option<TokenTree>) {
        (self.tokens.clone(), self.tree.clone())
    }

    fn as_tree(&self) -> TokenTree {
        TokenTree::new(&self.parents).expect("a tree")
    }
}

/// The outputs of each layer by plans with custom masks, of which those of the second kind have a window.
fn masked(
    model: &Model,
    cache: &mut PagedKvCache,
    drafts: &[(SequenceId, Draft)],
    dtype: DType,
) -> Vec<Vec<f32>> {
    let device = cache.device().clone();
    let old: Vec<usize> = drafts.iter().map(|(id, _)| cache.len(*id).expect("alive")).collect();
    let growth: Vec<_> = drafts.iter().map(|(id, draft)| (*id, draft.tokens.len())).collect();
    let step = cache.step(&growth).expect("room");
    let ids: Vec<i32> =
        drafts.iter().flat_map(|(_, draft)| &draft.tokens).map(|&token| token as i32).collect();
    let rows = |table: &Tensor<2>, heads| {
        let data = TensorData::new(ids.clone(), [ids.len()]);
        model.rows(table, Tensor::from_data(data, (&device, DType::I32)), heads)
    };
    let of_layer = |(layer, kind): (usize, usize)| {
        let window = (kind == 1).then_some(21);
        let mut mask = Vec::new();
        for ((_, draft), &old) in drafts.iter().zip(&old) {
            let new = draft.tokens.len();
            let pairs = (0..new).flat_map(|query| (0..old + new).map(move |key| (query, key)));
            mask.extend(pairs.map(|(query, key)| sees(&draft.parents, window, old, query, key)));
        }
        let options = if kind == 0 { AttentionOptions::new().soft_cap(3.0) } else { AttentionOptions::new() };
        let config = PlanConfig::new(HEADS[0], HEADS[1], DIM, dtype).options(options);
        let mut plan = PagedPlan::for_step(&config, &step).expect("a plan");
        plan.set_custom_mask(Tensor::from_data(TensorData::from(&mask[..]), &device)).expect("fits");
        let kv = rows(&model.kv, HEADS[1]);
        append_paged_kv(cache.layer_mut(layer).expect("a layer"), kv.clone(), kv, step.slots())
            .expect("fits");
        let pages = cache.layer(layer).expect("a layer");
        read(plan.run(rows(&model.q, HEADS[0]), pages).expect("runs").output)
    };
    LAYERS.into_iter().enumerate().map(of_layer).collect()
}

/// RoPE of ones says where a step has its tokens: at their depths.
fn check_positions(step: &DecodeStep, drafts: &[Draft], old: &[usize], target: &Target) {
    let rows = REQUESTS * step.q_len();
    let mut positions = vec![0; rows];
    for (at, (draft, &old)) in drafts.iter().zip(old).enumerate() {
        for (row, depth) in draft.as_tree().depths().enumerate() {
            positions[at * step.q_len() + row] = old + depth;
        }
    }
    let rope = Rope::new(&RopeConfig::new(8), 300, &target.device).expect("a table");
    let ones = || Tensor::<3>::ones([rows, 1, 8], (&target.device, DType::F32));
    let at = |positions: &Positions| bits(apply_rope(ones(), ones(), &rope, positions).expect("fits").0);
    let wanted = Positions::new(&positions, &target.device).expect("they fit");
    assert_eq!(at(&step.positions()), at(&wanted), "{positions:?}");
}

/// Sequences come and go, with other trees in each step, of which a path is accepted. A replay gives the bits of the same step
/// run without a graph, and the numbers of plans with custom masks; rows of missing tokens are 0.
fn trees_in_steps(target: Target) {
    let dtypes = target.dtypes();
    let cases = [7, 64, 1, 2].into_iter().flat_map(|q_len| dtypes.iter().map(move |&dtype| (q_len, dtype)));
    for (q_len, dtype) in target.thin(8, cases.collect()) {
        let (device, mut rng) = (&target.device, Rng::new(&format!("trees {dtype:?} {q_len}")));
        let model = Model::new(dtype, device);
        let [mut captured, mut stepped, mut eager] = [(); 3].map(|()| model.cache(device));
        let mut running: Vec<[SequenceId; 3]> = Vec::new();
        let new = |cache: &PagedKvCache| {
            DecodeStep::with_config(&model.config(q_len).trees(), cache).expect("a step")
        };
        let (fixed, mut step) = (new(&captured), new(&stepped));
        let first = captured.create();
        let start = [(first, Draft::random(&mut rng, q_len).of_step())];
        let mut graph =
            DecodeGraph::capture(&mut captured, fixed, &start, |cache, step| model.step(cache, step))
                .expect("a graph");
        captured.free(first).expect("alive");
        for round in 0..if target.name == "flex" { 8 } else { 3 } {
            let [a, b, c] = [&mut captured, &mut stepped, &mut eager];
            if running.len() < REQUESTS && round != 1 {
                running.push([a, b, c].map(|cache| {
                    let prompt = (0..[5, 70, 1][round % 3]).map(|at| at % VOCAB as u32).collect();
                    let id = cache.create();
                    model.eager(cache, &[(id, prompt)]);
                    id
                }));
            } else if round > 2 {
                let gone = running.remove(0);
                [a, b, c].into_iter().zip(gone).for_each(|(cache, id)| cache.free(id).expect("alive"));
            }
            let drafts: Vec<Draft> = running.iter().map(|_| Draft::random(&mut rng, q_len)).collect();
            let old: Vec<usize> = running.iter().map(|ids| eager.len(ids[2]).expect("alive")).collect();
            let of = |cache: usize| -> Vec<_> {
                running.iter().map(|ids| ids[cache]).zip(drafts.iter().map(Draft::of_step)).collect()
            };
            let replayed = graph.replay(&mut captured, &of(0)).expect("a step").clone();
            step.update(&mut stepped, &of(1)).expect("a step");
            check_positions(&step, &drafts, &old, &target);
            let again = model.step(&mut stepped, &step).expect("a step");
            let what = format!("{} {dtype:?}, trees of {q_len}, round {round}", target.name);
            assert_eq!(bits(replayed.clone()), bits(again), "{what}");
            let of_eager: Vec<_> = running.iter().map(|ids| ids[2]).zip(drafts.iter().cloned()).collect();
            let wanted = masked(&model, &mut eager, &of_eager, dtype);
            for (layer, wanted) in wanted.into_iter().enumerate() {
                let got = read(replayed.clone().narrow(0, layer, 1).squeeze_dim::<3>(0));
                let (mut present, mut absent) = (Vec::new(), Vec::new());
                for (row, values) in got.chunks_exact(HEADS[0] * DIM).enumerate() {
                    let new = drafts.get(row / q_len).map_or(0, |draft| draft.tokens.len());
                    let to = if row % q_len < new { &mut present } else { &mut absent };
                    to.extend_from_slice(values);
                }
                assert!(absent.iter().all(|&x| x == 0.0), "{what}");
                // Both are rounded: a unit in the last place of the largest number.
                let oracle: Vec<f64> = wanted.iter().map(|&x| f64::from(x)).collect();
                let off: Vec<f32> =
                    wanted.iter().map(|x| x + x.abs() * epsilon(dtype) as f32 / 2.0).collect();
                check(format!("{what}, layer {layer}"), &present, &off, &oracle, dtype);
            }
            // A path is accepted.
            for ((ids, draft), &old) in running.iter().zip(&drafts).zip(&old) {
                let last = rng.below(draft.tokens.len());
                let path = draft.as_tree().path(last).expect("a token");
                for (cache, &id) in [&mut captured, &mut stepped, &mut eager].into_iter().zip(ids) {
                    cache.keep(id, old, &path).expect("accepted");
                    assert_eq!(cache.len(id), Ok(old + path.len()));
                }
            }
        }
    }
}
