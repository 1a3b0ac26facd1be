//! A window of blocks, a first block for all, and some of the rest. `cargo run --example block_sparse [--features cuda]`

use burn::tensor::{DType, Device, Distribution, Tensor};
use burn_flashinfer::{AttentionOptions, BlockMask, BlockSparsePlan, PlanConfig, Result, single_prefill};

const TOKENS: usize = 2048;
const BLOCK: usize = 128;

fn main() -> Result<()> {
    let device = Device::default();
    let blocks = TOKENS / BLOCK;
    // Block row `i` sees the first block, its own, the one before, and every fourth before that.
    let sees = |i: usize, j: usize| j <= i && (j == 0 || j + 1 >= i || (i - j).is_multiple_of(4));
    let (mut indptr, mut indices) = (vec![0], vec![]);
    for i in 0..blocks {
        indices.extend((0..blocks).filter(|&j| sees(i, j)));
        indptr.push(indices.len());
    }
    let mask = BlockMask::new([TOKENS; 2], [BLOCK; 2], &indptr, &indices)?;
    println!("{} of {} blocks", mask.blocks(), blocks * blocks);

    // The last block of a row is the diagonal one: a causal mask is the usual one there.
    let options = AttentionOptions::new().causal(true).return_lse(true);
    let config = PlanConfig::new(8, 2, 64, DType::F32).options(options.clone());
    let plan = BlockSparsePlan::new(&config, &mask, &device)?;
    println!("{}", plan.explain());

    let random = |heads| Tensor::<3>::random([TOKENS, heads, 64], Distribution::Normal(0.0, 1.0), &device);
    let (q, k, v) = (random(8), random(2), random(2));
    let sparse = plan.run(q.clone(), k.clone(), v.clone())?;
    let dense = single_prefill(q, k, v, &options)?;
    // The part of each row's weight that the blocks have.
    if let (Some(sparse), Some(dense)) = (sparse.lse, dense.lse) {
        let share = ((sparse - dense) * std::f32::consts::LN_2).exp().mean();
        println!("{:.1} % of the weight", 100.0 * share.into_scalar::<f32>());
    }
    Ok(())
}
