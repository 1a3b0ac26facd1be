//! Products of segments of rows with matrices of their own.

use burn::tensor::Tensor;

use crate::error::Result;
use crate::extension::WeightLayout;
use crate::indptr::Indptr;
use crate::plan::SegmentGemm;

/// Multiplies each segment of the rows of `x` with a matrix of its own: a [`SegmentGemm`] that is made for this call.
///
/// `x`: `[segments.total(), d_in]`; `weights`: `[matrices, d_in, d_out]`, or `[matrices, d_out, d_in]` with
/// [`WeightLayout::ColumnMajor`]. For segment `i` and each of its rows `r`,
/// `y[r] = x[r] · weights[weight_indices[i]]`, or `weights[i]` without indices. Products are accumulated in
/// f32. A segment may be empty.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_flashinfer::{Indptr, WeightLayout, segment_gemm};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let x = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
/// let weights = Tensor::<3>::from_data([[[1.0], [0.0]], [[10.0], [100.0]]], &device);
/// let segments = Indptr::from_lengths(&[2, 0, 1], &device)?;
/// let y = segment_gemm(x, weights, &segments, Some(&[1, 1, 0]), WeightLayout::RowMajor)?;
/// assert_eq!(y.into_data().iter::<f32>().collect::<Vec<_>>(), [210.0, 430.0, 5.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// As [`SegmentGemm::new`] and [`SegmentGemm::run`].
pub fn segment_gemm(
    x: Tensor<2>,
    weights: Tensor<3>,
    segments: &Indptr,
    weight_indices: Option<&[usize]>,
    layout: WeightLayout,
) -> Result<Tensor<2>> {
    const OP: &str = "segment_gemm";
    SegmentGemm::planned(OP, segments, weight_indices)?.layout(layout).run_as(OP, x, weights)
}
