//! The tensor maps of keys and values.

use cubecl::{ir::ElemType, prelude::*};

use crate::isa::nvidia::{TensorMap, tensor_map};

/// Tensor maps of `[kv_heads, pages, slots, head_dim]`.
#[derive(CubeType, CubeLaunch)]
pub(in super::super) struct TensorMaps {
    pub k: TensorMap,
    pub v: TensorMap,
    /// Rows of a TMA box, 0 for none: a divisor of a page and of a cube's part of the keys of a tile.
    pub box_rows: usize,
}

/// The tensor maps of keys and values, each `[pages, slots, kv_heads, head_dim]`.
pub(in super::super) fn tensor_maps(
    [k, v]: [&TensorBinding; 2],
    box_rows: usize,
    dtype: ElemType,
) -> TensorMapsLaunch {
    let map = |tensor: &TensorBinding| {
        let by_head = [2, 0, 1, 3];
        let shape: Vec<usize> = by_head.iter().map(|&axis| tensor.shape[axis]).collect();
        let strides: Vec<usize> = by_head.iter().map(|&axis| tensor.strides[axis]).collect();
        let tensor = TensorBinding { shape: shape.into(), strides: strides.into(), ..tensor.clone() };
        tensor_map(tensor, dtype, &[1, 1, box_rows.max(1), 64])
    };
    TensorMapsLaunch::new(map(k), map(v), box_rows)
}
