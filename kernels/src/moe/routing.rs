//! The experts of each token. Neighbouring units share a row of logits, which they keep in registers as keys in the order
//! of numbers. They take the largest key, `top_k` times.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use crate::device::Refusal;
use crate::device::tensor::{Result, addresses, contiguous, rows, shape};
use crate::math::widen;
use crate::rows::row_group::{RowGroup, row_max, row_sum};
use crate::sampling::{from_radix_key, radix_key};

const KERNEL: &str = "moe_route";
/// Most experts of a router.
pub const MAX_EXPERTS: usize = 512;
/// Most experts of a token.
pub const MAX_TOP_K: usize = 32;
/// Most groups of experts.
pub const MAX_GROUPS: usize = 32;
/// Keys of a unit up to which loops over them are unrolled, so that they stay in registers.
const UNROLLED: usize = 16;

/// The score of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Score {
    /// `exp(l) / Σ exp(l)` over all experts.
    Softmax,
    /// `1 / (1 + exp(-l))`.
    Sigmoid,
}

/// Groups of adjacent experts, of which only some may be chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Groups {
    /// Groups, which are equally large.
    pub count: usize,
    /// Groups that experts are chosen from: those of the largest score.
    pub chosen: usize,
}

/// The comptime settings of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Config {
    row_group: RowGroup,
    /// Experts of a unit.
    per_unit: usize,
    score: Score,
    groups: Option<Groups>,
    renormalise: bool,
}

impl Config {
    fn unrolls(&self) -> bool {
        self.per_unit <= UNROLLED
    }
}

/// The maximum and the sum of the exponentials of a row, for its scores.
#[derive(CubeType)]
struct Scale {
    max: f32,
    sum: f32,
}

#[cube]
impl Scale {
    /// The score of a logit, before softmax divides it by the sum.
    fn score(&self, logit: f32, #[comptime] score: Score) -> f32 {
        #[comptime]
        match score {
            Score::Softmax => weight(logit, self.max),
            Score::Sigmoid => 1.0f32 / (1.0f32 + (-logit).exp()),
        }
    }
}

/// `exp(logit - max)`, for infinite ones too.
#[cube]
fn weight(logit: f32, max: f32) -> f32 {
    let power = select(logit == max, 1.0f32, (logit - max).exp());
    select(logit == f32::NEG_INFINITY, 0.0f32, power)
}

/// For each row of `logits`, the `top_k` experts of the largest `score + bias`, and their scores.
///
/// A key of 0 is an expert that is not to be chosen, or has been. All others are at least 1, NaN's too: so long as there
/// are as many as are chosen, the place of the largest is an expert.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn moe_route<F: Float>(
    logits: &Tensor<F>,
    bias: &ComptimeOption<Box<[f32]>>,
    weights: &mut [f32],
    ids: &mut [i32],
    top_k: usize,
    scale: f32,
    #[comptime] config: Config,
    #[define(F)] _dtype: ElemType,
) {
    let (units, row_group) = comptime!((config.row_group.units, config.row_group));
    let unit = UNIT_POS as usize % units;
    let (row_count, experts) = (logits.shape(0), logits.shape(1));
    let own_row = CUBE_POS * comptime!(row_group.rows) + UNIT_POS as usize / units;
    // A unit without a row still takes part in shuffles.
    let row = min(own_row, row_count - 1);
    let start = row * logits.stride(0);

    let mut keys = Array::<u32>::new(config.per_unit);
    let mut of_row = Scale { max: f32::NEG_INFINITY.runtime(), sum: 1.0f32.runtime() };
    if comptime!(config.score == Score::Softmax) {
        let mut largest = 0u32.runtime();
        #[unroll(config.unrolls())]
        for i in 0..config.per_unit {
            let expert = min(unit + i * units, experts - 1);
            largest = max(largest, radix_key(read::<F>(logits, start + expert)));
        }
        of_row.max = from_radix_key(row_max(largest, unit, row_group));
        let mut sum = 0.0f32.runtime();
        #[unroll(config.unrolls())]
        for i in 0..config.per_unit {
            let expert = unit + i * units;
            if expert < experts {
                sum += weight(read::<F>(logits, start + expert), of_row.max);
            }
        }
        of_row.sum = row_sum(sum, unit, row_group);
    }
    #[unroll(config.unrolls())]
    for i in 0..config.per_unit {
        let expert = unit + i * units;
        let logit = read::<F>(logits, start + min(expert, experts - 1));
        let mut by = logit;
        #[comptime]
        match bias {
            // Without a bias the order of scores is that of logits, which no rounding makes equal.
            ComptimeOption::Some(bias) => {
                by = of_row.score(logit, config.score) / of_row.sum + bias[min(expert, experts - 1)];
            }
            ComptimeOption::None => {}
        }
        keys[i] = select(expert < experts, radix_key(by) + 1, 0u32);
    }
    #[comptime]
    if let Some(groups) = config.groups {
        let sums_two = comptime!(config.score == Score::Sigmoid && bias.is_some());
        keep_groups(&mut keys, unit, experts / groups.count, groups, sums_two, config);
    }

    let mut sum = 0.0f32.runtime();
    for k in 0..top_k {
        let (_, expert) = take_largest(&mut keys, 0usize.runtime(), experts, unit, config);
        let score = of_row.score(read::<F>(logits, start + expert), config.score);
        sum += score;
        if unit == 0 && own_row < row_count {
            weights[row * top_k + k] = score;
            ids[row * top_k + k] = i32::cast_from(expert);
        }
    }
    let whole = if comptime!(config.renormalise) { sum } else { of_row.sum };
    // Scores that are all 0 have no shares.
    let factor = select(whole == 0.0f32, 0.0f32, scale / whole);
    if unit == 0 && own_row < row_count {
        for k in 0..top_k {
            weights[row * top_k + k] *= factor;
        }
    }
}

#[cube]
fn read<F: Float>(logits: &Tensor<F>, at: usize) -> f32 {
    widen::<F, Const<1>>(Vector::new(logits[at])).extract(0usize)
}

/// The largest key of the experts `first..end` and the first expert that has it; its key becomes 0.
#[cube]
fn take_largest(
    keys: &mut Array<u32>,
    first: usize,
    end: usize,
    unit: usize,
    #[comptime] config: Config,
) -> (u32, usize) {
    let (units, row_group) = comptime!((config.row_group.units, config.row_group));
    let mut best = 0u32.runtime();
    let mut best_at = 0usize.runtime();
    #[unroll(config.unrolls())]
    for i in 0..config.per_unit {
        let expert = unit + i * units;
        let is_better = keys[i] > best && expert >= first && expert < end;
        best = select(is_better, keys[i], best);
        best_at = select(is_better, expert, best_at);
    }
    let largest = row_max(best, unit, row_group);
    // The largest of the distances from the end is that of the first.
    let distance = select(best == largest, u32::cast_from(end - min(best_at, end)), 0u32);
    let expert = end - usize::cast_from(row_max(distance, unit, row_group));
    let expert = min(expert, end - 1);
    #[unroll(config.unrolls())]
    for i in 0..config.per_unit {
        keys[i] = select(unit + i * units == expert, 0u32, keys[i]);
    }
    (largest, expert)
}

/// Leaves out the experts of all groups but those of the largest scores, of equals the first. The score of a group is its
/// largest key, or the sum of the numbers of its two largest.
#[cube]
fn keep_groups(
    keys: &mut Array<u32>,
    unit: usize,
    group_size: usize,
    #[comptime] groups: Groups,
    #[comptime] sums_two: bool,
    #[comptime] config: Config,
) {
    let units = comptime!(config.row_group.units);
    let mut scores = Array::<u32>::new(groups.count);
    for group in 0..groups.count {
        // The keys keep the experts that are taken out of this copy.
        let mut rest = Array::<u32>::new(config.per_unit);
        #[unroll(config.unrolls())]
        for i in 0..config.per_unit {
            rest[i] = keys[i];
        }
        let (first, end) = (group * group_size, (group + 1) * group_size);
        let (largest, _) = take_largest(&mut rest, first, end, unit, config);
        let mut score = largest;
        if comptime!(sums_two) {
            let (second, _) = take_largest(&mut rest, first, end, unit, config);
            // A group of one expert has no second.
            let second = select(second == 0, 0.0f32, from_radix_key(max(second, 1u32) - 1));
            score = radix_key(from_radix_key(largest - 1) + second) + 1;
        }
        scores[group] = score;
    }
    #[unroll(config.unrolls())]
    for i in 0..config.per_unit {
        let group = min((unit + i * units) / group_size, comptime!(groups.count - 1));
        let own = scores[group];
        let mut before = 0usize.runtime();
        for other in 0..groups.count {
            let score = scores[other];
            let is_before = score > own || (score == own && other < group);
            before += select(is_before, 1usize, 0usize);
        }
        keys[i] = select(before < comptime!(groups.chosen), keys[i], 0u32);
    }
}

/// Logits of experts, and where the chosen ones go.
pub struct Route {
    /// `[tokens, experts]`.
    pub logits: TensorBinding,
    /// `[experts]` of f32, contiguous: added to the scores for the choice alone.
    pub bias: Option<TensorBinding>,
    /// `[tokens, top_k]` of f32, contiguous: the scores of the chosen experts, times `scale`.
    pub weights: TensorBinding,
    /// `[tokens, top_k]` of i32, contiguous: the chosen experts, the largest first, NaN last, the first of equals first.
    pub experts: TensorBinding,
    /// The score.
    pub score: Score,
    /// The groups, if there are any. The score of a group is the sum of its two largest of sigmoids with a bias, else the
    /// largest.
    pub groups: Option<Groups>,
    /// Divides the weights by their sum.
    pub renormalise: bool,
    /// The factor of the weights.
    pub scale: f32,
}

/// Chooses the experts of each token.
///
/// # Errors
///
/// If the shapes do not fit each other, or there are not so many experts to choose from. Nothing is launched then.
pub fn route(client: &Client, route: Route, dtype: ElemType) -> Result<()> {
    let Route { logits, bias, weights, experts: ids, score, groups, renormalise, scale } = route;
    rows(KERNEL, "logits", &logits, 2)?;
    let [tokens, experts] = [logits.shape[0], logits.shape[1]];
    let top_k = weights.shape.last().copied().unwrap_or(0);
    contiguous(KERNEL, "weights", &weights, &[tokens, top_k])?;
    contiguous(KERNEL, "experts", &ids, &[tokens, top_k])?;
    if let Some(bias) = &bias {
        contiguous(KERNEL, "bias", bias, &[experts])?;
    }
    if experts > MAX_EXPERTS {
        return Err(shape(KERNEL, "logits", &logits, format!("at most {MAX_EXPERTS} experts")));
    }
    let mut choices = experts;
    if let Some(Groups { count, chosen }) = groups {
        if !(1..=MAX_GROUPS).contains(&count) || !experts.is_multiple_of(count) {
            let expected = format!("at most {MAX_GROUPS} that divide {experts}");
            return Err(Refusal::blueprint(KERNEL, "groups", count, expected));
        }
        choices = experts / count * chosen.min(count);
    }
    if top_k > choices.min(MAX_TOP_K) {
        let expected = format!("at most {MAX_TOP_K} experts, and those of the chosen groups");
        return Err(shape(KERNEL, "weights", &weights, expected));
    }
    if tokens == 0 || top_k == 0 {
        return Ok(());
    }
    let (row_group, cubes, dim) = RowGroup::of_neighbours(KERNEL, client, tokens, experts)?;
    let per_unit = experts.div_ceil(row_group.units);
    let config = Config { row_group, per_unit, score, groups, renormalise };
    let address = addresses(&[(&logits, dtype.size()), (&weights, 4)]);
    // SAFETY: a unit beyond the last row reads the last one, and writes nothing. Experts are clamped to those of a row where
    // logits and biases are read, and `top_k` of a row are written. A unit has a key for each of its experts, and groups
    // are fewer than their scores.
    unsafe {
        moe_route::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            logits.into_tensor_arg(),
            bias.map(TensorBinding::into_buffer_arg).into(),
            weights.into_buffer_arg(),
            ids.into_buffer_arg(),
            top_k,
            scale,
            config,
            dtype,
        );
    }
    Ok(())
}
