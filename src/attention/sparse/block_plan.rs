//! Plans over blocks of queries and keys.

use std::fmt;

use burn::tensor::{Bool, Device, Int, Tensor};

use super::block_mask::BlockMask;
use crate::attention::inputs::VariantInputs;
use crate::attention::kv_tensor::KvTensor;
use crate::attention::mask::{MaskBits, check_packed};
use crate::attention::output::AttentionOutput;
use crate::attention::plan::{Contiguous, KeysOf, PlanConfig, Requests, Schedule};
use crate::check::{self, same_device, shape};
use crate::error::{Error, Result};
use crate::ops::unpackbits;
use crate::types::BitOrder;

/// The work partitioning of block-sparse attention: made once for a [`BlockMask`], run by every layer.
///
/// It is paged prefill: each block row is a request, whose pages are its block columns. Keys and values are read where they
/// are. A query of an empty block row gets 0, and an LSE of `-inf`. With `block_columns` of 1 every key is chosen by itself
/// (vector sparse). (FlashInfer's `BlockSparseAttentionWrapper`.)
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{BlockMask, BlockSparsePlan, PlanConfig};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let mask = BlockMask::new([32, 64], [16, 16], &[0, 2, 3], &[0, 3, 1])?;
/// let plan = BlockSparsePlan::new(&PlanConfig::new(8, 2, 64, DType::F32), &mask, &device)?;
/// let q = Tensor::<3>::random([32, 8, 64], Distribution::Default, &device);
/// let k = Tensor::<3>::random([64, 2, 64], Distribution::Default, &device);
/// assert_eq!(plan.run(q, k.clone(), k)?.output.dims(), [32, 8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct BlockSparsePlan {
    config: PlanConfig,
    schedule: Schedule,
    mask: BlockMask,
}

impl BlockSparsePlan {
    /// Plans attention of the queries and keys of `mask`.
    ///
    /// Causal masks and windows count the keys that a block row has: its last query is at its last key.
    ///
    /// # Errors
    ///
    /// If `config` is not one that the device can take; if a causal mask is asked for, and a block row has fewer keys than
    /// queries.
    pub fn new(config: &PlanConfig, mask: &BlockMask, device: &Device) -> Result<Self> {
        const OP: &str = "BlockSparsePlan::new";
        config.check(OP, device)?;
        let (rows, table) = (mask.qo_indptr(), mask.table(OP, device)?);
        let requests = Requests { qo_indptr: &rows, kv: KeysOf::Paged(&table) };
        for (row, (queries, keys)) in requests.lengths().enumerate() {
            config.check_causal(OP, row, queries, keys)?;
        }
        let schedule = Schedule::new(OP, config, requests, device)?.with_workspace(config);
        Ok(Self { config: config.clone(), schedule, mask: mask.clone() })
    }

    /// Attention of `q` `[rows, q_heads, head_dim]` over `k` `[columns, kv_heads, head_dim]` and `v` `[columns, kv_heads,
    /// head_dim_v]`, or with heads before tokens ([`AttentionOptions::kv_layout`](crate::AttentionOptions::kv_layout)); or codes
    /// of the planned [format](PlanConfig::fp8), as [`KvTensor::fp8`].
    ///
    /// # Errors
    ///
    /// As [`RaggedPlan::run`](crate::RaggedPlan::run).
    pub fn run(
        &self,
        q: Tensor<3>,
        k: impl Into<KvTensor>,
        v: impl Into<KvTensor>,
    ) -> Result<AttentionOutput> {
        self.run_with(q, k, v, VariantInputs::new())
    }

    /// [`run`](Self::run), with tensors for a variant, whose requests are the block rows.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), and if these tensors are on another device or require a gradient.
    pub fn run_with(
        &self,
        q: Tensor<3>,
        k: impl Into<KvTensor>,
        v: impl Into<KvTensor>,
        inputs: VariantInputs,
    ) -> Result<AttentionOutput> {
        let Self { config, schedule, mask } = self;
        let [tokens, keys] = mask.shape();
        Contiguous { op: "BlockSparsePlan::run", config, schedule, tokens, keys }.run(
            q,
            k.into(),
            v.into(),
            inputs,
        )
    }

    /// Masks single keys within the blocks: a query sees a key of its blocks where the bit is set.
    ///
    /// `mask`: `[blocks, block_rows, block_columns]`, in the order of the indices. The rows beyond the last query count for
    /// nothing. (FlashInfer's `mask`.)
    ///
    /// # Errors
    ///
    /// If the mask is of another shape or on another device, the plan is causal, or the device has no bytes. The plan is as
    /// it was then.
    pub fn set_mask(&mut self, mask: Tensor<3, Bool>) -> Result<()> {
        const OP: &str = "BlockSparsePlan::set_mask";
        self.check_mask(OP, &mask.device())?;
        let [block_rows, block_columns] = self.mask.block();
        let expected = [self.mask.blocks(), block_rows, block_columns];
        if mask.dims() != expected {
            let expected = format!("{expected:?}, a bool for each element of the blocks");
            return Err(shape(OP, "mask", &mask.dims(), expected));
        }
        self.mask_blocks(OP, mask)
    }

    /// [`set_mask`](Self::set_mask) with eight bits to a byte, the lowest first, as [`packbits`](crate::packbits) packs all.
    ///
    /// `mask`: `[blocks · block_rows · block_columns / 8]`, rounded up, of type `U8`. (FlashInfer's `packed_mask`.)
    ///
    /// # Errors
    ///
    /// As [`set_mask`](Self::set_mask), and if the mask is of another type.
    pub fn set_packed_mask(&mut self, mask: Tensor<1, Int>) -> Result<()> {
        const OP: &str = "BlockSparsePlan::set_packed_mask";
        self.check_mask(OP, &mask.device())?;
        let [block_rows, block_columns] = self.mask.block();
        let blocks = self.mask.blocks();
        let bits = blocks.saturating_mul(block_rows).saturating_mul(block_columns);
        check_packed(OP, &mask)?;
        if mask.dims() != [bits.div_ceil(8)] {
            return Err(shape(
                OP,
                "mask",
                &mask.dims(),
                format!("[{}], the bytes of {bits} bits", bits.div_ceil(8)),
            ));
        }
        let mask = unpackbits(mask, bits, BitOrder::Little)?.reshape([blocks, block_rows, block_columns]);
        self.mask_blocks(OP, mask)
    }

    /// Refuses any mask on another device, beside a causal one, or on a device without bytes.
    fn check_mask(&self, op: &'static str, device: &Device) -> Result<()> {
        same_device(op, "mask", device, &self.schedule.index().device())?;
        check::bytes(op, "mask", device)?;
        if self.config.options.causal {
            let (got, expected) = ("set in a causal plan".into(), "none, as the plan is causal".into());
            return Err(Error::Value { op, argument: "mask", got, expected });
        }
        Ok(())
    }

    fn mask_blocks(&mut self, op: &'static str, mask: Tensor<3, Bool>) -> Result<()> {
        // Row by row of the queries, where each block has rows of its own.
        let columns = self.mask.block()[1];
        let rows = self.mask.block_rows().filter(|(_, blocks)| !blocks.is_empty());
        let rows = rows.map(|(queries, blocks)| {
            let bits = queries * blocks.len() * columns;
            mask.clone().slice([blocks, 0..queries, 0..columns]).swap_dims(0, 1).reshape([bits])
        });
        let rows: Vec<Tensor<1, Bool>> = rows.collect();
        // Without blocks there is nothing to mask.
        if rows.is_empty() {
            return Ok(());
        }
        self.schedule.set_mask(op, &self.config, MaskBits::Bools(Tensor::cat(rows, 0)))
    }

    /// The mask of blocks.
    pub fn mask(&self) -> &BlockMask {
        &self.mask
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
