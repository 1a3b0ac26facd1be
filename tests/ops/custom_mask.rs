//! Custom masks: a bit for each query and key.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, AttentionOutput, AttentionVariant, BitOrder, Indptr, KvLayout, KvPages, KvSplit,
    PagedPlan, PlanConfig, RaggedPlan, Request, Result, Row, segment_packbits,
};

use crate::devices::{Target, device_tests};
use crate::problem::{Case, Problem};
use crate::setting::{Setting, Tensors, got};
use crate::support::{Rng, refused};

device_tests!(
    random_masks,
    masks_of_whole_tiles,
    drafted_trees,
    a_new_batch_has_no_mask,
    masks_that_do_not_fit_are_refused
);

/// The host's words for a mask: a variant that keeps keys by their bits.
#[derive(Debug)]
struct Masked {
    scale: f32,
    causal: bool,
    window_left: Option<usize>,
    /// Those of each request, row by row.
    bits: Bits,
}

/// Not printed: there are too many.
struct Bits(Vec<Vec<bool>>);

impl std::fmt::Debug for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} masks", self.0.len())
    }
}

impl AttentionVariant for Masked {
    fn scale(&self) -> f32 {
        self.scale
    }

    fn keys(&self, request: &Request, query: usize) -> Range<usize> {
        request.causal_window(query, self.causal, self.window_left)
    }

    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        self.bits.0[row.request.index][row.query * row.request.kv_len + key]
    }
}

/// A problem with a mask: the oracle's variant keeps keys by their bits.
struct MaskedProblem {
    oracle: Setting,
    bits: Vec<Vec<bool>>,
}

impl MaskedProblem {
    /// `keep` says which query (of a request with so many of them) sees which key (of so many).
    fn new(label: &str, case: &Case, mut keep: impl FnMut([usize; 2], [usize; 2]) -> bool) -> Self {
        let bits = case.lengths.iter().map(|&(qo_len, kv_len)| {
            let pairs = (0..qo_len).flat_map(|i| (0..kv_len).map(move |j| [i, j]));
            pairs.map(|pair| keep(pair, [qo_len, kv_len])).collect()
        });
        let bits: Vec<Vec<bool>> = bits.collect();
        let masked = Masked {
            scale: 1.0 / (case.dim as f32).sqrt(),
            causal: case.causal,
            window_left: case.window,
            bits: Bits(bits.clone()),
        };
        let options = AttentionOptions::new().variant(masked).return_lse(true);
        let oracle = Setting { problem: case.problem(label), options, tensors: Tensors::default() };
        Self { oracle, bits }
    }

    fn config(&self, split: KvSplit) -> PlanConfig {
        let case = &self.oracle.problem.case;
        let mut options = AttentionOptions::new().causal(case.causal).return_lse(true);
        if let Some(window) = case.window {
            options = options.window_left(window);
        }
        self.oracle.config().options(options).split(split)
    }

    fn bools(&self, device: &Device) -> Tensor<1, Bool> {
        Tensor::from_data(TensorData::from(&self.bits.concat()[..]), device)
    }

    fn packed(&self, device: &Device) -> Tensor<1, Int> {
        let lengths: Vec<usize> = self.bits.iter().map(Vec::len).collect();
        let indptr = Indptr::from_lengths(&lengths, device).expect("valid");
        segment_packbits(self.bools(device), &indptr, BitOrder::Little).expect("packs").0
    }

    fn ragged(&self, split: KvSplit, device: &Device) -> Result<AttentionOutput> {
        let Problem { q, k, v, .. } = &self.oracle.problem;
        let [qo, kv] = [self.oracle.problem.qo_indptr(), self.oracle.problem.kv_indptr()]
            .map(|rows| Indptr::new(&rows, device).expect("valid"));
        let mut plan = RaggedPlan::new(&self.config(split), &qo, &kv)?;
        plan.set_custom_mask(self.bools(device))?;
        let [q, k, v] = [q, k, v].map(|x| x.tensor(device));
        plan.run(q, k, v)
    }

    fn paged(&self, split: KvSplit, device: &Device) -> Result<AttentionOutput> {
        let Problem { q, k, v, .. } = &self.oracle.problem;
        let paging = self.oracle.problem.paging(16);
        let pool = |x| paging.pool(x, KvLayout::Nhd).tensor(device);
        let pages = KvPages::new(pool(k), pool(v), KvLayout::Nhd)?;
        let qo = Indptr::new(&self.oracle.problem.qo_indptr(), device)?;
        let mut plan = PagedPlan::new(&self.config(split), &qo, &paging.table(device))?;
        plan.set_packed_custom_mask(self.packed(device))?;
        plan.run(q.tensor(device), &pages)
    }

    fn check(&self, what: &str, target: &Target, split: KvSplit) {
        for (kind, results) in
            [("ragged", self.ragged(split, &target.device)), ("paged", self.paged(split, &target.device))]
        {
            let what = format!("{what}, {kind}, {split:?}");
            self.oracle.check(&what, target, &got(results.expect("runs")));
        }
    }
}

/// Random masks of every density, beside a causal mask and a window: some requests have no key, and some rows see none.
fn random_masks(target: Target) {
    for dtype in target.dtypes() {
        let lengths: &[(usize, usize)] = &[(1, 70), (5, 5), (0, 9), (37, 150), (1, 0)];
        let masks = [(false, None), (true, None), (false, Some(19)), (true, Some(40))];
        let cases = [64, 40].into_iter().flat_map(|dim| masks.map(move |mask| (dim, mask))).collect();
        for (dim, (causal, window)) in target.thin(4, cases) {
            // A causal mask wants as many keys as queries.
            let lengths = &lengths[..lengths.len() - usize::from(causal)];
            let case = Case { causal, window, ..Case::new(dtype, dim, lengths) };
            let mut rng = Rng::new(&format!("random masks {dim} {causal} {window:?}"));
            let masked = MaskedProblem::new("random masks", &case, |[query, _], _| rng.below(8) < query % 9);
            for split in [KvSplit::Auto, KvSplit::Fixed(16)] {
                masked.check("random", &target, split);
            }
        }
    }
}

/// Documents one after the other: most tiles of keys are full or empty, also the first and the last ones.
fn masks_of_whole_tiles(target: Target) {
    let lengths: &[(usize, usize)] = if target.is_slow() { &[(40, 200)] } else { &[(150, 1000), (1, 700)] };
    let case = Case::new(DType::BF16, 128, lengths).heads(2, 4);
    let document = |place: usize, len: usize| 5 * place / len.max(1);
    let masked = MaskedProblem::new("whole tiles", &case, |[query, key], [qo_len, kv_len]| {
        let of_key = document(key, kv_len);
        document(query, qo_len) == of_key && of_key != 2
    });
    for split in [KvSplit::Never, KvSplit::Fixed(256)] {
        masked.check("documents", &target, split);
    }
}

/// A tree of drafted tokens sees the whole context, its ancestors and itself.
fn drafted_trees(target: Target) {
    let lengths: &[(usize, usize)] = &[(2, 40), (16, 190), (64, 64), (7, 300)];
    let case = Case::new(DType::F16, 64, lengths).heads(2, 4);
    let masked = MaskedProblem::new("trees", &case, |[query, key], [qo_len, kv_len]| {
        let context = kv_len - qo_len;
        // Node `n` is a child of node `(n - 1) / 2`.
        let mut node = query;
        key < context
            || loop {
                if node == key - context {
                    break true;
                }
                if node == 0 {
                    break false;
                }
                node = (node - 1) / 2;
            }
    });
    masked.check("trees", &target, KvSplit::Auto);
}

/// An update plans another batch, which the mask does not fit.
fn a_new_batch_has_no_mask(target: Target) {
    let device = &target.device;
    let config = PlanConfig::new(2, 1, 32, DType::F32);
    let rows = |lengths: &[usize]| Indptr::from_lengths(lengths, device).expect("valid");
    let mut plan = RaggedPlan::new(&config, &rows(&[3]), &rows(&[3])).expect("a plan");
    plan.set_custom_mask(Tensor::from_data([false; 9], device)).expect("fits");
    let run = |plan: &RaggedPlan, tokens: usize| {
        let x = |heads| Tensor::<3>::ones([tokens, heads, 32], (device, DType::F32));
        plan.run(x(2), x(1), x(1)).expect("runs").output.into_data().iter::<f32>().sum::<f32>()
    };
    assert_eq!(run(&plan, 3), 0.0);
    plan.update(&rows(&[4]), &rows(&[4])).expect("a plan");
    assert_eq!(run(&plan, 4), 4.0 * 2.0 * 32.0);
}

fn masks_that_do_not_fit_are_refused(target: Target) {
    let device = &target.device;
    let config = PlanConfig::new(2, 1, 32, DType::F32);
    let rows = |lengths: &[usize]| Indptr::from_lengths(lengths, device).expect("valid");
    let mut plan = RaggedPlan::new(&config, &rows(&[3, 1]), &rows(&[3, 2])).expect("a plan");
    refused(
        plan.set_custom_mask(Tensor::from_data([true; 10], device)),
        "RaggedPlan::set_custom_mask: `mask` has shape [10], expected [11], a bool for each query and key",
    );
    let bytes = |count: usize, dtype| Tensor::<1, Int>::zeros([count], (device, dtype));
    refused(
        plan.set_packed_custom_mask(bytes(2, DType::U8)),
        "RaggedPlan::set_packed_custom_mask: `mask` has shape [2], expected [3], a bit for each query and key, and whole \
         bytes for each request",
    );
    refused(
        plan.set_packed_custom_mask(bytes(3, DType::I32)),
        "RaggedPlan::set_packed_custom_mask: `mask` is of type I32, expected U8, eight bits each",
    );
    // The plan is as it was: not masked.
    let x = |tokens, heads| Tensor::<3>::ones([tokens, heads, 32], (device, DType::F32));
    let output = plan.run(x(4, 2), x(5, 1), x(5, 1)).expect("runs").output;
    assert_eq!(output.into_data().iter::<f32>().sum::<f32>(), 4.0 * 2.0 * 32.0);
}
