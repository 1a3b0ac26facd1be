//! Linear layers: a product and its epilogue.

use burn::tensor::DType;
use burn_flex::FlexTensor;

use super::activation::gated;
use super::float::Float;
use super::matmul::{many_rows_nt, rows_nt};
use super::norm;
use super::output::by_rows;
use super::scratch::with_scratch;
use super::view::{self, Rows, dims, with_rows};
use crate::types::LinearParams;

/// Outputs below which waking other threads costs more than it saves.
const PARALLEL: usize = 1 << 15;

/// `x · weightᵀ` for `x` `[rows, in]`, normalised first if there are factors `norm`, and `weight` `[out, in]`; and its
/// epilogue.
pub(super) fn linear<E: Float>(
    x: FlexTensor,
    weight: FlexTensor,
    norm: Option<FlexTensor>,
    bias: Option<FlexTensor>,
    residual: Option<FlexTensor>,
    params: LinearParams,
) -> FlexTensor {
    let x = match norm {
        None => x,
        Some(weight) => {
            let factors = norm::factors(view::widened::<E>(weight), params.style);
            norm::rms_norm::<E, E>(x, &factors, params.epsilon)
        }
    };
    if params.dtype == E::dtype() {
        rounded_to::<E, E>(x, weight, bias, residual, params)
    } else {
        rounded_to::<E, f32>(x, weight, bias, residual, params)
    }
}

/// `x · weightᵀ` for f32, and its epilogue, in the type of bias, residual and output.
pub(super) fn of_f32<Y: Float>(
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    residual: Option<FlexTensor>,
    params: LinearParams,
) -> FlexTensor {
    let bias = bias.map(|bias| {
        let [len] = dims(&bias);
        view::tensor(view::widened::<Y>(bias), [len], DType::F32)
    });
    rounded_to::<f32, Y>(x, weight, bias, residual, params)
}

fn rounded_to<E: Float, Y: Float>(
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    residual: Option<FlexTensor>,
    params: LinearParams,
) -> FlexTensor {
    if bias.is_none() && residual.is_none() && params.gate.is_none() && params.soft_cap.is_none() {
        return view::tensor(product::<E, Y>(&x, &weight, params), shape(&x, &weight), Y::dtype());
    }
    finish::<E, Y>(x, weight, bias, residual, params)
}

fn shape(x: &FlexTensor, weight: &FlexTensor) -> [usize; 2] {
    let ([rows, _], [columns, _]) = (dims(x), dims(weight));
    [rows, columns]
}

fn product<E: Float, Y: Float>(x: &FlexTensor, weight: &FlexTensor, params: LinearParams) -> Vec<Y> {
    let (x, weight) = (with_rows(x.clone()), with_rows(weight.clone()));
    let ([rows, depth], [columns, _]) = (dims(&x), dims(&weight));
    let mut output = vec![Y::narrow(0.0); rows * columns];
    let (x, weight) = (Rows::of(&x), Rows::of(&weight));
    match params.batch_invariant {
        true => many_rows_nt::<E, Y>(x, weight, [rows, depth], &mut output),
        false => rows_nt::<E, Y>(x, weight, [rows, depth], &mut output),
    }
    output
}

/// The outputs of f32 sums.
fn finish<E: Float, Y: Float>(
    x: FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    residual: Option<FlexTensor>,
    params: LinearParams,
) -> FlexTensor {
    let [rows, weight_rows] = shape(&x, &weight);
    let sums = product::<E, f32>(&x, &weight, params);
    let bias = bias.map(with_rows);
    let bias: Option<Rows<'_, E, 0>> = bias.as_ref().map(Rows::of);
    let residual = residual.map(with_rows);
    let residual: Option<Rows<'_, Y, 1>> = residual.as_ref().map(Rows::of);
    by_rows([rows, params.outputs(weight_rows)], PARALLEL, |row, y: &mut [Y]| {
        with_scratch(weight_rows + y.len(), |scratch| {
            let (row_sums, outputs) = scratch.split_at_mut(weight_rows);
            row_sums.copy_from_slice(&sums[row * weight_rows..][..weight_rows]);
            if let Some(bias) = &bias {
                row_sums.iter_mut().zip(bias.row([])).for_each(|(sum, bias)| *sum += bias.widen());
            }
            match params.gate {
                None => outputs.copy_from_slice(row_sums),
                Some(activation) => {
                    let (gate, up) = row_sums.split_at(weight_rows / 2);
                    gated::<f32, f32>(gate, up, activation, outputs);
                }
            }
            if let Some(cap) = params.soft_cap {
                outputs.iter_mut().for_each(|output| *output = cap * (*output / cap).tanh());
            }
            if let Some(residual) = &residual {
                outputs.iter_mut().zip(residual.row([row])).for_each(|(y, old)| *y += old.widen());
            }
            y.iter_mut().zip(outputs).for_each(|(y, output)| *y = Y::narrow(*output));
        });
    })
}
