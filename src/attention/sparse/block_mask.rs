//! Masks of blocks of queries and keys.

use std::collections::HashSet;

use burn::tensor::Device;

use crate::cache::PageTable;
use crate::error::{Error, Result};
use crate::indptr::{index, row_pointer};

/// A mask of queries and keys in blocks, in compressed sparse rows (BSR).
///
/// It is `[rows, columns]` in blocks of `[block_rows, block_columns]`: each query of block row `r` sees the keys of the
/// block columns `indices[indptr[r]..indptr[r + 1]]`, and no others. The last block row may be a part of one.
///
/// ```
/// use burn_flashinfer::BlockMask;
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// // 5 queries and 12 keys in blocks of 2 x 4: the queries 0 and 1 see all keys but 4 to 7, 2 and 3 none, 4 the last 4.
/// let mask = BlockMask::new([5, 12], [2, 4], &[0, 2, 2, 3], &[0, 2, 2])?;
/// assert_eq!(mask.blocks(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMask {
    shape: [usize; 2],
    block: [usize; 2],
    indptr: Vec<usize>,
    indices: Vec<usize>,
}

impl BlockMask {
    /// Checks a mask of `indptr` `[⌈rows / block_rows⌉ + 1]` and `indices` `[indptr[⌈rows / block_rows⌉]]`.
    ///
    /// # Errors
    ///
    /// If an extent is 0 or more than an `i32`; if `columns` is not a multiple of `block_columns`; if `indptr` is of another
    /// length, does not start at 0, falls, or does not end at the length of `indices`; if a block is outside the mask, or
    /// twice in a row.
    pub fn new(shape: [usize; 2], block: [usize; 2], indptr: &[usize], indices: &[usize]) -> Result<Self> {
        const OP: &str = "BlockMask::new";
        for (argument, extents) in [("shape", shape), ("block", block)] {
            for (at, extent) in extents.into_iter().enumerate() {
                index(OP, argument, at, extent)?;
                if extent == 0 {
                    let (got, expected) = ("0".into(), "at least 1".into());
                    return Err(Error::Index { op: OP, argument, at, got, expected });
                }
            }
        }
        let [[rows, columns], [block_rows, block_columns]] = [shape, block];
        if !columns.is_multiple_of(block_columns) {
            let expected = format!("a divisor of the {columns} columns");
            return Err(Error::Index {
                op: OP,
                argument: "block",
                at: 1,
                got: block_columns.to_string(),
                expected,
            });
        }
        row_pointer(OP, "indptr", indptr)?;
        let row_count = rows.div_ceil(block_rows);
        if indptr.len() != row_count + 1 {
            let (got, expected) =
                (format!("of length {}", indptr.len()), format!("one more than {row_count} block rows"));
            return Err(Error::Value { op: OP, argument: "indptr", got, expected });
        }
        if indptr[row_count] != indices.len() {
            let (got, expected) =
                (indptr[row_count].to_string(), format!("{}, the length of `indices`", indices.len()));
            return Err(Error::Index { op: OP, argument: "indptr", at: row_count, got, expected });
        }
        let column_count = columns / block_columns;
        for (row, bounds) in indptr.windows(2).enumerate() {
            let mut seen = HashSet::new();
            for (at, &column) in indices.iter().enumerate().take(bounds[1]).skip(bounds[0]) {
                let expected = if column >= column_count {
                    format!("a block column, below {column_count}")
                } else if !seen.insert(column) {
                    format!("a block column that block row {row} does not have already")
                } else {
                    continue;
                };
                return Err(Error::Index {
                    op: OP,
                    argument: "indices",
                    at,
                    got: column.to_string(),
                    expected,
                });
            }
        }
        Ok(Self { shape, block, indptr: indptr.to_vec(), indices: indices.to_vec() })
    }

    /// The number of blocks that are seen.
    pub fn blocks(&self) -> usize {
        self.indices.len()
    }

    /// Rows and columns: queries and keys.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Rows and columns of a block.
    pub fn block(&self) -> [usize; 2] {
        self.block
    }

    /// The block rows: the queries and the blocks of each, in order.
    pub(super) fn block_rows(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + '_ {
        let [rows, block_rows] = [self.shape[0], self.block[0]];
        let blocks = self.indptr.windows(2).map(|bounds| bounds[0]..bounds[1]);
        blocks.enumerate().map(move |(row, blocks)| (block_rows.min(rows - row * block_rows), blocks))
    }

    /// The keys as pages: a block column each.
    pub(super) fn table(&self, op: &'static str, device: &Device) -> Result<PageTable> {
        let block_columns = self.block[1];
        let last: Vec<usize> =
            self.block_rows().map(|(_, blocks)| if blocks.is_empty() { 0 } else { block_columns }).collect();
        PageTable::trusted(op, self.indptr.clone(), self.indices.clone(), &last, block_columns, device)
    }

    /// First query of each block row, and the end.
    pub(super) fn qo_indptr(&self) -> Vec<usize> {
        (0..self.indptr.len()).map(|row| (row * self.block[0]).min(self.shape[0])).collect()
    }
}
