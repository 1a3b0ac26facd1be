//! Shapes of arguments, and a product of rows.

use crate::error::{Error, Result};

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn shape(op: &'static str, argument: &'static str, got: &[usize], expected: String) -> Error {
    Error::Shape { op, argument, got: format!("{got:?}"), expected }
}

pub(super) fn value(op: &'static str, argument: &'static str, got: String, expected: String) -> Error {
    Error::Value { op, argument, got, expected }
}

pub(super) fn check_len(op: &'static str, argument: &'static str, len: usize, shape: &[usize]) -> Result<()> {
    // Extents before an empty axis must not overflow either, or the arithmetic on rows would.
    let product =
        |least: usize| shape.iter().try_fold(1_usize, |p, &extent| p.checked_mul(extent.max(least)));
    if product(1).is_some() && product(0) == Some(len) && !shape[1..].contains(&0) {
        return Ok(());
    }
    Err(value(op, argument, format!("of length {len}"), format!("the elements of {shape:?}")))
}
