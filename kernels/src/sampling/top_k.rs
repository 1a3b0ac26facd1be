//! The largest values of each row, in order.
//!
//! A [radix select](super::radix_select) finds the smallest of them. Those that are larger, and those that
//! equal it as far as there is room, are put in shared memory in whatever order they are found, and sorted
//! there by size and place. Only where there is no room for all equals are the first of them looked for, in
//! order.
//!
//! A few long rows would be a few busy cores: the largest of each chunk of a row come first then, and of those the largest.

use cubecl::{client::Client, ir::ElemType, prelude::*};

use super::fixed_point::radix_key;
use super::radix_select::{
    COLLECTED, IN_FLIGHT, Limits, MAX_TOP_K, Memory, MemoryExpand, Row, SelectConfig, load, select_row,
};
use crate::device::DeviceProfile;
use crate::device::tensor::{
    Result, addresses, alignment, buffer, contiguous, rows, shape, vector, with_shape,
};
use crate::math::{sync_row, widen};
use crate::rows::row_group::{RowGroup, shuffle_scan, shuffle_sum};

const KERNEL: &str = "top_k";
/// Values of a chunk that are worth a cube.
const LEAST_CHUNK: usize = 2048;

/// `values` and `ids` `[rows, k]` of the largest values, NaN last, the first of equals first. If `x` are the values that were
/// `chosen` of chunks, `k` of each, ids are those of the rows that the chunks are of.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn top_k<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    values: &mut [F],
    ids: &mut [i32],
    chosen: &ComptimeOption<Box<[i32]>>,
    k: usize,
    chunk: usize,
    #[comptime] config: SelectConfig,
    #[define(F)] _dtype: ElemType,
) {
    let (rows, units) = comptime!((config.row_group.rows, config.row_group.units));
    let unit = UNIT_POS as usize % units;
    let part = UNIT_POS as usize / units;
    let at = CUBE_POS * rows + part;
    if at >= x.shape(0) {
        terminate!();
    }
    let vectors = x.shape(1) / config.lanes;
    let row = Row::new(at * x.stride(0) / config.lanes, vectors);
    let mut limits = Limits::none();
    limits.count = k as u64;
    let mut memory = Memory::new(part, unit, config);
    let threshold = select_row::<F, N>(x, &row, &limits, &mut memory, config);
    // If all values count, there may be too few, and NaN is next.
    let least = select(threshold.key == comptime!(config.least()), 0u32, threshold.key);

    let mut larger = 0u32;
    let mut equal = 0u32;
    memory.start_list(config);
    let mut first = 0usize;
    while first < vectors {
        let read = load(x, &row, first + unit, units);
        #[unroll]
        for f in 0..IN_FLIGHT {
            let i = first + unit + comptime!(f * units);
            if i < vectors {
                let vector = widen::<F, N>(read[f]);
                #[unroll]
                for lane in 0..config.lanes {
                    let key = radix_key(vector.extract(lane));
                    larger += select(key > least, 1u32, 0u32);
                    equal += select(key == least, 1u32, 0u32);
                    if key >= least {
                        memory.append(key, u32::cast_from(i * config.lanes + lane), config);
                    }
                }
            }
        }
        first += comptime!(IN_FLIGHT * units);
    }
    let larger = memory.total_of(0usize, u64::cast_from(larger), config);
    let mut listed = larger + memory.total_of(1usize, u64::cast_from(equal), config);
    if listed > comptime!(config.size as u64) {
        list_in_order::<F, N>(x, &row, least, usize::cast_from(larger), k, &mut memory, config);
        listed = k as u64;
    }
    sort(usize::cast_from(listed), &mut memory, config);

    let mut i = unit;
    while i < k {
        let id = memory.listed_id(i, config);
        let place = usize::cast_from(id);
        let vector = x[row.start + place / config.lanes];
        let mut value = vector.extract(0usize);
        #[unroll]
        for lane in 1..config.lanes {
            value = select(place % config.lanes == lane, vector.extract(lane), value);
        }
        values[at * k + i] = value;
        ids[at * k + i] = i32::cast_from(id);
        #[comptime]
        match chosen {
            ComptimeOption::Some(chosen) => {
                ids[at * k + i] = chosen[at * x.shape(1) + place] + i32::cast_from(place / k * chunk);
            }
            ComptimeOption::None => {}
        }
        i += units;
    }
}

/// Lists the values larger than `least`, and the first of those equal to it, until there are `k`.
#[cube]
fn list_in_order<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: &Row,
    least: u32,
    larger: usize,
    k: usize,
    memory: &mut Memory,
    #[comptime] config: SelectConfig,
) {
    let (units, row_group) = comptime!((config.row_group.units, config.row_group));
    let unit = memory.unit;
    memory.start_list(config);
    let mut i = unit;
    while i < row.vectors {
        let vector = widen::<F, N>(x[row.start + i]);
        #[unroll]
        for lane in 0..config.lanes {
            let key = radix_key(vector.extract(lane));
            if key > least {
                memory.append(key, u32::cast_from(i * config.lanes + lane), config);
            }
        }
        i += units;
    }
    // A vector for each unit at a time: where its equals go is known by how many the others have.
    let mut next = larger;
    let mut first = 0usize;
    while first < row.vectors && next < k {
        let i = first + unit;
        let vector = widen::<F, N>(x[row.start + min(i, row.vectors - 1)]);
        let mut equal = 0u64;
        #[unroll]
        for lane in 0..config.lanes {
            let is_equal = i < row.vectors && radix_key(vector.extract(lane)) == least;
            equal += select(is_equal, 1u64, 0u64);
        }
        let (of_group, later) = shuffle_scan(equal, unit, row_group);
        // All have read the sums of the last round.
        sync_row(units);
        memory.put(0usize, of_group, config);
        sync_row(units);
        let before = memory.sum(0usize, 0usize, unit / comptime!(row_group.shuffle_width), config);
        let mut place = next + usize::cast_from(before + of_group - later - equal);
        #[unroll]
        for lane in 0..config.lanes {
            if i < row.vectors && radix_key(vector.extract(lane)) == least {
                if place < k {
                    memory.list(place, least, u32::cast_from(i * config.lanes + lane), config);
                }
                place += 1;
            }
        }
        next += usize::cast_from(memory.total(0usize, config));
        first += units;
    }
    sync_row(units);
}

/// Sorts a list, the largest first and of equals the first, by a bitonic network.
#[cube]
fn sort(listed: usize, memory: &mut Memory, #[comptime] config: SelectConfig) {
    let units = comptime!(config.row_group.units);
    let mut size = 1usize.runtime();
    while size < listed {
        size *= 2;
    }
    let mut i = listed + memory.unit;
    while i < size {
        memory.list(i, 0u32, u32::MAX.runtime(), config);
        i += units;
    }
    sync_row(units);
    let mut run = 2usize.runtime();
    while run <= size {
        let mut stride = run / 2;
        while stride > 0 {
            let mut pair = memory.unit;
            while pair < size / 2 {
                let a = 2 * pair - pair % stride;
                memory.order(a, a + stride, a & run == 0, config);
                pair += units;
            }
            sync_row(units);
            stride /= 2;
        }
        run *= 2;
    }
}

#[cube]
impl Memory {
    /// Begins a list of values and their places. What shared memory had before is read no more.
    fn start_list(&mut self, #[comptime] config: SelectConfig) {
        sync_row(comptime!(config.row_group.units));
        if self.unit == 0 {
            self.set_found(COLLECTED, 0u32);
        }
        sync_row(comptime!(config.row_group.units));
    }

    fn append(&mut self, key: u32, id: u32, #[comptime] config: SelectConfig) {
        let at = self.collected();
        if at < comptime!(config.size as u32) {
            self.list(usize::cast_from(at), key, id, config);
        }
    }

    fn list(&mut self, at: usize, key: u32, id: u32, #[comptime] config: SelectConfig) {
        let at = self.row * comptime!(config.size) + at;
        self.candidates[at] = key;
        self.histogram[at].store(id);
    }

    fn listed_id(&self, at: usize, #[comptime] config: SelectConfig) -> u32 {
        self.histogram[self.row * comptime!(config.size) + at].load()
    }

    /// The one of two that comes first goes to `a`, or to `b`.
    fn order(&mut self, a: usize, b: usize, first_to_a: bool, #[comptime] config: SelectConfig) {
        let row = self.row * comptime!(config.size);
        let key_a = self.candidates[row + a];
        let key_b = self.candidates[row + b];
        let id_a = self.listed_id(a, config);
        let id_b = self.listed_id(b, config);
        let is_a_first = key_a > key_b || (key_a == key_b && id_a < id_b);
        if is_a_first != first_to_a {
            self.list(a, key_b, id_b, config);
            self.list(b, key_a, id_a, config);
        }
    }

    /// The sum over all units of the row.
    fn total_of(&mut self, slot: usize, part: u64, #[comptime] config: SelectConfig) -> u64 {
        self.put(slot, shuffle_sum(part, config.row_group), config);
        sync_row(comptime!(config.row_group.units));
        self.total(slot, config)
    }
}

/// Rows, and where their largest values go.
pub struct TopK {
    /// `[rows, vocab]`.
    pub x: TensorBinding,
    /// `[rows, k]`, contiguous, of the type of `x`: the largest first, NaN last, the first of equals first.
    pub values: TensorBinding,
    /// `[rows, k]` of i32, contiguous: where they are.
    pub ids: TensorBinding,
}

/// Finds the `k` largest values of each row, at most [`MAX_TOP_K`].
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, top: TopK, dtype: ElemType) -> Result<()> {
    let TopK { x, values, ids } = top;
    rows(KERNEL, "x", &x, 2)?;
    let [row_count, vocab] = [x.shape[0], x.shape[1]];
    let k = values.shape.last().copied().unwrap_or(0);
    contiguous(KERNEL, "values", &values, &[row_count, k])?;
    contiguous(KERNEL, "ids", &ids, &[row_count, k])?;
    if vocab > i32::MAX as usize || k > vocab.min(MAX_TOP_K) {
        let expected = format!("at most {MAX_TOP_K} columns, and those of `x`");
        return Err(shape(KERNEL, "values", &values, expected));
    }
    if row_count == 0 || k == 0 {
        return Ok(());
    }
    let device = DeviceProfile::of(client);
    let chunks = if x.strides[0] == vocab { chunks(&device, row_count, vocab, k) } else { 1 };
    if chunks == 1 {
        return launch_rows(client, &device, TopK { x, values, ids }, None, dtype);
    }
    let (parts, chunk) = (row_count * chunks, vocab / chunks);
    let chosen = TopK {
        x: with_shape(x, [parts, chunk]),
        values: with_shape(buffer(client, parts * k, dtype.size()), [parts, k]),
        ids: with_shape(buffer(client, parts * k, 4), [parts, k]),
    };
    let (chosen_values, chosen_ids) = (chosen.values.clone(), chosen.ids.clone());
    launch_rows(client, &device, chosen, None, dtype)?;
    let x = with_shape(chosen_values, [row_count, chunks * k]);
    launch_rows(client, &device, TopK { x, values, ids }, Some((chosen_ids, chunk)), dtype)
}

/// Chunks of a row, of equal length in whole vectors: 1 unless most cores would have no row.
fn chunks(device: &DeviceProfile, row_count: usize, vocab: usize, k: usize) -> usize {
    let cores = if device.plane > 1 { device.cores.unwrap_or(1) } else { 1 };
    let fits = |chunks: &usize| {
        let chunk = vocab / chunks;
        row_count * chunks <= cores && vocab.is_multiple_of(8 * chunks) && chunk >= LEAST_CHUNK.max(4 * k)
    };
    [32, 16, 8, 4].into_iter().find(fits).unwrap_or(1)
}

/// Launches the kernel on whole rows, or on the values that were chosen of chunks of this length.
fn launch_rows(
    client: &Client,
    device: &DeviceProfile,
    top: TopK,
    chosen: Option<(TensorBinding, usize)>,
    dtype: ElemType,
) -> Result<()> {
    let TopK { x, values, ids } = top;
    let ([row_count, vocab], k) = ([x.shape[0], x.shape[1]], values.shape[1]);
    let (chosen, chunk) = chosen.map_or((None, 0), |(ids, chunk)| (Some(ids.into_buffer_arg()), chunk));
    let lanes = vector(client, dtype, &[vocab], alignment(&x));
    let (row_group, cubes, dim) = RowGroup::of(KERNEL, client, row_count, vocab / lanes, 1024)?;
    let address = addresses(&[(&x, dtype.size()), (&values, dtype.size()), (&ids, 4)]);
    let config = SelectConfig::new(device, row_group, lanes, vocab);
    let config = SelectConfig {
        by_count: true,
        of_probs: false,
        size: config.size.max(k.next_power_of_two()),
        ..config
    };
    // SAFETY: a unit beyond the last row stops. A vector read is below those of a row, and k values of a row
    // are written, of which as many are listed: k is no more than a row has. Shared memory has a place for
    // each group, bucket and candidate of each row of the cube, and k is no more than there are of the
    // latter. Chosen ids are as many as values of `x`.
    unsafe {
        top_k::launch_unchecked(
            client,
            cubes,
            dim,
            address,
            lanes,
            x.into_tensor_arg(),
            values.into_buffer_arg(),
            ids.into_buffer_arg(),
            chosen.into(),
            k,
            chunk,
            config,
            dtype,
        );
    }
    Ok(())
}
