//! Products of segments of rows with matrices of their own.

use burn::{
    backend::Dispatch,
    tensor::{Int, Tensor},
};

use crate::check::{Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::FlashInferBackend;
use crate::indptr::{Indptr, index, upload};
use crate::memory;
use crate::types::WeightLayout;

/// Rows of a work: tiles of these are multiplied at a time, and up to the first two read each matrix once.
const TILE_ROWS: [usize; 5] = [1, 4, 16, 64, 128];

/// The work partitioning of a ragged batch of rows and matrices: made once for a batch, run by every layer.
/// It serves grouped layers and batches of LoRA adapters (FlashInfer's `SegmentGEMMWrapper`).
///
/// Segment `i` has the rows `segments[i]..segments[i + 1]` of `x`, and
/// `y[r] = x[r] · weights[weight_indices[i]]` for each of them. One launch computes all segments, on matrix
/// units where the device has some.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{Indptr, SegmentGemm};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // Three requests with 5, 1 and 2 tokens; the first and the last use adapter 1 of 2, whose rank is 4.
/// let segments = Indptr::from_lengths(&[5, 1, 2], &device)?;
/// let plan = SegmentGemm::new(&segments, Some(&[1, 0, 1]))?;
/// let down = Tensor::<3>::random([2, 64, 4], Distribution::Default, &device);
/// let up = Tensor::<3>::random([2, 4, 64], Distribution::Default, &device);
/// let x = Tensor::<2>::random([8, 64], Distribution::Default, &device);
/// let y = plan.run(plan.run(x, down)?, up)?;
/// assert_eq!(y.dims(), [8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct SegmentGemm {
    /// First row, end of the rows, and matrix of each work item. Items of a matrix are adjacent, so that it
    /// stays in a cache.
    work_items: Tensor<1, Int>,
    tile_rows: usize,
    rows: usize,
    /// One past the largest index of a matrix.
    end: usize,
    layout: WeightLayout,
}

impl SegmentGemm {
    /// Plans a batch. `weight_indices` has the matrix of each segment; without it segment `i` has matrix `i`.
    ///
    /// # Errors
    ///
    /// If there is not one index for each segment, or one passes `i32::MAX`.
    pub fn new(segments: &Indptr, weight_indices: Option<&[usize]>) -> Result<Self> {
        Self::planned("SegmentGemm::new", segments, weight_indices)
    }

    fn planned(op: &'static str, segments: &Indptr, weight_indices: Option<&[usize]>) -> Result<Self> {
        const ARGUMENT: &str = "weight_indices";
        let count = segments.requests();
        if let Some(indices) = weight_indices
            && indices.len() != count
        {
            return Err(Error::Value {
                op,
                argument: ARGUMENT,
                got: format!("of length {}", indices.len()),
                expected: format!("one for each of {count} segments"),
            });
        }
        let matrix_of = |at: usize| weight_indices.and_then(|indices| indices.get(at)).copied().unwrap_or(at);
        let tile_rows = tile_rows(segments);
        let (mut work_items, mut end) = (vec![], 0);
        let mut first = 0;
        for (at, len) in segments.lengths().enumerate() {
            let matrix = matrix_of(at);
            let word = index(op, ARGUMENT, at, matrix)?;
            end = end.max(matrix + 1);
            for tile in (first..first + len).step_by(tile_rows) {
                // Row pointers are checked to fit.
                work_items.push([word, tile as i32, (first + len).min(tile + tile_rows) as i32]);
            }
            first += len;
        }
        work_items.sort_unstable();
        let words = work_items.into_iter().flat_map(|[matrix, first, end]| [first, end, matrix]);
        let work_items = upload(words, &segments.device());
        Ok(Self { work_items, tile_rows, rows: segments.total(), end, layout: WeightLayout::default() })
    }

    /// The order of the axes of the matrices, by default [`WeightLayout::RowMajor`].
    pub fn layout(mut self, layout: WeightLayout) -> Self {
        self.layout = layout;
        self
    }

    /// `y[r] = x[r] · weights[i]` for the rows `r` and the matrix `i` of each segment, accumulated in f32.
    ///
    /// `x`: `[segments.total(), d_in]`; `weights`: `[matrices, d_in, d_out]`, or `[matrices, d_out, d_in]` with
    /// [`WeightLayout::ColumnMajor`]; the result is `[segments.total(), d_out]`, of the type of `x`.
    ///
    /// # Errors
    ///
    /// If `x` has another number of rows than was planned; if a planned matrix is not there; if shapes, types
    /// or devices do not fit together; if a tensor requires a gradient.
    pub fn run(&self, x: Tensor<2>, weights: Tensor<3>) -> Result<Tensor<2>> {
        self.run_as("SegmentGemm::run", x, weights)
    }

    fn run_as(&self, op: &'static str, x: Tensor<2>, weights: Tensor<3>) -> Result<Tensor<2>> {
        let floats = Floats::first(op, "x", &x)?;
        floats.like("weights", &weights)?;
        floats.on_device("segments", &self.work_items.device())?;
        let ([rows, width], [matrices, a, b]) = (x.dims(), weights.dims());
        let (d_in, d_out) = match self.layout {
            WeightLayout::RowMajor => (a, b),
            WeightLayout::ColumnMajor => (b, a),
        };
        if rows != self.rows || width != d_in {
            let expected =
                format!("[{}, {d_in}], the rows of the segments and the inputs of `weights`", self.rows);
            return Err(shape(op, "x", &x.dims(), expected));
        }
        if matrices < self.end || d_in == 0 || d_out == 0 {
            let expected = format!("at least {} matrices, and no empty axis", self.end);
            return Err(shape(op, "weights", &weights.dims(), expected));
        }
        memory::on_device(op, "x", [1, memory::bytes([rows, d_out, x.dtype().size()])], &x.device())?;
        if rows == 0 {
            return Ok(Tensor::empty([0, d_out], (&x.device(), x.dtype())));
        }
        Ok(floats.origin.tensor(Dispatch::segment_gemm(
            x.into_backend(),
            weights.into_backend(),
            self.work_items.clone().into_backend(),
            self.tile_rows,
            self.layout,
        )))
    }

    /// Rows of all segments.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

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

/// The least rows of a tile that hold a segment of the mean length, or any of them if all are short.
fn tile_rows(segments: &Indptr) -> usize {
    let [one, few, tiles @ ..] = TILE_ROWS;
    let longest = segments.lengths().max().unwrap_or(0);
    if longest <= few {
        return if longest <= one { one } else { few };
    }
    let mean = segments.total().div_ceil(segments.lengths().filter(|&len| len > 0).count().max(1));
    let [.., most] = tiles;
    tiles.into_iter().find(|&rows| mean <= rows).unwrap_or(most)
}
