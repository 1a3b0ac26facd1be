use super::epilogue::Steps;
use crate::mma::GemmTileShape;

/// The gains of an RMS norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum NormStyle {
    /// The weight.
    Plain,
    /// 1 more than the weight.
    Gemma,
}

/// All that is comptime in the kernel for few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SkinnySettings {
    pub tiles: GemmTileShape,
    /// Cubes with different parts of the inputs.
    pub cluster: usize,
    pub steps: Steps,
    /// The norm of `x`, if the kernel has it.
    pub norm: Option<NormStyle>,
}
