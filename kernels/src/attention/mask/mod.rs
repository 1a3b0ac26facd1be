//! Custom masks: a bit for each query and key, and a walk over the tiles of keys in which a bit is set.
//!
//! A work item has a list in the *tile map*: an entry for each of its tiles of keys, and one for their end. Entry `t` names
//! the first tile from `t` on that has a visible key, and says if all of its keys are visible to every row. So the kernels
//! skip empty tiles, and read no bits for full ones.

mod bits;
mod map;
mod walk;
mod words;

pub(crate) use bits::{CustomMask, first_bit, keeps, word_at};
pub use map::{Mask, MaskBits, map_tiles};
pub(crate) use walk::{KeyTiles, key_tiles};
pub use words::mask_words;
