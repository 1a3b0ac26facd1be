//! Rings of stages in shared memory between producers and consumers, and their barriers.
//!
//! | | bytes | |
//! |---|---|---|
//! | queries | rows x head | ring of two, where there is room |
//! | keys, values | keys x head, for each stage | rings |
//! | barriers | 8 each | of each tile: *full* and *empty* |
//!
//! A tile is stored as an [`Operand`](crate::isa::nvidia::Operand): 64 elements of every row, then the
//! next 64.

use cubecl::prelude::*;

use super::roles::{PAIR, registers};
use crate::isa::nvidia::{barrier_init, barrier_wait};
use crate::mma::TileShape;
use crate::{Refusal, Result};

/// Bytes of 64 elements.
pub(super) const ROW_BYTES: usize = 128;

/// Shared memory of a cube on Hopper, in bytes.
const SHARED_MEMORY: usize = 227 << 10;

/// Shared memory, in vectors of 16 bytes.
pub(in super::super) fn shared_vecs(tiles: TileShape) -> usize {
    shared_vecs_with(q_stages(tiles), tiles)
}

fn shared_vecs_with(q_stages: usize, tiles: TileShape) -> usize {
    q_stages * tiles.rows(16) * tiles.q_vecs()
        + tiles.stages * tiles.stage_vecs()
        + (2 * q_stages + 4 * tiles.stages).div_ceil(2)
}

/// Stages of queries: the queries of the next work item arrive while a cube still computes the last one, if there is room.
fn q_stages(tiles: TileShape) -> usize {
    if 16 * shared_vecs_with(2, tiles) <= SHARED_MEMORY { 2 } else { 1 }
}

/// Checks the tiles against the limits of warpgroups and producers.
pub(in super::super) fn check(tiles: TileShape) -> Result<()> {
    let refused = |setting, got: usize, expected: &str| {
        Err(Refusal::blueprint("attention on warpgroups", setting, got, expected))
    };
    for (setting, got) in [("head_dim", tiles.dims.qk), ("head_dim_vo", tiles.dims.vo)] {
        if !got.is_multiple_of(64) {
            return refused(setting, got, "a multiple of 64");
        }
    }
    if ![8, 12].contains(&tiles.q_planes) {
        return refused("q_planes", tiles.q_planes, "8 or 12");
    }
    if tiles.q_tiles != 1 || tiles.kv_planes != 1 || tiles.q_in_registers {
        return refused("q_tiles", tiles.q_tiles, "1, in one plane, the queries in shared memory");
    }
    if ![1, 2].contains(&tiles.cluster) {
        return refused("cluster", tiles.cluster, "1 or 2");
    }
    // Registers of a lane: accumulators of both products, and the probabilities as operand. The rest is for
    // other values.
    let got = tiles.dims.vo / 2 + tiles.keys / 2 + tiles.keys / 4;
    let most = registers(tiles.planes()).1 - 32;
    if got > most {
        return refused("keys", tiles.keys, &format!("at most {most} registers, not {got}"));
    }
    Ok(())
}

/// Offset of the keys, in bytes.
fn keys_at(tiles: TileShape) -> usize {
    q_stages(tiles) * query_bytes(tiles)
}

/// Offset of the values, in bytes.
fn values_at(tiles: TileShape) -> usize {
    keys_at(tiles) + tiles.stages * key_bytes(tiles)
}

fn barriers_at(tiles: TileShape) -> usize {
    keys_at(tiles) + tiles.stages * tiles.stage_vecs() * 16
}

/// Bytes of a tile of queries.
fn query_bytes(tiles: TileShape) -> usize {
    tiles.rows(16) * tiles.q_vecs() * 16
}

/// Bytes of a tile of keys.
fn key_bytes(tiles: TileShape) -> usize {
    tiles.key_vecs() * 16
}

/// Bytes of a tile of values.
fn value_bytes(tiles: TileShape) -> usize {
    (tiles.stage_vecs() - tiles.key_vecs()) * 16
}

/// The ring of a barrier or tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ring {
    Queries,
    Keys,
    Values,
}

impl Ring {
    /// Number of stages.
    pub fn stages(self, tiles: TileShape) -> usize {
        if self == Self::Queries { q_stages(tiles) } else { tiles.stages }
    }

    /// Vectors of 16 bytes in a row.
    pub fn vecs(self, tiles: TileShape) -> usize {
        match self {
            Self::Queries => tiles.q_vecs(),
            Self::Keys => tiles.k_vecs(),
            Self::Values => tiles.v_vecs(),
        }
    }

    /// Cubes of the cluster that receive the tile at the same time, and so must all have room.
    pub fn cubes(self, tiles: TileShape) -> usize {
        if self == Self::Queries { 1 } else { tiles.cluster }
    }

    /// Byte of the first *full* barrier; its *empty* one follows, and then those of the next stages.
    fn barrier_at(self, tiles: TileShape) -> usize {
        let before = match self {
            Self::Queries => 0,
            Self::Keys => 2 * q_stages(tiles),
            Self::Values => 2 * (q_stages(tiles) + tiles.stages),
        };
        barriers_at(tiles) + 8 * before
    }

    /// Offset of the first stage, and the bytes of one.
    fn place(self, tiles: TileShape) -> (usize, usize) {
        match self {
            Self::Queries => (0, query_bytes(tiles)),
            Self::Keys => (keys_at(tiles), key_bytes(tiles)),
            Self::Values => (values_at(tiles), value_bytes(tiles)),
        }
    }
}

/// Address of the stage of the `count`-th tile.
#[cube]
pub(super) fn stage_ptr(base: u32, count: u32, #[comptime] tile: Ring, #[comptime] tiles: TileShape) -> u32 {
    let (at, bytes) = comptime!(tile.place(tiles));
    base + comptime!(at as u32) + count % comptime!(tile.stages(tiles) as u32) * comptime!(bytes as u32)
}

/// Address of the full barrier: the `count`-th tile has arrived.
#[cube]
pub(super) fn full(base: u32, count: u32, #[comptime] tile: Ring, #[comptime] tiles: TileShape) -> u32 {
    base + comptime!(tile.barrier_at(tiles) as u32) + count % comptime!(tile.stages(tiles) as u32) * 16
}

/// Address of the empty barrier: no plane needs the `count`-th tile any more.
#[cube]
pub(super) fn empty(base: u32, count: u32, #[comptime] tile: Ring, #[comptime] tiles: TileShape) -> u32 {
    full(base, count, tile, tiles) + 8
}

/// Waits until the `count`-th tile has arrived.
#[cube]
pub(super) fn wait_full(base: u32, count: u32, #[comptime] tile: Ring, #[comptime] tiles: TileShape) {
    let round = count / comptime!(tile.stages(tiles) as u32);
    barrier_wait(full(base, count, tile, tiles), round % 2);
}

/// Waits until there is room for the `count`-th tile.
#[cube]
pub(super) fn wait_empty(base: u32, count: u32, #[comptime] tile: Ring, #[comptime] tiles: TileShape) {
    let round = count / comptime!(tile.stages(tiles) as u32);
    barrier_wait(empty(base, count, tile, tiles), (round + 1) % 2);
}

/// Initialises all barriers. The units of both producer planes arrive on full; each consumer plane of any
/// cube on empty.
#[cube]
pub(super) fn init(base: u32, #[comptime] tiles: TileShape) {
    init_of(base, Ring::Queries, tiles);
    init_of(base, Ring::Keys, tiles);
    init_of(base, Ring::Values, tiles);
}

#[cube]
fn init_of(base: u32, #[comptime] tile: Ring, #[comptime] tiles: TileShape) {
    #[unroll]
    for stage in 0..comptime!(tile.stages(tiles) as u32) {
        barrier_init(full(base, stage, tile, tiles), comptime!(PAIR * 32));
        barrier_init(empty(base, stage, tile, tiles), comptime!(tiles.planes() * tile.cubes(tiles)));
    }
}
