//! Cosines and sines.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::config::RopeConfig;
use crate::check;
use crate::error::{Error, Result};
use crate::memory;
use crate::types::RopeStyle;

/// The rotations of RoPE for every position, on a device.
///
/// Cosines and sines are computed in f64 and kept in f32: an angle at position 100 000 computed in f32 would be wrong
/// in the third digit. The table takes `4 * max_positions * rotary_dim` bytes.
#[derive(Debug, Clone)]
pub struct Rope {
    /// `[max_positions, rotary_dim]`: cosines, then sines.
    pub(super) cos_sin: Tensor<2>,
    pub(super) style: RopeStyle,
}

impl Rope {
    /// The rotations of the positions below `max_positions`.
    ///
    /// # Errors
    ///
    /// If a parameter is out of its range, the table would have more than `i32::MAX` elements or more bytes
    /// than there is memory for, or no backend of this build serves `device`.
    pub fn new(config: &RopeConfig, max_positions: usize, device: &Device) -> Result<Self> {
        const OP: &str = "Rope::new";
        config.check(OP)?;
        check::device(OP, "device", device)?;
        if max_positions == 0 {
            return Err(Error::Value {
                op: OP,
                argument: "max_positions",
                got: "0".into(),
                expected: "at least 1".into(),
            });
        }
        // Kernels count elements in i32.
        let most = i32::MAX as usize / config.rotary_dim;
        if max_positions > most {
            return Err(Error::Value {
                op: OP,
                argument: "max_positions",
                got: max_positions.to_string(),
                expected: format!("at most {most}, for {} elements each", config.rotary_dim),
            });
        }
        let (elements, element) = (max_positions * config.rotary_dim, size_of::<f32>());
        // The frequencies, half as many f64, take as much memory as a row.
        memory::on_host(OP, "max_positions", memory::bytes([max_positions + 1, config.rotary_dim, element]))?;
        memory::on_device(OP, "max_positions", [1, elements * element], device)?;
        let (frequencies, factor) = (config.frequencies().collect::<Vec<f64>>(), config.attention_factor());
        let mut table = memory::list(OP, "max_positions", elements)?;
        for position in 0..max_positions {
            let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
            table.extend(angles.clone().map(|angle| (factor * angle.cos()) as f32));
            table.extend(angles.map(|angle| (factor * angle.sin()) as f32));
        }
        let data = TensorData::new(table, [max_positions, config.rotary_dim]);
        Ok(Self { cos_sin: Tensor::from_data(data, (device, DType::F32)), style: config.style })
    }

    /// A table that was made elsewhere: `cos_sin` `[max_positions, rotary_dim]` of f32 holds the cosines of
    /// each position, then its sines, as the `cos_sin_cache` of vLLM and SGLang does (whose `is_neox` is
    /// [`RopeStyle::Halves`]).
    ///
    /// # Errors
    ///
    /// If it is not f32, `rotary_dim` is not even, an axis is empty, or a gradient is required.
    pub fn from_cos_sin_cache(cos_sin: Tensor<2>, style: RopeStyle) -> Result<Self> {
        const OP: &str = "Rope::from_cos_sin_cache";
        check::device(OP, "cos_sin", &cos_sin.device())?;
        check::no_gradient(OP, "cos_sin", &cos_sin)?;
        if cos_sin.dtype() != DType::F32 {
            let got = format!("{:?}", cos_sin.dtype());
            return Err(Error::Dtype { op: OP, argument: "cos_sin", got, expected: "F32".into() });
        }
        let dims = cos_sin.dims();
        if dims.contains(&0) || !dims[1].is_multiple_of(2) {
            let expected = "[max_positions, rotary_dim], none of them 0, the second even";
            return Err(check::shape(OP, "cos_sin", &dims, expected));
        }
        Ok(Self { cos_sin, style })
    }

    /// The number of positions in the table.
    pub fn max_positions(&self) -> usize {
        self.cos_sin.dims()[0]
    }

    /// The number of elements of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        self.cos_sin.dims()[1]
    }
}
