//! Prefill and decode of a single call, which plans for itself.

use burn::{backend::Dispatch, tensor::Tensor};

use super::inputs::{CallOptions, VariantInputs};
use super::kv_tensor::{KvPair, KvTensor};
use super::output::{AttentionOutput, attend};
use super::plan::{Dequantized, KeysOf, MAX_HEAD_DIM, PlanConfig, Requests, Schedule, decode_rows};
use crate::cache::{KvPages, PageTable, Says};
use crate::check::{Floats, same_device, shape};
use crate::error::{Error, Result};
use crate::extension::KeysValues;
use crate::indptr::Indptr;
use crate::types::{AttentionOptions, Code8, KvLayout};

/// Attention of one request with contiguous keys and values.
///
/// `q`: `[tokens, q_heads, head_dim]`, `k`: `[kv_tokens, kv_heads, head_dim]`, `v`: `[kv_tokens, kv_heads,
/// head_dim_v]`, or with heads before tokens ([`AttentionOptions::kv_layout`]). Query head `h` attends to the key head
/// `h / (q_heads / kv_heads)`. Strides are honoured: a transposed or sliced view is not copied, unless the elements of
/// a head do not lie side by side. Both may be [codes](KvTensor::fp8) of 8 bits.
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use burn_flashinfer::{AttentionOptions, single_prefill};
///
/// # fn main() -> burn_flashinfer::Result<()> {
/// let device = Device::default();
/// let q = Tensor::<3>::random([17, 8, 64], Distribution::Default, &device);
/// let k = Tensor::<3>::random([40, 2, 64], Distribution::Default, &device);
/// let v = Tensor::<3>::random([40, 2, 64], Distribution::Default, &device);
/// let attended = single_prefill(q, k, v, &AttentionOptions::new().causal(true).return_lse(true))?;
/// assert_eq!(attended.output.dims(), [17, 8, 64]);
/// assert_eq!(attended.lse.map(|lse| lse.dims()), Some([17, 8]));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If shapes, types or devices do not fit together; if `q_heads` is not a multiple of `kv_heads`; if a causal mask is
/// asked for with more queries than keys; if an option is out of range; if a tensor requires a gradient.
pub fn single_prefill<'a>(
    q: Tensor<3>,
    k: impl Into<KvTensor>,
    v: impl Into<KvTensor>,
    options: impl Into<CallOptions<'a>>,
) -> Result<AttentionOutput> {
    const OP: &str = "single_prefill";
    let CallOptions { options, inputs } = options.into();
    let kv = KvPair::new(k.into(), v.into(), options);
    let problem = Problem::contiguous(OP, &q, &kv, options, inputs)?;
    problem.one_request(q, kv)
}

/// Attention of the newest token of one request with contiguous keys and values.
///
/// `q`: `[q_heads, head_dim]`; `k` and `v` as in [`single_prefill`]. The output is `[q_heads, head_dim_v]`, the LSE
/// `[q_heads]`.
///
/// # Errors
///
/// As [`single_prefill`].
pub fn single_decode<'a>(
    q: Tensor<2>,
    k: impl Into<KvTensor>,
    v: impl Into<KvTensor>,
    options: impl Into<CallOptions<'a>>,
) -> Result<AttentionOutput<2, 1>> {
    const OP: &str = "single_decode";
    let [heads, dim] = q.dims();
    let q = q.reshape([1, heads, dim]);
    let CallOptions { options, inputs } = options.into();
    let kv = KvPair::new(k.into(), v.into(), options);
    let problem = Problem::contiguous(OP, &q, &kv, options, inputs)?;
    let AttentionOutput { output, lse } = problem.one_request(q, kv)?;
    Ok(AttentionOutput { output: output.squeeze_dim(0), lse: lse.map(|lse| lse.squeeze_dim(0)) })
}

/// Attention of a batch of requests whose keys and values lie one after the other.
///
/// `q`: `[qo_indptr.total(), q_heads, head_dim]`, `k`: `[kv_indptr.total(), kv_heads, head_dim]`, `v`:
/// `[kv_indptr.total(), kv_heads, head_dim_v]`. Request `r` has the queries `qo_indptr[r]..qo_indptr[r + 1]` and the
/// keys `kv_indptr[r]..kv_indptr[r + 1]`; it may have none of either.
///
/// # Errors
///
/// As [`single_prefill`], and if the row pointers do not fit each other or the tensors.
pub fn batch_prefill_ragged<'a>(
    q: Tensor<3>,
    k: impl Into<KvTensor>,
    v: impl Into<KvTensor>,
    qo_indptr: &Indptr,
    kv_indptr: &Indptr,
    options: impl Into<CallOptions<'a>>,
) -> Result<AttentionOutput> {
    const OP: &str = "batch_prefill_ragged";
    let CallOptions { options, inputs } = options.into();
    let kv = KvPair::new(k.into(), v.into(), options);
    let problem = Problem::contiguous(OP, &q, &kv, options, inputs)?;
    problem.check_rows("qo_indptr", qo_indptr, "q", q.dims()[0])?;
    problem.check_rows("kv_indptr", kv_indptr, "k", kv.dims()[0][0])?;
    if qo_indptr.requests() != kv_indptr.requests() {
        return Err(Error::Value {
            op: OP,
            argument: "kv_indptr",
            got: format!("of {} requests", kv_indptr.requests()),
            expected: format!("of {} requests, as `qo_indptr`", qo_indptr.requests()),
        });
    }
    let kv = kv.into_stored();
    problem.run(q, kv, qo_indptr.as_slice(), KeysOf::Ragged(kv_indptr.as_slice()), KvLayout::Nhd)
}

/// Attention of a batch of requests whose keys and values lie in pages: prefill, or append to a cached prefix.
///
/// `q`: `[qo_indptr.total(), q_heads, head_dim]`. The keys of request `r` are the tokens of row `r` of `table`, its own
/// queries' keys included ([append](crate::append_paged_kv) them first). With a causal mask the queries are the last
/// tokens of the request.
///
/// # Errors
///
/// As [`single_prefill`], and if row pointer, page table, pages and tensors do not fit each other.
pub fn batch_prefill_paged<'a>(
    q: Tensor<3>,
    qo_indptr: &Indptr,
    pages: &KvPages,
    table: &PageTable,
    options: impl Into<CallOptions<'a>>,
) -> Result<AttentionOutput> {
    const OP: &str = "batch_prefill_paged";
    same_device(OP, NAMES[0], &qo_indptr.device(), &q.device())?;
    paged(OP, NAMES, q, qo_indptr.as_slice(), pages, table, options.into())
}

/// Attention of the newest token of each request of a batch, whose keys and values lie in pages.
///
/// `q`: `[requests, q_heads, head_dim]`. The keys of request `r` are the tokens of row `r` of `table`, the newest
/// included.
///
/// # Errors
///
/// As [`single_prefill`], and if page table, pages and queries do not fit each other.
pub fn batch_decode_paged<'a>(
    q: Tensor<3>,
    pages: &KvPages,
    table: &PageTable,
    options: impl Into<CallOptions<'a>>,
) -> Result<AttentionOutput> {
    let rows = decode_rows(table.requests());
    paged("batch_decode_paged", NAMES, q, &rows, pages, table, options.into())
}

/// Names of the row pointer of the queries and the page table in the paged operations.
const NAMES: [&str; 2] = ["qo_indptr", "table"];

/// `names`: under which names the caller knows `qo_indptr` and `table`.
pub(super) fn paged(
    op: &'static str,
    [qo_name, table_name]: [&'static str; 2],
    q: Tensor<3>,
    qo_indptr: &[usize],
    pages: &KvPages,
    table: &PageTable,
    CallOptions { options, inputs }: CallOptions<'_>,
) -> Result<AttentionOutput> {
    let pool = pages.shape();
    if let Some(layout) = options.kv_layout
        && layout != pages.layout()
    {
        return Err(Error::Value {
            op,
            argument: "kv_layout",
            got: format!("{layout:?}"),
            expected: format!("{:?}, as the pages (or leave it unset)", pages.layout()),
        });
    }
    let (k_dims, v_dims) = pages.dims();
    let keys = Keys { names: ["pages", "pages"], dims: [&k_dims, &v_dims], heads: pool.kv_heads };
    let problem = Problem::new(op, &q, keys, pages.code(), options, |floats| pages.check_beside(floats))?;
    let problem = problem.with(inputs)?;
    same_device(op, table_name, &table.device(), &q.device())?;
    pages.check_pool(op, table_name, table.page_size(), table.pages_needed())?;
    pages.check_current(op, table_name, Says::All, table.stamp())?;
    let requests = qo_indptr.len() - 1;
    if requests != table.requests() {
        return Err(Error::Value {
            op,
            argument: qo_name,
            got: format!("of {requests} requests"),
            expected: format!("of {} requests, as `table`", table.requests()),
        });
    }
    problem.check_total(qo_name, qo_indptr, "q", q.dims()[0])?;
    match Dequantized::of(op, &problem.config, qo_indptr, table)? {
        Some(dequantized) => {
            let kv = dequantized.read(op, pages, problem.config.dtype)?;
            let problem = Problem { config: Dequantized::config(&problem.config), ..problem };
            problem.run(q, kv, qo_indptr, dequantized.keys(), pages.layout())
        }
        None => problem.run(q, pages.stored(), qo_indptr, KeysOf::Paged(table), pages.layout()),
    }
}

/// Keys and values by their shapes.
struct Keys<'a> {
    names: [&'static str; 2],
    dims: [&'a [usize]; 2],
    heads: usize,
}

/// An attention problem whose shapes, types, devices and options fit each other.
struct Problem {
    op: &'static str,
    floats: Floats,
    config: PlanConfig,
    inputs: VariantInputs,
}

impl Problem {
    fn contiguous(
        op: &'static str,
        q: &Tensor<3>,
        kv: &KvPair,
        options: &AttentionOptions,
        inputs: VariantInputs,
    ) -> Result<Self> {
        let [k_dims, v_dims] = kv.dims();
        let [tokens, kv_heads, _] = k_dims;
        if v_dims[..2] != k_dims[..2] || v_dims[2] == 0 {
            return Err(shape(op, "v", &v_dims, format!("[{tokens}, {kv_heads}, head_dim], as `k`")));
        }
        let keys = Keys { names: ["k", "v"], dims: [&k_dims, &v_dims], heads: kv_heads };
        Self::new(op, q, keys, kv.code(), options, |floats| kv.check(op, floats))?.with(inputs)
    }

    /// `fits` checks type and device of keys and values.
    fn new(
        op: &'static str,
        q: &Tensor<3>,
        Keys { names: [k_name, v_name], dims: [k_dims, v_dims], heads: kv_heads }: Keys<'_>,
        code: Option<Code8>,
        options: &AttentionOptions,
        fits: impl FnOnce(&Floats) -> Result<()>,
    ) -> Result<Self> {
        options.check(op)?;
        let floats = Floats::first(op, "q", q)?;
        fits(&floats)?;
        let [_, q_heads, head_dim] = q.dims();
        let [k_dim, v_dim] = [k_dims, v_dims].map(|dims| dims.last().copied().unwrap_or(0));
        if head_dim == 0 || q_heads == 0 {
            return Err(shape(op, "q", &q.dims(), "[tokens, q_heads, head_dim] with at least one head"));
        }
        // Limits of every kernel: registers and shared memory, and counts in i32.
        let most = MAX_HEAD_DIM;
        if head_dim > most || v_dim > most {
            let (argument, dims) =
                if head_dim > most { ("q", q.dims().to_vec()) } else { (v_name, v_dims.to_vec()) };
            return Err(shape(op, argument, &dims, format!("a head dimension of at most {most}")));
        }
        for (argument, dims) in [("q", q.dims().to_vec()), (k_name, k_dims.to_vec())] {
            if dims.iter().any(|&extent| extent > i32::MAX as usize) {
                return Err(shape(op, argument, &dims, format!("no axis longer than {}", i32::MAX)));
            }
        }
        if k_dim != head_dim {
            return Err(shape(op, k_name, k_dims, format!("a head dimension of {head_dim}, as `q`")));
        }
        if kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
            return Err(shape(
                op,
                k_name,
                k_dims,
                format!("a number of heads that divides the {q_heads} heads of `q`, not {kv_heads}"),
            ));
        }
        let config = PlanConfig::new(q_heads, kv_heads, head_dim, q.dtype())
            .head_dim_v(v_dim)
            .options(options.clone());
        let config = PlanConfig { code, ..config };
        config.check_variant(op, &q.device())?;
        Ok(Self { op, floats, config, inputs: VariantInputs::new() })
    }

    /// With the tensors of the call.
    fn with(mut self, inputs: VariantInputs) -> Result<Self> {
        let config = &self.config;
        self.inputs = inputs.checked(self.op, &self.floats, config.q_heads, &config.options)?;
        Ok(self)
    }

    /// The row pointer `indptr` must cover exactly the `tokens` of `of`.
    fn check_rows(&self, argument: &'static str, indptr: &Indptr, of: &str, tokens: usize) -> Result<()> {
        self.floats.on_device(argument, &indptr.device())?;
        self.check_total(argument, indptr.as_slice(), of, tokens)
    }

    fn check_total(&self, argument: &'static str, indptr: &[usize], of: &str, tokens: usize) -> Result<()> {
        let total = indptr.last().copied().unwrap_or(0);
        if total != tokens {
            return Err(Error::Index {
                op: self.op,
                argument,
                at: indptr.len() - 1,
                got: total.to_string(),
                expected: format!("{tokens}, the tokens of `{of}`"),
            });
        }
        Ok(())
    }

    /// All queries over all keys.
    fn one_request(&self, q: Tensor<3>, kv: KvPair) -> Result<AttentionOutput> {
        let (queries, keys) = ([0, q.dims()[0]], [0, kv.dims()[0][0]]);
        self.run(q, kv.into_stored(), &queries, KeysOf::Ragged(&keys), KvLayout::Nhd)
    }

    /// Plans for this call alone.
    fn run(
        &self,
        q: Tensor<3>,
        kv: KeysValues<Dispatch>,
        qo_indptr: &[usize],
        keys: KeysOf<'_>,
        layout: KvLayout,
    ) -> Result<AttentionOutput> {
        let requests = Requests { qo_indptr, kv: keys };
        self.config.check_ranges(self.op, qo_indptr.windows(2).map(|rows| rows[1] - rows[0]))?;
        for (request, (queries, keys)) in requests.lengths().enumerate() {
            self.config.check_causal(self.op, request, queries, keys)?;
        }
        let schedule = Schedule::new(self.op, &self.config, requests, &q.device())?;
        let batch = schedule.batch(layout, self.inputs.clone());
        attend(self.op, q, kv, self.config.head_dim_v, batch, self.config.params())
    }
}
