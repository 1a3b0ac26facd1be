//! Tensors as rows of elements that lie side by side.

use burn::tensor::{DType, Element, Shape};
use burn_flex::{FlexTensor, Layout};

use super::float::Float;

/// A tensor whose last axis is contiguous, whatever the strides of the others.
pub(super) struct Rows<'a, E, const D: usize> {
    data: &'a [E],
    start: isize,
    strides: [isize; D],
    width: usize,
}

/// `tensor` with a contiguous last axis: itself, if it has one.
pub(super) fn with_rows(tensor: FlexTensor) -> FlexTensor {
    let layout = tensor.layout();
    match (layout.strides().last(), layout.shape().as_slice().last()) {
        (Some(1), _) | (_, Some(0 | 1)) => tensor,
        _ => tensor.to_contiguous(),
    }
}

impl<'a, E: Element + bytemuck::Pod, const D: usize> Rows<'a, E, D> {
    /// The rows of a tensor of `D + 1` axes that went through [`with_rows`].
    pub(super) fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let mut strides = [0; D];
        strides.copy_from_slice(&layout.strides()[..D]);
        Self {
            data: tensor.storage::<E>(),
            start: layout.start_offset() as isize,
            strides,
            width: layout.shape().as_slice()[D],
        }
    }

    /// The row at these indices.
    #[inline(always)]
    pub(super) fn row(&self, at: [usize; D]) -> &'a [E] {
        let offset: isize = at.iter().zip(&self.strides).map(|(&at, stride)| at as isize * stride).sum();
        let first = (self.start + offset) as usize;
        &self.data[first..first + self.width]
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }
}

impl<'a, E: Float> Rows<'a, E, 1> {
    /// The rows from `first` on.
    pub(super) fn skip(&self, first: usize) -> Self {
        Self { start: self.start + first as isize * self.strides[0], ..*self }
    }
}

impl<'a, E: Float> Rows<'a, E, 2> {
    /// The rows of matrix `at`.
    pub(super) fn matrix(&self, at: usize) -> Rows<'a, E, 1> {
        let [matrix, row] = self.strides;
        let start = self.start + at as isize * matrix;
        Rows { data: self.data, start, strides: [row], width: self.width }
    }
}

/// The extents of a tensor.
pub(super) fn dims<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    let mut dims = [0; D];
    dims.copy_from_slice(tensor.layout().shape().as_slice());
    dims
}

/// Index tensors are `i32`; this copies nothing but a view that is not contiguous.
pub(super) fn indices(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// The elements of a tensor of one axis, in f32.
pub(super) fn widened<E: Float>(tensor: FlexTensor) -> Vec<f32> {
    let tensor = with_rows(tensor);
    Rows::<E, 0>::of(&tensor).row([]).iter().map(|x| x.widen()).collect()
}

/// `tensor` `[tokens, heads, head_dim]` in f32.
pub(super) fn wide<E: Float>(tensor: FlexTensor) -> FlexTensor {
    let tensor = dense(tensor);
    let shape = dims::<3>(&tensor);
    let elements = &tensor.storage::<E>()[..shape.iter().product()];
    self::tensor(elements.iter().map(|x| x.widen()).collect(), shape, DType::F32)
}

/// `tensor`, or a copy of it, whose storage is exactly its elements in order.
pub(super) fn dense(tensor: FlexTensor) -> FlexTensor {
    // Also true of a tensor that is a view: the copy has only the elements of the view.
    if tensor.is_contiguous() && tensor.layout().start_offset() == 0 {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// `tensor` of one axis with `values` at its front.
pub(super) fn overwritten(tensor: FlexTensor, values: &[i32]) -> FlexTensor {
    let mut data = indices(tensor).storage::<i32>().to_vec();
    data.iter_mut().zip(values).for_each(|(to, value)| *to = *value);
    let len = data.len();
    ints(data, [len])
}

/// A tensor of these integers.
pub(super) fn ints<const D: usize>(data: Vec<i32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::new(burn::tensor::Bytes::from_elems(data), Layout::contiguous(Shape::from(shape)), DType::I32)
}

/// A contiguous tensor of these elements.
pub(super) fn tensor<E: Float, const D: usize>(data: Vec<E>, shape: [usize; D], dtype: DType) -> FlexTensor {
    FlexTensor::new(burn::tensor::Bytes::from_elems(data), Layout::contiguous(Shape::from(shape)), dtype)
}
