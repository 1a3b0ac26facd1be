//! Attention sinks written by hand: a logit without a value. `cargo run --example own_sinks [--features cuda]`

use burn::tensor::{Device, Distribution, Tensor};
use burn_flashinfer::{AttentionOptions, AttentionVariant, InputLengths, Row, VariantInputs, single_prefill};

const SCALE: f32 = 0.125;
/// The floats of a call are a sink for each query head. (`VariantInputs::sinks` does the same without a variant.)
#[derive(Debug)]
struct Sinks;
impl AttentionVariant for Sinks {
    fn scale(&self) -> f32 {
        SCALE
    }
    fn input_lengths(&self, q_heads: usize) -> InputLengths {
        InputLengths { floats: Some(q_heads), ints: None }
    }
    fn start(&self, row: &Row<'_>) -> (f64, f64) {
        (f64::from(row.floats[row.q_head] / SCALE), 1.0)
    }
    #[cfg(feature = "cube")]
    fn kernels(&self) -> Option<&dyn burn_flashinfer::kernels::Kernels> {
        Some(self)
    }
}

#[cfg(feature = "cube")]
mod device {
    use burn_flashinfer::kernels::cubecl::{self, prelude::*};
    use burn_flashinfer::kernels::{Call, Kernels, QueryRow, Result, Variant};
    #[derive(CubeType, CubeLaunch)]
    pub struct Args {
        sinks: Box<[f32]>,
    }
    #[cube]
    impl Variant for super::Sinks {
        type Args = Args;
        fn scale(_args: &Args) -> f32 {
            super::SCALE.runtime()
        }
        fn start(args: &Args, row: &QueryRow) -> (f32, f32) {
            (args.sinks[row.q_head] / super::SCALE, 1.0f32)
        }
    }
    impl Kernels for super::Sinks {
        fn launch(&self, call: Call<'_>) -> Result<()> {
            let sinks = call.float_input("sinks", &[call.q_heads()])?;
            // SAFETY: there is a sink for each query head.
            unsafe { call.run::<Self>(|| ArgsLaunch::new(sinks.clone().into_buffer_arg())) }
        }
    }
}

fn main() -> burn_flashinfer::Result<()> {
    let device = Device::default();
    let [q, k, v] = [8, 2, 2].map(|heads| Tensor::random([12, heads, 64], Distribution::Default, &device));
    let sinks = VariantInputs::new().floats(Tensor::random([8], Distribution::Default, &device));
    println!("{}", single_prefill(q, k, v, (&AttentionOptions::new().variant(Sinks), sinks))?.output);
    Ok(())
}
