//! What a mnemonic says beyond its operation: compares, memory transfers and matrix shapes are regular
//! enough to be read off their names.

use super::matrix::{Matrix, matrix};
use super::{Format, Op};

/// Types of a compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    F16,
    F32,
    F64,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    False,
    Less,
    Equal,
    LessEqual,
    Greater,
    /// Less or greater: false for NaN.
    LessGreater,
    GreaterEqual,
    Ordered,
    /// Whether a float is of one of the classes in a mask.
    Class,
}

/// `v_cmp_*` and `v_cmpx_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compare {
    pub relation: Relation,
    /// The result is the complement: `nlt` is true for NaN, and so is `u`.
    pub complement: bool,
    pub number: Number,
    /// Writes EXEC too.
    pub exec: bool,
}

/// Which half of a register a 16-bit memory operand lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum D16 {
    No,
    Low,
    High,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtomicOp {
    Swap,
    CompareSwap,
    /// Equal as floats.
    CompareSwapFloat,
    /// Clears the bits of the first operand, sets those of the second.
    MaskedOr,
    /// Subtracts the first operand from a value that is not below it, adds the second to others.
    Wrap,
    ConditionalSwap,
    Add,
    Sub,
    ReverseSub,
    MinSigned,
    MinUnsigned,
    MaxSigned,
    MaxUnsigned,
    And,
    Or,
    Xor,
    Increment,
    Decrement,
    AddF32,
    MinF32,
    MaxF32,
    AddF64,
    MinF64,
    MaxF64,
    AddPackedF16,
    AddPackedBf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Load,
    Store,
    Atomic(AtomicOp),
}

/// What a vector memory instruction moves per lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    pub direction: Direction,
    pub bytes: u8,
    pub signed: bool,
    pub d16: D16,
    /// What is loaded goes to LDS, or what is stored comes from there.
    pub to_lds: bool,
    /// DS only: an atomic that returns the old value.
    pub returns: bool,
    /// DS only: two addresses, and how far the unit of their offsets.
    pub pair_stride: u16,
}

/// A buffer access that converts between registers and the elements of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formatted {
    pub store: bool,
    pub components: u8,
    pub d16: D16,
}

/// Where a scalar access goes: offsets of the last are in units of 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Global,
    Buffer,
    Scratch,
}

/// What a scalar memory instruction moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScalarTransfer {
    pub direction: Direction,
    pub space: Space,
    pub words: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    None,
    Compare(Compare),
    Transfer(Transfer),
    Formatted(Formatted),
    Scalar(ScalarTransfer),
    Matrix(Matrix),
}

impl Detail {
    pub(super) fn of(op: Op, format: Format) -> Self {
        let name = op.name();
        match format {
            Format::Vopc => compare(name).map_or(Self::None, Self::Compare),
            Format::Vop3p if name.contains("mfma") => matrix(name).map_or(Self::None, Self::Matrix),
            Format::Vop3p if name.contains("smfmac") => matrix(name).map_or(Self::None, Self::Matrix),
            Format::Mubuf | Format::Mtbuf if name.contains("_format_") => {
                formatted(name).map_or(Self::None, Self::Formatted)
            }
            Format::Flat | Format::Global | Format::Scratch | Format::Mubuf => {
                name.split_once('_').and_then(|(_, rest)| transfer(rest)).map_or(Self::None, Self::Transfer)
            }
            Format::Smem => scalar(name).map_or(Self::None, Self::Scalar),
            Format::Ds => name.strip_prefix("ds_").and_then(lds).map_or(Self::None, Self::Transfer),
            _ => Self::None,
        }
    }
}

fn compare(name: &str) -> Option<Compare> {
    let rest = name.strip_prefix("v_cmp")?;
    let exec = rest.starts_with('x');
    let (relation, number) = rest.trim_start_matches('x')[1..].split_once('_')?;
    let (relation, complement) = match relation {
        "f" => (Relation::False, false),
        "t" | "tru" => (Relation::False, true),
        "lt" => (Relation::Less, false),
        "nlt" => (Relation::Less, true),
        "eq" => (Relation::Equal, false),
        "ne" | "neq" => (Relation::Equal, true),
        "le" => (Relation::LessEqual, false),
        "nle" => (Relation::LessEqual, true),
        "gt" => (Relation::Greater, false),
        "ngt" => (Relation::Greater, true),
        "ge" => (Relation::GreaterEqual, false),
        "nge" => (Relation::GreaterEqual, true),
        "lg" => (Relation::LessGreater, false),
        "nlg" => (Relation::LessGreater, true),
        "o" => (Relation::Ordered, false),
        "u" => (Relation::Ordered, true),
        "class" => (Relation::Class, false),
        _ => return None,
    };
    let number = match number {
        "f16" => Number::F16,
        "f32" => Number::F32,
        "f64" => Number::F64,
        "i16" => Number::I16,
        "u16" => Number::U16,
        "i32" => Number::I32,
        "u32" => Number::U32,
        "i64" => Number::I64,
        "u64" => Number::U64,
        _ => return None,
    };
    Some(Compare { relation, complement, number, exec })
}

const PLAIN: Transfer = Transfer {
    direction: Direction::Load,
    bytes: 4,
    signed: false,
    d16: D16::No,
    to_lds: false,
    returns: false,
    pair_stride: 0,
};

/// `load_dwordx2`, `store_short_d16_hi`, `atomic_add_x2` of FLAT, GLOBAL, SCRATCH and MUBUF.
fn transfer(name: &str) -> Option<Transfer> {
    let (verb, what) = name.split_once('_')?;
    if verb == "atomic" {
        let (what, bytes) = match what.strip_suffix("_x2") {
            Some(what) => (what, 8),
            None => (what, if what.ends_with("f64") { 8 } else { 4 }),
        };
        return Some(Transfer { direction: Direction::Atomic(atomic(what)?), bytes, ..PLAIN });
    }
    let direction = match verb {
        "load" => Direction::Load,
        "store" => Direction::Store,
        _ => return None,
    };
    let (what, to_lds) = what.strip_prefix("lds_").map_or((what, false), |what| (what, true));
    let (what, d16) = match what.strip_suffix("_d16_hi") {
        Some(what) => (what, D16::High),
        None => what.strip_suffix("_d16").map_or((what, D16::No), |what| (what, D16::Low)),
    };
    let (bytes, signed) = match what {
        "ubyte" | "byte" => (1, false),
        "sbyte" => (1, true),
        "ushort" | "short" => (2, false),
        "sshort" => (2, true),
        "dword" => (4, false),
        "dwordx2" => (8, false),
        "dwordx3" => (12, false),
        "dwordx4" => (16, false),
        _ => return None,
    };
    Some(Transfer { direction, bytes, signed, d16, to_lds, ..PLAIN })
}

/// `buffer_load_format_d16_xyz`.
fn formatted(name: &str) -> Option<Formatted> {
    let (verb, what) = name.split_once("_format_")?;
    let (what, d16) = match what.strip_prefix("d16_hi_") {
        Some(what) => (what, D16::High),
        None => what.strip_prefix("d16_").map_or((what, D16::No), |what| (what, D16::Low)),
    };
    Some(Formatted { store: verb.ends_with("store"), components: what.len() as u8, d16 })
}

/// `s_load_dwordx2`, `s_buffer_atomic_add_x2`.
fn scalar(name: &str) -> Option<ScalarTransfer> {
    let name = name.strip_prefix("s_")?;
    let (name, space) = match (name.strip_prefix("buffer_"), name.strip_prefix("scratch_")) {
        (Some(name), _) => (name, Space::Buffer),
        (_, Some(name)) => (name, Space::Scratch),
        _ => (name, Space::Global),
    };
    let words = name.rsplit_once('x').and_then(|(_, count)| count.parse().ok()).unwrap_or(1);
    let direction = match name.split_once('_')? {
        ("load", _) => Direction::Load,
        ("store", _) => Direction::Store,
        ("atomic", what) => Direction::Atomic(atomic(what.trim_end_matches("_x2"))?),
        _ => return None,
    };
    Some(ScalarTransfer { direction, space, words })
}

fn atomic(what: &str) -> Option<AtomicOp> {
    Some(match what {
        "swap" => AtomicOp::Swap,
        "cmpswap" => AtomicOp::CompareSwap,
        "add" => AtomicOp::Add,
        "sub" => AtomicOp::Sub,
        "smin" => AtomicOp::MinSigned,
        "umin" => AtomicOp::MinUnsigned,
        "smax" => AtomicOp::MaxSigned,
        "umax" => AtomicOp::MaxUnsigned,
        "and" => AtomicOp::And,
        "or" => AtomicOp::Or,
        "xor" => AtomicOp::Xor,
        "inc" => AtomicOp::Increment,
        "dec" => AtomicOp::Decrement,
        "add_f32" => AtomicOp::AddF32,
        "add_f64" => AtomicOp::AddF64,
        "min_f64" => AtomicOp::MinF64,
        "max_f64" => AtomicOp::MaxF64,
        "pk_add_f16" => AtomicOp::AddPackedF16,
        "pk_add_bf16" => AtomicOp::AddPackedBf16,
        _ => return None,
    })
}

/// `read2st64_b32`, `write_b8_d16_hi`, `add_rtn_f32`: LDS without `ds_`.
fn lds(name: &str) -> Option<Transfer> {
    let (name, d16) = match name.strip_suffix("_d16_hi") {
        Some(name) => (name, D16::High),
        None => name.strip_suffix("_d16").map_or((name, D16::No), |name| (name, D16::Low)),
    };
    let (verb, kind) = name.rsplit_once('_')?;
    let (verb, returns) = verb.strip_suffix("_rtn").map_or((verb, false), |verb| (verb, true));
    let signed = kind.starts_with('i');
    let bytes: u8 = kind.trim_start_matches(|c: char| c.is_alphabetic()).parse::<u8>().ok()? / 8;
    let pair_stride = match verb {
        "read2" | "write2" | "wrxchg2" => u16::from(bytes),
        "read2st64" | "write2st64" | "wrxchg2st64" => 64 * u16::from(bytes),
        _ => 0,
    };
    let direction = match (verb, kind) {
        ("read" | "read2" | "read2st64" | "read_addtid", _) => Direction::Load,
        ("write" | "write2" | "write2st64" | "write_addtid", _) => Direction::Store,
        ("pk_add", "f16") => return Some(packed(AtomicOp::AddPackedF16, returns)),
        ("pk_add", "bf16") => return Some(packed(AtomicOp::AddPackedBf16, returns)),
        ("add", "f32") => Direction::Atomic(AtomicOp::AddF32),
        ("min", "f32") => Direction::Atomic(AtomicOp::MinF32),
        ("max", "f32") => Direction::Atomic(AtomicOp::MaxF32),
        ("add", "f64") => Direction::Atomic(AtomicOp::AddF64),
        ("min", "f64") => Direction::Atomic(AtomicOp::MinF64),
        ("max", "f64") => Direction::Atomic(AtomicOp::MaxF64),
        ("add", _) => Direction::Atomic(AtomicOp::Add),
        ("sub", _) => Direction::Atomic(AtomicOp::Sub),
        ("rsub", _) => Direction::Atomic(AtomicOp::ReverseSub),
        ("inc", _) => Direction::Atomic(AtomicOp::Increment),
        ("dec", _) => Direction::Atomic(AtomicOp::Decrement),
        ("min", _) if signed => Direction::Atomic(AtomicOp::MinSigned),
        ("max", _) if signed => Direction::Atomic(AtomicOp::MaxSigned),
        ("min", _) => Direction::Atomic(AtomicOp::MinUnsigned),
        ("max", _) => Direction::Atomic(AtomicOp::MaxUnsigned),
        ("and", _) => Direction::Atomic(AtomicOp::And),
        ("or", _) => Direction::Atomic(AtomicOp::Or),
        ("xor", _) => Direction::Atomic(AtomicOp::Xor),
        ("wrxchg" | "wrxchg2" | "wrxchg2st64", _) => Direction::Atomic(AtomicOp::Swap),
        ("cmpst", "b32" | "b64") => Direction::Atomic(AtomicOp::CompareSwap),
        ("cmpst", _) => Direction::Atomic(AtomicOp::CompareSwapFloat),
        ("mskor", _) => Direction::Atomic(AtomicOp::MaskedOr),
        ("wrap", _) => Direction::Atomic(AtomicOp::Wrap),
        ("condxchg32", _) => Direction::Atomic(AtomicOp::ConditionalSwap),
        _ => return None,
    };
    Some(Transfer { direction, bytes, signed, d16, returns, pair_stride, ..PLAIN })
}

fn packed(op: AtomicOp, returns: bool) -> Transfer {
    Transfer { direction: Direction::Atomic(op), returns, ..PLAIN }
}
