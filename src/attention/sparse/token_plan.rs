//! Plans over keys that are chosen for each query token, on the device.

use std::fmt;

use burn::tensor::{Device, Int, Tensor};

use crate::attention::kv_tensor::element;
use crate::attention::mask::MaskBits;
use crate::attention::output::{AttentionOutput, attend};
use crate::attention::plan::{KeysOf, PlanConfig, Requests, Schedule, decode_rows};
use crate::cache::{KvPages, PageTable};
use crate::check::{Floats, same_device, shape};
use crate::dispatch::IntoBackend;
use crate::error::{Error, Result};
use crate::indptr::index;
use crate::ints::saturated;
use crate::memory;
use crate::types::KvLayout;

/// The work partitioning of attention where each query token has a list of slots of its own: made once for a number of tokens
/// and slots, run with the lists of each layer.
///
/// Lists stay on the device, where [`top_k_page_table_transform`](crate::sampling::top_k_page_table_transform) makes them:
/// nothing is read back. (DeepSeek's sparse attention; the `indices` of FlashMLA's `flash_mla_sparse_fwd`.)
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Int, Tensor};
/// use burn_flashinfer::{KvLayout, KvPages, PlanConfig, TokenSparsePlan};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let plan = TokenSparsePlan::new(&PlanConfig::new(8, 2, 64, DType::F32), [2, 3], &device)?;
/// let q = Tensor::<3>::random([2, 8, 64], Distribution::Default, &device);
/// let pool = Tensor::<4>::random([8, 16, 2, 64], Distribution::Default, &device);
/// let pages = KvPages::new(pool.clone(), pool, KvLayout::Nhd)?;
/// let indices = Tensor::<2, Int>::from_data([[5, 100, 17], [64, -1, -1]], &device);
/// assert_eq!(plan.run(q, &pages, indices)?.output.dims(), [2, 8, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct TokenSparsePlan {
    config: PlanConfig,
    schedule: Schedule,
    tokens: usize,
    top_k: usize,
}

impl TokenSparsePlan {
    /// Plans `tokens` query tokens with up to `top_k` keys each.
    ///
    /// # Errors
    ///
    /// If `config` is not one that the device can take, or has a window, for which the keys have no positions; if a number
    /// is 0 or there are more keys than an `i32` counts.
    pub fn new(config: &PlanConfig, [tokens, top_k]: [usize; 2], device: &Device) -> Result<Self> {
        const OP: &str = "TokenSparsePlan::new";
        config.check(OP, device)?;
        let refuse = |argument, got: String, expected: &str| {
            Err(Error::Value { op: OP, argument, got, expected: expected.into() })
        };
        if let Some(window) = config.options.window_left {
            return refuse("window_left", window.to_string(), "none, as keys have no positions");
        }
        for (argument, number) in [("tokens", tokens), ("top_k", top_k)] {
            if number == 0 {
                return refuse(argument, "0".into(), "at least 1");
            }
        }
        let entries = tokens.saturating_mul(top_k);
        index(OP, "tokens", 0, entries)?;
        // The pages are written by each run.
        let mut slots = memory::list(OP, "tokens", entries)?;
        slots.resize(entries, 0);
        let indptr = (0..=tokens).map(|token| token * top_k).collect();
        let table = PageTable::trusted(OP, indptr, slots, &vec![1; tokens], 1, device)?;
        let requests = Requests { qo_indptr: &decode_rows(tokens), kv: KeysOf::Paged(&table) };
        let schedule = Schedule::new(OP, config, requests, device)?.with_workspace(config);
        Ok(Self { config: config.clone(), schedule, tokens, top_k })
    }

    /// Attention of `q` `[tokens, q_heads, head_dim]` over the keys in the slots `indices` `[tokens, top_k]` of one layer.
    /// Slot `s` is token `s % page_size` of page `s / page_size`, for all key heads.
    ///
    /// A number that is no slot of the pool, such as -1, is left out; a token without keys gets 0, and an LSE of `-inf`.
    /// Pages are NHD, of which the slots are a view if the pool is contiguous, and else a copy.
    ///
    /// # Errors
    ///
    /// If tensors do not fit the plan in shape, type or device; if the pages are HND of more than one head; if the device
    /// has no bytes; if a tensor requires a gradient.
    pub fn run(&self, q: Tensor<3>, pages: &KvPages, indices: Tensor<2, Int>) -> Result<AttentionOutput> {
        const OP: &str = "TokenSparsePlan::run";
        let (config, pool) = (&self.config, pages.shape());
        let floats = Floats::first(OP, "q", &q)?;
        pages.check_beside(&floats)?;
        floats.on_device("plan", &self.schedule.index().device())?;
        same_device(OP, "indices", &indices.device(), floats.device())?;
        if q.dtype() != config.dtype {
            let (got, expected) = (format!("{:?}", q.dtype()), format!("{:?}, as planned", config.dtype));
            return Err(Error::Dtype { op: OP, argument: "q", got, expected });
        }
        if pages.code() != config.code {
            let [got, planned] = [pages.code(), config.code].map(|format| element(format, config.dtype));
            return Err(Error::Dtype {
                op: OP,
                argument: "pages",
                got,
                expected: format!("{planned}, as planned"),
            });
        }
        let planned = [self.tokens, config.q_heads, config.head_dim];
        if q.dims() != planned {
            return Err(shape(OP, "q", &q.dims(), format!("{planned:?}, as planned")));
        }
        let planned = (config.kv_heads, config.head_dim, config.head_dim_v);
        if (pool.kv_heads, pool.k_dim, pool.v_dim) != planned {
            let (heads, k_dim, v_dim) = planned;
            let expected = format!("{heads} heads of {k_dim} elements (values of {v_dim}), as planned");
            return Err(shape(OP, "pages", &pages.dims().0, expected));
        }
        if pages.layout() == KvLayout::Hnd && pool.kv_heads > 1 {
            let expected = "NHD, of which a slot is one row".into();
            return Err(Error::Value { op: OP, argument: "pages", got: "HND".into(), expected });
        }
        if indices.dims() != [self.tokens, self.top_k] {
            let expected = format!("[{}, {}], as planned", self.tokens, self.top_k);
            return Err(shape(OP, "indices", &indices.dims(), expected));
        }
        let slots = pool.pages.saturating_mul(pool.page_size);
        index(OP, "pages", 0, slots)?;
        let of_slots = pages.viewed(OP, [slots, 1, pool.kv_heads], KvLayout::Nhd)?;
        let indices = saturated(indices.without_autodiff());
        let left_out =
            indices.clone().lower_elem(0).bool_or(indices.clone().greater_equal_elem(slots as i32));
        // Kernels read a slot that is left out too: so it becomes one that the token sees.
        let chosen = indices.mask_fill(left_out.clone(), -1);
        let largest = chosen.clone().max_dim(1);
        let filler = largest.clone().clamp_min(0).expand([self.tokens, self.top_k]);
        let chosen = chosen.mask_where(left_out.clone(), filler).reshape([self.tokens * self.top_k]);
        let seen = left_out.bool_not().reshape([self.tokens * self.top_k]);
        let batch = self.schedule.batch_over(OP, config, chosen, MaskBits::Bools(seen))?;
        let AttentionOutput { output, lse } =
            attend(OP, q, of_slots.stored(), pool.v_dim, batch, config.params())?;
        // The slot that a token without keys got instead may hold anything, NaN as well.
        let is_empty = largest.lower_elem(0).reshape([self.tokens, 1, 1]).expand(output.dims());
        let output = output.without_autodiff().mask_fill(is_empty, 0.0);
        Ok(AttentionOutput { output: floats.origin.tensor(output.into_backend()), lse })
    }

    /// Query tokens: the rows of `q`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The largest number of keys of a token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The blueprint, the work partitioning, and its balance.
    pub fn explain(&self) -> impl fmt::Display {
        self.schedule.explain()
    }
}
