//! Blocks of variable sizes, of each key head.

use std::fmt;

use burn::tensor::{Device, Tensor};

use super::heads::{HeadOrder, join_heads, of_one_head, split_heads};
use crate::attention::inputs::VariantInputs;
use crate::attention::output::AttentionOutput;
use crate::attention::plan::{Contiguous, KeysOf, PlanConfig, Requests, Schedule};
use crate::cache::PageTable;
use crate::check::{Floats, shape};
use crate::error::{Error, Result};
use crate::indptr::index;
use crate::memory;
use crate::types::KvLayout;

/// A mask of queries and keys in blocks of variable sizes, for each key head.
///
/// Block row `i` of head `h` has `row_sizes[h, i]` queries, block column `j` `column_sizes[h, j]` keys, and the queries see
/// the keys if `blocks[h, i, j]` is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariableBlockMask {
    blocks: Vec<bool>,
    row_sizes: Vec<usize>,
    column_sizes: Vec<usize>,
    kv_heads: usize,
    rows: usize,
    columns: usize,
}

impl VariableBlockMask {
    /// Checks a mask of `blocks` `[kv_heads, block_rows, block_columns]`, `row_sizes` `[kv_heads, block_rows]` and
    /// `column_sizes` `[kv_heads, block_columns]`.
    ///
    /// # Errors
    ///
    /// If a list is of another length; if the heads do not all have as many queries and as many keys; if there are none of
    /// either, or more than an `i32` counts.
    pub fn new(
        blocks: &[bool],
        row_sizes: &[usize],
        column_sizes: &[usize],
        kv_heads: usize,
    ) -> Result<Self> {
        const OP: &str = "VariableBlockMask::new";
        let refused =
            |argument, got: String, expected: String| Error::Value { op: OP, argument, got, expected };
        if kv_heads == 0 {
            return Err(refused("kv_heads", "0".into(), "at least 1".into()));
        }
        let extent = |argument, sizes: &[usize]| -> Result<usize> {
            if sizes.is_empty() || !sizes.len().is_multiple_of(kv_heads) {
                let got = format!("of length {}", sizes.len());
                let expected = format!("as many sizes, at least one, for each of {kv_heads} heads");
                return Err(refused(argument, got, expected));
            }
            let of_head =
                |sizes: &[usize]| sizes.iter().fold(0, |all: usize, &size| all.saturating_add(size));
            let mut all = sizes.chunks(sizes.len() / kv_heads).map(of_head);
            let first = all.next().unwrap_or(0);
            index(OP, argument, 0, first.saturating_mul(kv_heads))?;
            if let Some(other) = all.find(|&other| other != first) {
                let got = format!("{other} of a head in total");
                return Err(refused(argument, got, format!("{first}, as of head 0")));
            }
            if first == 0 {
                return Err(refused(argument, "0 in total".into(), "at least 1".into()));
            }
            Ok(first)
        };
        let (rows, columns) = (extent("row_sizes", row_sizes)?, extent("column_sizes", column_sizes)?);
        let expected = row_sizes.len().saturating_mul(column_sizes.len() / kv_heads);
        if blocks.len() != expected {
            let got = format!("of length {}", blocks.len());
            return Err(refused("blocks", got, format!("{expected}, a bool for each block")));
        }
        let [row_sizes, column_sizes] = [row_sizes, column_sizes].map(<[usize]>::to_vec);
        Ok(Self { blocks: blocks.to_vec(), row_sizes, column_sizes, kv_heads, rows, columns })
    }

    /// Rows and columns: queries and keys.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The number of key heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// The keys of each block row of each head as pages of one key of one head.
    fn table(&self, op: &'static str, layout: KvLayout, device: &Device) -> Result<PageTable> {
        let (heads, columns) = (self.kv_heads, self.columns);
        let [block_rows, block_columns] =
            [&self.row_sizes, &self.column_sizes].map(|sizes| sizes.len() / heads);
        let keys_of = |row: usize| {
            let sizes = &self.column_sizes[row / block_rows * block_columns..][..block_columns];
            let seen = &self.blocks[row * block_columns..][..block_columns];
            let mut end = 0;
            sizes.iter().zip(seen).filter_map(move |(size, &seen)| {
                end += size;
                seen.then_some(end - size..end)
            })
        };
        let all = (0..block_rows * heads).flat_map(keys_of);
        let entries = all.fold(0, |all: usize, keys| all.saturating_add(keys.len()));
        let mut indices = memory::list(op, "mask", entries)?;
        let (mut indptr, mut last_page_len) = (vec![0], vec![]);
        for row in 0..block_rows * heads {
            let (head, first) = (row / block_rows, indices.len());
            indices.extend(keys_of(row).flatten().map(|key| match layout {
                KvLayout::Nhd => key * heads + head,
                KvLayout::Hnd => head * columns + key,
            }));
            indptr.push(indices.len());
            last_page_len.push(usize::from(indices.len() > first));
        }
        PageTable::trusted(op, indptr, indices, &last_page_len, 1, device)
    }

    /// First query of each block row of each head, and the end.
    fn qo_indptr(&self) -> Vec<usize> {
        let mut end = 0;
        let ends = self.row_sizes.iter().map(|size| {
            end += size;
            end
        });
        std::iter::once(0).chain(ends).collect()
    }
}

/// The work partitioning of attention over a [`VariableBlockMask`]: made once, run by every layer.
///
/// Each block row of each key head is a request, over single keys. Queries and outputs are copied once each, unless there is
/// one key head. (FlashInfer's `VariableBlockSparseAttentionWrapper`.)
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{PlanConfig, VariableBlockMask, VariableBlockSparsePlan};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // Head 0: 3 and 5 queries, 4 and 8 keys; head 1: 7 and 1 queries, 6 and 6 keys.
/// let blocks = [true, false, true, true, false, true, true, true];
/// let mask = VariableBlockMask::new(&blocks, &[3, 5, 7, 1], &[4, 8, 6, 6], 2)?;
/// let plan = VariableBlockSparsePlan::new(&PlanConfig::new(8, 2, 64, DType::F32), &mask, &device)?;
/// let q = Tensor::<3>::random([8, 8, 64], Distribution::Default, &device);
/// let k = Tensor::<3>::random([12, 2, 64], Distribution::Default, &device);
/// assert_eq!(plan.run(q, k.clone(), k)?.output.dims(), [8, 8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct VariableBlockSparsePlan {
    config: PlanConfig,
    /// The settings of a request: one key head.
    of_head: PlanConfig,
    schedule: Schedule,
    shape: [usize; 2],
}

impl VariableBlockSparsePlan {
    /// Plans attention of the queries and keys of `mask`.
    ///
    /// Causal masks and windows count the keys that a block row has: its last query is at its last key.
    ///
    /// # Errors
    ///
    /// If `config` is not one that the device can take, has other heads or a variant; if a causal mask is asked for, and a
    /// block row has fewer keys than queries.
    pub fn new(config: &PlanConfig, mask: &VariableBlockMask, device: &Device) -> Result<Self> {
        const OP: &str = "VariableBlockSparsePlan::new";
        config.check_numbers(OP, device)?;
        let of_head = of_one_head(OP, config, device)?;
        if config.kv_heads != mask.kv_heads {
            let (got, expected) =
                (config.kv_heads.to_string(), format!("{}, as `mask` has it", mask.kv_heads));
            return Err(Error::Value { op: OP, argument: "kv_heads", got, expected });
        }
        let layout = config.options.kv_layout.unwrap_or_default();
        let (rows, table) = (mask.qo_indptr(), mask.table(OP, layout, device)?);
        let requests = Requests { qo_indptr: &rows, kv: KeysOf::Paged(&table) };
        for (row, (queries, keys)) in requests.lengths().enumerate() {
            of_head.check_causal(OP, row, queries, keys)?;
        }
        let schedule = Schedule::new(OP, &of_head, requests, device)?.with_workspace(&of_head);
        Ok(Self { config: config.clone(), of_head, schedule, shape: mask.shape() })
    }

    /// Attention of `q` `[rows, q_heads, head_dim]` over `k` `[columns, kv_heads, head_dim]` and `v` `[columns, kv_heads,
    /// head_dim_v]`, or with heads before tokens ([`AttentionOptions::kv_layout`](crate::AttentionOptions::kv_layout)).
    /// Contiguous keys and values are not copied.
    ///
    /// # Errors
    ///
    /// As [`RaggedPlan::run`](crate::RaggedPlan::run).
    pub fn run(&self, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Result<AttentionOutput> {
        const OP: &str = "VariableBlockSparsePlan::run";
        let Self { config, of_head, schedule, shape: [rows, columns] } = self;
        let heads = config.kv_heads;
        let by_token = |tokens: usize, dim: usize| match config.options.kv_layout.unwrap_or_default() {
            KvLayout::Nhd => [tokens, heads, dim],
            KvLayout::Hnd => [heads, tokens, dim],
        };
        for (argument, got, planned) in [
            ("q", q.dims(), [*rows, config.q_heads, config.head_dim]),
            ("k", k.dims(), by_token(*columns, config.head_dim)),
            ("v", v.dims(), by_token(*columns, config.head_dim_v)),
        ] {
            if got != planned {
                return Err(shape(OP, argument, &got, format!("{planned:?}, as planned")));
            }
        }
        let floats = Floats::first(OP, "q", &q)?;
        floats.like("k", &k)?;
        floats.like("v", &v)?;
        let (tokens, keys) = (rows * heads, columns * heads);
        let [k, v] = [(k, config.head_dim), (v, config.head_dim_v)].map(|(x, dim)| x.reshape([keys, 1, dim]));
        let q = split_heads(q, heads, HeadOrder::HeadsFirst);
        let planned = Contiguous { op: OP, config: of_head, schedule, tokens, keys };
        let attended = planned.run(q, k.into(), v.into(), VariantInputs::new())?;
        Ok(join_heads(attended, heads, HeadOrder::HeadsFirst))
    }

    /// Bytes on the device that the plan holds for partial results; nothing that a caller must size.
    pub fn workspace_bytes(&self) -> usize {
        self.schedule.workspace_bytes()
    }

    /// The blueprint, the work partitioning, and its balance.
    pub fn explain(&self) -> impl fmt::Display {
        self.schedule.explain()
    }
}
