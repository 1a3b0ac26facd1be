//! Where the keys of a tile are split, and in which order the pieces run.
//!
//! A machine takes cubes in their order, each as soon as a core has room. So the order is the schedule: longest first is
//! greedy balancing, and running it through a heap of cores on the host tells when the last one ends. The candidates are
//! no split, and splits into pieces of which each core has one, two, three, or four; the one that ends first is taken, with
//! what merging costs, and of equals the one with the fewest pieces. This sees what the last round of cubes leaves idle.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::blueprint::{Blueprint, Problem};
use super::super::hopper::is_persistent;
use super::super::launch::KeyRange;
use super::super::request::RequestShape;
use super::super::tiled::{MmaKind, Tiled};
use super::{Limits, MERGE_ROWS, Split};

/// Costs are in sixteenths of the time in which a core reads a key of a head of 128 elements in bf16, 16 ns on an H200.
const COST_PER_KEY: u64 = 16;
/// What a cube costs before it reads its first key and after its last one: about 1.5 µs.
const COST_PER_CUBE: u64 = 96 * COST_PER_KEY;
/// The launch that merges: about 3 µs.
const COST_OF_MERGE: u64 = 190 * COST_PER_KEY;
/// Rows by which a core multiplies a key in the time in which it reads one (H200: 330 TFLOP/s beside 4.2 TB/s).
const ROWS_PER_KEY: u64 = 78;
/// The same of warpgroups, at 560 TFLOP/s.
const WARPGROUP_ROWS_PER_KEY: u64 = 132;
/// Chunks for each core at most.
const WAVES: u64 = 4;

/// TileShape of one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileCost {
    rows: usize,
    /// Keys that a cube takes at a time.
    keys: usize,
    per_key: u64,
    /// Cubes that a core needs to be busy.
    resident: u64,
    /// Cubes that work on one piece.
    cluster: usize,
    warpgroups: bool,
}

/// The tiles of a blueprint.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileCosts {
    prefill: TileCost,
    /// For requests of no more rows than this has, if they have tiles of their own.
    decode: Option<TileCost>,
}

impl TileCost {
    fn of(tiled: &Tiled) -> Self {
        let rows = tiled.rows();
        // With few rows a core is busy reading, and one cube has enough loads in flight (1 x 16384 keys, H200: 2149 GB/s
        // with one, 1996 with two). With many, a second cube works while the first one waits (64 queries over 32768 shared
        // keys: 0.168 ms against 0.207).
        // Warpgroups take turns within one cube.
        let warpgroups = tiled.unit == MmaKind::Wgmma;
        let resident = if tiled.q_planes > 1 && !warpgroups { 2 } else { 1 };
        let rows_per_key = if warpgroups { WARPGROUP_ROWS_PER_KEY } else { ROWS_PER_KEY };
        let cluster = tiled.cluster;
        let per_key = ((rows / cluster) as u64 * COST_PER_KEY / rows_per_key).max(COST_PER_KEY) * resident;
        Self { rows, keys: tiled.cube_keys(), per_key, resident, cluster, warpgroups }
    }

    // In 32 bits: on the host a division of 64 takes three times as long, and there are thousands of tiles.
    fn cost(&self, keys: u32) -> u64 {
        COST_PER_CUBE * self.resident + u64::from(keys.next_multiple_of(self.keys as u32)) * self.per_key
    }

    /// Keys of a piece that costs `budget`, beside what every cube costs.
    fn keys_for(&self, budget: u64) -> u32 {
        // With fewer than 4 tiles of keys merging costs more than it gains.
        let keys = (budget / self.per_key).clamp(3 * self.keys as u64 + 1, i32::MAX as u64);
        (keys as u32).next_multiple_of(self.keys as u32)
    }
}

impl TileCosts {
    /// The tiles of a blueprint; none if it has no use for a list of works.
    pub(super) fn of(blueprint: &Blueprint) -> Option<Self> {
        match blueprint {
            Blueprint::Portable(_) => None,
            Blueprint::Tiled(tiled) => Some(Self { prefill: TileCost::of(tiled), decode: None }),
            Blueprint::Mixed(mixed) => {
                let (prefill, decode) = (TileCost::of(&mixed.prefill), TileCost::of(&mixed.decode));
                // They share the cores.
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
            // All but the last of a tile have so many keys, or more, and no tile more keys than there are.
            Split::Every(every) => keys / every.max(1) * (1 + longest / self.prefill.rows),
            // All but the last of a tile cost no less than the budget that all share.
            Split::Auto => (WAVES * self.machines(problem, cores)) as usize,
        };
        Limits {
            work_items: tiles + chunks,
            merges: if longest > MERGE_ROWS { tiles + rows / MERGE_ROWS } else { tiles },
            // A tile with two pieces or more has at most twice as many as there are whole ones in it.
            partial_rows: (2 * chunks).min(tiles + chunks)
                * longest.min(self.prefill.rows)
                * problem.kv_heads,
            merge_rows: longest.min(MERGE_ROWS),
        }
    }

    /// Chunks that run at a time, for each key head: the heads of a piece run side by side.
    fn machines(&self, problem: &Problem, cores: Option<usize>) -> u64 {
        let clusters = (cores.unwrap_or(1) / self.prefill.cluster) as u64;
        (clusters * self.prefill.resident / problem.kv_heads as u64).max(1)
    }
}

/// A tile of rows, and the keys that any of them sees.
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

/// Items in the order in which they run.
pub(super) struct Schedule {
    /// The tiles as they are if there is nothing to split or to order: of thousands of them a list costs more than the rest.
    pub items: Option<Vec<Chunk>>,
    /// Elements of the partial results.
    pub workspace: usize,
    /// When the last core ends, and when all would if they were equally busy.
    pub longest: u64,
    pub mean: u64,
}

/// The tiles of all requests: the request with the heaviest tile first, and of each the heaviest tile first, which with a
/// causal mask is the last. So what runs side by side reads the same keys: 16 x 3208 tokens at 322 TFLOP/s on an H200, where
/// the heaviest tiles of all requests first made 297.
///
/// Where works are shared out beforehand the heaviest of all come first: who has one of those has a light one next.
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
    if classes.prefill.warpgroups
        && is_persistent(tiles.len() * problem.kv_heads, cores, classes.prefill.cluster)
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
            // The heaviest come first, so that the last round is of light ones: it ends late by one of those at most.
            let last = &tiles[tiles.len().saturating_sub(8 * machines as usize)..];
            let late = heaviest(last);
            if cores.is_none() || (16 * late <= mean && heaviest(tiles) <= mean) {
                let items = classes.decode.is_some().then(|| whole().ordered(classes, tiles));
                return Schedule { items, workspace: 0, longest: mean + late, mean };
            }
            let mut best = whole().schedule(classes, machines, tiles);
            let ideal = best.mean;
            // Within 6% of even there is nothing to gain.
            let waves = if 16 * best.longest <= 17 * best.mean { 0 } else { WAVES };
            for wave in 1..=waves {
                // Chunks of a tile are as even as whole tiles of keys allow.
                let even = |class: &TileCost, keys: u32| {
                    let chunks = keys.div_ceil(class.keys_for(ideal.div_ceil(wave))).max(1);
                    keys.div_ceil(chunks).next_multiple_of(class.keys as u32)
                };
                let pieces = Chunks::of(classes, tiles, problem, even);
                // No choice, if a kernel could not address it.
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

/// TileShape in chunks.
struct Chunks {
    items: Vec<Chunk>,
    /// Cost of all.
    all: u64,
    /// Elements of the partial results, which tiles of several chunks leave.
    workspace: usize,
}

impl Chunks {
    /// The tiles in chunks of as many keys as `chunk` says for the keys of a tile: all of them, or a multiple of what a cube
    /// takes at a time.
    fn of(
        classes: &TileCosts,
        tiles: &[RowTile],
        problem: &Problem,
        chunk: impl Fn(&TileCost, u32) -> u32,
    ) -> Self {
        // What a row of partial results costs, written and read, in keys.
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
            for number in 0..chunks {
                let start = number.saturating_mul(chunk);
                let end = start.saturating_add(chunk).min(keys);
                let cost = class.cost(end - start) + partial;
                pieces.all += cost;
                pieces.items.push(Chunk {
                    tile: at,
                    chunk: number,
                    chunks,
                    start: tile.start + start,
                    end: tile.start + end,
                    cost,
                });
            }
        }
        pieces
    }

    /// In the order in which they run.
    fn ordered(mut self, classes: &TileCosts, tiles: &[RowTile]) -> Vec<Chunk> {
        if self.workspace > 0 {
            // The longest first, of equals those of a tile side by side.
            self.items.sort_unstable_by_key(|item| (Reverse(item.cost), item.tile, item.chunk));
        }
        if classes.decode.is_some() { interleaved(self.items, tiles) } else { self.items }
    }

    /// In the order in which they run, on as many machines, each of which takes the next when it is done with one.
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

/// Both kinds of items side by side from the beginning to the end, so that a core that multiplies also reads.
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
