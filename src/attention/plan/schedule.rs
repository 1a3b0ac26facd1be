//! A batch on a device, and its work partitioning.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor};

use super::config::PlanConfig;
use super::lists::{Explanation, HostBatch, HostPlan, Places, Requests};
use crate::attention::inputs::VariantInputs;
use crate::attention::mask::{CustomMask, MaskBits};
use crate::dispatch::{IntoBackend, write_ints};
use crate::error::Result;
use crate::extension::{Batch, BatchLayout, Launch, MaskedBatch, MaybeFloats, MaybeMask};
use crate::indptr::upload;
use crate::types::KvLayout;

/// A batch on a device, and its work partitioning.
///
/// Not `Clone`, since an update would overwrite the lists of both; not `Sync`, since two runs at once would
/// share the workspace.
#[derive(Debug)]
pub(crate) struct Schedule {
    index: Tensor<1, Int>,
    workspace: Option<Tensor<1>>,
    not_sync: PhantomData<Cell<()>>,
    layout: BatchLayout,
    explanation: Explanation,
    /// Pairs of queries and keys of each request: the bits of a mask.
    pairs: Vec<usize>,
    mask: Option<CustomMask>,
}

impl Schedule {
    /// Plans a batch: on the host alone, and then one copy to the device.
    pub(crate) fn new(
        op: &'static str,
        config: &PlanConfig,
        requests: Requests<'_>,
        device: &Device,
    ) -> Result<Self> {
        let mut batch = HostBatch::new(op, requests, device);
        let planned = batch.plan(config, None)?;
        let (words, places) = batch.finished(&[])?;
        let pairs = pairs(requests);
        Ok(Self { pairs, ..Self::of(planned, &places, upload(words, device)) })
    }

    /// A plan whose lists are in `index`, among others. It takes no mask.
    pub(super) fn of(planned: HostPlan, places: &Places, index: Tensor<1, Int>) -> Self {
        let (layout, explanation) = planned.placed(places);
        let (workspace, pairs, mask) = (None, Vec::new(), None);
        Self { index, workspace, not_sync: PhantomData, layout, explanation, pairs, mask }
    }

    /// The lists of another batch, where those of this one were.
    pub(super) fn replace(&mut self, planned: HostPlan, places: &Places, index: Tensor<1, Int>) {
        self.index = index;
        (self.layout, self.explanation) = planned.placed(places);
    }

    /// Plans another batch in place of this one, in the same buffers if they are large enough.
    pub(crate) fn update(
        &mut self,
        op: &'static str,
        config: &PlanConfig,
        requests: Requests<'_>,
    ) -> Result<()> {
        let device = self.index.device();
        let mut batch = HostBatch::new(op, requests, &device);
        let planned = batch.plan(config, None)?;
        let (words, places) = batch.finished(&[])?;
        if words.len() > self.index.dims()[0] {
            self.index = upload(words, &device);
        } else {
            self.index = write_ints(self.index.extract(), words);
        }
        (self.layout, self.explanation) = planned.placed(&places);
        (self.pairs, self.mask) = (pairs(requests), None);
        Ok(())
    }

    /// With room for partial results of its own.
    pub(crate) fn with_workspace(mut self, config: &PlanConfig) -> Self {
        self.grow_workspace(config);
        self
    }

    pub(crate) fn grow_workspace(&mut self, config: &PlanConfig) {
        let needed = self.layout.launch.partial_rows * (config.head_dim_v + 2);
        let has = self.workspace.as_ref().map_or(0, |workspace| workspace.dims()[0]);
        if needed > has {
            self.workspace = Some(Tensor::empty([needed], (&self.index.device(), DType::F32)));
        }
    }

    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace.as_ref().map_or(0, |workspace| workspace.dims()[0] * size_of::<f32>())
    }

    pub(crate) fn index(&self) -> &Tensor<1, Int> {
        &self.index
    }

    /// The batch as the backend takes it, of pages of this order if it has pages.
    pub(crate) fn batch(&self, layout: KvLayout, inputs: VariantInputs) -> Batch<Dispatch> {
        let mut lists = self.layout.clone();
        if let Some(pages) = &mut lists.pages {
            pages.layout = layout;
        }
        let workspace = match &self.workspace {
            Some(workspace) if lists.launch.partial_rows > 0 => {
                MaybeFloats::Some(workspace.clone().into_backend())
            }
            _ => MaybeFloats::None,
        };
        let mask = self.mask.as_ref().map_or(MaybeMask::None, CustomMask::argument);
        let (index, inputs) = (self.index.clone().into_backend(), inputs.into_backend());
        Batch { index, workspace, inputs, mask, layout: lists }
    }

    /// The batch with pages that the device has chosen, as many as were planned and each within the pool, and with a mask.
    pub(crate) fn batch_over(
        &self,
        op: &'static str,
        config: &PlanConfig,
        pages: Tensor<1, Int>,
        bits: MaskBits,
    ) -> Result<Batch<Dispatch>> {
        let planned = self.layout.pages.as_ref().map(|pages| pages.indices.clone());
        let index = self.index.clone().without_autodiff();
        let index = match planned {
            Some(planned) => index.slice_assign([planned], pages.without_autodiff()),
            None => index,
        };
        let mask = CustomMask::new(op, bits, &self.pairs, &index, self.masked(config))?.argument();
        let batch = self.batch(KvLayout::Nhd, VariantInputs::new());
        Ok(Batch { index: index.into_backend(), mask, ..batch })
    }

    /// Masks the batch, until it is planned anew.
    pub(crate) fn set_mask(&mut self, op: &'static str, config: &PlanConfig, bits: MaskBits) -> Result<()> {
        self.mask = Some(CustomMask::new(op, bits, &self.pairs, &self.index, self.masked(config))?);
        Ok(())
    }

    /// The batch as a mask is laid out for it.
    fn masked(&self, config: &PlanConfig) -> MaskedBatch {
        MaskedBatch { launch: self.layout.launch.clone(), group: config.q_heads / config.kv_heads }
    }

    /// The launch, which stays in a step.
    pub(super) fn launch(&self) -> &Launch {
        &self.layout.launch
    }

    pub(crate) fn explain(&self) -> impl fmt::Display {
        &self.explanation
    }
}

fn pairs(requests: Requests<'_>) -> Vec<usize> {
    requests.lengths().map(|(queries, keys)| queries.saturating_mul(keys)).collect()
}
