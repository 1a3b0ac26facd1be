//! The page pool of one layer.

use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use crate::cache::{Clock, Stamp};
use crate::check;
use crate::error::{Error, Result};
use crate::options::KvLayout;

/// The keys and values of one layer, in pages.
///
/// Both tensors are `[pages, page_size, kv_heads, head_dim]` ([`KvLayout::Nhd`]) or `[pages, kv_heads, page_size,
/// head_dim]` ([`KvLayout::Hnd`]), of the same type and on the same device; their head dimensions may differ.
#[derive(Debug, Clone)]
pub struct KvPages {
    k: Tensor<4>,
    v: Tensor<4>,
    layout: KvLayout,
    /// Whether new tokens are written in place while clones are alive.
    pinned: bool,
    /// Of the cache whose layer this is.
    clock: Option<Arc<Clock>>,
}

/// The extents of a page pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    pub pages: usize,
    pub page_size: usize,
    pub kv_heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
}

impl KvPages {
    /// Takes two tensors as the pages of a layer.
    ///
    /// To append in place the pages must be the only owner of both: keep no clone of them.
    ///
    /// # Errors
    ///
    /// If they differ in more than the last extent, in type or in device, or an extent is 0.
    pub fn new(k: Tensor<4>, v: Tensor<4>, layout: KvLayout) -> Result<Self> {
        const OP: &str = "KvPages::new";
        check::device(OP, "k", &k.device())?;
        check::same_device(OP, "v", &v.device(), &k.device())?;
        check::float(OP, "k", k.dtype(), &k.device())?;
        check::same_dtype(OP, "v", v.dtype(), k.dtype())?;
        let [k_dims, v_dims] = [k.dims(), v.dims()];
        if k_dims.contains(&0) {
            return Err(check::shape(OP, "k", &k_dims, "no empty axis"));
        }
        if v_dims[..3] != k_dims[..3] || v_dims[3] == 0 {
            let [pages, rows, heads, _] = k_dims;
            return Err(check::shape(
                OP,
                "v",
                &v_dims,
                format!("[{pages}, {rows}, {heads}, head_dim], as `k`"),
            ));
        }
        Ok(Self { k, v, layout, pinned: false, clock: None })
    }

    pub(crate) fn of_cache(mut self, clock: Arc<Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    pub(crate) fn pin(&mut self) {
        self.pinned = true;
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Refuses a page table whose sequences have changed since it was made.
    pub(crate) fn check_current(
        &self,
        op: &'static str,
        argument: &'static str,
        stamp: Option<&Arc<Stamp>>,
    ) -> Result<()> {
        match stamp.and_then(|stamp| stamp.outdated(self.clock.as_ref())) {
            None => Ok(()),
            Some(sequence) => {
                let (got, expected) =
                    (format!("older than a change of {sequence:?}"), "one made or updated after it".into());
                Err(Error::Stale { op, argument, got, expected })
            }
        }
    }

    /// The keys.
    pub fn k(&self) -> &Tensor<4> {
        &self.k
    }

    /// The values.
    pub fn v(&self) -> &Tensor<4> {
        &self.v
    }

    /// The two tensors.
    pub fn into_tensors(self) -> (Tensor<4>, Tensor<4>) {
        (self.k, self.v)
    }

    /// The order of the axes of a page.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    pub(crate) fn shape(&self) -> PageShape {
        let [pages, a, b, k_dim] = self.k.dims();
        let v_dim = self.v.dims()[3];
        let (page_size, kv_heads) = match self.layout {
            KvLayout::Nhd => (a, b),
            KvLayout::Hnd => (b, a),
        };
        PageShape { pages, page_size, kv_heads, k_dim, v_dim }
    }

    /// Replaces both tensors by what `write` makes of them. They are moved out meanwhile, so that it is their only
    /// owner and can write in place.
    pub(crate) fn update(&mut self, write: impl FnOnce(Tensor<4>, Tensor<4>) -> (Tensor<4>, Tensor<4>)) {
        (self.k, self.v) = write(self.k.extract(), self.v.extract());
    }

    /// A copy of the keys and of the values of these pages, `[pages * page_size, kv_heads, head_dim]` each.
    pub(crate) fn gather(&self, pages: &Tensor<1, Int>) -> (Tensor<3>, Tensor<3>) {
        let rows = |pool: &Tensor<4>| {
            let gathered = pool.clone().select(0, pages.clone());
            let by_token = match self.layout {
                KvLayout::Nhd => gathered,
                KvLayout::Hnd => gathered.swap_dims(1, 2),
            };
            by_token.flatten(0, 1)
        };
        (rows(&self.k), rows(&self.v))
    }
}
