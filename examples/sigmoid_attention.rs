//! Sigmoid attention, `o = Σ σ(scale q·k + bias) v`: weights are logits, times 1. `cargo run --example sigmoid_attention [--features cuda]`

use burn::tensor::{Device, Distribution, Tensor};
use burn_flashinfer::{AttentionOptions, AttentionVariant, Row, single_prefill};

#[derive(Debug)]
struct Sigmoid {
    scale: f32,
    bias: f32,
}
impl AttentionVariant for Sigmoid {
    fn scale(&self) -> f32 {
        1.0
    }
    fn softmax(&self) -> bool {
        false
    }
    fn logit(&self, product: f64, _row: &Row<'_>, _key: usize) -> f64 {
        1.0 / (1.0 + (-(product * f64::from(self.scale) + f64::from(self.bias))).exp())
    }
    #[cfg(feature = "cube")]
    fn kernels(&self) -> Option<&dyn burn_flashinfer::kernels::Kernels> {
        Some(self)
    }
}
#[cfg(feature = "cube")]
mod device {
    use burn_flashinfer::kernels::cubecl::{self, prelude::*};
    use burn_flashinfer::kernels::{Call, Kernels, Math, QueryRow, Result, Variant};
    #[derive(CubeType, CubeLaunch)]
    pub struct Args {
        scale: f32,
        bias: f32,
    }
    #[cube]
    impl Variant for super::Sigmoid {
        type Args = Args;
        const SOFTMAX: bool = false;
        fn scale(_args: &Args) -> f32 {
            1.0f32
        }
        fn logit<M: Math>(args: &Args, product: f32, _row: &QueryRow, _key: usize) -> f32 {
            M::reciprocal(1.0f32 + M::exp2(-(product * args.scale + args.bias) * std::f32::consts::LOG2_E))
        }
    }
    impl Kernels for super::Sigmoid {
        fn launch(&self, call: Call<'_>) -> Result<()> {
            // SAFETY: no hook indexes a tensor.
            unsafe { call.run::<Self>(|| ArgsLaunch::new(self.scale, self.bias)) }
        }
    }
}

fn main() -> burn_flashinfer::Result<()> {
    let device = Device::default();
    let [q, k, v] = [8, 2, 2].map(|heads| Tensor::random([12, heads, 64], Distribution::Default, &device));
    let options = AttentionOptions::new().variant(Sigmoid { scale: 0.125, bias: -2.5 });
    println!("{}", single_prefill(q, k, v, &options)?.output);
    Ok(())
}
