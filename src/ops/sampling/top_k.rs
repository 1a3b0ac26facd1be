//! The largest numbers of each row.

use burn::{
    backend::Dispatch,
    tensor::{Int, Tensor},
};

use super::sample::rows;
use crate::check::{Floats, most_top_k, wide_integers};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::FlashInferBackend;

/// The `k` largest numbers of each row, the largest first, and where they are: values `[rows, k]` of the type
/// of `x`, and ids `[rows, k]` of type i32.
///
/// `x`: `[rows, vocab]` of f32, f16 or bf16. Of equal numbers the first in the row comes first, 0 and -0 are
/// equal, and NaN comes after all numbers: there is one answer, which every device gives.
///
/// `k` is from 1 to `vocab`; on CubeCL devices at most 2048.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_flashinfer::sampling::top_k;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let logits = Tensor::<2>::from_data([[0.5, 2.0, -1.0, 2.0], [1.0, 0.0, 3.0, 2.0]], &Device::default());
/// let (values, ids) = top_k(logits, 2)?;
/// assert_eq!(values.into_data().iter::<f32>().collect::<Vec<_>>(), [2.0, 2.0, 3.0, 2.0]);
/// assert_eq!(ids.into_data().iter::<i32>().collect::<Vec<_>>(), [1, 3, 2, 3]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If `k` is out of its range, the type is none of these, the device has no integers of 64 bits, or `x`
/// requires a gradient.
pub fn top_k(x: Tensor<2>, k: usize) -> Result<(Tensor<2>, Tensor<2, Int>)> {
    const OP: &str = "top_k";
    let floats = Floats::first(OP, "x", &x)?;
    rows(OP, "x", &x)?;
    let device = x.device();
    wide_integers(OP, "x", &device)?;
    let refuse = |expected| Err(Error::Value { op: OP, argument: "k", got: k.to_string(), expected });
    let vocab = x.dims()[1];
    if k == 0 || k > vocab {
        return refuse(format!("from 1 to {vocab}, the numbers of a row"));
    }
    if let Some(most) = most_top_k(&device)
        && k > most
    {
        return refuse(format!("at most {most} on {device:?}"));
    }
    let (values, ids) = Dispatch::top_k(x.into_backend(), k);
    Ok((floats.origin.tensor(values), floats.origin.tensor(ids)))
}
