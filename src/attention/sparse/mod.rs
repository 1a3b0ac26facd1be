//! Sparse attention: plans over page tables of the keys that queries attend to.

mod block_mask;
mod block_plan;
mod head_pages;
mod heads;
mod token_plan;
mod variable;

pub use block_mask::BlockMask;
pub use block_plan::BlockSparsePlan;
pub use head_pages::{HeadPageTable, HeadPagesPlan};
pub use token_plan::TokenSparsePlan;
pub use variable::{VariableBlockMask, VariableBlockSparsePlan};
