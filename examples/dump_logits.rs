//! Dumps the logits of a variant, `[q_heads, queries, keys]`: the same hooks without a softmax, over values that are the
//! identity, since `Σ_j s_ij e_j = s_i`. `cargo run --example dump_logits [--features cuda]`

use burn::tensor::{Device, Distribution, Tensor};
use burn_flashinfer::{AttentionOptions, AttentionVariant, Row, single_prefill};

/// The variant of `own_variant.rs`, whose logits are weights here. More keys than 256 want a run for each 256 columns.
#[derive(Debug)]
struct Slope(f32);
impl AttentionVariant for Slope {
    fn scale(&self) -> f32 {
        0.125
    }
    fn softmax(&self) -> bool {
        false
    }
    fn logit(&self, product: f64, row: &Row<'_>, key: usize) -> f64 {
        product - f64::from(self.0) * (row.position() - key as i64).abs() as f64
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
        slope: f32,
    }
    #[cube]
    impl Variant for super::Slope {
        type Args = Args;
        const SOFTMAX: bool = false;
        fn scale(_args: &Args) -> f32 {
            0.125f32
        }
        fn logit<M: Math>(args: &Args, product: f32, row: &QueryRow, key: usize) -> f32 {
            product - args.slope * f32::cast_from((row.position() - key as i32).abs())
        }
    }
    impl Kernels for super::Slope {
        fn launch(&self, call: Call<'_>) -> Result<()> {
            // SAFETY: no hook indexes a tensor.
            unsafe { call.run::<Self>(|| ArgsLaunch::new(self.0)) }
        }
    }
}

fn main() -> burn_flashinfer::Result<()> {
    let device = Device::default();
    let [q, k] = [8, 2].map(|heads| Tensor::random([12, heads, 64], Distribution::Default, &device));
    let identity = Tensor::<2>::eye(12, &device).unsqueeze_dim::<3>(1).repeat_dim(1, 2);
    let logits = AttentionOptions::new().variant(Slope(0.5));
    println!("{}", single_prefill(q, k, identity, &logits)?.output.swap_dims(0, 1));
    Ok(())
}
