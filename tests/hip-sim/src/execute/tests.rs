//! Every instruction of the decoder is executed, or is one of those that are known to stop a launch.

use super::{Group, Lds};
use crate::decode::{Format, Instruction, Op, Program};
use crate::dispatch::Checks;
use crate::memory::Memory;
use crate::profile::Profile;
use crate::report::Cause;
use crate::wave::{EXEC, Wave};

/// Graphics, trap handlers, debuggers, messages to the host and what several workgroups share on the chip.
const STOPS: [&str; 14] = [
    "s_rfe_restore_b64",
    "s_rfe_b64",
    "s_sendmsg",
    "s_sendmsghalt",
    "s_trap",
    "s_endpgm_ordered_ps_done",
    "v_screen_partition_4se_b32",
    "ds_gws_sema_release_all",
    "ds_gws_init",
    "ds_gws_sema_v",
    "ds_gws_sema_br",
    "ds_gws_sema_p",
    "ds_gws_barrier",
    "s_sethalt",
];

/// Where the words of an instruction put its number, and operands that suit all of an encoding: SGPRs 4 to 7
/// hold a buffer, VGPRs 2 and 3 an address, and VGPR 4 a small offset.
fn words(format: Format, code: u32) -> [u32; 2] {
    let vectors = 262 | 264 << 9 | 266 << 18;
    match format {
        Format::Sop2 => [0x8000_0000 | code << 23 | 20 << 16 | 8 << 8 | 6, 0],
        // The whole of MODE, for those that take a hardware register.
        Format::Sopk => [0xb000_0000 | code << 23 | 20 << 16 | 0xf801, 0],
        Format::Sop1 => [0xbe80_0000 | 20 << 16 | code << 8 | 6, 0],
        Format::Sopc => [0xbf00_0000 | code << 16 | 8 << 8 | 6, 0],
        Format::Sopp => [0xbf80_0000 | code << 16 | 1, 0],
        Format::Smem => [0xc002_0000 | code << 18 | 20 << 6 | 2, 0],
        Format::Vop2 => [code << 25 | 20 << 17 | 8 << 9 | 262, 0],
        Format::Vop1 => [0x7e00_0000 | 20 << 17 | code << 9 | 262, 0],
        Format::Vopc => [0x7c00_0000 | code << 17 | 8 << 9 | 262, 0],
        Format::Vop3 => [0xd000_0000 | code << 16 | 20, vectors],
        Format::Vop3p => [0xd380_0000 | code << 16 | 64, vectors],
        Format::Ds => [0xd800_0000 | code << 17, 4 | 8 << 8 | 10 << 16 | 20 << 24],
        Format::Flat => [0xdc00_0000 | code << 18, 2 | 8 << 8 | 20 << 24],
        Format::Global => [0xdc00_8000 | code << 18, 2 | 8 << 8 | 127 << 16 | 20 << 24],
        Format::Scratch => [0xdc00_6000 | code << 18, 4 | 8 << 8 | 127 << 16 | 20 << 24],
        Format::Mubuf => [0xe000_1000 | code << 18, 4 | 20 << 8 | 1 << 16 | 128 << 24],
        // Elements of a 32-bit float.
        Format::Mtbuf => [0xe800_1000 | code << 15 | 4 << 19 | 7 << 23, 4 | 20 << 8 | 1 << 16 | 128 << 24],
    }
}

/// The same operation as VOP3, which all shorter vector encodings have.
fn longer(format: Format, code: u32) -> Option<[u32; 2]> {
    let first = match format {
        Format::Vopc => 0,
        Format::Vop2 => 0x100,
        Format::Vop1 => 0x140,
        _ => return None,
    };
    Some(words(Format::Vop3, first + code))
}

/// What becomes of one instruction on a wave for itself.
fn execute(words: [u32; 2]) -> Result<(), Cause> {
    let memory = Memory::new();
    let address = memory.allocate(4096);
    let mut wave = Wave::new();
    wave.set_scalar64(4, address);
    (wave.scalars[6], wave.scalars[7]) = (4096, 0x27fac);
    wave.set_scalar64(EXEC, u64::MAX);
    wave.vectors[2] = [address as u32; 64];
    wave.vectors[3] = [(address >> 32) as u32; 64];
    wave.vectors[4] = std::array::from_fn(|lane| 16 * lane as u32);
    wave.scratch_size = 2048;
    wave.scratch = vec![0; 64 * 2048];
    wave.accumulators = 256;
    let program = Program::new(0, &words);
    let lds = Lds::new(65536, false, false);
    let (checks, profile) = (Checks::default(), Profile::default());
    let mut group = Group { memory: &memory, program: &program, checks, lds, profile };
    let instruction = Instruction::decode(&words).expect("an opcode of the decoder");
    wave.pc = instruction.length.into();
    wave.execute(&mut group, &instruction).map_err(|why| why.cause)
}

#[test]
fn every_instruction_is_executed_or_known_to_stop() {
    let mut executed = 0;
    for &(format, code, op) in Op::ALL {
        for words in [Some(words(format, code)), longer(format, code)].into_iter().flatten() {
            let instruction = Instruction::decode(&words).expect("an opcode of the decoder");
            assert_eq!(instruction.op, op, "{words:x?}");
            let outcome = execute(words);
            if STOPS.contains(&op.name()) {
                assert!(matches!(outcome, Err(Cause::Unsupported(_))), "{} ran: {outcome:?}", op.name());
            } else {
                assert_eq!(outcome, Ok(()), "{}", op.name());
            }
        }
        executed += usize::from(!STOPS.contains(&op.name()));
    }
    assert_eq!(executed, Op::ALL.len() - STOPS.len(), "what stops is an instruction");
}
