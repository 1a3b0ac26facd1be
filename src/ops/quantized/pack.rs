//! Codes and scales of a weight, on the host.

use crate::error::{Error, Result};
use crate::memory;
use crate::types::{Fp8, WeightFormat, int4};

/// Int4 codes of a weight `[outputs, inputs]` in memory, see [`int4`].
pub(super) fn int4_codes(
    op: &'static str,
    [outputs, inputs]: [usize; 2],
    code: impl Fn(usize, usize) -> u32,
) -> Result<Vec<u8>> {
    let mut codes = memory::list(op, "weight", memory::bytes([outputs, inputs / 2]))?;
    for (output, word) in (0..outputs).flat_map(|output| (0..inputs / 8).map(move |word| (output, word))) {
        let first = int4::first_input(word);
        let of_input = |word: u32, i| word | (code(output, first + i) & 15) << int4::shift(i);
        codes.extend((0..8).fold(0, of_input).to_le_bytes());
    }
    Ok(codes)
}

/// Codes and scales of numbers `[outputs, inputs]`.
///
/// # Errors
///
/// If a number is not finite.
pub(super) fn quantized(
    op: &'static str,
    numbers: &[f32],
    dims: [usize; 2],
    format: WeightFormat,
) -> Result<(Vec<u8>, Vec<f32>)> {
    if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
        let (got, expected) = (numbers[at].to_string(), "a finite number".into());
        return Err(Error::Index { op, argument: "weight", at, got, expected });
    }
    let inputs = dims[1];
    let mut ranges = vec![[0f32; 2]; format.scales(dims).iter().product()];
    let scale_at = |at: usize| format.scale_at(dims, at / inputs, at % inputs);
    for (at, &number) in numbers.iter().enumerate() {
        let [low, high] = &mut ranges[scale_at(at)];
        (*low, *high) = (low.min(number), high.max(number));
    }
    match format {
        WeightFormat::E4m3(_) => {
            // No scale is 0 or subnormal, so that numbers can be divided by it.
            let scale = |[low, high]: [f32; 2]| {
                let scale = high.max(-low) / Fp8::E4m3.max();
                if scale < f32::MIN_POSITIVE { 1.0 } else { scale }
            };
            let scales: Vec<f32> = ranges.into_iter().map(scale).collect();
            let mut codes = memory::list(op, "weight", numbers.len())?;
            let code = |(at, number): (usize, &f32)| Fp8::E4m3.encode(number / scales[scale_at(at)]);
            codes.extend(numbers.iter().enumerate().map(code));
            Ok((codes, scales))
        }
        WeightFormat::Int4 { .. } => {
            let steps: Vec<[f32; 2]> = ranges
                .into_iter()
                .map(|[low, high]| {
                    // Halves, since the difference may exceed f32.
                    let exact = (high / 15.0 - low / 15.0).max(f32::MIN_POSITIVE * 512.0);
                    let scale = int4::scale(exact, 0);
                    [scale, (-low / scale).round().clamp(0.0, 15.0)]
                })
                .collect();
            let code = |output: usize, input: usize| {
                let at = output * inputs + input;
                let [scale, zero] = steps[scale_at(at)];
                ((numbers[at] / scale).round() + zero).clamp(0.0, 15.0) as u32
            };
            let codes = int4_codes(op, dims, code)?;
            Ok((codes, steps.into_iter().map(|[scale, zero]| int4::scale(scale, zero as u32)).collect()))
        }
    }
}
