//! A logit loses `slope` for each token between query and key. `cargo run --example own_variant [--features cuda]`

use burn::tensor::{Device, Distribution, Tensor};
use burn_flashinfer::{AttentionOptions, AttentionVariant, Row, single_prefill};

#[derive(Debug)]
struct DistanceBias {
    scale: f32,
    slope: f32,
}

/// The host's half: what plans and what `Flex` computes.
impl AttentionVariant for DistanceBias {
    fn scale(&self) -> f32 {
        self.scale
    }
    fn logit(&self, product: f64, row: &Row<'_>, key: usize) -> f64 {
        product - f64::from(self.slope) * (row.position() - key as i64).abs() as f64
    }
    #[cfg(feature = "cube")]
    fn kernels(&self) -> Option<&dyn burn_flashinfer::kernels::Kernels> {
        Some(self)
    }
}

/// The device's half.
#[cfg(feature = "cube")]
mod device {
    use burn_flashinfer::kernels::cubecl::{self, prelude::*};
    use burn_flashinfer::kernels::{Call, Kernels, Math, QueryRow, Result, Variant};
    #[derive(CubeType, CubeLaunch)]
    pub struct Args {
        scale: f32,
        slope: f32,
    }
    #[cube]
    impl Variant for super::DistanceBias {
        type Args = Args;
        fn scale(args: &Args) -> f32 {
            args.scale
        }
        fn logit<M: Math>(args: &Args, product: f32, row: &QueryRow, key: usize) -> f32 {
            product - args.slope * f32::cast_from((row.position() - key as i32).abs())
        }
    }
    impl Kernels for super::DistanceBias {
        fn launch(&self, call: Call<'_>) -> Result<()> {
            // SAFETY: no hook indexes a tensor.
            unsafe { call.run::<Self>(|| ArgsLaunch::new(self.scale, self.slope)) }
        }
    }
}

fn main() -> burn_flashinfer::Result<()> {
    let device = Device::default();
    let [q, k, v] = [8, 2, 2].map(|heads| Tensor::random([12, heads, 64], Distribution::Default, &device));
    let bias = DistanceBias { scale: 0.125, slope: 0.5 };
    println!("{}", single_prefill(q, k, v, &AttentionOptions::new().variant(bias))?.output);
    Ok(())
}
