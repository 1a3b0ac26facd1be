//! The demands of tiles on a device.

use super::skinny;
use crate::device::{DeviceProfile, Refusal, Result};
use crate::mma::{Gated, GemmMma, GemmTileShape, MmaKind, product_vecs};

pub(super) const KERNEL: &str = "gemm";

pub(super) fn refused<T>(
    setting: &'static str,
    got: impl ToString,
    expected: impl Into<String>,
) -> Result<T> {
    Err(Refusal::blueprint(KERNEL, setting, got, expected))
}

/// Checks the unit, and what its tiles need of the device.
pub(super) fn check_tiles(
    unit: MmaKind,
    tiles: GemmTileShape,
    machine: &Machine,
    device: &DeviceProfile,
) -> Result<()> {
    if let Some(instruction) = unit.instruction(KERNEL, tiles.dtype)? {
        instruction.check(KERNEL, device.arch)?;
    }
    if unit == MmaKind::Wgmma {
        return refused("unit", "Wgmma", "planes that multiply alone");
    }
    for (setting, got) in [
        ("row tiles", tiles.row_tiles),
        ("column tiles", tiles.column_tiles),
        ("row planes", tiles.row_planes),
        ("column planes", tiles.column_planes),
        ("depth planes", tiles.depth_planes),
        ("depth", tiles.depth),
        ("stages", tiles.stages),
    ] {
        if got == 0 {
            return refused(setting, got, "at least 1");
        }
    }
    if machine.plane != device.plane as usize {
        return refused("plane", device.plane, format!("{} lanes", machine.plane));
    }
    if machine.is_async != (tiles.stages > 1) {
        return refused("stages", tiles.stages, if machine.is_async { "at least 2" } else { "1" });
    }
    // `ldmatrix` loads two tiles of columns at a time, and two vectors of each.
    let (columns, vecs) = match unit {
        MmaKind::MmaSync => (2, 2),
        MmaKind::Mfma16 => (1, 4),
        MmaKind::Mfma32 => (1, 2),
        _ => (1, 1),
    };
    let columns = if tiles.gated == Gated::Columns { columns.max(2) } else { columns };
    if !tiles.column_tiles.is_multiple_of(columns) {
        return refused("column tiles", tiles.column_tiles, format!("a multiple of {columns}"));
    }
    if !tiles.depth_vecs().is_multiple_of(tiles.depth_planes * vecs) {
        return refused("depth_vecs", tiles.depth_vecs(), format!("a multiple of {vecs} for each plane"));
    }
    let units = tiles.planes() * machine.plane;
    if units > device.max_units as usize {
        return refused("units", units, format!("at most {}", device.max_units));
    }
    let shared = machine.shared_vecs * 16;
    if shared > device.shared_memory {
        return refused("shared memory", shared, format!("at most {} bytes", device.shared_memory));
    }
    Ok(())
}

/// Extents of the tiles of a matrix unit, for the checks.
pub(super) struct Machine {
    pub plane: usize,
    pub rows: usize,
    pub columns: usize,
    is_async: bool,
    shared_vecs: usize,
}

impl Machine {
    fn of<U: GemmMma>(tiles: GemmTileShape, shared_vecs: usize) -> Self {
        let (rows, columns) = (tiles.rows::<U>(), tiles.columns::<U>());
        Self { plane: U::PLANE, rows, columns, is_async: U::ASYNC, shared_vecs }
    }

    pub fn tiled<U: GemmMma>(tiles: GemmTileShape) -> Self {
        Self::of::<U>(tiles, product_vecs::<U>(tiles))
    }

    pub fn skinny<U: GemmMma>(tiles: GemmTileShape, norm: bool) -> Self {
        Self::of::<U>(tiles, skinny::shared_vecs::<U>(tiles, norm))
    }
}
