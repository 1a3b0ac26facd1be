//! Rotary position embedding.

use super::check::{check_len, shape};
use super::heads::Heads;
use crate::error::Result;
use crate::types::RopeStyle;

/// [`apply_rope`](crate::apply_rope) for the queries, or for the keys. With the angle `a = positions[t] · f` of a pair
/// `(x, y)`, it becomes `(x cos a - y sin a, y cos a + x sin a)`.
///
/// `x`: `[tokens, heads, head_dim]`; `frequencies`: one for each pair, [stretched](crate::RopeScaling) already, as
/// [`RopeConfig::frequencies`](crate::RopeConfig::frequencies) gives them. Elements beyond the pairs stay as they are.
///
/// # Errors
///
/// If there is not one position for each token, or a head is shorter than the pairs.
pub fn apply_rope(x: &Heads, frequencies: &[f64], positions: &[usize], style: RopeStyle) -> Result<Heads> {
    const OP: &str = "reference::apply_rope";
    let [tokens, heads, dim] = x.shape;
    check_len(OP, "positions", positions.len(), &[tokens])?;
    let pairs = frequencies.len();
    if 2 * pairs > dim {
        return Err(shape(OP, "x", &x.shape, format!("a head dimension of at least {}", 2 * pairs)));
    }
    let mut values = x.values.clone();
    for (token, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let start = (token * heads + head) * dim;
            for (pair, frequency) in frequencies.iter().enumerate() {
                let (first, second) = match style {
                    RopeStyle::Halves => (start + pair, start + pair + pairs),
                    RopeStyle::Interleaved => (start + 2 * pair, start + 2 * pair + 1),
                };
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (a, b) = (x.values[first], x.values[second]);
                (values[first], values[second]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
    Ok(Heads { shape: x.shape, values })
}
