//! Plans of batches whose requests share pages.

use std::fmt;

use burn::tensor::Tensor;

use super::levels::{Cascade, Level};
use super::run::{check_room, check_shares, merge_levels};
use crate::attention::output::AttentionOutput;
use crate::attention::plan::{PagedPlan, PlanConfig};
use crate::cache::KvPages;
use crate::error::Result;
use crate::types::AttentionOptions;

/// The work partitioning of a batch whose requests share pages: a plan for each level of a [`Cascade`], made
/// once and run by every layer. Each shared page is read once for all requests that share it.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use burn_flashinfer::{Cascade, CascadePlan, Indptr, KvLayout, KvPages, PageTable, PlanConfig};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// // Two requests that begin with pages 4 and 2.
/// let table = PageTable::new(&[0, 3, 6], &[4, 2, 0, 4, 2, 1], &[5, 16], 16, 8, &device)?;
/// let cascade = Cascade::new(&table, &Indptr::from_lengths(&[1, 1], &device)?, 1)?;
/// let plan = CascadePlan::new(&PlanConfig::new(8, 2, 64, DType::F32), &cascade)?;
/// let q = Tensor::<3>::random([2, 8, 64], Distribution::Default, &device);
/// let pool = Tensor::<4>::random([8, 16, 2, 64], Distribution::Default, &device);
/// let pages = KvPages::new(pool.clone(), pool, KvLayout::Nhd)?;
/// assert_eq!(plan.run(q, &pages)?.output.dims(), [2, 8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct CascadePlan {
    /// The requests' own keys first, then the shared ones.
    levels: Vec<PagedPlan>,
    return_lse: bool,
}

impl CascadePlan {
    /// Plans the levels of a cascade.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::new`], and if there is a left window although something is shared: a group of requests has no
    /// positions.
    pub fn new(config: &PlanConfig, cascade: &Cascade) -> Result<Self> {
        let Cascade { own, shared, .. } = cascade;
        check_shares("CascadePlan::new", &config.options, cascade)?;
        let plan = |options: AttentionOptions, level: &Level| {
            PagedPlan::new(&config.clone().options(options), &level.qo_indptr, &level.table)
        };
        let return_lse = config.options.return_lse;
        let own_keys = config.options.clone().return_lse(return_lse || !shared.is_empty());
        let mut levels = vec![plan(own_keys.clone(), own)?];
        for level in shared {
            levels.push(plan(own_keys.clone().causal(false), level)?);
        }
        Ok(Self { levels, return_lse })
    }

    /// Attention of `q` `[tokens, q_heads, head_dim]`, the query tokens of all requests one after the other,
    /// over the keys and values of one layer.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::run`].
    pub fn run(&self, q: Tensor<3>, pages: &KvPages) -> Result<AttentionOutput> {
        check_room("CascadePlan::run", &q, self.levels.len())?;
        let found = self.levels.iter().map(|level| level.run(q.clone(), pages));
        merge_levels(found.collect::<Result<_>>()?, self.return_lse)
    }

    /// Bytes on the device that the plans hold for partial results.
    pub fn workspace_bytes(&self) -> usize {
        self.levels.iter().map(PagedPlan::workspace_bytes).sum()
    }

    /// The blueprint of each level, the work partitioning, and its balance: a line for each. The requests'
    /// own keys come first.
    pub fn explain(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            for (at, level) in self.levels.iter().enumerate() {
                write!(f, "{}{}", if at == 0 { "" } else { "\n" }, level.explain())?;
            }
            Ok(())
        })
    }
}
