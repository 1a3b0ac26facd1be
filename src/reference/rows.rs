//! Operations that go row by row: norms, activations, linear layers.

use super::bits::check_indptr;
use super::check::{check_len, dot, value};
use crate::error::Result;

/// [`rms_norm`](crate::rms_norm): `x / sqrt(mean(x²) + epsilon) * weight` for each row of `x` `[rows, width]`, with
/// `weight` `[width]`.
///
/// # Errors
///
/// If `weight` is empty, or `x` is no whole number of rows.
pub fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Result<Vec<f64>> {
    let width = weight.len();
    check_rows("reference::rms_norm", "x", x.len(), width)?;
    let rows = x.chunks_exact(width).flat_map(|row| {
        let norm = (dot(row, row) / width as f64 + epsilon).sqrt();
        row.iter().zip(weight).map(move |(x, w)| x / norm * w)
    });
    Ok(rows.collect())
}

/// [`gemma_rms_norm`](crate::gemma_rms_norm): [`rms_norm`] with `1 + weight`.
///
/// # Errors
///
/// As [`rms_norm`].
pub fn gemma_rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Result<Vec<f64>> {
    rms_norm(x, &one_more(weight), epsilon)
}

/// [`fused_add_rms_norm`](crate::fused_add_rms_norm): `rms_norm(x + residual)` and `x + residual`.
///
/// # Errors
///
/// As [`rms_norm`], and if `residual` is not as long as `x`.
pub fn fused_add_rms_norm(
    x: &[f64],
    residual: &[f64],
    weight: &[f64],
    epsilon: f64,
) -> Result<(Vec<f64>, Vec<f64>)> {
    check_len("reference::fused_add_rms_norm", "residual", residual.len(), &[x.len()])?;
    let sum: Vec<f64> = x.iter().zip(residual).map(|(x, r)| x + r).collect();
    Ok((rms_norm(&sum, weight, epsilon)?, sum))
}

/// [`gemma_fused_add_rms_norm`](crate::gemma_fused_add_rms_norm): [`fused_add_rms_norm`] with `1 + weight`.
///
/// # Errors
///
/// As [`fused_add_rms_norm`].
pub fn gemma_fused_add_rms_norm(
    x: &[f64],
    residual: &[f64],
    weight: &[f64],
    epsilon: f64,
) -> Result<(Vec<f64>, Vec<f64>)> {
    fused_add_rms_norm(x, residual, &one_more(weight), epsilon)
}

/// [`layer_norm`](crate::layer_norm): `(x - mean(x)) / sqrt(mean((x - mean(x))²) + epsilon) * gamma + beta`
/// for each row of `x` `[rows, width]`, with `gamma` and `beta` `[width]`.
///
/// # Errors
///
/// If `gamma` is empty or not as long as `beta`, or `x` is no whole number of rows.
pub fn layer_norm(x: &[f64], gamma: &[f64], beta: &[f64], epsilon: f64) -> Result<Vec<f64>> {
    const OP: &str = "reference::layer_norm";
    let width = gamma.len();
    check_rows(OP, "x", x.len(), width)?;
    check_len(OP, "beta", beta.len(), &[width])?;
    let rows = x.chunks_exact(width).flat_map(|row| {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
        let deviation = (variance + epsilon).sqrt();
        row.iter().zip(gamma).zip(beta).map(move |((x, gamma), beta)| (x - mean) / deviation * gamma + beta)
    });
    Ok(rows.collect())
}

/// [`silu_and_mul`](crate::silu_and_mul): `a / (1 + exp(-a)) * b` for the halves `a` and `b` of each row of `x`
/// `[rows, 2 * width]`.
///
/// # Errors
///
/// If `width` is 0, or `x` is no whole number of rows.
pub fn silu_and_mul(x: &[f64], width: usize) -> Result<Vec<f64>> {
    act_and_mul("reference::silu_and_mul", x, width, |a| a / (1.0 + (-a).exp()))
}

/// [`gelu_and_mul`](crate::gelu_and_mul): `a/2 * (1 + erf(a / sqrt(2))) * b`.
///
/// # Errors
///
/// As [`silu_and_mul`].
pub fn gelu_and_mul(x: &[f64], width: usize) -> Result<Vec<f64>> {
    act_and_mul("reference::gelu_and_mul", x, width, |a| {
        // 1 + erf(z) = erfc(-z), which loses nothing where it is small.
        let above = erfc(a.abs() * std::f64::consts::FRAC_1_SQRT_2);
        a / 2.0 * if a < 0.0 { above } else { 2.0 - above }
    })
}

/// [`gelu_tanh_and_mul`](crate::gelu_tanh_and_mul): `a/2 * (1 + tanh(sqrt(2/π) * (a + 0.044715 a³))) * b`.
///
/// # Errors
///
/// As [`silu_and_mul`].
pub fn gelu_tanh_and_mul(x: &[f64], width: usize) -> Result<Vec<f64>> {
    act_and_mul("reference::gelu_tanh_and_mul", x, width, |a| {
        a / 2.0 * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (a + 0.044715 * a.powi(3))).tanh())
    })
}

/// [`segment_gemm`](crate::segment_gemm): `y[r, o] = Σ_i x[r, i] weights[w, i, o]` for the rows `r` of each
/// segment and the matrix `w` that `weight_indices` has for it; `x` `[rows, d_in]`, `weights`
/// `[matrices, d_in, d_out]`.
///
/// # Errors
///
/// If `indptr` is not a row pointer over the rows of `x`; if there is not one index for each segment, or no
/// such matrix; if `x` or `weights` is no whole number of rows or matrices.
pub fn segment_gemm(
    x: &[f64],
    weights: &[f64],
    [d_in, d_out]: [usize; 2],
    indptr: &[usize],
    weight_indices: &[usize],
) -> Result<Vec<f64>> {
    const OP: &str = "reference::segment_gemm";
    check_rows(OP, "x", x.len(), d_in)?;
    check_rows(OP, "weights", weights.len(), d_in.saturating_mul(d_out))?;
    check_indptr(OP, indptr, x.len() / d_in)?;
    check_len(OP, "weight_indices", weight_indices.len(), &[indptr.len() - 1])?;
    let mut y = Vec::with_capacity(x.len() / d_in * d_out);
    for (segment, &index) in indptr.windows(2).zip(weight_indices) {
        let Some(matrix) = weights.chunks_exact(d_in * d_out).nth(index) else {
            return Err(value(OP, "weight_indices", index.to_string(), "the index of a matrix".into()));
        };
        for row in x[segment[0] * d_in..segment[1] * d_in].chunks_exact(d_in) {
            let column = |o: usize| matrix.iter().skip(o).step_by(d_out);
            y.extend((0..d_out).map(|o| row.iter().zip(column(o)).map(|(x, w)| x * w).sum::<f64>()));
        }
    }
    Ok(y)
}

/// [`matmul_nt`](crate::matmul_nt): `y[r, o] = Σ_i x[r, i] weight[o, i]` for `x` `[rows, in]` and `weight` `[out, in]`.
///
/// # Errors
///
/// If `in_dim` is 0, or `x` or `weight` is no whole number of rows.
pub fn matmul_nt(x: &[f64], weight: &[f64], in_dim: usize) -> Result<Vec<f64>> {
    const OP: &str = "reference::matmul_nt";
    check_rows(OP, "x", x.len(), in_dim)?;
    check_rows(OP, "weight", weight.len(), in_dim)?;
    let rows = x.chunks_exact(in_dim);
    Ok(rows.flat_map(|x| weight.chunks_exact(in_dim).map(move |w| dot(x, w))).collect())
}

fn one_more(weight: &[f64]) -> Vec<f64> {
    weight.iter().map(|w| 1.0 + w).collect()
}

fn act_and_mul(op: &'static str, x: &[f64], width: usize, act: impl Fn(f64) -> f64) -> Result<Vec<f64>> {
    check_rows(op, "x", x.len(), width.saturating_mul(2))?;
    let row = |row: &[f64]| {
        let (a, b) = row.split_at(width);
        a.iter().zip(b).map(|(&a, b)| act(a) * b).collect::<Vec<_>>()
    };
    Ok(x.chunks_exact(2 * width).flat_map(row).collect())
}

/// `erfc(x)` for `x` from 0: by the series of `erf`, whose terms are all positive, and by the continued fraction where
/// `1 - erf(x)` would cancel.
fn erfc(x: f64) -> f64 {
    let gauss = (-x * x).exp();
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 1.0 - 2.0 * std::f64::consts::FRAC_1_PI.sqrt() * gauss * sum;
    }
    let tail = (1..120).rev().fold(x, |tail, n| x + f64::from(n) / 2.0 / tail);
    gauss / tail * std::f64::consts::FRAC_1_PI.sqrt()
}

fn check_rows(op: &'static str, argument: &'static str, len: usize, width: usize) -> Result<()> {
    if width > 0 && len.is_multiple_of(width) {
        return Ok(());
    }
    Err(value(op, argument, format!("of length {len}"), format!("a multiple of {width}, and that above 0")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erfc_at_known_places() {
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (1.99, 0.004_888_586_800_383_003),
            (2.0, 0.004_677_734_981_047_266),
            (4.0, 1.541_725_790_028_002e-8),
            (8.0, 1.122_429_717_298_292_8e-29),
        ] {
            let got = erfc(x);
            assert!((got - want).abs() <= 1e-12 * want, "erfc({x}) = {got:e}");
        }
        assert_eq!(erfc(f64::INFINITY), 0.0);
        assert!(erfc(f64::NAN).is_nan());
    }
}
