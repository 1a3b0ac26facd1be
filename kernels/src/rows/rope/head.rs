//! One head: its norm and its rotation.

use cubecl::prelude::*;

use super::blueprint::{Blueprint, Style};
use crate::code8::{Code, Divisor, encode};
use crate::math::widen;

/// The unit's part of `Σ x²` over the head that begins at `x[row]`.
#[cube]
pub(super) fn squares<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: usize,
    unit: usize,
    #[comptime] units: usize,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut i = unit;
    while i < x.shape(3) / N::value() {
        let value = widen::<F, N>(x[row / N::value() + i]);
        sum += value * value;
        i += units;
    }
    sum.vector_sum()
}

/// Rotates the head that begins at `x[row]` and writes it to `y[to]`; each unit takes some vectors of it.
#[allow(clippy::too_many_arguments, reason = "it stands for three parts of a kernel")]
#[cube]
pub(super) fn rotate<F: Float, E: Numeric, N: Size, M: Size>(
    x: &Tensor<Vector<F, N>>,
    row: usize,
    y: &mut Tensor<Vector<E, N>>,
    to: usize,
    weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    factor: f32,
    by: &Divisor,
    cos_sin: &Tensor<Vector<f32, M>>,
    angles: usize,
    rotary_dim: usize,
    unit: usize,
    #[comptime] blueprint: Blueprint,
    #[comptime] code: Option<Code>,
) {
    let vectors = x.shape(3) / N::value();
    let pairs = rotary_dim / 2 / N::value();
    let (from, to) = (row / N::value(), to / N::value());
    let mut i = unit;
    while 2 * i < vectors {
        let is_rotated = i < pairs;
        let (mut first, mut second) = (2 * i, 2 * i + 1);
        if comptime!(blueprint.style == Style::Halves) {
            first = select(is_rotated, i, first);
            second = select(is_rotated, i + pairs, second);
        }
        // The last vector of an odd number is alone.
        let partner = min(second, vectors - 1);
        let mut a = scaled::<F, N>(x[from + first], weight, first, factor);
        let mut b = scaled::<F, N>(x[from + partner], weight, partner, factor);
        if is_rotated {
            let cos = angles_at::<N, M>(cos_sin, angles + i * N::value());
            let sin = angles_at::<N, M>(cos_sin, angles + rotary_dim / 2 + i * N::value());
            match comptime!(blueprint.style) {
                Style::Halves => {
                    let rotated = a * cos - b * sin;
                    b = b * cos + a * sin;
                    a = rotated;
                }
                Style::Interleaved => {
                    let (x, y) = (every_other::<N>(a, b, 0usize), every_other::<N>(a, b, 1usize));
                    let (x, y) = (x * cos - y * sin, y * cos + x * sin);
                    a = zipped::<N>(x, y, 0usize);
                    b = zipped::<N>(x, y, 1usize);
                }
            }
        }
        y[to + first] = encode::<E, N>(a, by, code);
        if second < vectors {
            y[to + second] = encode::<E, N>(b, by, code);
        }
        i += comptime!(blueprint.row_group.units);
    }
}

/// A vector of a head in f32, normalised if there is a weight.
#[cube]
fn scaled<F: Float, N: Size>(
    x: Vector<F, N>,
    weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    column: usize,
    factor: f32,
) -> Vector<f32, N> {
    let x = widen::<F, N>(x);
    #[comptime]
    match weight {
        ComptimeOption::Some(weight) => x * Vector::new(factor) * widen::<F, N>(weight[column]),
        ComptimeOption::None => x,
    }
}

/// `N` elements of the table, whose vectors may be shorter.
#[cube]
fn angles_at<N: Size, M: Size>(table: &Tensor<Vector<f32, M>>, at: usize) -> Vector<f32, N> {
    let (lanes, width) = (N::value(), M::value());
    let mut angles = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for part in 0..comptime!(lanes / width) {
        let some = table[at / width + part];
        #[unroll]
        for lane in 0..width {
            angles.insert(comptime!(part * width + lane), some.extract(lane));
        }
    }
    angles
}

/// Elements `offset`, `offset + 2`, .. of `a` and then `b`.
#[cube]
fn every_other<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, #[comptime] offset: usize) -> Vector<f32, N> {
    let lanes = N::value();
    let mut taken = a;
    #[unroll]
    for lane in 0..lanes {
        let at = comptime!(2 * lane + offset);
        let element = if comptime!(at < lanes) { a.extract(at) } else { b.extract(comptime!(at - lanes)) };
        taken.insert(lane, element);
    }
    taken
}

/// Undoes [`every_other`]: the first half of `x_0, y_0, x_1, y_1, ..`, or the second.
#[cube]
fn zipped<N: Size>(x: Vector<f32, N>, y: Vector<f32, N>, #[comptime] half: usize) -> Vector<f32, N> {
    let lanes = N::value();
    let mut both = x;
    #[unroll]
    for lane in 0..lanes {
        let at = comptime!(half * lanes + lane);
        let pair = comptime!(at / 2);
        let element = if comptime!(at % 2 == 0) { x.extract(pair) } else { y.extract(pair) };
        both.insert(lane, element);
    }
    both
}
