//! The steps between a sum of products and the stored output.

use cubecl::prelude::*;

use super::code_scales::{CodeScales, Codes};
use crate::activation::{Activation, act};
use crate::device::tensor::{Result, shape};
use crate::device::{DeviceProfile, Machine};
use crate::math::{narrow, tanh};
use crate::mma::Scales;

/// The epilogue of a product, in f32, before the one rounding:
///
/// ```text
/// s = x · weightᵀ + bias
/// s = act(gate) · up              if gated, for the two halves of s
/// s = cap · tanh(s / cap)         if capped
/// y = s + y                       if added
/// ```
#[derive(Default)]
pub struct Epilogue {
    /// `[weight rows]`, contiguous, in the type of `x`.
    pub bias: Option<TensorBinding>,
    /// The function of the first half of the weight's rows, the gate. The others are up.
    pub gate: Option<Activation>,
    /// The soft cap, a positive number.
    pub soft_cap: Option<f32>,
    /// `y` holds the residual, to which the result is added.
    pub add: bool,
}

/// The steps of an [`Epilogue`]. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Steps {
    pub gate: Option<Activation>,
    pub capped: bool,
    pub add: bool,
    /// The scales of the weight, if both factors are codes.
    pub scales: Option<Scales>,
    pub machine: Machine,
}

impl Steps {
    /// Rows of the weight for each output.
    pub fn halves(&self) -> usize {
        1 + usize::from(self.gate.is_some())
    }
}

impl Epilogue {
    /// True if there are no steps.
    pub fn is_empty(&self) -> bool {
        self.bias.is_none() && self.gate.is_none() && self.soft_cap.is_none() && !self.add
    }

    /// Outputs of `weight`, which has so many rows: with a gate half of them.
    ///
    /// # Errors
    ///
    /// If there are not as many gates as ups.
    pub(crate) fn outputs(
        &self,
        kernel: &'static str,
        argument: &'static str,
        weight: &TensorBinding,
        rows: usize,
    ) -> Result<usize> {
        match self.gate {
            None => Ok(rows),
            Some(_) if rows.is_multiple_of(2) => Ok(rows / 2),
            Some(_) => Err(shape(kernel, argument, weight, "as many gates as ups")),
        }
    }

    /// The arguments and the steps, for `d_out` outputs.
    pub(crate) fn unzip<E: Float>(
        self,
        device: &DeviceProfile,
        d_out: usize,
    ) -> (EpilogueArgsLaunch<E>, Steps) {
        self.unzip_scaled(device, d_out, None)
    }

    /// [`unzip`](Self::unzip) with the scales of both factors, if they are codes.
    pub(crate) fn unzip_scaled<E: Float>(
        self,
        device: &DeviceProfile,
        d_out: usize,
        codes: Option<Codes>,
    ) -> (EpilogueArgsLaunch<E>, Steps) {
        let Self { bias, gate, soft_cap, add } = self;
        let scales = codes.as_ref().map(|codes| codes.scales);
        let (capped, machine) = (soft_cap.is_some(), Machine::of(device.arch));
        let steps = Steps { gate, capped, add, scales, machine };
        let bias = bias.map(TensorBinding::into_buffer_arg);
        let codes = codes.map(Codes::into_args);
        (EpilogueArgsLaunch::new(bias.into(), soft_cap.unwrap_or(1.0), d_out, codes.into()), steps)
    }
}

/// The numbers of an [`Epilogue`].
#[derive(CubeType, CubeLaunch)]
pub(crate) struct EpilogueArgs<E: Float> {
    pub bias: ComptimeOption<Box<[Vector<E, Const<1>>]>>,
    pub soft_cap: f32,
    /// Elements of a row of `y`.
    pub d_out: usize,
    /// The scales of both factors, if they are codes.
    pub scales: ComptimeOption<CodeScales>,
}

#[cube]
impl<E: Float> EpilogueArgs<E> {
    /// Adjacent outputs from `output` on, a multiple of `N`. `sums` are theirs, or those of their gates, and `up` those of
    /// the other half of the weight's rows.
    pub fn finish<N: Size>(
        &self,
        sums: Vector<f32, N>,
        up: Vector<f32, N>,
        output: usize,
        #[comptime] steps: Steps,
    ) -> Vector<f32, N> {
        let mut y = self.with_bias::<N>(sums, output);
        #[comptime]
        if let Some(activation) = steps.gate {
            let up = self.with_bias::<N>(up, self.d_out + output);
            y = act::<N>(y, activation, steps.machine) * up;
        }
        if comptime!(steps.capped) {
            let width = N::value();
            #[unroll]
            for i in 0..width {
                y.insert(i, self.soft_cap * tanh(y.extract(i) / self.soft_cap));
            }
        }
        y
    }

    /// [`finish`](Self::finish) of a row's sums of codes, times its scale and those of the outputs; without scales the same.
    pub fn finish_scaled<N: Size>(
        &self,
        sums: Vector<f32, N>,
        up: Vector<f32, N>,
        of_row: f32,
        output: usize,
        #[comptime] steps: Steps,
    ) -> Vector<f32, N> {
        let sums = self.scaled::<N>(sums, of_row, output, steps);
        let mut ups = sums;
        if comptime!(steps.halves() > 1) {
            ups = self.scaled::<N>(up, of_row, self.d_out + output, steps);
        }
        self.finish::<N>(sums, ups, output, steps)
    }

    /// The factor of the products of a block of inputs and of the block of an output.
    pub fn of_block(&self, output: usize, block: usize, #[comptime] steps: Steps) -> f32 {
        let mut scale = 1.0f32;
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => {
                if comptime!(steps.scales == Some(Scales::Block128)) {
                    scale = scales.of_block(output, block);
                }
            }
            ComptimeOption::None => {}
        }
        scale
    }

    /// The factor of all sums of a row.
    pub fn of_row(&self, row: usize) -> f32 {
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => scales.of_row(row),
            ComptimeOption::None => 1.0f32.runtime(),
        }
    }

    fn scaled<N: Size>(
        &self,
        sums: Vector<f32, N>,
        of_row: f32,
        output: usize,
        #[comptime] steps: Steps,
    ) -> Vector<f32, N> {
        #[comptime]
        match &self.scales {
            ComptimeOption::Some(scales) => {
                let of_weight = comptime!(steps.scales.unwrap_or(Scales::PerTensor));
                scales.apply::<N>(sums, of_row, output, of_weight, steps.machine)
            }
            ComptimeOption::None => sums,
        }
    }

    fn with_bias<N: Size>(&self, sums: Vector<f32, N>, row: usize) -> Vector<f32, N> {
        #[comptime]
        match &self.bias {
            ComptimeOption::Some(bias) => {
                let few = bias.with_vector_size::<N>()[row / N::value()];
                sums + Vector::<f32, N>::cast_from(few)
            }
            ComptimeOption::None => sums,
        }
    }
}

/// Rounds outputs and stores them at `at`; added to those that are there, if the result is.
#[cube]
pub(crate) fn store_at<Y: Float, N: Size>(
    y: &mut [Vector<Y, N>],
    at: usize,
    outputs: Vector<f32, N>,
    #[comptime] steps: Steps,
) {
    if comptime!(steps.add) {
        y[at] = narrow::<Y, N>(outputs + Vector::<f32, N>::cast_from(y[at]));
    } else {
        y[at] = narrow::<Y, N>(outputs);
    }
}
