//! The parts of attention beside its two products, on the host.

use std::fmt::{self, Debug, Formatter};
use std::ops::{Deref, Range};
use std::sync::Arc;

#[cfg(feature = "cube")]
use burn_flashinfer_kernels::attention as kernels;

/// A request of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Its number in the batch.
    pub index: usize,
    /// Query tokens.
    pub qo_len: usize,
    /// Keys.
    pub kv_len: usize,
}

impl Request {
    /// The keys that query `query` sees behind a right-aligned causal mask and an inclusive left window: the
    /// last query sits at the last key.
    pub fn causal_window(&self, query: usize, causal: bool, window_left: Option<usize>) -> Range<usize> {
        // Position of the query among the keys, shifted by qo_len to stay above 0.
        let shifted = self.kv_len.saturating_add(query);
        let end =
            if causal { (shifted + 1).saturating_sub(self.qo_len).min(self.kv_len) } else { self.kv_len };
        let start =
            window_left.map_or(0, |window| shifted.saturating_sub(self.qo_len.saturating_add(window)));
        start.min(end)..end
    }
}

/// The tensors of a variant on the host, each empty if there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostInputs<'a> {
    /// [`VariantInputs::sinks`](crate::VariantInputs::sinks).
    pub sinks: &'a [f32],
    /// [`VariantInputs::slopes`](crate::VariantInputs::slopes).
    pub slopes: &'a [f32],
    /// [`VariantInputs::floats`](crate::VariantInputs::floats).
    pub floats: &'a [f32],
    /// [`VariantInputs::ints`](crate::VariantInputs::ints).
    pub ints: &'a [i32],
}

/// Numbers that a call must give a variant; `None` is any number of them, or no tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InputLengths {
    /// The length of [`VariantInputs::floats`](crate::VariantInputs::floats).
    pub floats: Option<usize>,
    /// The length of [`VariantInputs::ints`](crate::VariantInputs::ints).
    pub ints: Option<usize>,
}

/// A row of attention: one query token of one query head, and the tensors of the variant.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The request of the query.
    pub request: Request,
    /// The query's number within the request.
    pub query: usize,
    /// Query head.
    pub q_head: usize,
    /// Key head.
    pub kv_head: usize,
    /// The tensors of the variant.
    pub inputs: HostInputs<'a>,
}

impl<'a> Deref for Row<'a> {
    type Target = HostInputs<'a>;

    fn deref(&self) -> &HostInputs<'a> {
        &self.inputs
    }
}

impl Row<'_> {
    /// Position of the query among the keys, the last query being at the last key. Negative where the request has more
    /// queries than keys.
    pub fn position(&self) -> i64 {
        (self.request.kv_len + self.query) as i64 - self.request.qo_len as i64
    }
}

/// The parts of attention beside its two products, as in FlashInfer's variants:
///
/// ```text
/// o_i = finish(Σ_j p_ij v_j / Σ_j p_ij)      p_ij = exp(s_ij)      for the keys j of `keys` that `keep` keeps
/// s_ij = scale · (logit(q_i·k_j) + slope_i · (j - position_i))
/// ```
///
/// Without the [softmax](Self::softmax) it is `o_i = finish(Σ_j s_ij v_j)`. This is the host's half, in f64: it plans, and it computes on the backend `Flex`. The devices of CubeCL
/// run kernels that are generic over the other half, a `burn_flashinfer::kernels::Variant`, which
/// [`kernels`](Self::kernels) returns; both must say the same. `examples/own_variant.rs` has one. Which weights are negligible
/// the other half alone says: this one computes all. Hooks write nothing; `examples/dump_logits.rs` shows how to see logits.
///
/// Source: FlashInfer's `variants.cuh`, <https://docs.flashinfer.ai>.
pub trait AttentionVariant: Debug + Send + Sync + 'static {
    /// The factor on every logit; above 0 for the kernels on matrix cores.
    fn scale(&self) -> f32;

    /// The keys that query `query` of a request can see. Keys outside are never read. Neither end may
    /// decrease from a query to the next. The range is clamped to the request's keys.
    fn keys(&self, request: &Request, _query: usize) -> Range<usize> {
        0..request.kv_len
    }

    /// The logit before `scale`, of the product `q·k`.
    fn logit(&self, product: f64, _row: &Row<'_>, _key: usize) -> f64 {
        product
    }

    /// The growth of a row's logits from a key to the next, before `scale`; 0 at the query's own position. The kernels
    /// compute such a bias faster than one that [`logit`](Self::logit) adds.
    fn slope(&self, _row: &Row<'_>) -> f64 {
        0.0
    }

    /// False if the logits are the weights of the values themselves: no exponential, no normalising, no LSE. What
    /// [`start`](Self::start) says does not count then.
    fn softmax(&self) -> bool {
        true
    }

    /// The numbers that a call must give for so many query heads, or it is refused. What the hooks index belongs here.
    fn input_lengths(&self, _q_heads: usize) -> InputLengths {
        InputLengths::default()
    }

    /// The variant for keys that requests share, all of which their queries see: of a [cascade](crate::Cascade), whose
    /// levels are merged. There a row's request and position are those of a group of requests. It must not
    /// [start](Self::start) with a sink, nor [finish](Self::finish) an output. Without one, sharing is refused.
    fn over_shared(&self) -> Option<SharedVariant> {
        None
    }

    /// Masks single keys out of the range of [`keys`](Self::keys): false is a logit of -inf, or a weight of 0.
    fn keep(&self, _row: &Row<'_>, _key: usize) -> bool {
        true
    }

    /// `(m, l)` of a row before its first key: the maximum of the logits, before `scale`, and the sum of
    /// `exp(scale · (logit - m))`. `(z / scale, 1)` is a sink of logit `z`, whose value is 0.
    fn start(&self, _row: &Row<'_>) -> (f64, f64) {
        (f64::NEG_INFINITY, 0.0)
    }

    /// An element of the output, of the normalised sum.
    fn finish(&self, output: f64, _row: &Row<'_>) -> f64 {
        output
    }

    /// All products of a tile become scaled logits. A variant with nothing but a scale overrides this for speed.
    fn transform(&self, tile: &mut LogitTile<'_>) {
        let scale = f64::from(self.scale());
        let masked = if self.softmax() { f32::NEG_INFINITY } else { 0.0 };
        tile.for_each(|product, row, key| {
            let bias = self.slope(row) * (key as i64 - row.position()) as f64;
            let logit = scale * (self.logit(f64::from(*product), row, key) + bias);
            *product = if self.keep(row, key) { logit as f32 } else { masked };
        });
    }

    /// All elements of a row of the output. A variant without an output transform overrides this for speed.
    fn finish_row(&self, output: &mut [f32], row: &Row<'_>) {
        output.iter_mut().for_each(|x| *x = self.finish(f64::from(*x), row) as f32);
    }

    /// The kernels of this variant, for the devices of CubeCL. Without them it runs on `Flex` alone, and is
    /// refused elsewhere.
    #[cfg(feature = "cube")]
    fn kernels(&self) -> Option<&dyn kernels::Kernels> {
        None
    }
}

/// The products of some rows with consecutive keys, on their way to become logits.
pub struct LogitTile<'a> {
    products: &'a mut [f32],
    /// Strides of the row and the key of a product: `row * row_stride + key * key_stride`.
    strides: [usize; 2],
    rows: usize,
    keys: usize,
    first_key: usize,
    row: &'a dyn Fn(usize) -> Row<'a>,
}

impl<'a> LogitTile<'a> {
    #[cfg(feature = "flex")]
    pub(crate) fn new(
        products: &'a mut [f32],
        strides: [usize; 2],
        [rows, keys]: [usize; 2],
        first_key: usize,
        row: &'a dyn Fn(usize) -> Row<'a>,
    ) -> Self {
        Self { products, strides, rows, keys, first_key, row }
    }

    /// The products in no particular order, some of which belong to no row.
    pub fn products(&mut self) -> &mut [f32] {
        self.products
    }

    /// The tensors of the variant.
    pub fn inputs(&self) -> HostInputs<'a> {
        (self.row)(0).inputs
    }

    /// The request of the rows.
    #[cfg(feature = "flex")]
    pub(crate) fn request(&self) -> Request {
        (self.row)(0).request
    }

    /// The keys of the products.
    #[cfg(feature = "flex")]
    pub(crate) fn keys(&self) -> Range<usize> {
        self.first_key..self.first_key + self.keys
    }

    /// Each product with its row and the number of its key within the request.
    pub fn for_each(&mut self, mut change: impl FnMut(&mut f32, &Row<'_>, usize)) {
        let [row_stride, key_stride] = self.strides;
        for index in 0..self.rows {
            let row = (self.row)(index);
            for key in 0..self.keys {
                if let Some(product) = self.products.get_mut(index * row_stride + key * key_stride) {
                    change(product, &row, self.first_key + key);
                }
            }
        }
    }
}

/// A variant that crosses threads and backends.
#[derive(Clone)]
pub struct SharedVariant(Arc<dyn AttentionVariant>);

impl Debug for SharedVariant {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SharedVariant {
    /// Shares a variant.
    pub fn new(variant: impl AttentionVariant) -> Self {
        Self(Arc::new(variant))
    }
}

impl Deref for SharedVariant {
    type Target = dyn AttentionVariant;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// The same variant, not an equal one.
impl PartialEq for SharedVariant {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The host's half of a variant as the planner of the kernels asks it.
#[cfg(feature = "cube")]
pub(crate) struct PlannedKeys<'a>(pub &'a dyn AttentionVariant);

#[cfg(feature = "cube")]
impl kernels::KeyRange for PlannedKeys<'_> {
    fn keys(&self, request: &kernels::RequestShape, query: usize) -> (usize, usize) {
        let kernels::RequestShape { index, qo_len, kv_len, .. } = *request;
        let range = visible(self.0, &Request { index, qo_len, kv_len }, query);
        (range.start, range.end)
    }
}

/// The keys that a query sees, within the request whatever the variant says.
pub(crate) fn visible(variant: &dyn AttentionVariant, request: &Request, query: usize) -> Range<usize> {
    let range = variant.keys(request, query);
    let end = range.end.min(request.kv_len);
    range.start.min(end)..end
}
