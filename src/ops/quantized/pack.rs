//! Codes and scales of a weight, on the host.

use std::sync::Mutex;
use std::thread;

use crate::error::{Error, Result};
use crate::memory;
use crate::types::{Fp8, WeightFormat, int4};

/// Fills rows of `width` elements, one for each output, on all cores.
fn by_output<T: Send>(rows: &mut [T], width: usize, fill: impl Fn(usize, &mut [T]) + Sync) {
    // Fewer elements take less time than the start of a thread.
    const LEAST: usize = 1 << 16;
    let outputs = LEAST.div_ceil(width);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let helpers = rows.len().div_ceil(outputs * width).min(cores).saturating_sub(1);
    let pieces = Mutex::new(rows.chunks_mut(outputs * width).zip((0..).step_by(outputs)));
    let work = || {
        while let Some((rows, first)) = pieces.lock().ok().and_then(|mut pieces| pieces.next()) {
            rows.chunks_mut(width).zip(first..).for_each(|(row, output)| fill(output, row));
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            // Without a helper the others do its work.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

/// Int4 codes of a weight `[outputs, inputs]` in memory, see [`int4`].
pub(super) fn int4_codes(
    op: &'static str,
    [outputs, inputs]: [usize; 2],
    code: impl Fn(usize, usize) -> u32 + Sync,
) -> Result<Vec<u8>> {
    let bytes = outputs * (inputs / 2);
    let mut codes = memory::list(op, "weight", bytes)?;
    codes.resize(bytes, 0);
    by_output(&mut codes, inputs / 2, |output, codes| {
        for (word, codes) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let first = int4::first_input(word);
            let of_input = |word: u32, i| word | (code(output, first + i) & 15) << int4::shift(i);
            *codes = (0..8).fold(0, of_input).to_le_bytes();
        }
    });
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
    match format {
        WeightFormat::E4m3(_) => to_e4m3(op, numbers, dims, format),
        WeightFormat::Int4 { group } => to_int4(op, numbers, dims, group),
    }
}

fn to_e4m3(
    op: &'static str,
    numbers: &[f32],
    dims: [usize; 2],
    format: WeightFormat,
) -> Result<(Vec<u8>, Vec<f32>)> {
    let inputs = dims[1];
    let scale_at = |at: usize| format.scale_at(dims, at / inputs, at % inputs);
    let mut scales = vec![0_f32; format.scales(dims).iter().product()];
    for (at, &number) in numbers.iter().enumerate() {
        let most = &mut scales[scale_at(at)];
        *most = most.max(number.abs());
    }
    for scale in &mut scales {
        // No scale is 0 or subnormal, so that numbers can be divided by it.
        let least = *scale / Fp8::E4m3.max();
        *scale = if least < f32::MIN_POSITIVE { 1.0 } else { least };
    }
    let mut codes = memory::list(op, "weight", numbers.len())?;
    let code = |(at, number): (usize, &f32)| Fp8::E4m3.encode(number / scales[scale_at(at)]);
    codes.extend(numbers.iter().enumerate().map(code));
    Ok((codes, scales))
}

fn to_int4(
    op: &'static str,
    numbers: &[f32],
    [outputs, inputs]: [usize; 2],
    group: usize,
) -> Result<(Vec<u8>, Vec<f32>)> {
    let groups = inputs / group;
    let mut steps = vec![0.0; outputs * groups];
    by_output(&mut steps, groups, |output, steps| {
        let row = &numbers[output * inputs..][..inputs];
        for (step, numbers) in steps.iter_mut().zip(row.chunks_exact(group)) {
            let ends = |[low, high]: [f32; 2], number: &f32| [low.min(*number), high.max(*number)];
            let [low, high] = numbers.iter().fold([0.0; 2], ends);
            // Halves, since the difference may exceed f32.
            let exact = (high / 15.0 - low / 15.0).max(f32::MIN_POSITIVE * 512.0);
            let scale = int4::scale(exact, 0);
            *step = int4::scale(scale, (-low / scale).round().clamp(0.0, 15.0) as u32);
        }
    });
    let code = |output: usize, input: usize| {
        let (scale, zero) = int4::parts(steps[output * groups + input / group]);
        ((numbers[output * inputs + input] / scale).round() + zero).clamp(0.0, 15.0) as u32
    };
    let codes = int4_codes(op, [outputs, inputs], code)?;
    let places = (0..groups).flat_map(|group| (0..outputs).map(move |output| output * groups + group));
    Ok((codes, places.map(|at| steps[at]).collect()))
}
