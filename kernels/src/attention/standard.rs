//! Standard attention: a variant like any other.
#![allow(missing_docs, reason = "the derived launch structs have none; what is written here does")]

use cubecl::prelude::*;

use super::launch::{Call, Kernels};
use super::variant::{CausalWindow, Variant};
use crate::device::Result;
use crate::math::Math;
use crate::request::{KeyRange, QueryRow, RequestShape};

/// Scaled dot products with a causal mask, a window and a soft cap. As a type, without the cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standard {
    /// Factor on `q·k`, before the cap.
    pub scale: f32,
    /// Right-aligned causal mask.
    pub causal: bool,
    /// Inclusive left window.
    pub window_left: Option<usize>,
    /// Bound of the logits.
    pub soft_cap: Option<f32>,
}

impl Standard {
    /// Every query sees every key, without a cap.
    pub fn new(scale: f32) -> Self {
        Self { scale, causal: false, window_left: None, soft_cap: None }
    }

    /// The result of [`Variant::scale`]: a cap has scaled the logits itself.
    pub fn logit_scale(&self) -> f32 {
        if self.soft_cap.is_some() { 1.0 } else { self.scale }
    }

    fn mask(&self) -> CausalWindow {
        CausalWindow::new(self.causal, self.window_left)
    }
}

impl KeyRange for Standard {
    fn keys(&self, request: &RequestShape, query: usize) -> (usize, usize) {
        self.mask().keys(request, query)
    }
}

impl Kernels for Standard {
    fn launch(&self, call: Call<'_>) -> Result<()> {
        let mask = self.mask();
        // SAFETY: the hooks have no tensor.
        unsafe {
            match self.soft_cap {
                None => call.run::<Self>(|| StandardArgsLaunch::new(self.scale, mask.launch())),
                Some(cap) => {
                    let inner = (self.scale / cap).clamp(f32::MIN, f32::MAX);
                    call.run::<SoftCap>(|| SoftCapArgsLaunch::new(cap, inner, mask.launch()))
                }
            }
        }
    }
}

/// The arguments of [`Standard`].
#[derive(CubeType, CubeLaunch)]
pub struct StandardArgs {
    /// Factor on `q·k`.
    pub scale: f32,
    /// The keys that a query sees.
    pub mask: CausalWindow,
}

#[cube]
impl Variant for Standard {
    type Args = StandardArgs;

    fn scale(args: &StandardArgs) -> f32 {
        args.scale
    }

    fn keys(args: &StandardArgs, request: &RequestShape, query: usize) -> (usize, usize) {
        args.mask.keys(request, query)
    }
}

/// [`Standard`] with logits of `cap tanh(scale q·k / cap)`.
#[derive(Debug)]
pub enum SoftCap {}

/// The arguments of [`SoftCap`].
#[derive(CubeType, CubeLaunch)]
pub struct SoftCapArgs {
    /// Bound of the logits.
    pub cap: f32,
    /// `scale / cap`. Finite, so that 0 times it is 0.
    pub inner: f32,
    /// The keys that a query sees.
    pub mask: CausalWindow,
}

#[cube]
impl Variant for SoftCap {
    type Args = SoftCapArgs;

    fn scale(_args: &SoftCapArgs) -> f32 {
        1.0f32
    }

    fn keys(args: &SoftCapArgs, request: &RequestShape, query: usize) -> (usize, usize) {
        args.mask.keys(request, query)
    }

    fn logit<M: Math>(args: &SoftCapArgs, product: f32, _row: &QueryRow, _key: usize) -> f32 {
        args.cap * M::tanh(product * args.inner)
    }
}
