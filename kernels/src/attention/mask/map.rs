//! The launches that make a tile map.

use cubecl::{client::Client, prelude::*};

use super::super::blueprint::Blueprint;
use super::super::plan::{DevicePlan, WorkItem, WorkList, WorkListLaunch};
use super::bits::{CustomMaskLaunch, first_bit, word_at};
use crate::Refusal;
use crate::device::grid::elementwise;
use crate::device::tensor::{Result, addresses, buffer, contiguous, shape};

const KERNEL: &str = "custom mask";

/// The bits of a mask.
#[derive(Clone)]
pub struct MaskBits {
    /// 32 bits each, contiguous: bit `query · kv_len + key` of a request from its first on, the lowest of a word first. There
    /// are [`Self::PADDING`] words behind the last bit.
    pub words: TensorBinding,
    /// `[2 · requests]` of `i32`, contiguous: first bit of each request, low and high half.
    pub first_bits: TensorBinding,
}

impl MaskBits {
    /// Words behind the last bit, which kernels read and ignore.
    pub const PADDING: usize = 64;
}

/// A mask, and what a plan knows about it.
#[derive(Clone)]
pub struct Mask {
    /// The bits.
    pub bits: MaskBits,
    /// The tile map, which [`map_tiles`] writes; none for a blueprint without work items.
    pub tiles: Option<TensorBinding>,
}

impl Mask {
    /// Checks the lists for a batch of so many requests, and for a kernel with work items or without.
    pub(in super::super) fn check(&self, requests: usize, has_items: bool) -> Result<()> {
        let MaskBits { words, first_bits } = &self.bits;
        contiguous(KERNEL, "mask", words, &[words.size()])?;
        contiguous(KERNEL, "first_bits", first_bits, &[2 * requests])?;
        match &self.tiles {
            Some(tiles) => contiguous(KERNEL, "tiles", tiles, &[tiles.size()]),
            None if has_items => Err(Refusal::Missing { kernel: KERNEL, argument: "tiles" }),
            None => Ok(()),
        }
    }

    /// The argument of a launch.
    pub(in super::super) fn argument(self) -> CustomMaskLaunch {
        let Self { bits: MaskBits { words, first_bits }, tiles } = self;
        // A kernel without work items reads no tiles, but a buffer must be bound.
        let tiles = tiles.unwrap_or_else(|| first_bits.clone());
        CustomMaskLaunch::new(words.into_buffer_arg(), first_bits.into_buffer_arg(), tiles.into_buffer_arg())
    }
}

/// Writes the tile map: the tiles of keys in which each work item sees a key. A blueprint without work items has none.
///
/// `tiles`: [`DevicePlan::mask_tiles`] of `i32`, contiguous.
///
/// # Errors
///
/// If lists are not contiguous, or of another length. Nothing is launched then.
///
/// # Safety
///
/// - The lists of the plan are those of a [`Plan`](super::super::Plan).
/// - Each request of the plan has its `qo_len · kv_len` bits within `bits`, from its first bit on.
/// - `group` is the number of query heads of a key head.
pub unsafe fn map_tiles(
    client: &Client,
    planned: &DevicePlan,
    bits: &MaskBits,
    group: usize,
    tiles: TensorBinding,
) -> Result<()> {
    let (prefill, decode) = match planned.blueprint {
        Blueprint::Portable(_) => return Ok(()),
        Blueprint::Tiled(tiled) => (tiled, None),
        Blueprint::Mixed(mixed) => (mixed.prefill, Some(mixed.decode)),
    };
    let Some(work_items) = &planned.work_items else {
        return Err(Refusal::Missing { kernel: KERNEL, argument: "work_items" });
    };
    contiguous(KERNEL, "work_items", work_items, &[work_items.size()])?;
    contiguous(KERNEL, "mask", &bits.words, &[bits.words.size()])?;
    contiguous(KERNEL, "first_bits", &bits.first_bits, &[bits.first_bits.size()])?;
    if !work_items.size().is_multiple_of(WorkItem::WORDS) {
        return Err(shape(KERNEL, "work_items", work_items, format!("[{} words each]", WorkItem::WORDS)));
    }
    let items = work_items.size() / WorkItem::WORDS;
    contiguous(KERNEL, "tiles", &tiles, &[planned.mask_tiles.max(1)])?;
    let classes = buffer(client, planned.mask_tiles.max(1), size_of::<i32>());
    let across = planned.longest_walk;
    let list =
        || WorkListLaunch::new(work_items.clone().into_buffer_arg(), items, group, ComptimeOptionArgs::None);
    let shape = |tiled: super::super::Tiled| [tiled.rows(), tiled.cube_keys()];
    let [rows, keys] = shape(prefill);
    let [decode_rows, decode_keys] = decode.map_or([0, 1], shape);
    let address = addresses(&[(&bits.words, 4), (&tiles, 4)]);
    let shapes = || TileExtentsLaunch::new(rows, keys, decode_rows, decode_keys, across);
    if across == 0 {
        // No work item has a key: no kernel gets to the map.
        return Ok(());
    }
    let (cubes, dim) = elementwise(KERNEL, client, items * across)?;
    // SAFETY: a unit beyond the last work item or beyond its tiles stops. Rows are those of the work item, and keys below
    // its end, so bits are within the request's by the contract, and the next word is within the padding. A plan gives
    // each work item an entry for each tile and one for the end, below `mask_tiles`.
    unsafe {
        classify::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            bits.words.clone().into_buffer_arg(),
            bits.first_bits.clone().into_buffer_arg(),
            list(),
            classes.clone().into_buffer_arg(),
            shapes(),
        );
    }
    let (cubes, dim) = elementwise(KERNEL, client, items * (across + 1))?;
    // SAFETY: as above.
    unsafe {
        link::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            list(),
            classes.into_buffer_arg(),
            tiles.into_buffer_arg(),
            shapes(),
        );
    }
    Ok(())
}

/// The tiles of a blueprint.
#[derive(CubeType, CubeLaunch)]
struct TileExtents {
    rows: usize,
    keys: usize,
    /// Those of requests of at most as many rows.
    decode_rows: usize,
    decode_keys: usize,
    /// Most tiles of keys of a work item.
    across: usize,
}

#[cube]
impl TileExtents {
    /// Rows and keys of the tiles of a request of so many rows.
    fn of_request(&self, rows: usize) -> (usize, usize) {
        let is_decode = rows <= self.decode_rows;
        (select(is_decode, self.decode_rows, self.rows), select(is_decode, self.decode_keys, self.keys))
    }
}

/// No key of a tile is visible, some are, or all are to every row.
const NONE: i32 = 0;
const SOME: i32 = 1;
const FULL: i32 = 2;

/// The class of each tile of each work item: a unit reads its bits.
#[cube(launch_unchecked, address_type = "dynamic")]
fn classify(bits: &[u32], first_bits: &[i32], list: &WorkList, classes: &mut [i32], extents: &TileExtents) {
    let (index, tile) = (ABSOLUTE_POS / extents.across, ABSOLUTE_POS % extents.across);
    if index >= list.count {
        terminate!();
    }
    let work = list.at(index, 0usize, 1usize);
    let (rows, keys) = extents.of_request(work.rows.end);
    let first = work.start + tile * keys;
    if first >= work.end || work.first_row >= work.rows.end {
        terminate!();
    }
    let end = min(first + keys, work.end);
    let end_row = min(work.first_row + rows, work.rows.end);
    let (mut any, mut missing) = (0u32.runtime(), 0u32.runtime());
    for query in work.first_row / list.group..end_row.div_ceil(list.group) {
        let row = first_bit(first_bits, &work.rows.request, query);
        let mut key = first;
        while key < end {
            let word = word_at(bits, row + u64::cast_from(key));
            let left = end - key;
            let last = (1u32 << u32::cast_from(min(left, 31usize))) - 1u32;
            let valid = select(left < 32, last, 0xffff_ffffu32);
            any |= word & valid;
            missing |= (word & valid) ^ valid;
            key += 32usize;
        }
    }
    let class = select(missing == 0u32, FULL, SOME);
    classes[work.mask_tiles + tile] = select(any == 0u32, NONE, class);
}

/// Names in each entry the first tile from there on that is not empty.
#[cube(launch_unchecked, address_type = "dynamic")]
fn link(list: &WorkList, classes: &[i32], tiles: &mut [i32], extents: &TileExtents) {
    let across = extents.across + 1;
    let (index, tile) = (ABSOLUTE_POS / across, ABSOLUTE_POS % across);
    if index >= list.count {
        terminate!();
    }
    let work = list.at(index, 0usize, 1usize);
    let (_, keys) = extents.of_request(work.rows.end);
    let count = (work.end - min(work.start, work.end)).div_ceil(keys);
    if tile > count || work.first_row >= work.rows.end {
        terminate!();
    }
    let mut next = tile;
    let mut class = NONE.runtime();
    while next < count && class == NONE {
        class = classes[work.mask_tiles + next];
        if class == NONE {
            next += 1usize;
        }
    }
    tiles[work.mask_tiles + tile] = i32::cast_from(2 * next) + select(class == FULL, 1i32, 0i32);
}
