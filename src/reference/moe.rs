//! Mixture of experts: the router, and the layers of experts.

use super::check::{check_len, dot, value};
use super::rows::{gelu_and_mul, gelu_tanh_and_mul, silu_and_mul};
use crate::error::Result;
use crate::types::{Activation, RouterScore, RoutingParams};

/// [`moe_route`](crate::moe_route): the weights and the experts, `[tokens, top_k]` each, of `logits` `[tokens, experts]` and
/// a correction bias `[experts]`.
///
/// # Errors
///
/// If `experts` is 0, or `logits` is no whole number of rows; if `bias` is not as long as a row; if groups do not divide the
/// experts, or there are fewer than `top_k` to choose from.
pub fn moe_route(
    logits: &[f64],
    experts: usize,
    bias: Option<&[f64]>,
    params: &RoutingParams,
) -> Result<(Vec<f64>, Vec<usize>)> {
    const OP: &str = "reference::moe_route";
    if experts == 0 || !logits.len().is_multiple_of(experts) {
        let expected = format!("a multiple of {experts}, and that above 0");
        return Err(value(OP, "logits", format!("of length {}", logits.len()), expected));
    }
    if let Some(bias) = bias {
        check_len(OP, "bias", bias.len(), &[experts])?;
    }
    if let Some(groups) = params.groups
        && (groups.count == 0 || !experts.is_multiple_of(groups.count) || groups.chosen > groups.count)
    {
        let expected = format!("groups that divide {experts} experts");
        return Err(value(OP, "groups", format!("{groups:?}"), expected));
    }
    let choices = params.choices(experts);
    if params.top_k > choices {
        return Err(value(OP, "top_k", params.top_k.to_string(), format!("at most {choices}")));
    }
    let (mut weights, mut chosen) = (vec![], vec![]);
    for row in logits.chunks_exact(experts) {
        let scores = scores(row, params.score);
        let by: Vec<f64> = match bias {
            // Without a bias the order is that of the logits, which no rounding makes equal.
            None => row.to_vec(),
            Some(bias) => scores.iter().zip(bias).map(|(score, bias)| score + bias).collect(),
        };
        let sums_two = bias.is_some() && params.score == RouterScore::Sigmoid;
        let mut order: Vec<usize> = match params.groups {
            None => (0..experts).collect(),
            Some(groups) => {
                let size = experts / groups.count;
                let of_group = |group: usize| {
                    let own = sorted((group * size..(group + 1) * size).collect(), |&at| by[at]);
                    let second = if sums_two { own.get(1).map_or(0.0, |&at| by[at]) } else { 0.0 };
                    by[own[0]] + second
                };
                let kept = sorted((0..groups.count).collect(), |&group| of_group(group));
                let kept = &kept[..groups.chosen];
                (0..experts).filter(|expert| kept.contains(&(expert / size))).collect()
            }
        };
        order = sorted(order, |&expert| by[expert]);
        order.truncate(params.top_k);
        let own = order.iter().map(|&expert| scores[expert]);
        let whole = if params.renormalise { own.clone().sum() } else { 1.0 };
        let factor = if whole == 0.0 { 0.0 } else { f64::from(params.scale) / whole };
        weights.extend(own.map(|score| score * factor));
        chosen.extend(order);
    }
    Ok((weights, chosen))
}

/// The scores of a row.
fn scores(row: &[f64], score: RouterScore) -> Vec<f64> {
    if score == RouterScore::Sigmoid {
        return row.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    }
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |&logit: &f64| match logit {
        f64::NEG_INFINITY => 0.0,
        logit if logit == max => 1.0,
        logit => (logit - max).exp(),
    };
    let sum: f64 = row.iter().map(weight).sum();
    row.iter().map(|logit| if sum == 0.0 { 0.0 } else { weight(logit) / sum }).collect()
}

/// The largest first, NaN last, the first of equals first.
fn sorted(mut items: Vec<usize>, by: impl Fn(&usize) -> f64) -> Vec<usize> {
    let after = |a: f64, b: f64| b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
    items.sort_by(|a, b| after(by(a), by(b)));
    items
}

/// The feed-forward layers of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertLayers<'a> {
    /// `[experts, 2 * inter, hidden]`: the gates of an expert, then its ups.
    pub gate_up: &'a [f64],
    /// `[experts, hidden, inter]`.
    pub down: &'a [f64],
    /// Elements of a row of `x`.
    pub hidden: usize,
    /// Gates of an expert.
    pub inter: usize,
    /// The function of the gates.
    pub activation: Activation,
}

/// [`fused_moe`](crate::fused_moe) of `x` `[tokens, hidden]`, with `weights` and `experts` `[tokens, top_k]`. A number that
/// is no expert's adds nothing.
///
/// # Errors
///
/// If an axis of a layer is empty, or lengths do not fit together.
pub fn fused_moe(x: &[f64], layers: ExpertLayers<'_>, weights: &[f64], experts: &[i64]) -> Result<Vec<f64>> {
    const OP: &str = "reference::fused_moe";
    let ExpertLayers { gate_up, down, hidden, inter, activation } = layers;
    if hidden == 0 || inter == 0 || !x.len().is_multiple_of(hidden) {
        let expected = format!("a multiple of {hidden}, and that above 0");
        return Err(value(OP, "x", format!("of length {}", x.len()), expected));
    }
    let (tokens, matrix) = (x.len() / hidden, hidden.saturating_mul(inter));
    check_len(OP, "gate_up", gate_up.len(), &[down.len() / matrix, 2, matrix])?;
    check_len(OP, "down", down.len(), &[down.len() / matrix, matrix])?;
    check_len(OP, "weights", weights.len(), &[experts.len()])?;
    if tokens == 0 {
        return Ok(vec![]);
    }
    check_len(OP, "experts", experts.len(), &[tokens, experts.len() / tokens])?;
    let top_k = experts.len() / tokens;
    let mut y = vec![0.0; x.len()];
    for (token, (x, y)) in x.chunks_exact(hidden).zip(y.chunks_exact_mut(hidden)).enumerate() {
        for entry in token * top_k..(token + 1) * top_k {
            let Some(expert) = usize::try_from(experts[entry]).ok().filter(|e| *e < down.len() / matrix)
            else {
                continue;
            };
            let of_gates = gate_up[expert * 2 * matrix..][..2 * matrix].chunks_exact(hidden);
            let sums: Vec<f64> = of_gates.map(|row| dot(row, x)).collect();
            let activated = match activation {
                Activation::Silu => silu_and_mul(&sums, inter),
                Activation::Gelu => gelu_and_mul(&sums, inter),
                Activation::GeluTanh => gelu_tanh_and_mul(&sums, inter),
            }?;
            for (y, row) in y.iter_mut().zip(down[expert * matrix..][..matrix].chunks_exact(inter)) {
                *y += weights[entry] * dot(row, &activated);
            }
        }
    }
    Ok(y)
}
