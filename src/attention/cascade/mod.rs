//! Attention over pages that requests share.

mod levels;
mod plan;
mod run;

pub use levels::Cascade;
pub use plan::CascadePlan;
pub use run::cascade_attention;
