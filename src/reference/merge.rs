//! Merging attention states.

use super::check::{check_len, shape, value};
use super::heads::{Heads, State};
use crate::error::Result;

/// [`merge_state`](crate::merge_state): [`merge_states`] of two.
///
/// # Errors
///
/// If the shapes differ.
pub fn merge_state(a: &State, b: &State) -> Result<State> {
    merged("reference::merge_state", &[("a", a), ("b", b)])
}

/// [`merge_state_in_place`](crate::merge_state_in_place): [`merge_state`] of `a` and `b` where `mask`, one
/// for each token, is true, and `a` elsewhere.
///
/// # Errors
///
/// If the shapes differ.
pub fn merge_state_in_place(a: &State, b: &State, mask: &[bool]) -> Result<State> {
    const OP: &str = "reference::merge_state_in_place";
    let mut merged = merged(OP, &[("a", a), ("b", b)])?;
    let [tokens, heads, dim] = a.output.shape;
    check_len(OP, "mask", mask.len(), &[tokens])?;
    for token in (0..tokens).filter(|&token| !mask[token]) {
        let rows = token * heads..(token + 1) * heads;
        let elements = rows.start * dim..rows.end * dim;
        merged.output.values[elements.clone()].copy_from_slice(&a.output.values[elements]);
        merged.lse[rows.clone()].copy_from_slice(&a.lse[rows]);
    }
    Ok(merged)
}

/// [`merge_states`](crate::merge_states): over the states `i`, with `m = max s_i` and `w_i = 2^(s_i - m)`
///
/// `v = Σ w_i v_i / Σ w_i`, `s = m + log2(Σ w_i)`;
///
/// a state whose LSE is `-inf` does not count, and none that counts gives output 0 and LSE `-inf`.
///
/// # Errors
///
/// If there is no state, or the shapes differ.
pub fn merge_states(states: &[State]) -> Result<State> {
    let states: Vec<_> = states.iter().map(|state| ("states", state)).collect();
    merged("reference::merge_states", &states)
}

/// [`variable_length_merge_states`](crate::variable_length_merge_states): as [`merge_states`] of the tokens
/// `indptr[t]..indptr[t + 1]` of `states`, for each `t`.
///
/// # Errors
///
/// If `indptr` is not a row pointer over the tokens of `states`.
pub fn variable_length_merge_states(states: &State, indptr: &[usize]) -> Result<State> {
    const OP: &str = "reference::variable_length_merge_states";
    let [tokens, heads, dim] = states.output.shape;
    check_len(OP, "states", states.lse.len(), &[tokens, heads])?;
    let rises = indptr.first() == Some(&0) && indptr.is_sorted();
    if !rises || indptr.last() != Some(&tokens) {
        return Err(value(OP, "indptr", format!("{indptr:?}"), format!("rising from 0 to {tokens}")));
    }
    let (mut values, mut lse) = (Vec::new(), Vec::new());
    for rows in indptr.windows(2) {
        for head in 0..heads {
            let rows = (rows[0]..rows[1])
                .map(|token| (states.output.row(token, head), states.lse[token * heads + head]));
            let (row, s) = merged_row(rows, dim);
            values.extend(row);
            lse.push(s);
        }
    }
    Ok(State { output: Heads::new([indptr.len() - 1, heads, dim], values)?, lse })
}

fn merged(op: &'static str, states: &[(&'static str, &State)]) -> Result<State> {
    let Some(&(first_name, first)) = states.first() else {
        return Err(value(op, "states", "empty".into(), "at least one".into()));
    };
    let [tokens, heads, dim] = first.output.shape;
    for (argument, State { output, lse }) in states {
        if output.shape != first.output.shape {
            let expected = format!("{:?}, as `{first_name}`", first.output.shape);
            return Err(shape(op, argument, &output.shape, expected));
        }
        check_len(op, argument, lse.len(), &[tokens, heads])?;
    }
    let (mut values, mut lse) =
        (Vec::with_capacity(first.output.values.len()), Vec::with_capacity(tokens * heads));
    for row in 0..tokens * heads {
        let elements = row * dim..(row + 1) * dim;
        let rows = states.iter().map(|(_, state)| (&state.output.values[elements.clone()], state.lse[row]));
        let (v, s) = merged_row(rows, dim);
        values.extend(v);
        lse.push(s);
    }
    Ok(State { output: Heads { shape: first.output.shape, values }, lse })
}

/// One token and head of some states.
fn merged_row<'a>(states: impl Iterator<Item = (&'a [f64], f64)> + Clone, dim: usize) -> (Vec<f64>, f64) {
    let counting = states.filter(|&(_, s)| s != f64::NEG_INFINITY);
    let highest = counting.clone().fold(f64::NEG_INFINITY, |highest, (_, s)| highest.max(s));
    let sum: f64 = counting.clone().map(|(_, s)| (s - highest).exp2()).sum();
    let mut row = vec![0.0; dim];
    for (v, s) in counting {
        let weight = (s - highest).exp2() / sum;
        // Too far below the highest to count: not even if its output is infinite.
        if weight != 0.0 {
            row.iter_mut().zip(v).for_each(|(row, v)| *row += weight * v);
        }
    }
    // Without any, log2(0).
    let s = if sum == 0.0 { f64::NEG_INFINITY } else { highest + sum.log2() };
    (row, s)
}
