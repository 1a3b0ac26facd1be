//! Exponentials, conversions and shuffles.

use cubecl::prelude::*;

use super::instruction::ptx;

ptx! {
    /// `2^x` to 2 ulp, denormals flushed: `ex2.approx.ftz.f32`.
    pub(crate) fn exp2(x: f32) -> y: f32 = PureOp(x) "ex2.approx.ftz.f32 {y}, {x};";

    /// `1 / x` to 1 ulp, denormals flushed: `rcp.approx.ftz.f32`.
    pub(crate) fn reciprocal(x: f32) -> y: f32 = PureOp(x) "rcp.approx.ftz.f32 {y}, {x};";

    /// `tanh(x)`, with a relative error of 2^-11: `tanh.approx.f32`.
    pub(crate) fn tanh(x: f32) -> y: f32 = PureOp(x) "tanh.approx.f32 {y}, {x};";

    /// Two floats rounded to f16 or bf16, `low` in the low bits: `cvt.rn.f16x2.f32`, `cvt.rn.bf16x2.f32`.
    pub(crate) fn pack(low: f32, high: f32, #[comptime] bf16: bool) -> packed: u32 =
        PureOp(low, high) "cvt.rn.{ty}.f32 {packed}, {high}, {low};", ty = if bf16 { "bf16x2" } else { "f16x2" };

    /// The bits of a float rounded to TF32, to nearest: `cvt.rna.tf32.f32`.
    pub(crate) fn to_tf32(x: u32) -> y: u32 = PureOp(x) "cvt.rna.tf32.f32 {y}, {x};";

    /// The value of lane `l ^ mask`, all lanes being active: `shfl.sync.bfly`. CubeCL's asks which lanes are
    /// active first.
    pub(crate) fn shuffle_xor(x: f32, #[comptime] mask: usize) -> y: f32 =
        WarpOp(x) "shfl.sync.bfly.b32 {y}, {x}, {mask}, 31, -1;";

    /// [`shuffle_xor`] of any 32 bits.
    pub(crate) fn shuffle_word_xor(x: u32, #[comptime] mask: usize) -> y: u32 =
        WarpOp(x) "shfl.sync.bfly.b32 {y}, {x}, {mask}, 31, -1;";

    /// The value of lane `lane`, all lanes being active: `shfl.sync.idx`.
    fn shuffle_word(x: u32, lane: u32) -> y: u32 =
        WarpOp(x, lane) "shfl.sync.idx.b32 {y}, {x}, {lane}, 31, -1;";

    /// Four floats rounded to 8 bits, the first in the low ones, beyond the largest finite number clamped to it:
    /// `cvt.rn.satfinite.e4m3x2.f32`, `cvt.rn.satfinite.e5m2x2.f32`. Since sm_89.
    pub(crate) fn to_fp8(x: Vector<f32, Const<4>>, #[comptime] e5m2: bool) -> y: u32 = PureOp(x)
        "{{ .reg .b16 low, high; cvt.rn.satfinite.{ty}.f32 low, {x1}, {x0}; \
         cvt.rn.satfinite.{ty}.f32 high, {x3}, {x2}; mov.b32 {y}, {{low, high}}; }}",
        ty = fp8(e5m2), x0 = x.at(0), x1 = x.at(1), x2 = x.at(2), x3 = x.at(3);

    /// Four fp8 values as f16, two in a register: `cvt.rn.f16x2.e4m3x2`, `cvt.rn.f16x2.e5m2x2`. Exact. Since
    /// sm_89.
    pub(crate) fn from_fp8(x: u32, #[comptime] e5m2: bool) -> y: Vector<u32, Const<2>> = PureOp(x)
        "{{ .reg .b16 low, high; mov.b32 {{low, high}}, {x}; cvt.rn.f16x2.{ty} {y0}, low; \
         cvt.rn.f16x2.{ty} {y1}, high; }}",
        ty = fp8(e5m2), y0 = y.at(0), y1 = y.at(1);

    /// Two numbers of f16 as bf16, rounded; numbers that were fp8 are exact: `cvt.f32.f16`, `cvt.rn.bf16x2.f32`.
    pub(crate) fn bf16_of_f16(x: u32) -> y: u32 = PureOp(x)
        "{{ .reg .b16 low, high; .reg .f32 a, b; mov.b32 {{low, high}}, {x}; cvt.f32.f16 a, low; \
         cvt.f32.f16 b, high; cvt.rn.bf16x2.f32 {y}, b, a; }}";

    /// The bytes of `x` with the two in the middle swapped: `prmt`.
    pub(crate) fn swap_middle_bytes(x: u32) -> y: u32 = PureOp(x) "prmt.b32 {y}, {x}, 0, 0x3120;";

    /// The nibbles at bits `shift` and `shift + 16` of `x` as f16 or bf16, plus `offset`: `lop3`, `fma.rn.f16x2`,
    /// `fma.rn.bf16x2`. In the low bits of 1024, or 128, a nibble is added to it; so `offset` is less than that.
    pub(crate) fn from_int4(x: u32, offset: u32, #[comptime] shift: usize, #[comptime] bf16: bool) -> y: u32 =
        PureOp(x, offset)
        "{{ .reg .b32 a, one; shr.u32 a, {x}, {shift}; lop3.b32 a, a, 0x000f000f, {base}, 0xea; \
         mov.b32 one, {one}; fma.rn.{ty} {y}, a, one, {offset}; }}",
        base = if bf16 { "0x43004300" } else { "0x64006400" },
        one = if bf16 { "0x3f803f80" } else { "0x3c003c00" },
        ty = if bf16 { "bf16x2" } else { "f16x2" };
}

fn fp8(e5m2: bool) -> &'static str {
    if e5m2 { "e5m2x2" } else { "e4m3x2" }
}

/// [`shuffle_word`] of both halves of a number, if it has two.
#[cube]
pub(crate) fn shuffle(x: usize, lane: u32) -> usize {
    let x = x as u64;
    let low = shuffle_word(x as u32, lane);
    let high = shuffle_word((x >> 32u64) as u32, lane);
    usize::cast_from((high as u64) << 32u64 | low as u64)
}

/// The first lane's value, for all. The compiler then knows that it is the same in all lanes, and computes with it once
/// for the warp.
#[cube]
pub(super) fn broadcast(x: u32) -> u32 {
    shuffle_word(x, 0u32)
}
