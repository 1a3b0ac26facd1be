//! The RMS norm of few rows on their way to the product.
//!
//! ```text
//! norm(x) · weightᵀ = ((x ∘ gains) · weightᵀ) / sqrt(mean(x²) + epsilon)
//! ```
//! Gains are multiplied where a stage of `x` has arrived. The mean of the squares is known after the last stage, when it
//! scales the sums. So the norm of a decode step needs no launch, and no weight waits for it.

use cubecl::prelude::*;

use super::settings::{NormStyle, SkinnySettings};
use super::stage::Place;
use crate::isa::nvidia::load_shared_at;
use crate::math::{narrow, unpack};
use crate::mma::{GemmMma, GemmTileShape, w_at, w_copy};
use crate::staging::{Ring, Vec16};

/// The RMS norm of `x` before the product.
pub struct RmsNorm {
    /// `[d_in]`, contiguous, in the type of `x`.
    pub weight: TensorBinding,
    /// Added to the mean of the squares.
    pub epsilon: f32,
    /// The gains are 1 more than the weight, as Gemma has it.
    pub one_more: bool,
}

/// The numbers of an [`RmsNorm`].
#[derive(CubeType, CubeLaunch)]
pub(super) struct NormArgs {
    pub gains: ComptimeOption<Box<[Vec16]>>,
    pub epsilon: f32,
}

/// The gains of the stage that a unit waits for, and the squares of those that have arrived.
#[derive(CubeType)]
pub(super) struct Normed {
    gains: Array<Vec16>,
    squares: Array<f32>,
}

/// Copies of a unit whose inputs differ: all have the same ones if the units are whole rows.
fn distinct<U: GemmMma>(tiles: GemmTileShape) -> usize {
    let units = tiles.planes() * U::PLANE;
    if units.is_multiple_of(tiles.depth_vecs()) { 1 } else { tiles.w_copies::<U>() }
}

/// Vec16s of the squares of a cube.
pub(super) fn square_vecs<U: GemmMma>(tiles: GemmTileShape) -> usize {
    (tiles.columns::<U>() * tiles.depth_vecs()).div_ceil(4)
}

#[cube]
impl Normed {
    pub fn new<U: GemmMma>(#[comptime] config: SkinnySettings) -> Self {
        let tiles = comptime!(config.tiles);
        let copies = comptime!(if config.norm.is_some() { tiles.w_copies::<U>() } else { 1 });
        let mut squares = Array::<f32>::new(copies);
        #[unroll]
        for i in 0..copies {
            squares[i] = 0.0f32;
        }
        Normed { gains: Array::new(comptime!(distinct::<U>(tiles))), squares }
    }

    /// Begins to load the gains of the inputs from `first` on.
    pub fn load<U: GemmMma>(
        &mut self,
        args: &NormArgs,
        first: usize,
        place: &Place,
        #[comptime] tiles: GemmTileShape,
    ) {
        let per_vec = comptime!(tiles.per_vec());
        #[comptime]
        match &args.gains {
            ComptimeOption::Some(gains) =>
            {
                #[unroll]
                for i in 0..comptime!(distinct::<U>(tiles)) {
                    let (_, vec) = w_copy::<U>(i, tiles);
                    self.gains[i] = gains[min(first / per_vec + vec, place.d_in / per_vec - 1)];
                }
            }
            ComptimeOption::None => {}
        }
    }

    /// Multiplies the rows of the current stage with their gains, and adds up their squares.
    pub fn apply<U: GemmMma, E: Float>(
        &mut self,
        ring: &mut Ring,
        place: &Place,
        #[comptime] style: NormStyle,
        #[comptime] tiles: GemmTileShape,
    ) {
        let one = comptime!(if style == NormStyle::Gemma { 1.0f32 } else { 0.0f32 });
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<U>()) {
            let (row, vec) = w_copy::<U>(i, tiles);
            if row < place.d_out {
                let at = w_at::<U>(ring.stage, row, vec, tiles);
                let gains = self.gains[comptime!(i % distinct::<U>(tiles))];
                let old = ring.shared[at];
                let mut new = Vec16::empty();
                let mut sum = self.squares[i];
                #[unroll]
                for word in 0..4usize {
                    let (x, gain) = (old.extract(word), gains.extract(word));
                    if comptime!(tiles.per_vec() == 4) {
                        let x = f32::reinterpret(x);
                        sum += x * x;
                        new.insert(word, u32::reinterpret(x * (f32::reinterpret(gain) + one)));
                    } else {
                        let x = unpack::<E>(x);
                        sum += x.extract(0usize) * x.extract(0usize) + x.extract(1usize) * x.extract(1usize);
                        let scaled = narrow::<E, Const<2>>(x * (unpack::<E>(gain) + Vector::new(one)));
                        new.insert(word, Vector::<u32, Const<1>>::reinterpret(scaled).extract(0usize));
                    }
                }
                self.squares[i] = sum;
                ring.shared[at] = new;
            }
        }
    }

    /// Writes the squares to shared memory from vec16 `first` on, row by row.
    pub fn store<U: GemmMma>(
        &self,
        ring: &mut Ring,
        #[comptime] first: usize,
        #[comptime] tiles: GemmTileShape,
    ) {
        let sums = ring.shared.with_vector_size_mut::<Const<1>>();
        #[unroll]
        for i in 0..comptime!(tiles.w_copies::<U>()) {
            let (row, vec) = w_copy::<U>(i, tiles);
            if row < comptime!(tiles.columns::<U>()) {
                let word = comptime!(4 * first) + row * comptime!(tiles.depth_vecs()) + vec;
                sums[word] = Vector::<u32, Const<1>>::new(u32::reinterpret(self.squares[i]));
            }
        }
    }
}

/// `1 / sqrt(mean(x²) + epsilon)` of a row, whose squares begin at vec16 `first` of each cube of the cluster.
#[cube]
pub(super) fn row_scale(
    args: &NormArgs,
    ring: &Ring,
    base: u32,
    row: usize,
    d_in: usize,
    #[comptime] first: usize,
    #[comptime] config: SkinnySettings,
) -> f32 {
    let vecs = comptime!(config.tiles.depth_vecs() / 4);
    let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
    #[unroll]
    for peer in 0..config.cluster {
        for i in 0..vecs {
            let vec = first + row * vecs + i;
            sum += if comptime!(config.cluster > 1) {
                load_shared_at(base + vec as u32 * 16u32, comptime!(peer as u32).runtime())
            } else {
                Vector::<f32, Const<4>>::reinterpret(ring.shared[vec])
            };
        }
    }
    let sum = sum.extract(0usize) + sum.extract(1usize) + sum.extract(2usize) + sum.extract(3usize);
    1.0f32 / (sum / f32::cast_from(d_in) + args.epsilon).sqrt()
}
