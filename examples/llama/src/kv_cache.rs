//! A cache of keys and values in 8 bits: its type, and the scales of its codes.
//!
//! A number is `code · scale`, with a scale of keys and one of values for each layer, or for each key head of it. A scale never
//! changes once there are codes. The checkpoint brings them, or else they follow from the first prompt, without a second
//! pass: each layer sees its rotated keys and its values before it rounds them.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flashinfer::{CacheConfig, Fp8, PagedKvCache};

use super::config::Config;
use super::kv_scales;
use super::weights::Loader;

/// The type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCacheDtype {
    /// The type that the model computes in.
    #[default]
    Auto,
    /// e4m3, or the FNUZ variant of it that CDNA3 computes with.
    Fp8E4m3,
    Fp8E5m2,
}

/// Where the scales of codes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvScales {
    /// From the checkpoint, or from the first prompt if it has none.
    #[default]
    Auto,
    Checkpoint,
    /// From the first prompt.
    Calibrate,
    /// All are 1.
    One,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvCacheOptions {
    pub dtype: KvCacheDtype,
    pub scales: KvScales,
}

/// The number of tokens that scales are calibrated with, at least. A short prompt may be no more than the token that begins
/// every text, whose keys and values are like no others (in the shipped model, a ninth of the largest): tokens from all over
/// the vocabulary are read beside it, and forgotten.
pub const CALIBRATED_TOKENS: usize = 64;

/// The largest code stands for this many times the largest number that calibration saw, or more. At another position one
/// element of a key may be √2 times as large, and other tokens have other keys and values: in the shipped model those of 8
/// stories are up to 2.3 times as large as those of 64 tokens from all over the vocabulary. Codes are floats, so that a larger
/// scale costs precision only of numbers below 2^-14 of the largest code's.
pub const MARGIN: f64 = 4.0;

/// Scales of the keys and of the values of a layer: f32, one or one for each key head.
type LayerScales = [Tensor<1>; 2];

/// Codes in the place of cached keys and values.
pub struct KvCodes {
    pub format: Fp8,
    /// Those of each layer; of none until they are calibrated.
    scales: RefCell<Vec<LayerScales>>,
}

impl KvCacheOptions {
    /// The format of the codes, if the cache holds any.
    fn format(self, device: &Device) -> Option<Fp8> {
        match self.dtype {
            KvCacheDtype::Auto => None,
            KvCacheDtype::Fp8E4m3 => Some(Fp8::e4m3_of(device)),
            KvCacheDtype::Fp8E5m2 => Some(Fp8::E5m2),
        }
    }

    /// Refuses what no checkpoint makes possible.
    pub fn check(self, device: &Device) -> Result<()> {
        if let Some(format) = self.format(device) {
            let smallest = CacheConfig::new(1, 1, 1, 1, 1).fp8(format);
            PagedKvCache::new(&smallest, device).context("choose another type with --kv-cache-dtype")?;
        } else {
            ensure!(
                self.scales == KvScales::Auto,
                "--kv-scales is for a cache of 8 bits; choose one with --kv-cache-dtype"
            );
        }
        Ok(())
    }
}

impl KvCodes {
    /// The codes that are asked for, and their scales unless a prompt has to come first.
    pub fn load(config: &Config, loader: &Loader<'_>) -> Result<Option<Self>> {
        let KvCacheOptions { scales, .. } = loader.kv_cache;
        let Some(format) = loader.kv_cache.format(loader.device) else {
            if loader.weights.is_some_and(|weights| kv_scales::are_stored(weights, 0)) {
                tracing::info!("the folder has scales for a cache of 8 bits (--kv-cache-dtype fp8)");
            }
            return Ok(None);
        };
        let scales = match scales {
            KvScales::One => Some(vec![[vec![1.0], vec![1.0]]; config.layers]),
            KvScales::Calibrate => None,
            KvScales::Auto | KvScales::Checkpoint => {
                let stored = loader.weights.map(|weights| kv_scales::stored(config, weights)).transpose()?;
                let stored = stored.flatten();
                ensure!(
                    stored.is_some() || scales == KvScales::Auto,
                    "the folder has no scales of cached keys and values (k_scale, v_scale); try --kv-scales calibrate"
                );
                // The number of a code is half as large there, and the largest number a little more than half.
                let factor = if format == Fp8::E4m3Fnuz { 2.0 } else { 1.0 };
                let scaled = |scales: Vec<f32>| scales.into_iter().map(|scale| factor * scale).collect();
                stored.map(|stored| stored.into_iter().map(|layer| layer.map(scaled)).collect())
            }
        };
        tracing::debug!(%format, known = scales.is_some(), ?scales, "codes of keys and values");
        let on_device = |layer: [Vec<f32>; 2]| layer.map(|scales| tensor(scales, loader.device));
        let scales = scales.into_iter().flatten().map(on_device).collect();
        Ok(Some(Self { format, scales: RefCell::new(scales) }))
    }

    /// True if the scales are known.
    pub fn are_calibrated(&self) -> bool {
        !self.scales.borrow().is_empty()
    }

    /// The scales of keys and of values of each layer; of none until they are known.
    pub fn scales(&self) -> Result<Vec<[Vec<f32>; 2]>> {
        let read = |scales: &Tensor<1>| -> Result<Vec<f32>> { Ok(scales.clone().try_into_vec_as::<f32>()?) };
        self.scales.borrow().iter().map(|[k, v]| Ok([read(k)?, read(v)?])).collect()
    }

    /// Gives the pages of all layers their scales, if these are known.
    pub fn set_scales(&self, cache: &mut PagedKvCache) -> Result<()> {
        for (layer, [k, v]) in self.scales.borrow().iter().enumerate() {
            cache.layer_mut(layer)?.set_scales(k.clone(), v.clone())?;
        }
        Ok(())
    }

    /// Begins to calibrate the scales, with the first `tokens` tokens that each layer sees.
    pub fn calibration(&self, tokens: usize) -> Calibration<'_> {
        Calibration { codes: self, tokens, scales: Vec::new() }
    }
}

/// Scales on their way, from one layer to the next.
pub struct Calibration<'a> {
    codes: &'a KvCodes,
    tokens: usize,
    scales: Vec<LayerScales>,
}

impl Calibration<'_> {
    /// The scales of the next layer, with these rotated keys and these values `[tokens, kv_heads, head_dim]`: for each head the
    /// least power of two that leaves [`MARGIN`]. The last bits of keys and values, in which kernels differ, are of no matter
    /// to it.
    pub fn layer(&mut self, k: Tensor<3>, v: Tensor<3>) -> Result<LayerScales> {
        let (device, [_, heads, _]) = (k.device(), k.dims());
        let largest = |x: Tensor<3>| -> Tensor<1> {
            x.narrow(0, 0, self.tokens).abs().max_dim(2).max_dim(0).reshape([heads]).cast(DType::F32)
        };
        let largest = Tensor::cat(vec![largest(k), largest(v)], 0).try_into_vec_as::<f32>()?;
        ensure!(
            largest.iter().all(|number| number.is_finite()),
            "keys or values are not finite, so that a cache of 8 bits has no scale"
        );
        let scales: Vec<_> = largest.into_iter().map(|largest| scale(largest, self.codes.format)).collect();
        tracing::debug!(layer = self.scales.len(), ?scales, "calibrated keys and values");
        let (k, v) = scales.split_at(heads);
        let scales = [k, v].map(|scales| tensor(scales.to_vec(), &device));
        self.scales.push(scales.clone());
        Ok(scales)
    }

    /// Fixes the scales of all layers.
    pub fn end(self) {
        self.codes.scales.replace(self.scales);
    }
}

/// The least power of two by which codes of `format` reach [`MARGIN`] times `largest`; of nothing, 1.
fn scale(largest: f32, format: Fp8) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    let least = MARGIN * f64::from(largest) / f64::from(format.max());
    (least.log2().ceil().exp2() as f32).max(f32::MIN_POSITIVE)
}

fn tensor(scales: Vec<f32>, device: &Device) -> Tensor<1> {
    let length = scales.len();
    Tensor::from_data(TensorData::new(scales, [length]), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two_with_a_margin() {
        for (largest, format, expected) in [
            (0.0, Fp8::E4m3, 1.0),
            (112.0, Fp8::E4m3, 1.0),
            (112.5, Fp8::E4m3, 2.0),
            (7.0, Fp8::E4m3, 0.0625),
            (60.0, Fp8::E4m3Fnuz, 1.0),
            (14336.0, Fp8::E5m2, 1.0),
            (1.0, Fp8::E5m2, 2f32.powi(-13)),
            (f32::MAX, Fp8::E4m3, 2f32.powi(122)),
            (1e-45, Fp8::E5m2, f32::MIN_POSITIVE),
        ] {
            assert_eq!(scale(largest, format), expected, "{largest} of {format}");
        }
    }
}
