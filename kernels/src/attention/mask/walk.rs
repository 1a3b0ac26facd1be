//! The tiles of keys that a cube visits.

use cubecl::prelude::*;

use super::super::plan::WorkTile;
use super::bits::CustomMask;

/// A walk over the tiles of keys of a work item: over all of them, or over those that the mask leaves.
#[derive(CubeType)]
pub(crate) struct KeyTiles {
    /// First key of the current tile; from the end of the work item on there is none.
    pub at: usize,
    /// Entries of the tile map: that of the current tile, and of those after it.
    entries: Array<i32>,
    first_entry: usize,
    start: usize,
    end: usize,
    /// Keys of a tile.
    #[cube(comptime)]
    keys: usize,
    /// Tiles known in advance.
    #[cube(comptime)]
    ahead: usize,
    #[cube(comptime)]
    is_masked: bool,
}

/// The tiles of `keys` keys of a work item, of which `ahead` are known before the walk gets there.
#[cube]
pub(crate) fn key_tiles(
    mask: &ComptimeOption<CustomMask>,
    work: &WorkTile,
    #[comptime] keys: usize,
    #[comptime] ahead: usize,
) -> KeyTiles {
    let mut tiles = KeyTiles {
        at: work.start,
        entries: Array::new(comptime!(ahead + 1)),
        first_entry: work.mask_tiles,
        start: work.start,
        end: work.end,
        keys,
        ahead,
        is_masked: mask.is_some(),
    };
    #[comptime]
    match mask {
        ComptimeOption::Some(mask) => {
            let mut entry = 0i32.runtime();
            if work.start < work.end {
                entry = mask.tiles[work.mask_tiles];
            }
            tiles.entries[0] = entry;
            #[unroll]
            for i in 0..ahead {
                tiles.entries[comptime!(i + 1)] = tiles.after(mask, comptime!(i));
            }
            tiles.at = tiles.place(0usize);
        }
        ComptimeOption::None => {}
    }
    tiles
}

#[cube]
impl KeyTiles {
    /// First key of the tile `i` tiles after the current one.
    pub fn ahead(&self, #[comptime] i: usize) -> usize {
        if comptime!(self.is_masked) { self.place(i) } else { self.at + comptime!(i * self.keys) }
    }

    /// Goes on to the next tile.
    pub fn advance(&mut self, mask: &ComptimeOption<CustomMask>) {
        #[comptime]
        match mask {
            ComptimeOption::Some(mask) => {
                let last = self.after(mask, self.ahead);
                #[unroll]
                for i in 0..comptime!(self.ahead) {
                    self.entries[i] = self.entries[comptime!(i + 1)];
                }
                self.entries[comptime!(self.ahead)] = last;
                self.at = self.place(0usize);
            }
            ComptimeOption::None => self.at += self.keys,
        }
    }

    /// True if every row sees every key of the current tile, as far as the mask goes.
    pub fn is_full(&self) -> bool {
        self.entries[0] & 1 == 1
    }

    fn place(&self, #[comptime] i: usize) -> usize {
        self.start + usize::cast_from(self.entries[i] / 2) * self.keys
    }

    /// The entry after entry `i`; behind the last tile it is the same.
    fn after(&self, mask: &CustomMask, #[comptime] i: usize) -> i32 {
        let mut entry = self.entries[i];
        if self.place(i) < self.end {
            entry = mask.tiles[self.first_entry + usize::cast_from(entry / 2) + 1];
        }
        entry
    }
}
