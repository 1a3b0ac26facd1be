//! A mask of keys in a tensor: decoding that sees every third key. `cargo run --example mask_buffer [--features cuda]`

use burn::tensor::{Device, Distribution, Int, Tensor};
use burn_flashinfer::{AttentionOptions, AttentionVariant, InputLengths, Row, VariantInputs, single_decode};

const KEYS: usize = 40;
/// The integers of a call are 1 for each key that is seen. A tile asks for keys beyond the last one as well.
#[derive(Debug)]
struct MaskBuffer;
impl AttentionVariant for MaskBuffer {
    fn scale(&self) -> f32 {
        0.125
    }
    fn input_lengths(&self, _q_heads: usize) -> InputLengths {
        InputLengths { floats: None, ints: Some(KEYS) }
    }
    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        row.ints[key.min(KEYS - 1)] == 1
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
        mask: Box<[i32]>,
    }
    #[cube]
    impl Variant for super::MaskBuffer {
        type Args = Args;
        fn scale(_args: &Args) -> f32 {
            0.125f32
        }
        fn keep(args: &Args, _row: &QueryRow, key: usize) -> bool {
            args.mask[min(key, super::KEYS - 1)] == 1
        }
    }
    impl Kernels for super::MaskBuffer {
        fn launch(&self, call: Call<'_>) -> Result<()> {
            let mask = call.int_input("mask", &[super::KEYS])?;
            // SAFETY: the mask has as many keys as `keep` reads.
            unsafe { call.run::<Self>(|| ArgsLaunch::new(mask.clone().into_buffer_arg())) }
        }
    }
}

fn main() -> burn_flashinfer::Result<()> {
    let device = Device::default();
    let [k, v] = [2, 2].map(|heads| Tensor::random([KEYS, heads, 64], Distribution::Default, &device));
    let q = Tensor::random([8, 64], Distribution::Default, &device);
    let third = Tensor::<1, Int>::arange(0..KEYS as i64, &device).remainder_scalar(3).equal_elem(0).int();
    let call = (&AttentionOptions::new().variant(MaskBuffer), VariantInputs::new().ints(third));
    println!("{}", single_decode(q, k, v, call)?.output);
    Ok(())
}
