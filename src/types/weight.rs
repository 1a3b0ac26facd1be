//! The formats of weights.

/// The scales of e4m3 weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightScales {
    /// One for all.
    PerTensor,
    /// One for each output.
    PerChannel,
    /// One for each square of 128 outputs and 128 inputs, as DeepSeek V3 has it.
    Block128,
}

/// The elements of a weight of 8 or 4 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// `code · scale`, a code being [`Fp8::E4m3`](super::Fp8::E4m3).
    E4m3(WeightScales),
    /// `(code - zero) · scale` with codes from 0 to 15, and a scale and a zero for each group of inputs of an output.
    Int4 {
        /// Inputs of a group: 32, 64 or 128.
        group: usize,
    },
}

impl WeightFormat {
    /// Inputs and outputs of a square with a scale of its own.
    pub(crate) const BLOCK: usize = 128;

    /// The shape of the scales as a backend gets them: f32, `[1, 1]`, `[out, 1]`, `[out / 128, in / 128]` rounded up, or
    /// `[in / group, out]`.
    pub(crate) fn scales(self, [outputs, inputs]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::E4m3(WeightScales::PerTensor) => [1, 1],
            Self::E4m3(WeightScales::PerChannel) => [outputs, 1],
            Self::E4m3(WeightScales::Block128) => {
                [outputs, inputs].map(|extent| extent.div_ceil(Self::BLOCK))
            }
            Self::Int4 { group } => [inputs / group, outputs],
        }
    }

    /// Place of the scale of a weight in them.
    pub(crate) fn scale_at(self, [outputs, inputs]: [usize; 2], output: usize, input: usize) -> usize {
        match self {
            Self::E4m3(WeightScales::PerTensor) => 0,
            Self::E4m3(WeightScales::PerChannel) => output,
            Self::E4m3(WeightScales::Block128) => {
                output / Self::BLOCK * inputs.div_ceil(Self::BLOCK) + input / Self::BLOCK
            }
            Self::Int4 { group } => input / group * outputs + output,
        }
    }
}

/// Int4 codes in memory, and their scales.
///
/// Eight codes are a word of 32 bits: inputs 0, 2, 4, 6 in the four low nibbles from the lowest on, inputs 1, 3, 5, 7 in the
/// four high ones. So a mask finds two inputs side by side in the halves of a register. A block of 128 inputs is 16 words,
/// stored like a transposed matrix of 4 x 4: so 16 bytes have inputs of every 32, and lanes that share a block share its
/// groups. A scale is an f32 without its 8 lowest bits, which hold the zero.
pub(crate) mod int4 {
    /// Bits of the zero in a scale.
    const ZERO: u32 = 0xff;

    /// First input of word `word` of a row.
    pub(crate) fn first_input(word: usize) -> usize {
        word / 16 * 128 + word % 4 * 32 + word % 16 / 4 * 8
    }

    /// Bits of the code of the `i`-th input in a word.
    pub(crate) fn shift(i: usize) -> usize {
        i / 2 * 4 + i % 2 * 16
    }

    /// A scale, rounded to 16 bits of mantissa, and a zero.
    pub(crate) fn scale(scale: f32, zero: u32) -> f32 {
        f32::from_bits(scale.to_bits().wrapping_add(ZERO / 2 + 1) & !ZERO | zero)
    }

    /// The scale and the zero of [`scale`].
    pub(crate) fn parts(scale: f32) -> (f32, f32) {
        let bits = scale.to_bits();
        (f32::from_bits(bits & !ZERO), (bits & ZERO) as f32)
    }
}
