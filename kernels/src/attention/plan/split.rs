//! The split of keys into chunks, and the order of the chunks.
//!
//! A GPU starts cubes in their order, each as soon as a core has room, so the order is the schedule. Longest
//! first is greedy balancing. A simulation on the host with a heap of cores gives the time of the last
//! chunk's end. The candidates are no split, and splits with one, two, three or four chunks for each core.
//! The candidate that ends first is taken, with the cost of its merges; of equal ones, that with the fewest
//! chunks. The simulation includes the cores that idle in the last round of cubes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::blueprint::Blueprint;
use super::super::tiled::Tiled;
use super::persistent::is_persistent;
use super::work::MERGE_ROWS;
use crate::mma::MmaKind;
use crate::problem::Problem;
use crate::request::{KeyRange, RequestShape};

/// Unit of costs: 1/16 of the time in which a core reads a key of one head (128 elements of bf16), 16 ns on
/// an H200.
const COST_PER_KEY: u64 = 16;
/// Cost of a cube before it reads its first key and after its last one: about 1.5 µs.
const COST_PER_CUBE: u64 = 96 * COST_PER_KEY;
/// Cost of the merge launch: about 3 µs.
const COST_OF_MERGE: u64 = 190 * COST_PER_KEY;
/// Rows with which a core multiplies a key in the time in which it reads one (H200: 330 TFLOP/s beside 4.2
/// TB/s).
const ROWS_PER_KEY: u64 = 78;
/// [`ROWS_PER_KEY`] of warpgroups, at 560 TFLOP/s.
const WARPGROUP_ROWS_PER_KEY: u64 = 132;
/// Largest number of chunks for each core.
const WAVES: u64 = 4;

/// The split of a request's keys among cubes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// Chooses the split with which the batch ends soonest.
    #[default]
    Auto,
    /// Splits every so many keys, rounded up to whole tiles. The tiles of rows do not depend on the other
    /// requests either: a request gets the same bits in every batch.
    Every(usize),
    /// Does not split.
    Never,
}

/// Upper bounds of a plan's lists and workspace, however long the requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Work items.
    pub work_items: usize,
    /// Merges.
    pub merges: usize,
    /// Rows of partial results.
    pub partial_rows: usize,
    /// Largest number of rows of a merge.
    pub merge_rows: usize,
}

/// Cost of the tiles of one shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileCost {
    rows: usize,
    /// Keys of a cube at a time.
    keys: usize,
    per_key: u64,
    /// Cubes that a core needs to be busy.
    resident: u64,
    /// Cubes that work on one chunk.
    cluster: usize,
    warpgroups: bool,
}

/// The tiles of a blueprint.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileCosts {
    prefill: TileCost,
    /// Tiles for requests of at most as many rows as these have, if they have tiles of their own.
    decode: Option<TileCost>,
}

impl TileCost {
    fn of(tiled: &Tiled) -> Self {
        let rows = tiled.rows();
        // With few rows a core is busy reading, and one cube has enough loads in flight (1 x 16384 keys,
        // H200: 2149 GB/s with one cube, 1996 with two). With many rows a second cube multiplies while the
        // first one waits (64 queries over 32768 shared keys: 0.168 ms against 0.207).
        // Warpgroups take turns within one cube.
        let warpgroups = tiled.unit == MmaKind::Wgmma;
        let resident = if tiled.q_planes > 1 && !warpgroups { 2 } else { 1 };
        let rows_per_key = if warpgroups { WARPGROUP_ROWS_PER_KEY } else { ROWS_PER_KEY };
        let cluster = tiled.cluster;
        let per_key = ((rows / cluster) as u64 * COST_PER_KEY / rows_per_key).max(COST_PER_KEY) * resident;
        Self { rows, keys: tiled.cube_keys(), per_key, resident, cluster, warpgroups }
    }

    // In 32 bits: a division of 64 takes three times as long on the host, and there are thousands of tiles.
    fn cost(&self, keys: u32) -> u64 {
        COST_PER_CUBE * self.resident + u64::from(keys.next_multiple_of(self.keys as u32)) * self.per_key
    }

    /// Keys of a chunk that costs `budget`, without the constant cost of a cube.
    fn keys_for(&self, budget: u64) -> u32 {
        // With fewer than 4 tiles of keys merging costs more than it gains.
        let keys = (budget / self.per_key).clamp(3 * self.keys as u64 + 1, i32::MAX as u64);
        (keys as u32).next_multiple_of(self.keys as u32)
    }
}

impl TileCosts {
    /// The tiles of a blueprint; none if it does not use work items.
    pub(super) fn of(blueprint: &Blueprint) -> Option<Self> {
        match blueprint {
            Blueprint::Portable(_) => None,
            Blueprint::Tiled(tiled) => Some(Self { prefill: TileCost::of(tiled), decode: None }),
            Blueprint::Mixed(mixed) => {
                let (prefill, decode) = (TileCost::of(&mixed.prefill), TileCost::of(&mixed.decode));
                // Both kinds of tiles share the cores.
                let decode = TileCost {
                    per_key: decode.per_key * prefill.resident,
                    resident: prefill.resident,
                    ..decode
                };
                Some(Self { prefill, decode: Some(decode) })
            }
        }
    }

    fn for_rows(&self, rows: usize) -> (&TileCost, bool) {
        match &self.decode {
            Some(decode) if rows <= decode.rows => (decode, true),
            _ => (&self.prefill, false),
        }
    }

    /// Keys of a tile of a request of so many rows.
    pub(super) fn keys_of(&self, rows: usize) -> usize {
        self.for_rows(rows).0.keys
    }

    fn of_tile(&self, tile: &RowTile) -> &TileCost {
        match &self.decode {
            Some(decode) if tile.decode => decode,
            _ => &self.prefill,
        }
    }

    /// See [`super::Plan::limits`].
    pub(super) fn limits(
        &self,
        problem: &Problem,
        cores: Option<usize>,
        requests: &[RequestShape],
        keys: usize,
        split: Split,
    ) -> Limits {
        let group = problem.group();
        let rows: usize = requests.iter().map(|request| request.qo_len * group).sum();
        let longest = requests.iter().map(|request| request.qo_len * group).max().unwrap_or(0);
        let more = if longest > self.prefill.rows { rows / self.prefill.rows } else { 0 };
        let tiles = requests.len() + more;
        let chunks = match split {
            Split::Never => 0,
            // All chunks of a tile but the last have at least so many keys, and no tile has more keys than
            // there are.
            Split::Every(every) => keys / every.max(1) * (1 + longest / self.prefill.rows),
            // All chunks of a tile but the last cost at least the common budget.
            Split::Auto => (WAVES * self.machines(problem, cores)) as usize,
        };
        Limits {
            work_items: tiles + chunks,
            merges: if longest > MERGE_ROWS { tiles + rows / MERGE_ROWS } else { tiles },
            // A tile of two chunks or more has at most twice as many as there are whole ones in it.
            partial_rows: (2 * chunks).min(tiles + chunks)
                * longest.min(self.prefill.rows)
                * problem.kv_heads,
            merge_rows: longest.min(MERGE_ROWS),
        }
    }

    /// Chunks that run at a time, for each key head: the heads of a chunk run side by side.
    fn machines(&self, problem: &Problem, cores: Option<usize>) -> u64 {
        let clusters = (cores.unwrap_or(1) / self.prefill.cluster) as u64;
        (clusters * self.prefill.resident / problem.kv_heads as u64).max(1)
    }
}

/// A tile of rows, and the range of keys that any of them sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowTile {
    pub request: u32,
    pub first_row: u32,
    pub rows: u32,
    pub start: u32,
    pub end: u32,
    decode: bool,
}

/// A tile over a chunk of its keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub tile: u32,
    pub chunk: u32,
    pub chunks: u32,
    pub start: u32,
    pub end: u32,
    cost: u64,
}

/// Chunks in the order in which they run.
pub(super) struct Schedule {
    /// The chunks; none if there is nothing to split or to order, since a list of thousands costs more than
    /// the rest.
    pub items: Option<Vec<Chunk>>,
    /// Elements of the partial results.
    pub workspace: usize,
    /// End of the last core, and end of all cores under even load.
    pub longest: u64,
    pub mean: u64,
}

/// The tiles of all requests: the request with the heaviest tile first. Within a request the heaviest tile
/// comes first, which with a causal mask is the last. So tiles that run side by side read the same keys. On
/// an H200, 16 x 3208 tokens run at 322 TFLOP/s; the heaviest tiles of all requests first made 297.
///
/// Persistent launches sort all tiles by cost; the snake order pairs heavy tiles with light ones.
pub(super) fn tiles(
    classes: &TileCosts,
    problem: &Problem,
    variant: &dyn KeyRange,
    requests: &[RequestShape],
    cores: Option<usize>,
) -> Vec<RowTile> {
    let group = problem.group();
    let heaviest = |request: &RequestShape| {
        let (class, _) = classes.for_rows(request.qo_len * group);
        let (start, end) = variant.keys(request, request.qo_len.saturating_sub(1));
        class.cost(end.saturating_sub(start) as u32)
    };
    let mut order: Vec<_> =
        requests.iter().zip(0_u32..).map(|(request, index)| (Reverse(heaviest(request)), index)).collect();
    order.sort_unstable();
    let all: usize = requests.iter().map(|request| request.qo_len * group).sum();
    let mut tiles = Vec::with_capacity(requests.len() + all / classes.prefill.rows);
    for (_, index) in order {
        let request = &requests[index as usize];
        let rows = request.qo_len * group;
        let (class, decode) = classes.for_rows(rows);
        let query = |row: usize| (row as u32 / group as u32) as usize;
        let mut end_row = rows;
        let mut first_row = rows.saturating_sub(1) / class.rows * class.rows;
        while end_row > 0 {
            let (start, _) = variant.keys(request, query(first_row));
            let (_, end) = variant.keys(request, query(end_row - 1));
            // No key beyond the request is read, whatever the variant says.
            let end = end.min(request.kv_len);
            tiles.push(RowTile {
                request: index,
                first_row: first_row as u32,
                rows: (end_row - first_row) as u32,
                start: start.min(end) as u32,
                end: end as u32,
                decode,
            });
            end_row = first_row;
            first_row = first_row.saturating_sub(class.rows);
        }
    }
    let walk = |tile: &RowTile| (tile.end - tile.start).div_ceil(classes.of_tile(tile).keys as u32) as usize;
    let longest = || tiles.iter().map(walk).max().unwrap_or(0);
    if classes.prefill.warpgroups
        && is_persistent(tiles.len() * problem.kv_heads, longest(), cores, classes.prefill.cluster)
    {
        tiles.sort_by_key(|tile| Reverse(classes.of_tile(tile).cost(tile.end - tile.start)));
    }
    tiles
}

/// Splits and orders the tiles.
pub(super) fn schedule(
    classes: &TileCosts,
    tiles: &[RowTile],
    problem: &Problem,
    cores: Option<usize>,
    split: Split,
) -> Schedule {
    let machines = classes.machines(problem, cores);
    let whole = || Chunks::of(classes, tiles, problem, |_, keys| keys);
    match split {
        Split::Never => whole().schedule(classes, machines, tiles),
        Split::Every(keys) => {
            let keys = keys.clamp(1, i32::MAX as usize) as u32;
            let every = |class: &TileCost, _| keys.next_multiple_of(class.keys as u32);
            Chunks::of(classes, tiles, problem, every).schedule(classes, machines, tiles)
        }
        Split::Auto => {
            let cost = |tile: &RowTile| classes.of_tile(tile).cost(tile.end - tile.start);
            let heaviest = |tiles: &[RowTile]| tiles.iter().map(cost).max().unwrap_or(0);
            let mean = tiles.iter().map(cost).sum::<u64>() / machines;
            // The heaviest chunks come first, so the last round is of light ones: it ends late by one of
            // those at most.
            let last = &tiles[tiles.len().saturating_sub(8 * machines as usize)..];
            let late = heaviest(last);
            if cores.is_none() || (16 * late <= mean && heaviest(tiles) <= mean) {
                let items = classes.decode.is_some().then(|| whole().ordered(classes, tiles));
                return Schedule { items, workspace: 0, longest: mean + late, mean };
            }
            let mut best = whole().schedule(classes, machines, tiles);
            let ideal = best.mean;
            // A schedule within 6% of the mean has nothing to gain from a split.
            let waves = if 16 * best.longest <= 17 * best.mean { 0 } else { WAVES };
            for wave in 1..=waves {
                // Chunks of a tile are as even as whole tiles of keys allow.
                let even = |class: &TileCost, keys: u32| {
                    let chunks = keys.div_ceil(class.keys_for(ideal.div_ceil(wave))).max(1);
                    keys.div_ceil(chunks).next_multiple_of(class.keys as u32)
                };
                let pieces = Chunks::of(classes, tiles, problem, even);
                // A workspace beyond i32 cannot be addressed by a kernel.
                if pieces.workspace > i32::MAX as usize {
                    continue;
                }
                let candidate = pieces.schedule(classes, machines, tiles);
                if candidate.longest < best.longest {
                    best = candidate;
                }
            }
            best
        }
    }
}

/// Tiles split into chunks.
struct Chunks {
    items: Vec<Chunk>,
    /// Cost of all chunks.
    all: u64,
    /// Elements of the partial results of tiles with several chunks.
    workspace: usize,
}

impl Chunks {
    /// Splits the tiles. `chunk` maps the keys of a tile to the keys of a chunk: all, or a multiple of a
    /// cube's keys.
    fn of(
        classes: &TileCosts,
        tiles: &[RowTile],
        problem: &Problem,
        chunk: impl Fn(&TileCost, u32) -> u32,
    ) -> Self {
        // Cost of writing and reading a row of partial results, in keys.
        let per_key = (problem.dims.qk + problem.dims.vo) * problem.kv_dtype.size();
        let per_row = (8 * problem.dims.vo) as u64 * COST_PER_KEY / per_key.max(1) as u64;
        let mut pieces = Self { items: Vec::with_capacity(tiles.len()), all: 0, workspace: 0 };
        for (tile, at) in tiles.iter().zip(0..) {
            let class = classes.of_tile(tile);
            let keys = tile.end - tile.start;
            let chunk = chunk(class, keys);
            let chunks = if chunk >= keys { 1 } else { keys.div_ceil(chunk) };
            if chunks > 1 {
                let rows = tile.rows as usize * problem.kv_heads * chunks as usize;
                pieces.workspace = pieces.workspace.saturating_add(rows.saturating_mul(problem.dims.vo + 2));
            }
            let partial = if chunks > 1 { u64::from(tile.rows) * per_row } else { 0 };
            for index in 0..chunks {
                let start = index.saturating_mul(chunk);
                let end = start.saturating_add(chunk).min(keys);
                let cost = class.cost(end - start) + partial;
                pieces.all += cost;
                pieces.items.push(Chunk {
                    tile: at,
                    chunk: index,
                    chunks,
                    start: tile.start + start,
                    end: tile.start + end,
                    cost,
                });
            }
        }
        pieces
    }

    /// The chunks in the order in which they run.
    fn ordered(mut self, classes: &TileCosts, tiles: &[RowTile]) -> Vec<Chunk> {
        if self.workspace > 0 {
            // The longest chunk comes first; of equal ones, those of a tile are adjacent.
            self.items.sort_unstable_by_key(|item| (Reverse(item.cost), item.tile, item.chunk));
        }
        if classes.decode.is_some() { interleaved(self.items, tiles) } else { self.items }
    }

    /// Simulates the chunks on so many machines, each of which takes the next chunk when it is done with one.
    fn schedule(self, classes: &TileCosts, machines: u64, tiles: &[RowTile]) -> Schedule {
        let (all, workspace) = (self.all, self.workspace);
        let merge = if workspace > 0 { COST_OF_MERGE } else { 0 };
        let items = self.ordered(classes, tiles);
        let mut ends: BinaryHeap<Reverse<u64>> = (0..machines).map(|_| Reverse(0)).collect();
        for item in &items {
            if let Some(mut first) = ends.peek_mut() {
                first.0 += item.cost;
            }
        }
        let longest = ends.into_iter().map(|Reverse(end)| end).max().unwrap_or(0) + merge;
        Schedule { items: Some(items), workspace, longest, mean: all / machines }
    }
}

/// Spreads both kinds of chunks evenly over the order, so that a core that multiplies also reads.
fn interleaved(items: Vec<Chunk>, tiles: &[RowTile]) -> Vec<Chunk> {
    let is_decode = |item: &Chunk| tiles[item.tile as usize].decode;
    let costs = |decode| {
        items.iter().filter(|item| is_decode(item) == decode).map(|item| item.cost).sum::<u64>().max(1)
    };
    let (all_decode, all_prefill) = (u128::from(costs(true)), u128::from(costs(false)));
    let (decode, prefill): (Vec<_>, Vec<_>) = items.into_iter().partition(is_decode);
    let mut order = Vec::with_capacity(decode.len() + prefill.len());
    let (mut decode, mut prefill) = (decode.into_iter().peekable(), prefill.into_iter().peekable());
    let (mut decode_done, mut prefill_done) = (0, 0);
    while decode.peek().is_some() || prefill.peek().is_some() {
        let next_decode = prefill.peek().is_none()
            || (decode.peek().is_some() && decode_done * all_prefill <= prefill_done * all_decode);
        let (from, done) =
            if next_decode { (&mut decode, &mut decode_done) } else { (&mut prefill, &mut prefill_done) };
        if let Some(item) = from.next() {
            *done += u128::from(item.cost);
            order.push(item);
        }
    }
    order
}
