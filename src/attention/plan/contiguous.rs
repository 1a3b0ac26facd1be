//! Runs of plans over contiguous keys and values.

use burn::tensor::Tensor;

use super::config::PlanConfig;
use super::schedule::Schedule;
use crate::attention::inputs::VariantInputs;
use crate::attention::kv_tensor::{KvPair, KvTensor, element};
use crate::attention::output::{AttentionOutput, attend};
use crate::check::{Floats, shape};
use crate::error::{Error, Result};
use crate::types::KvLayout;

/// A plan over contiguous keys and values: of requests one after the other, or of blocks as pages.
pub(crate) struct Contiguous<'a> {
    pub op: &'static str,
    pub config: &'a PlanConfig,
    pub schedule: &'a Schedule,
    pub tokens: usize,
    pub keys: usize,
}

impl Contiguous<'_> {
    /// Checks the tensors of a run, and runs.
    pub(crate) fn run(
        self,
        q: Tensor<3>,
        k: KvTensor,
        v: KvTensor,
        inputs: VariantInputs,
    ) -> Result<AttentionOutput> {
        let Self { op, config, schedule, tokens, keys } = self;
        let kv = KvPair::new(k, v, &config.options);
        let floats = Floats::first(op, "q", &q)?;
        kv.check(op, &floats)?;
        floats.on_device("plan", &schedule.index().device())?;
        if q.dtype() != config.dtype {
            let (got, expected) = (format!("{:?}", q.dtype()), format!("{:?}, as planned", config.dtype));
            return Err(Error::Dtype { op, argument: "q", got, expected });
        }
        if kv.code() != config.code {
            let [got, planned] = [kv.code(), config.code].map(|format| element(format, config.dtype));
            return Err(Error::Dtype { op, argument: "k", got, expected: format!("{planned}, as planned") });
        }
        let [k_dims, v_dims] = kv.dims();
        for (argument, got, planned) in [
            ("q", q.dims(), [tokens, config.q_heads, config.head_dim]),
            ("k", k_dims, [keys, config.kv_heads, config.head_dim]),
            ("v", v_dims, [keys, config.kv_heads, config.head_dim_v]),
        ] {
            if got != planned {
                return Err(shape(op, argument, &got, format!("{planned:?}, as planned")));
            }
        }
        let inputs = inputs.checked(op, &floats, config.q_heads, &config.options)?;
        let batch = schedule.batch(KvLayout::Nhd, inputs);
        attend(op, q, kv.into_stored(), config.head_dim_v, batch, config.params())
    }
}
