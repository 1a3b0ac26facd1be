//! The order of rows by expert, and the work items of their products: without atomics, so that it is always the same.
//!
//! An *entry* is one expert of one token. The units of an expert read all entries: first they count those of smaller
//! experts and their own, then they give their own entries places in order. Entries are few and stay in a cache.

use cubecl::{client::Client, prelude::*};

use crate::device::DeviceProfile;
use crate::device::Refusal;
use crate::device::grid::cover;
use crate::device::tensor::{Result, addresses, buffer, contiguous};
use crate::rows::row_group::{RowGroup, prefix_sum};
use crate::segment_gemm::WORK_WORDS;

const KERNEL: &str = "moe_sort";
/// Most units of an expert, and of the list of work items.
const UNITS: u32 = 256;

/// Writes the place of each entry among all that have an expert, or -1, and the first place of each expert. A unit reads
/// `chunk` adjacent entries, so that only it knows their order.
#[allow(clippy::needless_range_loop, reason = "a kernel has no iterators")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn place_entries(
    entries: &[i32],
    places: &mut [i32],
    starts: &mut [i32],
    count: usize,
    experts: usize,
    chunk: usize,
    #[comptime] row_group: RowGroup,
) {
    let units = comptime!(row_group.units);
    let unit = UNIT_POS as usize % units;
    let expert = CUBE_POS * comptime!(row_group.rows) + UNIT_POS as usize / units;
    if expert >= experts {
        terminate!();
    }
    let first = min(unit * chunk, count);
    let end = min(first + chunk, count);
    // Both counts in one sum.
    let mut smaller = 0u64.runtime();
    let mut equal = 0u64.runtime();
    for i in first..end {
        let of_entry = entries[i];
        // Negative ones are large.
        let of_entry = select(of_entry < 0, experts, usize::cast_from(max(of_entry, 0)));
        smaller += select(of_entry < expert, 1u64, 0u64);
        equal += select(of_entry == expert, 1u64, 0u64);
    }
    let (before, all) = prefix_sum((smaller << 32u64) + equal, unit, row_group);
    let start = all >> 32u64;
    let mut next = start + (before & 0xffff_ffffu64);
    for i in first..end {
        let of_entry = entries[i];
        if of_entry == i32::cast_from(expert) {
            places[i] = i32::cast_from(next);
            next += 1u64;
        } else if expert == 0 && (of_entry < 0 || usize::cast_from(max(of_entry, 0)) >= experts) {
            places[i] = -1i32;
        }
    }
    if unit == 0 {
        starts[expert] = i32::cast_from(start);
        if expert + 1 == experts {
            starts[experts] = i32::cast_from(start + (all & 0xffff_ffffu64));
        }
    }
}

/// Writes a work item for each `tile_rows` rows of an expert, in the order of experts, and fills the list up with empty
/// ones. A unit has `chunk` adjacent experts.
#[cube(launch_unchecked, address_type = "dynamic")]
fn list_work_items(
    starts: &[i32],
    work_items: &mut [i32],
    items: usize,
    experts: usize,
    chunk: usize,
    tile_rows: usize,
    #[comptime] row_group: RowGroup,
) {
    let units = comptime!(row_group.units);
    let unit = UNIT_POS as usize;
    let first = min(unit * chunk, experts);
    let end = min(first + chunk, experts);
    let mut own = 0u64.runtime();
    for expert in first..end {
        let rows = usize::cast_from(starts[expert + 1] - starts[expert]);
        own += u64::cast_from(rows.div_ceil(tile_rows));
    }
    let (before, all) = prefix_sum(own, unit, row_group);
    let mut item = usize::cast_from(before);
    for expert in first..end {
        let last = usize::cast_from(starts[expert + 1]);
        let mut row = usize::cast_from(starts[expert]);
        while row < last {
            work_items[WORK_WORDS * item] = i32::cast_from(row);
            work_items[WORK_WORDS * item + 1] = i32::cast_from(min(row + tile_rows, last));
            work_items[WORK_WORDS * item + 2] = i32::cast_from(expert);
            item += 1;
            row += tile_rows;
        }
    }
    let mut item = usize::cast_from(all) + unit;
    while item < items {
        #[unroll]
        for word in 0..WORK_WORDS {
            work_items[WORK_WORDS * item + word] = 0i32;
        }
        item += units;
    }
}

/// The experts of entries, and how they are sorted.
pub struct Sort {
    /// i32, contiguous: any numbers, of which those in `0..experts` are experts.
    pub entries: TensorBinding,
    /// Experts.
    pub experts: usize,
    /// Largest number of rows of a work item, at least 1.
    pub tile_rows: usize,
}

/// Entries in the order of their experts; those of an expert in the order in which they were.
pub struct Sorted {
    /// `[entries]` of i32: the place of each, or -1 if it has no expert.
    pub places: TensorBinding,
    /// `[work items, 3]` of i32, as one axis: the work items of [`segment_gemm`](crate::segment_gemm) of all places. Unused
    /// ones are empty.
    pub work_items: TensorBinding,
}

impl Sort {
    /// Work items of so many entries, if they are distributed as badly as can be.
    pub fn work_items(entries: usize, experts: usize, tile_rows: usize) -> usize {
        entries.min(entries / tile_rows + experts)
    }
}

/// Sorts entries by their experts.
///
/// # Errors
///
/// If there are no entries, experts or rows of a work item, or more than an i32 counts. Nothing is launched then.
pub fn sort(client: &Client, sort: Sort) -> Result<Sorted> {
    let Sort { entries, experts, tile_rows } = sort;
    let count = entries.size();
    contiguous(KERNEL, "entries", &entries, &entries.shape.to_vec())?;
    let limit = i32::MAX as usize;
    for (argument, got) in [("entries", count), ("experts", experts), ("tile_rows", tile_rows)] {
        if got == 0 || got > limit / 2 {
            return Err(Refusal::Range { kernel: KERNEL, argument, got, limit: limit / 2 });
        }
    }
    let items = Sort::work_items(count, experts, tile_rows);
    let places = buffer(client, count, 4);
    let starts = buffer(client, experts + 1, 4);
    let work_items = buffer(client, WORK_WORDS * items, 4);
    let (row_group, cubes, dim) = RowGroup::of(KERNEL, client, experts, count, UNITS)?;
    let chunk = count.div_ceil(row_group.units);
    let address = addresses(&[(&entries, 4), (&work_items, 4)]);
    // SAFETY: a unit beyond the last expert stops. Entries are below `count`, as are places: an entry has one of them only
    // if it is an expert, whatever it holds. There is a start for each expert, and an end.
    unsafe {
        place_entries::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            entries.into_buffer_arg(),
            places.clone().into_buffer_arg(),
            starts.clone().into_buffer_arg(),
            count,
            experts,
            chunk,
            row_group,
        );
    }
    let (row_group, _, _) = RowGroup::of(KERNEL, client, 1, experts, UNITS)?;
    let one = cover(KERNEL, 1, DeviceProfile::of(client).max_cubes)?;
    let chunk = experts.div_ceil(row_group.units);
    // SAFETY: experts are below their number. There are no more work items than the list holds: each expert has at most one
    // that is not full, and each item has a row.
    unsafe {
        list_work_items::launch_unchecked(
            client,
            one,
            CubeDim::new_1d(row_group.units as u32),
            address,
            starts.into_buffer_arg(),
            work_items.clone().into_buffer_arg(),
            items,
            experts,
            chunk,
            tile_rows,
            row_group,
        );
    }
    Ok(Sorted { places, work_items })
}
