//! The formats of weights.

/// Inputs of a block: the longest group of inputs with a scale of its own.
pub(crate) const BLOCK: usize = 128;

/// Scales of e4m3 weights: f32, contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scales {
    /// `[1]`: one for all.
    PerTensor,
    /// `[d_out]`: one for each output.
    PerChannel,
    /// `[d_out / 128, d_in / 128]`, both rounded up: one for each square of 128 outputs and 128 inputs.
    Block128,
}

/// The elements of a weight `[d_out, d_in]`, stored row by row.
///
/// | format | bytes of a row | scales |
/// |---|---|---|
/// | e4m3 | `d_in`, in order | see [`Scales`] |
/// | int4 | `d_in / 2` | `[d_in / group, d_out]` |
///
/// **Int4.** A code is 0 to 15, and a weight `(code - zero) · scale`. Eight codes are a word of 32 bits: inputs 0, 2, 4, 6 in
/// the four low nibbles from the lowest on, inputs 1, 3, 5, 7 in the four high ones. So a mask finds two inputs side by side
/// in the halves of a register. A block of 128 inputs is 16 words. They are stored like a transposed matrix of 4 x 4: word
/// `4 t + j` of a block has the inputs from `32 j + 8 t` on. So 16 bytes have inputs of every 32, and lanes that share a
/// block share its groups. A scale is an f32 without its 8 lowest bits, which hold the zero, 0 to 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 8 bits: sign, four bits of exponent, three of mantissa (OCP `e4m3fn`). NaN stays NaN.
    E4m3(Scales),
    /// 4 bits, with a scale and a zero for each group of inputs of an output.
    Int4 {
        /// Inputs of a group: 32, 64 or 128. `d_in` is a multiple of 128.
        group: usize,
    },
}

impl WeightFormat {
    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            Self::E4m3(_) => 8,
            Self::Int4 { .. } => 4,
        }
    }

    /// Codes in 16 bytes.
    pub(crate) fn per_vec(self) -> usize {
        128 / self.bits()
    }

    /// Inputs with the same scale, within a block; none if an output has one scale.
    pub(crate) fn group(self) -> Option<usize> {
        match self {
            Self::E4m3(Scales::Block128) => Some(BLOCK),
            Self::E4m3(_) => None,
            Self::Int4 { group } => Some(group),
        }
    }

    /// The number of inputs of a row is a multiple of this.
    pub fn unit(self) -> usize {
        match self {
            Self::E4m3(_) => 1,
            Self::Int4 { .. } => BLOCK,
        }
    }

    /// The shape of the scales of a weight.
    pub fn scales(self, d_out: usize, d_in: usize) -> Vec<usize> {
        match self {
            Self::E4m3(Scales::PerTensor) => vec![1],
            Self::E4m3(Scales::PerChannel) => vec![d_out],
            Self::E4m3(Scales::Block128) => vec![d_out.div_ceil(BLOCK), d_in.div_ceil(BLOCK)],
            Self::Int4 { group } => vec![d_in / group.max(1), d_out],
        }
    }
}
