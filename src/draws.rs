//! Which random numbers a draw takes: a function of seed, stream and offset, and of nothing else.

use burn::tensor::{Device, Int, Tensor};

use crate::error::{Error, Result};
use crate::indptr::{index, upload};

/// Words of a draw on the device: both halves of the seed, the stream, both halves of the offset, and the row.
pub(crate) const DRAW_WORDS: usize = 6;

/// Where one token is drawn from, and with which random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DrawKey {
    /// For instance that of the request.
    pub seed: u64,
    /// Tells apart draws with one seed and offset, for instance of several samples of a prompt.
    pub stream: u32,
    /// Tells apart the calls with one seed, for instance the position of the token. Two draws of one seed and stream have
    /// nothing in common if their offsets differ, by however little.
    pub offset: u64,
    /// The row of probabilities or logits.
    pub row: usize,
}

/// One draw for each sample of a call.
///
/// The random numbers are Philox 4x32-10, keyed by the seed, of stream and offset: a draw with the same [`DrawKey`] from
/// the same row gives the same token in every batch, on every run, and on every device that rounds as IEEE 754 has it.
///
/// ```
/// use burn::tensor::Device;
/// use burn_flashinfer::sampling::{DrawKey, Draws};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // One token from each of four rows.
/// let draws = Draws::new(42, 0, 4, &device)?;
/// // Two from the first row, for requests with seeds of their own that have got 17 and 5 tokens.
/// let keys = [(7, 17), (1234, 5)].map(|(seed, offset)| DrawKey { seed, offset, stream: 0, row: 0 });
/// assert_eq!((draws.len(), Draws::from_keys(&keys, &device)?.len()), (4, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Draws {
    len: usize,
    /// One past the largest row.
    rows: usize,
    /// Whether draw `i` is from row `i`.
    in_order: bool,
    /// `len · DRAW_WORDS` words, or nothing of use if there is no draw.
    pub(crate) tensor: Tensor<1, Int>,
}

impl Draws {
    /// A draw from each of `rows` rows, whose stream is the number of the row.
    ///
    /// # Errors
    ///
    /// If `rows` passes `i32::MAX`.
    pub fn new(seed: u64, offset: u64, rows: usize, device: &Device) -> Result<Self> {
        index("Draws::new", "rows", 0, rows)?;
        let keys: Vec<DrawKey> =
            (0..rows).map(|row| DrawKey { seed, stream: row as u32, offset, row }).collect();
        Self::from_keys(&keys, device)
    }

    /// These draws. Rows may come in any order, be left out, and come several times.
    ///
    /// # Errors
    ///
    /// If a row passes `i32::MAX`.
    pub fn from_keys(keys: &[DrawKey], device: &Device) -> Result<Self> {
        let mut words = Vec::with_capacity(keys.len() * DRAW_WORDS);
        for (at, key) in keys.iter().enumerate() {
            let row = index("Draws::from_keys", "keys", at, key.row)?;
            let [seed, offset] = [key.seed, key.offset].map(|word| [word as i32, (word >> 32) as i32]);
            words.extend([seed[0], seed[1], key.stream as i32, offset[0], offset[1], row]);
        }
        let rows = keys.iter().map(|key| key.row + 1).max().unwrap_or(0);
        let in_order = keys.iter().enumerate().all(|(at, key)| key.row == at);
        Ok(Self { len: keys.len(), rows, in_order, tensor: upload(words, device) })
    }

    /// How many tokens are drawn.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is drawn.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `[len, DRAW_WORDS]`.
    pub(crate) fn words(&self) -> Tensor<2, Int> {
        self.tensor.clone().reshape([self.len, DRAW_WORDS])
    }

    /// Whether there is one from each of `rows` rows, in order.
    pub(crate) fn are_of(&self, rows: usize) -> bool {
        self.in_order && self.len == rows
    }

    /// Refuses draws from rows that are not there.
    pub(crate) fn check(&self, op: &'static str, rows: usize) -> Result<()> {
        if self.rows <= rows {
            return Ok(());
        }
        Err(Error::Value {
            op,
            argument: "draws",
            got: format!("up to row {}", self.rows - 1),
            expected: format!("below {rows}, the rows there are"),
        })
    }
}
