//! The tiles of attention.

use cubecl::ir::{ElemType, FloatKind};

use crate::code8::Code8;
use crate::device::Machine;
use crate::element::Element;
use crate::fp8::Fp8;
use crate::problem::HeadDims;

/// The tiles of a cube, and the planes that multiply them. Comptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TileShape {
    pub dims: HeadDims,
    /// Tiles of `FragmentLayout::ROWS` rows that a plane owns.
    pub q_tiles: usize,
    /// Keys of a plane at a time.
    pub keys: usize,
    /// Planes with different rows.
    pub q_planes: usize,
    /// Planes with the same rows and different keys.
    pub kv_planes: usize,
    /// Tiles of keys and values in shared memory.
    pub stages: usize,
    /// The queries stay in registers.
    pub q_in_registers: bool,
    /// Cubes that share their copies.
    pub cluster: usize,
    /// Keys are copied to the registers of the one plane that needs them, and not through shared memory.
    pub direct_keys: bool,
    /// Type of queries and output.
    pub dtype: ElemType,
    /// Stored type of keys and values.
    pub kv_dtype: Element,
    /// Codes stay codes in shared memory, and become numbers in the registers of those who multiply.
    pub shares_codes: bool,
    /// The machine whose instructions turn codes into numbers.
    pub machine: Machine,
    /// Products are of codes: queries and probabilities become codes too.
    pub fp8_mma: bool,
}

impl TileShape {
    /// Elements in a vec16 of queries.
    pub fn per_vec(&self) -> usize {
        16 / self.dtype.size()
    }

    /// Elements in a vec16 of keys and values, as they are stored.
    pub fn kv_per_vec(&self) -> usize {
        16 / self.kv_dtype.size()
    }

    /// The type is bf16, or else f16.
    pub fn bf16(&self) -> bool {
        self.dtype == ElemType::Float(FloatKind::BF16)
    }

    /// The base-2 logarithm of the factor that probabilities have before they become codes.
    pub fn p_log2(&self) -> u32 {
        if self.fp8_mma { 7 } else { 0 }
    }

    /// The number of a stored code for that of the code which is multiplied.
    pub fn code_factor(&self) -> f32 {
        if self.fp8_mma && self.kv_dtype == Fp8::E4m3.into() { 2.0 } else { 1.0 }
    }

    pub fn planes(&self) -> usize {
        self.q_planes * self.kv_planes
    }

    /// Keys of a cube at a time.
    pub fn cube_keys(&self) -> usize {
        self.keys * self.kv_planes
    }

    /// Rows of a cube.
    pub fn rows(&self, unit_rows: usize) -> usize {
        self.q_planes * self.q_tiles * unit_rows
    }

    /// Vec16s in a query.
    pub fn q_vecs(&self) -> usize {
        self.dims.qk / self.per_vec()
    }

    /// Vec16s in a key, as it is stored.
    pub fn k_vecs(&self) -> usize {
        self.dims.qk / self.kv_per_vec()
    }

    /// Vec16s in a value, as it is stored.
    pub fn v_vecs(&self) -> usize {
        self.dims.vo / self.kv_per_vec()
    }

    /// The format of codes in shared memory, if there are any.
    pub fn shared_codes(&self) -> Option<Code8> {
        match self.kv_dtype {
            Element::Code(format) if self.shares_codes => Some(format),
            _ => None,
        }
    }

    /// Vec16s of numbers in a stored one.
    pub fn vecs_of_numbers(&self) -> usize {
        self.dtype.size() / self.kv_dtype.size()
    }

    /// Vec16s of a stage in a stored one.
    pub fn parts(&self) -> usize {
        if self.shares_codes { 1 } else { self.vecs_of_numbers() }
    }

    /// Vec16s in a key of a stage.
    pub fn key_row(&self) -> usize {
        self.k_vecs() * self.parts()
    }

    /// Vec16s in a value of a stage.
    pub fn value_row(&self) -> usize {
        self.v_vecs() * self.parts()
    }

    /// Vec16s in the keys of a stage; the values follow.
    pub fn key_vecs(&self) -> usize {
        if self.direct_keys { 0 } else { self.cube_keys() * self.key_row() }
    }

    /// Vec16s in a stage.
    pub fn stage_vecs(&self) -> usize {
        self.key_vecs() + self.cube_keys() * self.value_row()
    }

    /// Copies of a lane for rows of `vecs`, `together` at a time.
    pub fn copies(&self, vecs: usize, plane: usize, together: usize) -> usize {
        (self.cube_keys() * vecs).div_ceil(self.planes() * plane * together) * together
    }

    /// True if every lane has the same number of copies; else some of them are beyond the last key.
    pub fn even(&self, vecs: usize, plane: usize, together: usize) -> bool {
        (self.cube_keys() * vecs).is_multiple_of(self.planes() * plane * together)
    }
}
