//! The bit fields of the encodings.

use crate::profile::Class;

use super::{Detail, Dpp, Format, Instruction, Op, Operand, Sdwa, Select};

/// Index of VCC in the scalar file.
const VCC: u8 = 106;
/// Codes of an 8-bit or 9-bit source that stand for something after the first word.
const SDWA: u32 = 249;
const DPP: u32 = 250;
const LITERAL: u32 = 255;
/// SADDR of FLAT and GLOBAL when there is none.
const NO_ADDRESS: u32 = 127;

fn bits(word: u32, high: u32, low: u32) -> u32 {
    (word >> low) & (u32::MAX >> (31 - (high - low)))
}

fn signed(value: u32, width: u32) -> i32 {
    ((value << (32 - width)) as i32) >> (32 - width)
}

fn vector(register: u32, accumulator: bool) -> Operand {
    if accumulator { Operand::Accumulator(register as u8) } else { Operand::Vector(register as u8) }
}

fn scalar(register: u32) -> Operand {
    Operand::Scalar(register as u8)
}

/// A 9-bit source; `None` for a reserved code. The literal is filled in later.
fn source(code: u32) -> Option<Operand> {
    Some(match code {
        0..=127 => scalar(code),
        128..=192 => Operand::Integer((code - 128) as i8),
        193..=208 => Operand::Integer(-((code - 192) as i8)),
        235 => Operand::SharedBase,
        236 => Operand::SharedLimit,
        237 => Operand::PrivateBase,
        238 => Operand::PrivateLimit,
        240..=248 => Operand::Float(code as u8),
        251 => Operand::Vccz,
        252 => Operand::Execz,
        253 => Operand::Scc,
        LITERAL => Operand::Literal(0),
        256..=511 => Operand::Vector((code - 256) as u8),
        _ => return None,
    })
}

impl Instruction {
    /// The instruction that starts at the first word, if there is one.
    pub fn decode(words: &[u32]) -> Option<Self> {
        let first = *words.first()?;
        let second = words.get(1).copied();
        match first >> 26 {
            0b110000 => Self::smem(first, second?),
            0b110100 if bits(first, 25, 23) == 0b111 => Self::vop3p(first, second?),
            0b110100 => Self::vop3(first, second?),
            0b110110 => Self::ds(first, second?),
            0b110111 => Self::flat(first, second?),
            0b111000 => Self::mubuf(first, second?),
            0b111010 => Self::mtbuf(first, second?),
            _ if first >> 31 == 0 => Self::vop12c(first, second),
            _ if first >> 30 == 0b10 => Self::sop(first, second),
            _ => None,
        }
    }

    fn new(format: Format, code: u32, length: u8) -> Option<Self> {
        let op = Op::find(format, code)?;
        let detail = Detail::of(op, format);
        Some(Self {
            op,
            format,
            class: Class::of(op, format, &detail),
            length,
            destination: Operand::None,
            scalar_destination: VCC,
            source: [Operand::None; 3],
            immediate: 0,
            negate: 0,
            absolute: 0,
            negate_high: 0,
            op_sel: 0,
            op_sel_high: 0,
            clamp: false,
            output_modifier: 0,
            broadcast: [0; 3],
            sc0: false,
            lds: false,
            indexed: false,
            element: 0,
            offset_enable: false,
            select: Select::Whole,
            detail,
        })
    }

    /// Puts the word after the instruction where the encoding asked for a literal.
    fn with_literal(mut self, literal: Option<u32>) -> Option<Self> {
        for operand in &mut self.source {
            if matches!(operand, Operand::Literal(_)) {
                *operand = Operand::Literal(literal?);
                self.length = 2;
            }
        }
        Some(self)
    }

    fn sop(word: u32, next: Option<u32>) -> Option<Self> {
        let sources = |high, low| -> Option<Operand> { source(bits(word, high, low)) };
        if word >> 28 == 0b1011 {
            let code = bits(word, 27, 23);
            if code < 0x18 {
                let mut i = Self::new(Format::Sopk, code, 1)?;
                i.destination = scalar(bits(word, 22, 16));
                i.source[0] = i.destination;
                i.immediate = signed(word & 0xffff, 16);
                if i.op == Op::s_setreg_imm32_b32 {
                    i.source[0] = Operand::Literal(0);
                }
                return i.with_literal(next);
            }
        }
        match bits(word, 31, 23) {
            0b101111101 => {
                let mut i = Self::new(Format::Sop1, bits(word, 15, 8), 1)?;
                i.destination = scalar(bits(word, 22, 16));
                i.source[0] = sources(7, 0)?;
                i.with_literal(next)
            }
            0b101111110 => {
                let mut i = Self::new(Format::Sopc, bits(word, 22, 16), 1)?;
                i.source[0] = sources(7, 0)?;
                // The second operand of this one is a mask.
                if i.op == Op::s_set_gpr_idx_on {
                    i.immediate = bits(word, 15, 8) as i32;
                } else {
                    i.source[1] = sources(15, 8)?;
                }
                i.with_literal(next)
            }
            0b101111111 => {
                let mut i = Self::new(Format::Sopp, bits(word, 22, 16), 1)?;
                i.immediate = signed(word & 0xffff, 16);
                Some(i)
            }
            _ => {
                let mut i = Self::new(Format::Sop2, bits(word, 29, 23), 1)?;
                i.destination = scalar(bits(word, 22, 16));
                i.source = [sources(7, 0)?, sources(15, 8)?, Operand::None];
                i.with_literal(next)
            }
        }
    }

    fn smem(word: u32, second: u32) -> Option<Self> {
        let mut i = Self::new(Format::Smem, bits(word, 25, 18), 2)?;
        i.destination = scalar(bits(word, 12, 6));
        i.source[0] = scalar(bits(word, 5, 0) << 1);
        i.sc0 = bits(word, 16, 16) == 1;
        let (immediate, soffset) = (bits(word, 17, 17) == 1, bits(word, 14, 14) == 1);
        if immediate {
            i.immediate = signed(bits(second, 20, 0), 21);
        }
        if soffset {
            i.source[1] = scalar(bits(second, 31, 25));
        } else if !immediate {
            i.source[1] = scalar(bits(second, 6, 0));
        }
        Some(i)
    }

    fn vop12c(word: u32, next: Option<u32>) -> Option<Self> {
        let mut i = match bits(word, 30, 25) {
            0b111111 => {
                let mut i = Self::new(Format::Vop1, bits(word, 16, 9), 1)?;
                i.destination = vector(bits(word, 24, 17), i.op == Op::v_accvgpr_mov_b32);
                if i.op == Op::v_readfirstlane_b32 {
                    i.destination = scalar(bits(word, 24, 17));
                }
                i
            }
            0b111110 => {
                let mut i = Self::new(Format::Vopc, bits(word, 24, 17), 1)?;
                i.source[1] = vector(bits(word, 16, 9), false);
                i
            }
            code => {
                let mut i = Self::new(Format::Vop2, code, 1)?;
                i.destination = vector(bits(word, 24, 17), false);
                i.source[1] = vector(bits(word, 16, 9), false);
                // The third source of the VOP2 forms is implied: the carry or the select mask.
                i.source[2] = Operand::Scalar(VCC);
                i
            }
        };
        match bits(word, 8, 0) {
            SDWA => i.sdwa(next?)?,
            DPP => i.dpp(next?),
            code => {
                i.source[0] = source(code)?;
                if i.op == Op::v_accvgpr_mov_b32
                    && let Operand::Vector(register) = i.source[0]
                {
                    i.source[0] = Operand::Accumulator(register);
                }
            }
        }
        if matches!(i.op, Op::v_fmamk_f32 | Op::v_fmaak_f32 | Op::v_madmk_f16 | Op::v_madak_f16) {
            i.immediate = next? as i32;
            i.length = 2;
        }
        i.with_literal(next)
    }

    fn sdwa(&mut self, word: u32) -> Option<()> {
        self.length = 2;
        let register = |code, is_scalar| if is_scalar { source(code) } else { Some(vector(code, false)) };
        self.source[0] = register(bits(word, 7, 0), bits(word, 23, 23) == 1)?;
        if self.format != Format::Vop1
            && bits(word, 31, 31) == 1
            && let Operand::Vector(code) = self.source[1]
        {
            self.source[1] = source(u32::from(code))?;
        }
        self.negate = (bits(word, 20, 20) | bits(word, 28, 28) << 1) as u8;
        self.absolute = (bits(word, 21, 21) | bits(word, 29, 29) << 1) as u8;
        let (mut destination, mut unused) = (6, 0);
        if self.format == Format::Vopc {
            if bits(word, 15, 15) == 1 {
                self.scalar_destination = bits(word, 14, 8) as u8;
            }
        } else {
            destination = bits(word, 10, 8) as u8;
            unused = bits(word, 12, 11) as u8;
            self.clamp = bits(word, 13, 13) == 1;
            self.output_modifier = bits(word, 15, 14) as u8;
        }
        self.select = Select::Sdwa(Sdwa {
            destination,
            unused,
            source: [bits(word, 18, 16) as u8, bits(word, 26, 24) as u8],
            extend: [bits(word, 19, 19) == 1, bits(word, 27, 27) == 1],
        });
        Some(())
    }

    fn dpp(&mut self, word: u32) {
        self.length = 2;
        self.source[0] = vector(bits(word, 7, 0), false);
        self.negate = (bits(word, 20, 20) | bits(word, 22, 22) << 1) as u8;
        self.absolute = (bits(word, 21, 21) | bits(word, 23, 23) << 1) as u8;
        self.select = Select::Dpp(Dpp {
            control: bits(word, 16, 8) as u16,
            bound_control: bits(word, 19, 19) == 1,
            bank_mask: bits(word, 27, 24) as u8,
            row_mask: bits(word, 31, 28) as u8,
        });
    }

    fn vop3(word: u32, second: u32) -> Option<Self> {
        let code = bits(word, 25, 16);
        // VOP3 repeats the shorter encodings at fixed distances.
        let mut i = match code {
            0..=0xff => Self::new(Format::Vopc, code, 2),
            0x100..=0x13f => Self::new(Format::Vop2, code - 0x100, 2),
            0x140..=0x1bf => Self::new(Format::Vop1, code - 0x140, 2),
            _ => None,
        }
        .or_else(|| Self::new(Format::Vop3, code, 2))?;
        i.destination = vector(bits(word, 7, 0), i.op == Op::v_accvgpr_mov_b32);
        if matches!(i.op, Op::v_readfirstlane_b32 | Op::v_readlane_b32) {
            i.destination = scalar(bits(word, 7, 0));
        }
        if i.format == Format::Vopc {
            i.destination = Operand::None;
            i.scalar_destination = bits(word, 7, 0) as u8;
        }
        i.source = [source(bits(second, 8, 0))?, source(bits(second, 17, 9))?, source(bits(second, 26, 18))?];
        if i.source.iter().any(|operand| matches!(operand, Operand::Literal(_))) {
            return None;
        }
        let carries = matches!(
            i.op,
            Op::v_add_co_u32
                | Op::v_sub_co_u32
                | Op::v_subrev_co_u32
                | Op::v_addc_co_u32
                | Op::v_subb_co_u32
                | Op::v_subbrev_co_u32
                | Op::v_div_scale_f32
                | Op::v_div_scale_f64
                | Op::v_mad_u64_u32
                | Op::v_mad_i64_i32
        );
        if carries {
            i.scalar_destination = bits(word, 14, 8) as u8;
        } else {
            i.absolute = bits(word, 10, 8) as u8;
            i.op_sel = bits(word, 14, 11) as u8;
        }
        i.clamp = bits(word, 15, 15) == 1;
        i.output_modifier = bits(second, 28, 27) as u8;
        i.negate = bits(second, 31, 29) as u8;
        Some(i)
    }

    fn vop3p(word: u32, second: u32) -> Option<Self> {
        let mut i = Self::new(Format::Vop3p, bits(word, 22, 16), 2)?;
        i.source = [source(bits(second, 8, 0))?, source(bits(second, 17, 9))?, source(bits(second, 26, 18))?];
        let register = bits(word, 7, 0);
        if matches!(i.detail, Detail::Matrix(_)) || i.op == Op::v_accvgpr_read_b32 {
            // Bits 59 and 60 put A and B into accumulators, bit 15 C and D.
            for (index, bit) in [(0, 27), (1, 28)] {
                if let Operand::Vector(register) = i.source[index]
                    && bits(second, bit, bit) == 1
                {
                    i.source[index] = Operand::Accumulator(register);
                }
            }
        }
        if let Detail::Matrix(matrix) = i.detail {
            let in_accumulators = bits(word, 15, 15) == 1;
            i.destination = vector(register, in_accumulators);
            // The third source of a sparse product is the index of A, always a VGPR.
            if let Operand::Vector(register) = i.source[2]
                && !matrix.sparse
            {
                i.source[2] = vector(u32::from(register), in_accumulators);
            }
            i.broadcast = [bits(word, 10, 8) as u8, bits(word, 14, 11) as u8, bits(second, 31, 29) as u8];
            return Some(i);
        }
        i.destination = vector(register, i.op == Op::v_accvgpr_write_b32);
        i.op_sel = bits(word, 13, 11) as u8;
        i.op_sel_high = (bits(second, 28, 27) | bits(word, 14, 14) << 2) as u8;
        i.negate = bits(second, 31, 29) as u8;
        i.negate_high = bits(word, 10, 8) as u8;
        i.clamp = bits(word, 15, 15) == 1;
        Some(i)
    }

    fn ds(word: u32, second: u32) -> Option<Self> {
        let mut i = Self::new(Format::Ds, bits(word, 24, 17), 2)?;
        let accumulator = bits(word, 25, 25) == 1;
        i.immediate = bits(word, 15, 0) as i32;
        i.sc0 = bits(word, 16, 16) == 1;
        i.source = [
            vector(bits(second, 7, 0), false),
            vector(bits(second, 15, 8), accumulator),
            vector(bits(second, 23, 16), accumulator),
        ];
        i.destination = vector(bits(second, 31, 24), accumulator);
        Some(i)
    }

    fn flat(word: u32, second: u32) -> Option<Self> {
        let format = match bits(word, 15, 14) {
            0 => Format::Flat,
            1 => Format::Scratch,
            2 => Format::Global,
            _ => return None,
        };
        let mut i = Self::new(format, bits(word, 24, 18), 2)?;
        let accumulator = bits(second, 23, 23) == 1;
        i.immediate =
            if format == Format::Flat { bits(word, 11, 0) as i32 } else { signed(bits(word, 12, 0), 13) };
        i.sc0 = bits(word, 16, 16) == 1;
        i.source[0] = vector(bits(second, 7, 0), false);
        if format == Format::Scratch && bits(word, 13, 13) == 0 {
            i.source[0] = Operand::None;
        }
        i.source[1] = vector(bits(second, 15, 8), accumulator);
        let address = bits(second, 22, 16);
        if format != Format::Flat && address != NO_ADDRESS {
            i.source[2] = scalar(address);
        }
        i.destination = vector(bits(second, 31, 24), accumulator);
        Some(i)
    }

    fn mubuf(word: u32, second: u32) -> Option<Self> {
        let mut i = Self::new(Format::Mubuf, bits(word, 24, 18), 2)?;
        i.lds = bits(word, 16, 16) == 1;
        i.buffer(word, second)?;
        Some(i)
    }

    fn mtbuf(word: u32, second: u32) -> Option<Self> {
        let mut i = Self::new(Format::Mtbuf, bits(word, 18, 15), 2)?;
        i.element = bits(word, 25, 19) as u8;
        i.buffer(word, second)?;
        Some(i)
    }

    /// The fields MUBUF and MTBUF share: address, data, resource and scalar offset.
    fn buffer(&mut self, word: u32, second: u32) -> Option<()> {
        self.immediate = bits(word, 11, 0) as i32;
        self.offset_enable = bits(word, 12, 12) == 1;
        self.indexed = bits(word, 13, 13) == 1;
        self.sc0 = bits(word, 14, 14) == 1;
        self.scalar_destination = (bits(second, 20, 16) << 2) as u8;
        self.source[0] = vector(bits(second, 7, 0), false);
        self.destination = vector(bits(second, 15, 8), bits(second, 23, 23) == 1);
        self.source[1] = self.destination;
        self.source[2] = source(bits(second, 31, 24))?;
        Some(())
    }
}
