//! A variant without softmax, as a user writes it: `o = Σ σ(scale q·k + bias) v`.
#![allow(missing_docs, reason = "derived structs have none")]

use burn_flashinfer_kernels::Result;
use burn_flashinfer_kernels::attention::{
    Call, CausalWindow, Kernels, Math, QueryRow, RequestShape, Variant,
};
use cubecl::prelude::*;

/// Causal sigmoid attention.
#[derive(Debug)]
pub struct Sigmoid {
    pub scale: f32,
    pub bias: f32,
}

#[derive(CubeType, CubeLaunch)]
pub struct Args {
    scale: f32,
    bias: f32,
    mask: CausalWindow,
}

#[cube]
impl Variant for Sigmoid {
    type Args = Args;
    const SOFTMAX: bool = false;

    fn scale(_args: &Args) -> f32 {
        1.0f32
    }

    fn keys(args: &Args, request: &RequestShape, query: usize) -> (usize, usize) {
        args.mask.keys(request, query)
    }

    fn logit<M: Math>(args: &Args, product: f32, _row: &QueryRow, _key: usize) -> f32 {
        M::reciprocal(1.0f32 + M::exp2(-(product * args.scale + args.bias) * std::f32::consts::LOG2_E))
    }
}

impl Kernels for Sigmoid {
    fn launch(&self, call: Call<'_>) -> Result<()> {
        let mask = CausalWindow::new(true, None);
        // SAFETY: no hook indexes a tensor.
        unsafe { call.run::<Self>(|| ArgsLaunch::new(self.scale, self.bias, mask.launch())) }
    }
}
