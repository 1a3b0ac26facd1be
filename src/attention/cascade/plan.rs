//! Plans of batches whose requests share pages.

use std::{fmt, iter};

use burn::tensor::Tensor;

use super::levels::{Cascade, Level};
use super::run::{at_positions, check_room, merge_levels, options_of_levels};
use crate::attention::inputs::VariantInputs;
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
    own: PagedPlan,
    shared: Vec<SharedPlan>,
    options: AttentionOptions,
}

/// The plan of a level of shared keys.
#[derive(Debug)]
struct SharedPlan {
    plan: PagedPlan,
    /// As [`Level::shifts`].
    shifts: Option<Tensor<1>>,
}

impl CascadePlan {
    /// Plans the levels of a cascade.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::new`], and as [`cascade_attention`](crate::cascade_attention) where something is shared: a group of
    /// requests has no positions.
    pub fn new(config: &PlanConfig, cascade: &Cascade) -> Result<Self> {
        let Cascade { own, shared, .. } = cascade;
        let [own_keys, all_keys] = options_of_levels("CascadePlan::new", &config.options, cascade)?;
        let plan = |options: &AttentionOptions, level: &Level| {
            PagedPlan::new(&config.clone().options(options.clone()), &level.qo_indptr, &level.table)
        };
        let own = plan(&own_keys, own)?;
        let shared = shared
            .iter()
            .map(|level| Ok(SharedPlan { plan: plan(&all_keys, level)?, shifts: level.shifts.clone() }));
        Ok(Self { own, shared: shared.collect::<Result<_>>()?, options: config.options.clone() })
    }

    /// Attention of `q` `[tokens, q_heads, head_dim]`, the query tokens of all requests one after the other,
    /// over the keys and values of one layer.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::run`].
    pub fn run(&self, q: Tensor<3>, pages: &KvPages) -> Result<AttentionOutput> {
        self.run_with(q, pages, VariantInputs::new())
    }

    /// [`run`](Self::run), with sinks, slopes, or tensors for a variant: sinks count once, with a request's own keys, and
    /// slopes see the positions of the batch.
    ///
    /// # Errors
    ///
    /// As [`PagedPlan::run_with`].
    pub fn run_with(&self, q: Tensor<3>, pages: &KvPages, inputs: VariantInputs) -> Result<AttentionOutput> {
        check_room("CascadePlan::run", &q, 1 + self.shared.len())?;
        let (slopes, of_shared) = (inputs.slopes.clone(), inputs.over_shared());
        let own = self.own.run_with(q.clone(), pages, inputs)?;
        let shared = self.shared.iter().map(|SharedPlan { plan, shifts }| {
            let attended = plan.run_with(q.clone(), pages, of_shared.clone())?;
            Ok(at_positions(attended, shifts.as_ref(), slopes.as_ref()))
        });
        merge_levels(own, shared.collect::<Result<_>>()?, &self.options)
    }

    /// Bytes on the device that the plans hold for partial results.
    pub fn workspace_bytes(&self) -> usize {
        self.each().map(PagedPlan::workspace_bytes).sum()
    }

    /// The blueprint of each level, the work partitioning, and its balance: a line for each. The requests'
    /// own keys come first.
    pub fn explain(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            for (at, level) in self.each().enumerate() {
                write!(f, "{}{}", if at == 0 { "" } else { "\n" }, level.explain())?;
            }
            Ok(())
        })
    }

    fn each(&self) -> impl Iterator<Item = &PagedPlan> {
        iter::once(&self.own).chain(self.shared.iter().map(|level| &level.plan))
    }
}
