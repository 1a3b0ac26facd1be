//! Arrays of host-side integers, checked once, and their copies on the device.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::error::{Error, Result};

/// Copies `values` to `device` as `i32`, the index type of every kernel.
pub(crate) fn upload(values: impl IntoIterator<Item = i32>, device: &Device) -> Tensor<1, Int> {
    let mut values: Vec<i32> = values.into_iter().collect();
    // Not every runtime can bind an empty buffer; nothing reads the filler.
    if values.is_empty() {
        values.push(0);
    }
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
}

/// `value` as a kernel index.
pub(crate) fn index(op: &'static str, argument: &'static str, at: usize, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Index {
        op,
        argument,
        at,
        got: value.to_string(),
        expected: format!("at most {}", i32::MAX),
    })
}

/// Checks that `indptr` starts at 0 and never falls, and converts it.
pub(crate) fn row_pointer(op: &'static str, argument: &'static str, indptr: &[usize]) -> Result<Vec<i32>> {
    if indptr.len() < 2 {
        return Err(Error::Value {
            op,
            argument,
            got: format!("of length {}", indptr.len()),
            expected: "one entry more than there are requests, and at least one request".into(),
        });
    }
    let mut previous = 0;
    indptr
        .iter()
        .enumerate()
        .map(|(at, &value)| {
            if (at == 0 && value != 0) || value < previous {
                return Err(Error::Index {
                    op,
                    argument,
                    at,
                    got: value.to_string(),
                    expected: if at == 0 { "0".into() } else { format!("at least {previous}") },
                });
            }
            previous = value;
            index(op, argument, at, value)
        })
        .collect()
}

/// A row pointer: request `r` of a ragged batch owns the tokens `indptr[r]..indptr[r + 1]`.
///
/// Checked when it is made, then used by every layer of a model.
///
/// ```
/// use burn::tensor::Device;
/// use burn_flashinfer::Indptr;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let indptr = Indptr::new(&[0, 5, 5, 12], &device)?;
/// assert_eq!(indptr, Indptr::from_lengths(&[5, 0, 7], &device)?);
/// assert_eq!((indptr.requests(), indptr.total()), (3, 12));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Indptr {
    host: Vec<usize>,
    pub(crate) tensor: Tensor<1, Int>,
}

impl Indptr {
    /// Checks `indptr` and copies it to `device`.
    ///
    /// # Errors
    ///
    /// If it has fewer than two entries, does not start at 0, falls, or passes `i32::MAX`.
    pub fn new(indptr: &[usize], device: &Device) -> Result<Self> {
        let values = row_pointer("Indptr::new", "indptr", indptr)?;
        Ok(Self { host: indptr.to_vec(), tensor: upload(values, device) })
    }

    /// The row pointer of requests of these lengths, one after the other.
    ///
    /// # Errors
    ///
    /// If there is no request, or the sum passes `i32::MAX`.
    pub fn from_lengths(lengths: &[usize], device: &Device) -> Result<Self> {
        const OP: &str = "Indptr::from_lengths";
        let mut indptr = vec![0];
        let mut end = 0_usize;
        for (at, &length) in lengths.iter().enumerate() {
            end = end.saturating_add(length);
            index(OP, "lengths", at, end)?;
            indptr.push(end);
        }
        let values = row_pointer(OP, "lengths", &indptr)?;
        Ok(Self { host: indptr, tensor: upload(values, device) })
    }

    /// The number of requests.
    pub fn requests(&self) -> usize {
        self.host.len() - 1
    }

    /// The number of tokens of all requests together.
    pub fn total(&self) -> usize {
        self.host.last().copied().unwrap_or(0)
    }

    /// The length of each request.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.host.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// The row pointer itself.
    pub fn as_slice(&self) -> &[usize] {
        &self.host
    }

    /// The device that holds the copy.
    pub fn device(&self) -> Device {
        self.tensor.device()
    }
}

impl PartialEq for Indptr {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host && self.device() == other.device()
    }
}
