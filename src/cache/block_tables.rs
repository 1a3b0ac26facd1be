//! Page tables as engines keep them: a padded row of pages for each request, and its length.

use std::collections::HashSet;

use burn::tensor::{Device, Int, Tensor, Transaction};

use super::page_table::PageTable;
use crate::check::{self, same_device, shape};
use crate::error::{Error, Result};
use crate::ints::saturated;

/// The pages of padded rows without the padding, in compressed sparse rows.
#[derive(Debug, Clone)]
pub(crate) struct BlockRows {
    pub indptr: Vec<usize>,
    pub indices: Vec<usize>,
    pub last_page_len: Vec<usize>,
}

impl BlockRows {
    /// Checks `block_tables` `[requests, max_pages]` and `seq_lens` `[requests]` against a pool. Padding is not read.
    pub(crate) fn new(
        op: &'static str,
        block_tables: &[i32],
        seq_lens: &[i32],
        [page_size, pages]: [usize; 2],
    ) -> Result<Self> {
        let value = |argument, got: String, expected: &str| {
            Err(Error::Value { op, argument, got, expected: expected.into() })
        };
        if page_size == 0 {
            return value("page_size", "0".into(), "at least 1");
        }
        if seq_lens.is_empty() {
            return value("seq_lens", "empty".into(), "the length of each request, of at least one");
        }
        if !block_tables.len().is_multiple_of(seq_lens.len()) {
            let got = format!("of length {}", block_tables.len());
            return value("block_tables", got, &format!("{} rows of the same length", seq_lens.len()));
        }
        let max_pages = block_tables.len() / seq_lens.len();
        let refuse = |argument, at, got: i32, expected: String| {
            Err(Error::Index { op, argument, at, got: got.to_string(), expected })
        };
        let (mut indptr, mut indices, mut last_page_len) = (vec![0], vec![], vec![]);
        let mut seen = HashSet::new();
        for (request, &len) in seq_lens.iter().enumerate() {
            let room = max_pages.saturating_mul(page_size);
            let Some(tokens) = usize::try_from(len).ok().filter(|&tokens| tokens <= room) else {
                return refuse(
                    "seq_lens",
                    request,
                    len,
                    format!("0 to {room}, the room of {max_pages} pages"),
                );
            };
            seen.clear();
            let first = request * max_pages;
            let owned = &block_tables[first..first + tokens.div_ceil(page_size)];
            for (at, &page) in (first..).zip(owned) {
                let Some(index) = usize::try_from(page).ok().filter(|&index| index < pages) else {
                    return refuse("block_tables", at, page, format!("a page of the pool, below {pages}"));
                };
                if !seen.insert(index) {
                    let expected = format!("a page that row {request} does not have already");
                    return refuse("block_tables", at, page, expected);
                }
                indices.push(index);
            }
            indptr.push(indices.len());
            last_page_len.push(if tokens == 0 { 0 } else { (tokens - 1) % page_size + 1 });
        }
        Ok(Self { indptr, indices, last_page_len })
    }
}

impl PageTable {
    /// A page table of rows as engines keep them: request `r` has `seq_lens[r]` tokens in the first pages of row `r` of
    /// `block_tables` `[requests, max_pages]`.
    ///
    /// Entries behind these pages are not read, and may be anything. A request may have no tokens, as the ones that fill up
    /// the batch of a graph: its output is 0. (The `block_tables` and `seq_lens` of FlashInfer's
    /// `trtllm_batch_decode_with_kv_cache`, and of vLLM.)
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_flashinfer::PageTable;
    ///
    /// # fn main() -> burn_flashinfer::Result<()> {
    /// let block_tables = [[7, 0, 2], [5, -1, -1], [-1, -1, -1]];
    /// let table = PageTable::from_block_tables(block_tables.as_flattened(), &[10, 1, 0], 4, 8, &Device::default())?;
    /// assert_eq!(table.kv_lengths(), [10, 1, 0]);
    /// assert_eq!(table.pages(0), [7, 0, 2]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no request; if the rows are not of one length; if a request has more tokens than its row has room for, or
    /// fewer than 0; if one of its pages is outside the pool, or comes twice.
    pub fn from_block_tables(
        block_tables: &[i32],
        seq_lens: &[i32],
        page_size: usize,
        pages: usize,
        device: &Device,
    ) -> Result<Self> {
        Self::of_block_tables(
            "PageTable::from_block_tables",
            block_tables,
            seq_lens,
            [page_size, pages],
            device,
        )
    }

    /// [`from_block_tables`](Self::from_block_tables) of tensors on the device of the pages.
    ///
    /// A plan is made on the host, so this reads both back, in one transfer, and waits for it. An engine that has the two
    /// on the host saves that.
    ///
    /// # Errors
    ///
    /// As [`from_block_tables`](Self::from_block_tables), and if shapes or devices do not fit each other, or the device
    /// does not hand them out.
    pub fn read_block_tables(
        block_tables: Tensor<2, Int>,
        seq_lens: Tensor<1, Int>,
        page_size: usize,
        pages: usize,
    ) -> Result<Self> {
        const OP: &str = "PageTable::read_block_tables";
        let device = block_tables.device();
        check::device(OP, "block_tables", &device)?;
        same_device(OP, "seq_lens", &seq_lens.device(), &device)?;
        let [requests, max_pages] = block_tables.dims();
        if seq_lens.dims() != [requests] {
            let expected = format!("[{requests}], a length for each row of `block_tables`");
            return Err(shape(OP, "seq_lens", &seq_lens.dims(), expected));
        }
        if requests == 0 || max_pages == 0 {
            return Err(shape(
                OP,
                "block_tables",
                &[requests, max_pages],
                "at least one request and one page",
            ));
        }
        let both = Transaction::default().register(saturated(block_tables)).register(saturated(seq_lens));
        let failed = |got: String| Error::Read {
            op: OP,
            argument: "block_tables",
            got,
            expected: "pages and lengths".into(),
        };
        let read = both.try_execute().map_err(|error| failed(error.to_string()))?;
        let lists: Vec<Vec<i32>> = read.iter().map(|data| data.iter::<i32>().collect()).collect();
        let [block_tables, seq_lens] = &lists[..] else {
            return Err(failed(format!("{} tensors", lists.len())));
        };
        Self::of_block_tables(OP, block_tables, seq_lens, [page_size, pages], &device)
    }

    fn of_block_tables(
        op: &'static str,
        block_tables: &[i32],
        seq_lens: &[i32],
        pool: [usize; 2],
        device: &Device,
    ) -> Result<Self> {
        let BlockRows { indptr, indices, last_page_len } = BlockRows::new(op, block_tables, seq_lens, pool)?;
        Self::trusted(op, indptr, indices, &last_page_len, pool[0], device)
    }
}
