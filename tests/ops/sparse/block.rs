//! Blocks of queries and keys.

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, AttentionOutput, BitOrder, BlockMask, BlockSparsePlan, Fp8, KvLayout, KvSplit,
    PlanConfig, Result, packbits,
};

use super::Chosen;
use crate::cached_codes::{Coded, codes_by_token};
use crate::devices::{Target, device_tests, devices};
use crate::problem::{Case, Problem};
use crate::support::{Host, Rng, View, refused};

device_tests!(blocks, single_keys, blocks_of_codes, masks_in_blocks, blocks_that_do_not_fit_are_refused);

/// A block mask, the elements within its blocks, and a problem of which it chooses the keys.
struct Setting {
    mask: BlockMask,
    /// `[blocks, block_rows, block_columns]`.
    elements: Vec<bool>,
    chosen: Chosen,
    problem: Problem,
}

impl Setting {
    /// A mask that has `share` of 100 blocks, but none of block row 2, and keeps `kept` of 100 of their elements.
    fn random(case: &Case, block: [usize; 2], share: usize, kept: usize) -> Self {
        let rng = &mut Rng::new(&format!("blocks {block:?} {share} {kept} {case:?}"));
        let (rows, columns) = case.lengths[0];
        let (mut indptr, mut indices) = (vec![0], vec![]);
        for row in 0..rows.div_ceil(block[0]) {
            // In any order.
            let columns = rng.shuffled(columns / block[1]);
            indices.extend(columns.into_iter().filter(|_| row != 2 && rng.below(100) < share));
            indptr.push(indices.len());
        }
        let area = block[0] * block[1];
        let elements: Vec<bool> = (0..indices.len() * area).map(|_| rng.below(100) < kept).collect();
        let mut seen = vec![false; rows * columns];
        for (row, bounds) in indptr.windows(2).enumerate() {
            for at in bounds[0] * area..bounds[1] * area {
                let (i, j) = (at % area / block[1], at % block[1]);
                let (query, key) = (row * block[0] + i, indices[at / area] * block[1] + j);
                if query < rows {
                    seen[query * columns + key] = elements[at];
                }
            }
        }
        let mask = BlockMask::new([rows, columns], block, &indptr, &indices).expect("a mask");
        let chosen = Chosen::new(case, vec![seen]);
        // Kernels read keys that a mask hides within a block.
        let problem = if kept < 100 { case.problem("blocks") } else { chosen.problem(case, "blocks") };
        Self { mask, elements, chosen, problem }
    }

    fn plan(&self, split: KvSplit, layout: KvLayout, device: &Device) -> Result<BlockSparsePlan> {
        BlockSparsePlan::new(&self.config(split, layout), &self.mask, device)
    }

    fn config(&self, split: KvSplit, layout: KvLayout) -> PlanConfig {
        let case = &self.problem.case;
        PlanConfig::new(case.kv_heads * case.group, case.kv_heads, case.dim, case.dtype)
            .head_dim_v(case.v_dim)
            .options(AttentionOptions::new().return_lse(true).kv_layout(layout))
            .split(split)
    }

    fn run(
        &self,
        plan: &BlockSparsePlan,
        view: View,
        layout: KvLayout,
        device: &Device,
    ) -> Result<AttentionOutput> {
        let oriented = |x: &Host<3>| match layout {
            KvLayout::Nhd => x.view(view, device),
            KvLayout::Hnd => x.swapped().view(view, device),
        };
        let Problem { q, k, v, .. } = &self.problem;
        plan.run(q.view(view, device), oriented(k), oriented(v))
    }

    fn check(&self, what: &str, target: &Target, split: KvSplit, [view, layout]: [usize; 2]) {
        let (view, layout) =
            ([View::Whole, View::Slice, View::HeadsFirst][view], [KvLayout::Nhd, KvLayout::Hnd][layout]);
        let got = self
            .plan(split, layout, &target.device)
            .and_then(|plan| self.run(&plan, view, layout, &target.device));
        self.chosen.check(&format!("{what}, {split:?}, {view:?}, {layout}"), target, &self.problem, got);
    }
}

/// Blocks, and single keys, of codes; NaN where nothing may be read.
fn blocks_of_codes(target: Target) {
    let dtypes = target.dtypes();
    let cases = [(Fp8::E4m3, 32, KvLayout::Nhd), (Fp8::E5m2, 1, KvLayout::Hnd)];
    for (at, (format, columns, layout)) in cases.into_iter().enumerate() {
        let case = Case::new(dtypes[(at + 1) % dtypes.len()], 64, &[(70, 192)]);
        let setting = Setting::random(&case, [32, columns], 40, 100);
        let scales = [vec![4.0 / format.max(), 5.0 / format.max()], vec![4.0 / format.max()]];
        let coded = Coded::of(setting.problem.clone(), format, scales);
        let device = &target.device;
        let [k, v] = [(&coded.problem.k, &coded.scales[0]), (&coded.problem.v, &coded.scales[1])]
            .map(|(x, scales)| codes_by_token(x, scales, format, layout, device));
        let config = setting.config(KvSplit::Auto, layout).fp8(format);
        let got = BlockSparsePlan::new(&config, &setting.mask, device)
            .and_then(|plan| plan.run(coded.problem.q.tensor(device), k, v));
        setting.chosen.check(&format!("blocks of {format:?}"), &target, &coded.problem, got);
    }
}

/// Large and small blocks, an empty block row, part of a block, split keys, views and both orders of axes.
fn blocks(target: Target) {
    let all = [([37, 96], [16, 8]), ([130, 192], [64, 64]), ([5, 15], [2, 5])];
    for dtype in target.dtypes() {
        for (at, (shape, block)) in target.thin(3, all.to_vec()).into_iter().enumerate() {
            let case = Case::new(dtype, 64, &[(shape[0], shape[1])]);
            let setting = Setting::random(&case, block, 60, 100);
            setting.check("blocks", &target, KvSplit::Auto, [0, at % 2]);
            setting.check("blocks", &target, KvSplit::Fixed(16), [1, 0]);
            setting.check("blocks", &target, KvSplit::Never, [2, 1]);
        }
    }
}

/// Columns of one key.
fn single_keys(target: Target) {
    for dtype in target.dtypes() {
        let case = Case { v_dim: 32, ..Case::new(dtype, 64, &[(70, 150)]).heads(1, 4) };
        Setting::random(&case, [64, 1], 20, 100).check("single keys", &target, KvSplit::Auto, [0, 0]);
    }
}

/// A bit for each element of the blocks, one by one and packed.
fn masks_in_blocks(target: Target) {
    let device = &target.device;
    for dtype in target.dtypes() {
        let case = Case::new(dtype, 64, &[(37, 96)]).heads(2, 1);
        let setting = Setting::random(&case, [16, 12], 50, 40);
        let dims = [setting.mask.blocks(), 16, 12];
        let bits = Tensor::<1, Bool>::from_data(TensorData::from(&setting.elements[..]), device);
        let mut plan = setting.plan(KvSplit::Auto, KvLayout::Nhd, device).expect("a plan");
        let run = |plan: &BlockSparsePlan| setting.run(plan, View::Whole, KvLayout::Nhd, device);
        plan.set_mask(bits.clone().reshape(dims)).expect("it fits");
        setting.chosen.check("masks in blocks", &target, &setting.problem, run(&plan));
        plan.set_packed_mask(packbits(bits, BitOrder::Little).expect("packs")).expect("it fits");
        setting.chosen.check("packed masks in blocks", &target, &setting.problem, run(&plan));
    }
}

fn blocks_that_do_not_fit_are_refused(target: Target) {
    let device = &target.device;
    let config = PlanConfig::new(2, 1, 32, DType::F32);
    let mask = BlockMask::new([5, 12], [2, 4], &[0, 2, 2, 3], &[0, 2, 2]).expect("a mask");
    let causal = config.clone().options(AttentionOptions::new().causal(true));
    refused(
        BlockSparsePlan::new(&causal, &mask, device),
        "BlockSparsePlan::new: `causal` is true with 2 queries and 0 keys in request 1, expected at least as many keys as \
         queries",
    );
    let mut plan = BlockSparsePlan::new(&config, &mask, device).expect("a plan");
    refused(
        plan.set_mask(Tensor::<3, Int>::ones([3, 2, 5], device).bool()),
        "BlockSparsePlan::set_mask: `mask` has shape [3, 2, 5], expected [3, 2, 4], a bool for each element of the blocks",
    );
    refused(
        plan.set_packed_mask(Tensor::zeros([2], (device, DType::U8))),
        "BlockSparsePlan::set_packed_mask: `mask` has shape [2], expected [3], the bytes of 24 bits",
    );
    refused(
        plan.set_packed_mask(Tensor::zeros([3], (device, DType::I32))),
        "BlockSparsePlan::set_packed_mask: `mask` is of type I32, expected U8, eight bits each",
    );
    let x = |tokens, heads| Tensor::<3>::ones([tokens, heads, 32], (device, DType::F32));
    refused(
        plan.run(x(5, 2), x(11, 1), x(12, 1)),
        "BlockSparsePlan::run: `k` has shape [11, 1, 32], expected [12, 1, 32], as planned",
    );
    // It was not masked: of 5 queries, 3 see ones.
    let output = plan.run(x(5, 2), x(12, 1), x(12, 1)).expect("runs").output;
    assert_eq!(output.into_data().iter::<f32>().sum::<f32>(), 3.0 * 2.0 * 32.0);
    // Blocks of which all rows are full may be causal, but not masked as well.
    let full = BlockMask::new([4, 8], [2, 4], &[0, 1, 3], &[1, 0, 1]).expect("a mask");
    let mut plan = BlockSparsePlan::new(&causal, &full, device).expect("a plan");
    refused(
        plan.set_mask(Tensor::<3, Int>::ones([3, 2, 4], device).bool()),
        "BlockSparsePlan::set_mask: `mask` is set in a causal plan, expected none, as the plan is causal",
    );
    let output = plan.run(x(4, 2), x(8, 1), x(8, 1)).expect("runs").output;
    assert_eq!(output.into_data().iter::<f32>().sum::<f32>(), 4.0 * 2.0 * 32.0);
}

#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn block_masks() {
    let mask =
        |shape, block, indptr: &[usize], indices: &[usize]| BlockMask::new(shape, block, indptr, indices);
    for (refusal, message) in [
        (mask([0, 8], [2, 4], &[0, 0], &[]), "`shape[0]` is 0, expected at least 1"),
        (mask([4, 8], [2, 0], &[0, 0], &[]), "`block[1]` is 0, expected at least 1"),
        (mask([4, 8], [2, 3], &[0, 0, 0], &[]), "`block[1]` is 3, expected a divisor of the 8 columns"),
        (
            mask([5, 8], [2, 4], &[0, 1, 1], &[0]),
            "`indptr` is of length 3, expected one more than 3 block rows",
        ),
        (mask([4, 8], [2, 4], &[0, 2, 1], &[0]), "`indptr[2]` is 1, expected at least 2"),
        (mask([4, 8], [2, 4], &[0, 0, 2], &[0]), "`indptr[2]` is 2, expected 1, the length of `indices`"),
        (mask([4, 8], [2, 4], &[0, 1, 2], &[0, 2]), "`indices[1]` is 2, expected a block column, below 2"),
        (
            mask([4, 8], [2, 4], &[0, 1, 3], &[1, 1, 1]),
            "`indices[2]` is 1, expected a block column that block row 1 does not have already",
        ),
    ] {
        refused(refusal, format!("BlockMask::new: {message}"));
    }
    // Nothing is seen: all is 0.
    let device = &devices()[0].device;
    let nothing = mask([4, 8], [2, 4], &[0, 0, 0], &[]).expect("a mask");
    let mut plan =
        BlockSparsePlan::new(&PlanConfig::new(2, 1, 32, DType::F32), &nothing, device).expect("a plan");
    plan.set_mask(Tensor::<3, Int>::empty([0, 2, 4], device).bool()).expect("it fits");
    let x = |tokens, heads| Tensor::<3>::ones([tokens, heads, 32], (device, DType::F32));
    let output = plan.run(x(4, 2), x(8, 1), x(8, 1)).expect("runs").output;
    assert!(output.into_data().iter::<f32>().all(|x| x == 0.0));
}
