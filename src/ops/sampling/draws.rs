//! The random numbers of a draw: a function of seed, stream and offset, and of nothing else.

use burn::tensor::{Device, Int, Tensor};

use crate::cache::Positions;
use crate::check::same_device;
use crate::dispatch::write_ints;
use crate::error::{Error, Result};
use crate::extension::DRAW_WORDS;
use crate::indptr::{index, upload};
use crate::memory;

/// Index of the halves of the offset; the row follows.
const OFFSET: usize = 3;
const ROW: usize = 5;

/// The row and the random numbers of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DrawKey {
    /// For instance that of the request.
    pub seed: u64,
    /// Tells apart draws with one seed and offset, for instance of several samples of a prompt.
    pub stream: u32,
    /// Tells apart the calls with one seed, for instance the position of the token. Two draws of one seed and
    /// stream have nothing in common if their offsets differ, by however little.
    pub offset: u64,
    /// The row of probabilities or logits.
    pub row: usize,
}

/// One draw for each sample of a call.
///
/// The random numbers are Philox 4x32-10, keyed by the seed, of stream and offset: a draw with the same
/// [`DrawKey`] from the same row gives the same token in every batch, on every run, and on every device that
/// rounds as IEEE 754 has it.
///
/// ```
/// use burn::tensor::Device;
/// use burn_flashinfer::Positions;
/// use burn_flashinfer::sampling::{DrawKey, Draws};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // One token from each of four rows.
/// let draws = Draws::new(42, 0, 4, &device)?;
/// // Two from the first row, for requests with seeds of their own that have got 17 and 5 tokens.
/// let keys = [(7, 17), (1234, 5)].map(|(seed, offset)| DrawKey { seed, offset, stream: 0, row: 0 });
/// let requests = Draws::from_keys(&keys, &device)?;
/// assert_eq!((draws.len(), requests.len()), (4, 2));
/// // The same for the tokens that come next, without another copy from the host than that of the positions.
/// let next = requests.at(&Positions::new(&[18, 6], &device)?)?;
/// # let _ = next;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Draws {
    len: usize,
    /// One past the largest row.
    rows: usize,
    /// Draw `i` is from row `i`.
    in_order: bool,
    /// `len · DRAW_WORDS` words, or nothing of use if there is no draw.
    pub(crate) tensor: Tensor<1, Int>,
}

impl Draws {
    /// A draw from each of `rows` rows, whose stream is the number of the row.
    ///
    /// # Errors
    ///
    /// If `rows` passes `i32::MAX`, or the host has no memory for so many.
    pub fn new(seed: u64, offset: u64, rows: usize, device: &Device) -> Result<Self> {
        index("Draws::new", "rows", 0, rows)?;
        let row_bytes = size_of::<DrawKey>() + DRAW_WORDS * size_of::<i32>();
        memory::on_host("Draws::new", "rows", memory::bytes([rows, row_bytes]))?;
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
        let tensor = upload(words_of("Draws::from_keys", keys)?, device);
        Ok(Self { len: keys.len(), rows: rows_of(keys), in_order: are_in_order(keys), tensor })
    }

    /// These draws with positions for their offsets, one for each.
    ///
    /// They are put together on the device, so that a step that is captured as a graph draws anew at every replay: at
    /// [`DecodeStep::positions`](crate::DecodeStep::positions).
    ///
    /// # Errors
    ///
    /// If there is not one position for each draw, or they are on another device.
    pub fn at(&self, positions: &Positions) -> Result<Self> {
        const OP: &str = "Draws::at";
        if positions.len() != self.len {
            return Err(Error::Value {
                op: OP,
                argument: "positions",
                got: format!("{} positions", positions.len()),
                expected: format!("one for each of {} draws", self.len),
            });
        }
        same_device(OP, "positions", &positions.tensor.device(), &self.tensor.device())?;
        if self.is_empty() {
            return Ok(self.clone());
        }
        let words = self.words();
        let low = positions.tensor.clone().reshape([self.len, 1]);
        let high = low.zeros_like();
        let (before, row) = (words.clone().narrow(1, 0, OFFSET), words.narrow(1, ROW, 1));
        let tensor = Tensor::cat(vec![before, low, high, row], 1).reshape([self.len * DRAW_WORDS]);
        Ok(Self { tensor, ..self.clone() })
    }

    /// Makes these others: as many, and from none but the same rows. On devices that capture graphs in place, so that a
    /// captured step that draws them draws the others from then on.
    ///
    /// # Errors
    ///
    /// If there are not as many keys, or they name rows that the draws so far do not reach, or, if those were
    /// one from each row in order, are not.
    pub fn update(&mut self, keys: &[DrawKey]) -> Result<()> {
        const OP: &str = "Draws::update";
        let words = words_of(OP, keys)?;
        let is_as_ordered = are_in_order(keys) || !self.in_order;
        if keys.len() != self.len || rows_of(keys) > self.rows || !is_as_ordered {
            let order = if self.in_order { ", one from each in order" } else { "" };
            return Err(Error::Value {
                op: OP,
                argument: "keys",
                got: format!("{} draws from {} rows", keys.len(), rows_of(keys)),
                expected: format!("{} from {}{order}, as before", self.len, self.rows),
            });
        }
        if !self.is_empty() {
            self.tensor = write_ints(self.tensor.extract(), words);
        }
        Ok(())
    }

    /// The number of draws.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no token is drawn.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that they are on.
    pub fn device(&self) -> Device {
        self.tensor.device()
    }

    /// `[len, DRAW_WORDS]`.
    pub(crate) fn words(&self) -> Tensor<2, Int> {
        self.tensor.clone().reshape([self.len, DRAW_WORDS])
    }

    /// True if there is one draw from each of `rows` rows, in order.
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

/// The words of draws, one after the other.
fn words_of(op: &'static str, keys: &[DrawKey]) -> Result<Vec<i32>> {
    let mut words = Vec::with_capacity(keys.len() * DRAW_WORDS);
    for (at, key) in keys.iter().enumerate() {
        let row = index(op, "keys", at, key.row)?;
        let [seed, offset] = [key.seed, key.offset].map(|word| [word as i32, (word >> 32) as i32]);
        words.extend([seed[0], seed[1], key.stream as i32, offset[0], offset[1], row]);
    }
    Ok(words)
}

/// One past the largest row.
fn rows_of(keys: &[DrawKey]) -> usize {
    keys.iter().map(|key| key.row.saturating_add(1)).max().unwrap_or(0)
}

/// True if draw `i` is from row `i`.
fn are_in_order(keys: &[DrawKey]) -> bool {
    keys.iter().enumerate().all(|(at, key)| key.row == at)
}
