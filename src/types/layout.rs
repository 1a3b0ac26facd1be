//! Orders of elements in memory.

use std::fmt;

/// The order of the axes of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvLayout {
    /// Tokens before heads: `[tokens, kv_heads, head_dim]`, a page is `[page_size, kv_heads, head_dim]`.
    #[default]
    Nhd,
    /// Heads before tokens: `[kv_heads, tokens, head_dim]`, a page is `[kv_heads, page_size, head_dim]`.
    Hnd,
}

/// `NHD` or `HND`, as FlashInfer calls them.
impl fmt::Display for KvLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nhd => "NHD",
            Self::Hnd => "HND",
        })
    }
}

/// The order of the axes of matrices that rows are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WeightLayout {
    /// `[matrices, d_in, d_out]`: the rows of a matrix are its inputs.
    #[default]
    RowMajor,
    /// `[matrices, d_out, d_in]`: the rows of a matrix are its outputs, as checkpoints have it.
    ColumnMajor,
}

/// The order of bits in a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BitOrder {
    /// The highest, as numpy has it.
    #[default]
    Big,
    /// The lowest, as the masks of attention have it.
    Little,
}
