//! Operations on rows: of hidden states, of heads, of pages.

pub mod activation;
pub mod append;
pub mod append_scaled;
pub mod norm;
pub mod pages;
pub mod quantize;
pub mod rope;
pub(crate) mod row_group;
