//! Trees of new tokens, against the oracle of a mask that is written by their definition.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use burn_flashinfer::{
    AttentionOptions, AttentionVariant, CacheConfig, Cascade, CascadePlan, DecodeStep, Indptr, KvSplit,
    PageTable, PagedKvCache, PlanConfig, Request, Row, StepConfig, TokenTree, VariantInputs, single_prefill,
};

use crate::devices::{Target, device_tests};
use crate::problem::Case;
use crate::setting::{Setting, Tensors};
use crate::support::{Rng, refused};

device_tests!(trees_and_prompts, refuses_trees_that_do_not_fit);

/// The parent of each token: of the one before, of any, or none.
pub fn random_parents(rng: &mut Rng, tokens: usize) -> Vec<Option<usize>> {
    let parent = |at: usize| match rng.below(4) {
        _ if at == 0 => None,
        0 => Some(at - 1),
        1 if at > 3 => None,
        _ => Some(rng.below(at)),
    };
    (0..tokens).map(parent).collect()
}

/// The tokens from `token` to its first ancestor.
pub fn ancestors(parents: &[Option<usize>], token: usize) -> Vec<usize> {
    std::iter::successors(Some(token), |&token| parents[token]).collect()
}

/// True if query `query` of a tree behind `old` keys sees key `key`, at most `window` positions back.
pub fn sees(parents: &[Option<usize>], window: Option<usize>, old: usize, query: usize, key: usize) -> bool {
    let depth = ancestors(parents, query).len() - 1;
    let position = match key.checked_sub(old) {
        None => key,
        Some(new) if !ancestors(parents, query).contains(&new) => return false,
        Some(new) => old + ancestors(parents, new).len() - 1,
    };
    window.is_none_or(|window| position + window >= old + depth)
}

/// A mask of the parents of each request, or a causal one where there are none.
#[derive(Debug)]
struct Drawn {
    scale: f32,
    window: Option<usize>,
    parents: Vec<Option<Vec<Option<usize>>>>,
}

impl AttentionVariant for Drawn {
    fn scale(&self) -> f32 {
        self.scale
    }

    fn keys(&self, request: &Request, _query: usize) -> Range<usize> {
        0..request.kv_len
    }

    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        let Request { index, qo_len, kv_len } = row.request;
        match &self.parents[index] {
            Some(parents) => sees(parents, self.window, kv_len - qo_len, row.query, key),
            None => row.request.causal_window(row.query, true, self.window).contains(&key),
        }
    }
}

/// Trees, requests in order and a prompt longer than any tree in one batch, with a window and without, with split keys.
fn trees_and_prompts(target: Target) {
    let lengths = [(7, 90), (64, 150), (1, 33), (2, 2), (70, 75), (5, 40)];
    let cases = target.dtypes().into_iter().rev().flat_map(|dtype| {
        [(64, Some(5)), (128, None), (40, Some(37))].map(|(dim, window)| (dtype, dim, window))
    });
    for (dtype, dim, window) in target.thin(17, cases.collect()) {
        let mut rng = Rng::new(&format!("trees {dim} {window:?}"));
        let parents: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(at, &(tokens, _))| (at < 4).then(|| random_parents(&mut rng, tokens)))
            .collect();
        let trees: Vec<_> = parents
            .iter()
            .map(|parents| parents.as_ref().map(|parents| TokenTree::new(parents).expect("a tree")))
            .collect();
        let case = Case { window, ..Case::new(dtype, dim, &lengths).causal() };
        let problem = case.problem("trees");
        let drawn = Drawn { scale: 1.0 / (dim as f32).sqrt(), window, parents };
        let oracle = Setting {
            problem: problem.clone(),
            options: AttentionOptions::new().variant(drawn).return_lse(true),
            tensors: Tensors::default(),
        };
        let setting = Setting { problem, options: case.options().trees(&trees), tensors: Tensors::default() };
        oracle.check("ragged, split", &target, &setting.ragged(KvSplit::Fixed(16), &target.device));
        oracle.check("paged", &target, &setting.paged(KvSplit::Auto, &target.device));
    }
}

#[test]
fn a_tree_is_told_by_parents_or_by_its_mask() {
    let mut rng = Rng::new("a tree");
    for tokens in [1, 2, 7, 33, 64] {
        let parents = random_parents(&mut rng, tokens);
        let tree = TokenTree::new(&parents).expect("a tree");
        let mask: Vec<bool> = (0..tokens)
            .flat_map(|query| (0..tokens).map(move |key| (query, key)))
            .map(|(query, key)| ancestors(&parents, query).contains(&key))
            .collect();
        assert_eq!(TokenTree::from_mask(&mask).as_ref(), Ok(&tree));
        assert_eq!((tree.len(), tree.is_empty()), (tokens, false));
        for (token, depth) in tree.depths().enumerate() {
            let mut path = ancestors(&parents, token);
            path.reverse();
            assert_eq!((depth, tree.path(token)), (path.len() - 1, Some(path)));
        }
        assert_eq!(tree.path(tokens), None);
    }
    let op = "TokenTree::new:";
    refused(TokenTree::new(&[]), format!("{op} `parents` is of 0 tokens, expected 1 to 64"));
    refused(TokenTree::new(&[None; 65]), format!("{op} `parents` is of 65 tokens, expected 1 to 64"));
    refused(
        TokenTree::new(&[None, Some(1)]),
        format!("{op} `parents[1]` is 1, expected a token before it, below 1"),
    );
    let op = "TokenTree::from_mask:";
    refused(
        TokenTree::from_mask(&[true; 2]),
        format!("{op} `mask` is of length 2, expected a square number"),
    );
    refused(TokenTree::from_mask(&[]), format!("{op} `mask` is of 0 tokens, expected 1 to 64"));
    refused(TokenTree::from_mask(&[true; 65 * 65]), format!("{op} `mask` is of 65 tokens, expected 1 to 64"));
    // A token that does not see itself, one that sees a later token, and one that sees no ancestor of what it sees.
    let expected = "expected what an earlier token sees, or nothing, and itself";
    let mask = |rows: [[u8; 3]; 3]| {
        TokenTree::from_mask(&rows.as_flattened().iter().map(|&x| x == 1).collect::<Vec<_>>())
    };
    refused(mask([[1, 0, 0], [1, 0, 0], [0, 0, 1]]), format!("{op} `mask[1]` is [0], {expected}"));
    refused(mask([[1, 0, 0], [0, 1, 1], [0, 0, 1]]), format!("{op} `mask[1]` is [1, 2], {expected}"));
    refused(mask([[1, 0, 0], [1, 1, 0], [0, 1, 1]]), format!("{op} `mask[2]` is [1, 2], {expected}"));
}

fn refuses_trees_that_do_not_fit(target: Target) {
    let device = &target.device;
    let x = |tokens: usize| Tensor::<3>::zeros([tokens, 2, 8], (device, DType::F32));
    let tree = |tokens: usize| Some(TokenTree::new(&vec![None; tokens]).expect("a tree"));
    let causal = AttentionOptions::new().causal(true);
    let run = |options: &AttentionOptions| single_prefill(x(3), x(5), x(5), options);
    refused(
        run(&AttentionOptions::new().trees(&[tree(3)])),
        "single_prefill: `trees` is set without `causal`, expected a causal mask",
    );
    refused(
        run(&causal.clone().trees(&[tree(3), None])),
        "single_prefill: `trees` is of 2 requests, expected of 1 requests, as the batch",
    );
    refused(
        run(&causal.clone().trees(&[tree(4)])),
        "single_prefill: `trees` is of 4 tokens in request 0, expected 3 tokens, as many as queries",
    );
    let options = causal.clone().trees(&[tree(3)]);
    assert_eq!(run(&options).expect("it fits").output.dims(), [3, 2, 8]);
    let slopes = VariantInputs::new().slopes(Tensor::zeros([2], (device, DType::F32)));
    refused(
        single_prefill(x(3), x(5), x(5), (&options, slopes)),
        "single_prefill: `slopes` is given, expected none, as tokens of a tree are not where their keys are",
    );

    let config = PlanConfig::new(2, 2, 8, DType::F32);
    let table = PageTable::new(&[0, 2, 4], &[0, 1, 0, 2], &[3, 3], 4, 8, device).expect("a table");
    let rows = Indptr::from_lengths(&[1, 1], device).expect("a row pointer");
    let of_two = config.clone().options(causal.clone().trees(&[tree(1), None]));
    refused(
        CascadePlan::new(&of_two, &Cascade::new(&table, &rows, 1).expect("it fits")).map(|_| ()),
        "CascadePlan::new: `trees` is set, expected none, as requests share keys",
    );

    let cache = CacheConfig::new(1, 8, 4, 2, 8).dtype(DType::F32);
    let mut cache = PagedKvCache::new(&cache, device).expect("a cache");
    let step = |config: &PlanConfig| StepConfig::new(config.clone(), 2, 20).q_len(3);
    let new = |config: StepConfig, cache: &PagedKvCache| DecodeStep::with_config(&config, cache);
    let config = config.options(causal);
    refused(
        new(step(&of_two), &cache),
        "DecodeStep::with_config: `trees` is set, expected none, as the requests of a step change",
    );
    refused(
        new(step(&PlanConfig::new(2, 2, 8, DType::F32)).trees(), &cache),
        "DecodeStep::with_config: `trees` is set without `causal`, expected a causal mask",
    );
    let sequence = cache.create();
    let mut update = |config: StepConfig, tree: TokenTree| {
        let mut step = new(config, &cache).expect("a step");
        step.update(&mut cache, &[(sequence, ([1, 2, 3], tree))])
    };
    let of_three = || tree(3).expect("some");
    refused(
        update(step(&config), of_three()),
        "DecodeStep::update: `tokens` is a tree, expected tokens in order, as the step is not of trees",
    );
    refused(
        update(step(&config).trees(), tree(2).expect("some")),
        "DecodeStep::update: `tokens` is 3 tokens with a tree of 2, expected a tree of them",
    );
    update(step(&config).trees(), of_three()).expect("it fits");
    assert_eq!(cache.len(sequence), Ok(3));
}
