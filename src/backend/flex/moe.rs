//! A mixture of experts: routing, and the layers of each expert on the rows that chose it.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::activation::gated;
use super::float::{Float, widened};
use super::matmul;
use super::output::by_rows;
use super::view::{self, Rows, dims, with_rows};
use crate::types::{Activation, ExpertGroups, RouterScore, RoutingParams};

/// Logits below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 14;

/// The experts of each token and their weights.
pub(super) fn route<E: Float>(
    logits: FlexTensor,
    bias: Option<FlexTensor>,
    params: RoutingParams,
) -> (FlexTensor, FlexTensor) {
    let logits = with_rows(logits);
    let [tokens, experts] = dims(&logits);
    let rows: Rows<'_, E, 1> = Rows::of(&logits);
    let bias = bias.map(view::widened::<f32>);
    let top_k = params.top_k;
    let (mut weights, mut ids) = (vec![0.0; tokens * top_k], vec![0; tokens * top_k]);
    let one = |(token, (weights, ids)): (usize, (&mut [f32], &mut [i32]))| {
        let mut wide = vec![0.0; experts];
        widened(rows.row([token]), &mut wide);
        route_row(&wide, bias.as_deref(), &params, weights, ids);
    };
    if tokens * experts < PARALLEL {
        weights.chunks_exact_mut(top_k).zip(ids.chunks_exact_mut(top_k)).enumerate().for_each(one);
    } else {
        weights.par_chunks_exact_mut(top_k).zip(ids.par_chunks_exact_mut(top_k)).enumerate().for_each(one);
    }
    (view::tensor(weights, [tokens, top_k], burn::tensor::DType::F32), view::ints(ids, [tokens, top_k]))
}

fn route_row(
    logits: &[f32],
    bias: Option<&[f32]>,
    params: &RoutingParams,
    weights: &mut [f32],
    ids: &mut [i32],
) {
    // `max` ignores NaN, which makes the sum one.
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let score = |logit: f32| match params.score {
        RouterScore::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
        RouterScore::Softmax if logit == f32::NEG_INFINITY => 0.0,
        RouterScore::Softmax if logit == max => 1.0,
        RouterScore::Softmax => (logit - max).exp(),
    };
    let all = match params.score {
        RouterScore::Softmax => logits.iter().map(|&logit| score(logit)).sum(),
        RouterScore::Sigmoid => 1.0,
    };
    // Without a bias the order of scores is that of logits, which no rounding makes equal.
    let by: Vec<f32> = match bias {
        None => logits.to_vec(),
        Some(bias) => logits.iter().zip(bias).map(|(&logit, bias)| score(logit) / all + bias).collect(),
    };
    let sums_two = bias.is_some() && params.score == RouterScore::Sigmoid;
    let mut order = match params.groups {
        None => (0..logits.len()).collect(),
        Some(groups) => of_groups(&by, groups, sums_two),
    };
    order.sort_by(|&a, &b| descending(by[a], by[b]));
    let mut sum = 0.0;
    for ((weight, id), expert) in weights.iter_mut().zip(ids).zip(order) {
        *weight = score(logits[expert]);
        *id = expert as i32;
        sum += *weight;
    }
    let whole = if params.renormalise { sum } else { all };
    let factor = if whole == 0.0 { 0.0 } else { params.scale / whole };
    weights.iter_mut().for_each(|weight| *weight *= factor);
}

/// The experts of the groups with the largest scores, in order.
fn of_groups(by: &[f32], groups: ExpertGroups, sums_two: bool) -> Vec<usize> {
    let size = by.len() / groups.count;
    let scores: Vec<f32> = by
        .chunks_exact(size)
        .map(|group| {
            let mut group = group.to_vec();
            group.sort_by(|&a, &b| descending(a, b));
            match group[..] {
                [first, second, ..] if sums_two => first + second,
                [first, ..] => first,
                [] => f32::NAN,
            }
        })
        .collect();
    let mut order: Vec<usize> = (0..groups.count).collect();
    order.sort_by(|&a, &b| descending(scores[a], scores[b]));
    order.truncate(groups.chosen);
    order.sort_unstable();
    order.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
}

/// The order of a stable sort: the largest first, NaN last, both zeros equal.
fn descending(a: f32, b: f32) -> std::cmp::Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// The layers of an expert, whose rows go to these places.
struct Expert<'a> {
    index: usize,
    entries: &'a [usize],
    rows: &'a mut [f32],
}

/// The weighted sum of the layers of each token's experts. Products are rounded to `E` once they are activated.
pub(super) fn fused_moe<E: Float>(
    x: FlexTensor,
    layers: [FlexTensor; 2],
    weights: FlexTensor,
    experts: FlexTensor,
    activation: Activation,
) -> FlexTensor {
    let dtype = x.dtype();
    let (x, [gate_up, down]) = (with_rows(x), layers.map(with_rows));
    let ([tokens, hidden], [count, _, inter], [_, top_k]) = (dims(&x), dims(&down), dims(&experts));
    let experts = view::indices(experts);
    let experts = &experts.storage::<i32>()[..tokens * top_k];
    let weights = view::dense(weights);
    let weights = &weights.storage::<f32>()[..tokens * top_k];
    let source: Rows<'_, E, 1> = Rows::of(&x);
    let (gate_up, down): (Rows<'_, E, 2>, Rows<'_, E, 2>) = (Rows::of(&gate_up), Rows::of(&down));

    // Entries by expert, those of an expert in order; those without one are left out.
    let expert_of = |entry: usize| usize::try_from(experts[entry]).ok().filter(|&expert| expert < count);
    let mut order: Vec<usize> = (0..experts.len()).filter(|&entry| expert_of(entry).is_some()).collect();
    order.sort_by_key(|&entry| expert_of(entry));
    let mut places = vec![None; experts.len()];
    order.iter().enumerate().for_each(|(place, &entry)| places[entry] = Some(place));

    let mut rows = vec![0.0; order.len() * hidden];
    let mut tasks = vec![];
    let mut rest = rows.as_mut_slice();
    for entries in order.chunk_by(|&a, &b| expert_of(a) == expert_of(b)) {
        let (own, after) = std::mem::take(&mut rest).split_at_mut(entries.len() * hidden);
        rest = after;
        let Some(index) = entries.first().and_then(|&entry| expert_of(entry)) else { continue };
        tasks.push(Expert { index, entries, rows: own });
    }
    tasks.into_par_iter().for_each(|Expert { index, entries, rows }| {
        let own: Vec<E> = entries.iter().flat_map(|entry| source.row([entry / top_k])).copied().collect();
        let own = view::tensor(own, [entries.len(), hidden], dtype);
        let mut sums = vec![0.0_f32; entries.len() * 2 * inter];
        matmul::rows_nt::<E, f32>(Rows::of(&own), gate_up.matrix(index), [entries.len(), hidden], &mut sums);
        let mut activated = vec![E::narrow(0.0); entries.len() * inter];
        for (sums, activated) in sums.chunks_exact(2 * inter).zip(activated.chunks_exact_mut(inter)) {
            let (gates, ups) = sums.split_at(inter);
            gated(gates, ups, activation, activated);
        }
        let activated = view::tensor(activated, [entries.len(), inter], dtype);
        matmul::rows_nt::<E, f32>(Rows::of(&activated), down.matrix(index), [entries.len(), inter], rows);
    });
    by_rows([tokens, hidden], PARALLEL, |token, y: &mut [E]| {
        let mut sum = vec![0.0; hidden];
        for entry in token * top_k..(token + 1) * top_k {
            if let Some(place) = places[entry] {
                let row = &rows[place * hidden..][..hidden];
                sum.iter_mut().zip(row).for_each(|(sum, row)| *sum += weights[entry] * row);
            }
        }
        y.iter_mut().zip(sum).for_each(|(y, sum)| *y = E::narrow(sum));
    })
}
