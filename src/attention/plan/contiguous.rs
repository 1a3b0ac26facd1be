//! Runs of plans over contiguous keys and values.

use burn::tensor::Tensor;

use super::config::PlanConfig;
use super::schedule::Schedule;
use crate::attention::inputs::{VariantInputs, by_token};
use crate::attention::output::{AttentionOutput, attend};
use crate::check::{Floats, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::extension::KeysValues;
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
        k: Tensor<3>,
        v: Tensor<3>,
        inputs: VariantInputs,
    ) -> Result<AttentionOutput> {
        let Self { op, config, schedule, tokens, keys } = self;
        let (k, v) = by_token(k, v, &config.options);
        let floats = Floats::first(op, "q", &q)?;
        floats.like("k", &k)?;
        floats.like("v", &v)?;
        floats.on_device("plan", &schedule.index().device())?;
        if q.dtype() != config.dtype {
            let (got, expected) = (format!("{:?}", q.dtype()), format!("{:?}, as planned", config.dtype));
            return Err(Error::Dtype { op, argument: "q", got, expected });
        }
        for (argument, got, planned) in [
            ("q", q.dims(), [tokens, config.q_heads, config.head_dim]),
            ("k", k.dims(), [keys, config.kv_heads, config.head_dim]),
            ("v", v.dims(), [keys, config.kv_heads, config.head_dim_v]),
        ] {
            if got != planned {
                return Err(shape(op, argument, &got, format!("{planned:?}, as planned")));
            }
        }
        let inputs = inputs.checked(op, &floats, config.q_heads, &config.options)?;
        let kv = KeysValues::floats(k.into_backend(), v.into_backend());
        attend(op, q, kv, config.head_dim_v, schedule.batch(KvLayout::Nhd, inputs), config.params())
    }
}
