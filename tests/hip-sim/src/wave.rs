//! The state of one wave of 64 lanes.

use crate::decode::Operand;

pub const LANES: usize = 64;
/// One 32-bit value per lane.
pub type Lanes = [u32; LANES];
/// One 64-bit value per lane.
pub type WideLanes = [u64; LANES];

/// Indices into the scalar file.
pub const VCC: usize = 106;
pub const M0: usize = 124;
pub const EXEC: usize = 126;
/// VGPRs and accumulators of a wave together.
pub const REGISTERS: usize = 512;

/// High halves of the apertures through which FLAT reaches LDS and scratch: beyond every address of
/// memory, which has 48 bits.
pub const SHARED_APERTURE: u32 = 0x0001_0000;
pub const PRIVATE_APERTURE: u32 = 0x0002_0000;

pub struct Wave {
    /// Index of the next word of the program.
    pub pc: usize,
    /// SGPRs 0..=101, FLAT_SCRATCH, XNACK_MASK, VCC, TTMP, M0 and EXEC at their encoded numbers.
    pub scalars: [u32; 128],
    pub scc: bool,
    pub mode: u32,
    /// VGPRs are indexed by M0.
    pub indexing: bool,
    pub vectors: Box<[Lanes; REGISTERS]>,
    /// Where the accumulators start in `vectors`.
    pub accumulators: usize,
    /// The private segments, one lane after the other.
    pub scratch: Vec<u8>,
    pub scratch_size: usize,
    pub index: u32,
    pub ended: bool,
    pub at_barrier: bool,
}

impl Wave {
    pub fn new() -> Self {
        let vectors: Box<[Lanes]> = vec![[0; LANES]; REGISTERS].into();
        let Ok(vectors) = vectors.try_into() else { unreachable!("made with this length") };
        Self {
            pc: 0,
            scalars: [0; 128],
            scc: false,
            mode: 0,
            indexing: false,
            vectors,
            accumulators: 0,
            scratch: Vec::new(),
            scratch_size: 0,
            index: 0,
            ended: false,
            at_barrier: false,
        }
    }

    #[inline]
    pub fn exec(&self) -> u64 {
        self.scalar64(EXEC)
    }

    #[inline]
    pub fn vcc(&self) -> u64 {
        self.scalar64(VCC)
    }

    #[inline]
    pub fn scalar64(&self, index: usize) -> u64 {
        u64::from(self.scalars[index & 127]) | u64::from(self.scalars[(index + 1) & 127]) << 32
    }

    #[inline]
    pub fn set_scalar64(&mut self, index: usize, value: u64) {
        self.scalars[index & 127] = value as u32;
        self.scalars[(index + 1) & 127] = (value >> 32) as u32;
    }

    /// Index into `vectors` of a vector operand.
    #[inline]
    pub fn register(&self, operand: Operand) -> Option<usize> {
        match operand {
            Operand::Vector(register) => Some(register.into()),
            Operand::Accumulator(register) => Some(self.accumulators + usize::from(register)),
            _ => None,
        }
    }

    /// A 32-bit operand that is the same in all lanes; a vector operand gives its first lane.
    #[inline]
    pub fn uniform32(&self, operand: Operand) -> u32 {
        match operand {
            Operand::Scalar(index) => self.scalars[usize::from(index)],
            Operand::Integer(value) => value as u32,
            Operand::Float(code) => float32(code),
            Operand::Literal(value) => value,
            Operand::SharedBase => SHARED_APERTURE,
            Operand::SharedLimit => SHARED_APERTURE | 0xffff,
            Operand::PrivateBase => PRIVATE_APERTURE,
            Operand::PrivateLimit => PRIVATE_APERTURE | 0xffff,
            Operand::Vccz => u32::from(self.vcc() == 0),
            Operand::Execz => u32::from(self.exec() == 0),
            Operand::Scc => u32::from(self.scc),
            Operand::Vector(_) | Operand::Accumulator(_) => {
                self.register(operand).map_or(0, |register| self.vectors[register & (REGISTERS - 1)][0])
            }
            Operand::None => 0,
        }
    }

    /// A 64-bit operand that is the same in all lanes; a literal is extended by zeros.
    #[inline]
    pub fn uniform64(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Scalar(index) => self.scalar64(index.into()),
            Operand::Integer(value) => value as i64 as u64,
            Operand::Float(code) => float64(code),
            Operand::Literal(value) => value.into(),
            Operand::SharedBase | Operand::PrivateBase => u64::from(self.uniform32(operand)) << 32,
            Operand::SharedLimit | Operand::PrivateLimit => {
                u64::from(self.uniform32(operand)) << 32 | 0xffff_ffff
            }
            _ => self.uniform32(operand).into(),
        }
    }
}

/// The values of inline floats 240..=248.
const INLINE: [f64; 9] = [0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 4.0, -4.0, std::f64::consts::FRAC_1_PI / 2.0];

pub fn float32(code: u8) -> u32 {
    (INLINE[usize::from(code - 240)] as f32).to_bits()
}

pub fn float64(code: u8) -> u64 {
    // The last one is rounded as the ISA lists it.
    if code == 248 { 0x3fc4_5f30_6dc9_c882 } else { INLINE[usize::from(code - 240)].to_bits() }
}

pub fn float16(code: u8) -> u32 {
    // Not the nearest f16 to 1/(2 pi) by chance only: the ISA lists 0x3118.
    crate::float::f32_to_f16(INLINE[usize::from(code - 240)] as f32).into()
}
