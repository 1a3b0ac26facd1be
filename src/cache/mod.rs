//! Paging: pages of keys and values, tables of them, and the cache that manages them.

mod block_tables;
mod checks;
mod clock;
mod config;
mod copy;
mod keep;
mod kv_cache;
mod kv_codes;
mod kv_pages;
mod page_pool;
mod page_table;
mod positions;
mod prefix;
mod prefix_tree;
mod release;
mod reserve;
mod sequence;
mod slot_mapping;
mod stats;
mod step;
mod swap;

pub(crate) use block_tables::BlockRows;
pub(crate) use clock::{Says, Stamp};
pub use config::CacheConfig;
pub use copy::{PageCopies, copy_pages};
pub use kv_cache::PagedKvCache;
pub use kv_pages::KvPages;
pub(crate) use kv_pages::PageShape;
pub use page_table::PageTable;
pub use positions::Positions;
pub use sequence::SequenceId;
pub use slot_mapping::SlotMapping;
pub use stats::CacheStats;
pub use step::PagedStep;
pub use swap::SwappedSequence;
