//! Plans over pages that are chosen for each key head.

use std::fmt;

use burn::tensor::{Device, Tensor};

use super::heads::{HeadOrder, join_heads, of_one_head, split_heads};
use crate::attention::inputs::VariantInputs;
use crate::attention::output::AttentionOutput;
use crate::attention::plan::{PagedPlan, PlanConfig, decode_rows};
use crate::cache::{BlockRows, KvPages, PageTable};
use crate::check::{Floats, same_device, shape};
use crate::error::{Error, Result};
use crate::indptr::{Indptr, index};
use crate::memory;
use crate::types::KvLayout;

/// The pages of each request that are chosen for each key head.
///
/// Engines choose them by a bound of the scores of a page's keys (Quest, <https://arxiv.org/abs/2406.10774>).
#[derive(Debug, Clone)]
pub struct HeadPageTable {
    /// A row for each request of the first key head, then of the next.
    rows: BlockRows,
    kv_heads: usize,
    page_size: usize,
    device: Device,
}

impl HeadPageTable {
    /// Checks `block_tables` `[kv_heads, requests, max_pages]` and `seq_lens` `[kv_heads, requests]` against a pool of `pages`
    /// pages of `page_size` tokens on `device`.
    ///
    /// The chosen pages of a row come first, in the order of their tokens, and are full but the last. `seq_lens` has the tokens
    /// in them. What is behind them is not read.
    ///
    /// # Errors
    ///
    /// As [`PageTable::from_block_tables`], and if `seq_lens` is not of whole heads.
    pub fn new(
        block_tables: &[i32],
        seq_lens: &[i32],
        kv_heads: usize,
        page_size: usize,
        pages: usize,
        device: &Device,
    ) -> Result<Self> {
        const OP: &str = "HeadPageTable::new";
        if kv_heads == 0 || !seq_lens.len().is_multiple_of(kv_heads) {
            let (got, expected) =
                (kv_heads.to_string(), format!("a divisor of the {} lengths", seq_lens.len()));
            return Err(Error::Value { op: OP, argument: "kv_heads", got, expected });
        }
        let rows = BlockRows::new(OP, block_tables, seq_lens, [page_size, pages])?;
        Ok(Self { rows, kv_heads, page_size, device: device.clone() })
    }

    /// The number of requests.
    pub fn requests(&self) -> usize {
        self.rows.last_page_len.len() / self.kv_heads
    }

    /// The number of key heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// The least number of pages of a pool for this table.
    fn pages_needed(&self) -> usize {
        self.rows.indices.iter().max().map_or(0, |page| page + 1)
    }

    /// The table of a request for each key head, over pages of one head each: in HND those of the pool, in NHD single tokens.
    fn of_one_head(&self, op: &'static str, order: HeadOrder, layout: KvLayout) -> Result<PageTable> {
        let (requests, heads) = (self.requests(), self.kv_heads);
        let page_size = if layout == KvLayout::Hnd { self.page_size } else { 1 };
        let entries = self.rows.indices.len().saturating_mul(self.page_size / page_size);
        let mut indices = memory::list(op, "table", entries)?;
        let (mut indptr, mut last_page_len) = (vec![0], vec![]);
        for at in 0..requests * heads {
            let (head, request) = match order {
                HeadOrder::TokensFirst => (at % heads, at / heads),
                HeadOrder::HeadsFirst => (at / requests, at % requests),
            };
            let row = head * requests + request;
            let pages = &self.rows.indices[self.rows.indptr[row]..self.rows.indptr[row + 1]];
            let last = self.rows.last_page_len[row];
            let of_head = |place: usize| place.saturating_mul(heads).saturating_add(head);
            for (page, &number) in pages.iter().enumerate() {
                if layout == KvLayout::Hnd {
                    indices.push(of_head(number));
                } else {
                    let tokens = if page + 1 == pages.len() { last } else { self.page_size };
                    let first = number.saturating_mul(self.page_size);
                    indices.extend((first..first.saturating_add(tokens)).map(of_head));
                }
            }
            indptr.push(indices.len());
            last_page_len.push(last.min(page_size));
        }
        PageTable::trusted(op, indptr, indices, &last_page_len, page_size, &self.device)
    }
}

/// The work partitioning of attention over pages that are chosen for each key head: made once for a choice, run by the layers
/// that share it.
///
/// Each key head of a request is a request over the pages of that head, which are a view of the pool.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{
///     AttentionOptions, HeadPageTable, HeadPagesPlan, KvLayout, KvPages, PlanConfig,
/// };
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // Of one request: head 0 sees the pages 4 and 2 (its last, with 7 tokens), head 1 page 2 alone.
/// let table = HeadPageTable::new(&[4, 2, 2, -1], &[23, 7], 2, 16, 8, &device)?;
/// let options = AttentionOptions::new().kv_layout(KvLayout::Hnd);
/// let plan = HeadPagesPlan::decode(&PlanConfig::new(8, 2, 64, DType::F32).options(options), &table)?;
/// let q = Tensor::<3>::random([1, 8, 64], Distribution::Default, &device);
/// let pool = Tensor::<4>::random([8, 2, 16, 64], Distribution::Default, &device);
/// let pages = KvPages::new(pool.clone(), pool, KvLayout::Hnd)?;
/// assert_eq!(plan.run(q, &pages)?.output.dims(), [1, 8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct HeadPagesPlan {
    plan: PagedPlan,
    config: PlanConfig,
    order: HeadOrder,
    tokens: usize,
    page_size: usize,
    pages_needed: usize,
}

impl HeadPagesPlan {
    /// Plans a batch: request `r` has the query tokens `qo_indptr[r]..qo_indptr[r + 1]`. Queries and outputs are copied once
    /// each, unless every request has one.
    ///
    /// Pages are in the order of [`AttentionOptions::kv_layout`](crate::AttentionOptions::kv_layout), NHD unless set; HND reads
    /// whole pages, NHD single tokens. A causal mask and a window count the chosen keys: the last query is at the last of them.
    ///
    /// # Errors
    ///
    /// If `config` is not one that the device can take, or has a variant; if row pointer, table and `config` do not fit each
    /// other, or the mask (a causal one wants at least as many keys as queries).
    pub fn new(config: &PlanConfig, qo_indptr: &Indptr, table: &HeadPageTable) -> Result<Self> {
        const OP: &str = "HeadPagesPlan::new";
        same_device(OP, "qo_indptr", &qo_indptr.device(), &table.device)?;
        Self::of(OP, config, qo_indptr.as_slice(), table)
    }

    /// Plans a batch of requests with one query token each.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn decode(config: &PlanConfig, table: &HeadPageTable) -> Result<Self> {
        Self::of("HeadPagesPlan::decode", config, &decode_rows(table.requests()), table)
    }

    fn of(op: &'static str, config: &PlanConfig, rows: &[usize], table: &HeadPageTable) -> Result<Self> {
        let of_head = of_one_head(op, config, &table.device)?;
        let (requests, heads) = (table.requests(), table.kv_heads);
        if heads != config.kv_heads {
            let (got, expected) = (config.kv_heads.to_string(), format!("{heads}, as `table` has it"));
            return Err(Error::Value { op, argument: "kv_heads", got, expected });
        }
        if rows.len() != requests + 1 {
            let (got, expected) =
                (format!("of {} requests", rows.len() - 1), format!("of {requests} requests, as `table`"));
            return Err(Error::Value { op, argument: "qo_indptr", got, expected });
        }
        let tokens = rows[requests];
        index(op, "qo_indptr", requests, tokens.saturating_mul(heads))?;
        let decodes = rows.windows(2).all(|rows| rows[1] - rows[0] == 1);
        let order = if decodes { HeadOrder::TokensFirst } else { HeadOrder::HeadsFirst };
        let rows: Vec<usize> = match order {
            HeadOrder::TokensFirst => decode_rows(requests * heads),
            HeadOrder::HeadsFirst => {
                let ends = (0..heads).flat_map(|head| rows[1..].iter().map(move |end| head * tokens + end));
                std::iter::once(0).chain(ends).collect()
            }
        };
        let layout = config.options.kv_layout.unwrap_or_default();
        let plan = PagedPlan::of(op, &of_head, &rows, &table.of_one_head(op, order, layout)?)?;
        let (page_size, pages_needed) = (table.page_size, table.pages_needed());
        Ok(Self { plan, config: config.clone(), order, tokens, page_size, pages_needed })
    }

    /// Attention of `q` `[tokens, q_heads, head_dim]`, the query tokens of all requests one after the other, over the
    /// chosen keys and values of one layer. The pages are a view if the pool is contiguous, and else a copy.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::run`], and if the pages are of codes with a scale for each key head.
    pub fn run(&self, q: Tensor<3>, pages: &KvPages) -> Result<AttentionOutput> {
        const OP: &str = "HeadPagesPlan::run";
        let (config, pool) = (&self.config, pages.shape());
        let layout = config.options.kv_layout.unwrap_or_default();
        pages.check_beside(&Floats::first(OP, "q", &q)?)?;
        let planned = [self.tokens, config.q_heads, config.head_dim];
        if q.dims() != planned {
            return Err(shape(OP, "q", &q.dims(), format!("{planned:?}, as planned")));
        }
        let planned = (config.kv_heads, config.head_dim, config.head_dim_v, self.page_size);
        let found = (pool.kv_heads, pool.k_dim, pool.v_dim, pool.page_size);
        if pages.layout() != layout || found != planned || pool.pages < self.pages_needed {
            let (heads, k_dim, v_dim, page_size) = planned;
            let (k, v) = pages.dims();
            let got = format!("{k:?} {} and {v:?}", pages.layout());
            let expected = format!(
                "{layout}, at least {} pages of {page_size} tokens, {heads} heads of {k_dim} elements (values of {v_dim}), \
                 as planned",
                self.pages_needed
            );
            return Err(Error::Shape { op: OP, argument: "pages", got, expected });
        }
        let (count, tokens) = match layout {
            KvLayout::Hnd => (pool.pages * pool.kv_heads, pool.page_size),
            KvLayout::Nhd => (pool.pages * pool.page_size * pool.kv_heads, 1),
        };
        let of_heads = pages.viewed(OP, [count, 1, tokens], KvLayout::Hnd)?;
        let q = split_heads(q, config.kv_heads, self.order);
        let attended = self.plan.run_as(OP, q, &of_heads, VariantInputs::new())?;
        Ok(join_heads(attended, config.kv_heads, self.order))
    }

    /// Bytes on the device that the plan holds for partial results; nothing that a caller must size.
    pub fn workspace_bytes(&self) -> usize {
        self.plan.workspace_bytes()
    }

    /// The blueprint, the work partitioning, and its balance.
    pub fn explain(&self) -> impl fmt::Display {
        self.plan.explain()
    }
}
