//! Variants of operations on rows.

/// The pairing of a head's elements in RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RopeStyle {
    /// Element `i` with `i + rotary_dim / 2`: Llama and GPT-NeoX as Hugging Face stores them.
    #[default]
    Halves,
    /// Element `2i` with `2i + 1`: GPT-J, Llama as Meta stores it.
    Interleaved,
}

/// The factor of a row's norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RmsNormStyle {
    /// The weight.
    Plain,
    /// `1 + weight`, the sum in f32.
    Gemma,
}

/// The function of the first half of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `a / (1 + exp(-a))`.
    Silu,
    /// `a / 2 * (1 + erf(a / sqrt(2)))`.
    Gelu,
    /// `a / 2 * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 a^3)))`.
    GeluTanh,
}
