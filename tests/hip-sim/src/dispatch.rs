//! Runs the workgroups of a launch.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::code_object::{HiddenKind, Kernel};
use crate::decode::Program;
use crate::execute::{Group, Lds};
use crate::memory::Memory;
use crate::profile::{CLASSES, Profile};
use crate::report::{Cause, Fault, Violation};
use crate::wave::{EXEC, LANES, PRIVATE_APERTURE, SHARED_APERTURE, Wave};

/// What to watch for beyond what the hardware refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// Two waves touch a byte of LDS, one of them writes, and no barrier lies between.
    pub lds_races: bool,
    /// LDS is read before it is written.
    pub lds_unwritten: bool,
    /// Waves end while others wait at a barrier, or wait at different ones. The hardware lets both pass:
    /// an ended wave counts as arrived.
    pub barriers: bool,
    /// A lane pulls a value (`ds_bpermute_b32`, `ds_swizzle_b32`) from a lane that is off, which gives 0.
    pub lanes: bool,
    /// Count LDS conflicts and memory segments.
    pub profile: bool,
    /// Most instructions of one wave; 0 for no limit.
    pub instruction_limit: u64,
}

/// A kernel with its arguments.
pub struct Launch<'a> {
    pub memory: &'a Memory,
    pub kernel: &'a Kernel,
    /// Workgroups.
    pub grid: [u32; 3],
    /// Work-items of a workgroup.
    pub block: [u32; 3],
    pub dynamic_lds: u32,
    /// The explicit arguments as the kernel expects them.
    pub kernarg: &'a [u8],
    pub checks: Checks,
}

/// LDS of a workgroup.
const LDS_LIMIT: u32 = 65536;
/// Instructions a wave runs before the next one has its turn: one may wait for what another writes.
const SLICE: u32 = 1 << 16;

/// Runs a launch to its end.
pub fn launch(launch: &Launch) -> Result<Profile, Fault> {
    let kernel = launch.kernel;
    let program = kernel.code.decoded.get_or_init(|| Program::new(kernel.code.base, &kernel.code.words));
    launch.check().map_err(|why| launch.fault(program, None, Cause::Launch(why).into()))?;
    let arguments = Block::new(launch.memory, &launch.arguments());
    let packet = Block::new(launch.memory, &launch.packet(arguments.address));
    let groups = launch.grid.iter().map(|&count| u64::from(count)).product::<u64>();
    let stopped = AtomicBool::new(false);
    (0..groups)
        .into_par_iter()
        .map_init(Vec::new, |waves, index| {
            if stopped.load(Ordering::Relaxed) {
                return Ok(Profile::default());
            }
            let [x, y, _] = launch.grid.map(u64::from);
            let id = [index % x, index / x % y, index / x / y].map(|id| id as u32);
            let run = Workgroup { launch, program, id, arguments: arguments.address, packet: packet.address };
            run.execute(waves).inspect_err(|_| stopped.store(true, Ordering::Relaxed))
        })
        .try_reduce(Profile::default, |a, b| Ok(a.merge(b)))
}

/// Device memory that lives as long as a launch.
struct Block<'a> {
    memory: &'a Memory,
    address: u64,
}

impl<'a> Block<'a> {
    fn new(memory: &'a Memory, content: &[u8]) -> Self {
        let address = memory.allocate(content.len().max(1));
        if let Ok(pointer) = memory.resolve(address, content.len()) {
            // SAFETY: the memory was just allocated with this size.
            unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), pointer, content.len()) };
            memory.mark_written(address, content.len());
        }
        Self { memory, address }
    }
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        let _freed = self.memory.free(self.address);
    }
}

impl Launch<'_> {
    fn check(&self) -> Result<(), String> {
        let items = self.block.iter().map(|&size| u64::from(size)).product::<u64>();
        let (most, lds) = (self.kernel.max_flat_workgroup_size, self.lds_size());
        if self.grid.contains(&0) || items == 0 {
            return Err(format!("empty launch: grid {:?}, block {:?}", self.grid, self.block));
        }
        if items > u64::from(most) {
            return Err(format!("{items} work-items in a workgroup, where the kernel allows {most}"));
        }
        if lds > LDS_LIMIT {
            return Err(format!("{lds} bytes of LDS, where {LDS_LIMIT} is the most"));
        }
        if self.kernel.wavefront_size as usize != LANES {
            return Err("not compiled for waves of 64".into());
        }
        if self.kernarg.len() > self.kernel.kernarg_size as usize {
            return Err(format!(
                "{} bytes of arguments, where the kernel takes {}",
                self.kernarg.len(),
                self.kernel.kernarg_size
            ));
        }
        Ok(())
    }

    fn lds_size(&self) -> u32 {
        self.kernel.group_segment_size.saturating_add(self.dynamic_lds)
    }

    /// The explicit arguments, then those the compiler added.
    fn arguments(&self) -> Vec<u8> {
        let mut bytes = self.kernarg.to_vec();
        // LLVM widens a load of arguments to the 16 bytes it is aligned to, beyond the last argument too.
        bytes.resize((self.kernel.kernarg_size as usize).next_multiple_of(64), 0);
        let extends = |axis: usize| self.grid[axis].max(self.block[axis]) > 1;
        let dimensions = if extends(2) { 3 } else { 1 + u64::from(extends(1)) };
        for &(kind, offset) in &self.kernel.hidden {
            let (value, size) = match kind {
                HiddenKind::BlockCountX => (self.grid[0].into(), 4),
                HiddenKind::BlockCountY => (self.grid[1].into(), 4),
                HiddenKind::BlockCountZ => (self.grid[2].into(), 4),
                HiddenKind::GroupSizeX => (self.block[0].into(), 2),
                HiddenKind::GroupSizeY => (self.block[1].into(), 2),
                HiddenKind::GroupSizeZ => (self.block[2].into(), 2),
                HiddenKind::GridDims => (dimensions, 2),
                HiddenKind::DynamicLdsSize => (self.dynamic_lds.into(), 4),
                HiddenKind::PrivateBase => (PRIVATE_APERTURE.into(), 4),
                HiddenKind::SharedBase => (SHARED_APERTURE.into(), 4),
                // HIP launches whole workgroups from offset 0, and no queue or heap exists.
                _ => continue,
            };
            let value: u64 = value;
            let start = offset as usize;
            if let Some(target) = bytes.get_mut(start..start + size) {
                target.copy_from_slice(&value.to_le_bytes()[..size]);
            }
        }
        bytes
    }

    /// The AQL packet.
    fn packet(&self, arguments: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(0x1502u16.to_le_bytes());
        bytes.extend(3u16.to_le_bytes());
        for size in self.block {
            bytes.extend((size as u16).to_le_bytes());
        }
        bytes.extend([0; 2]);
        for axis in 0..3 {
            bytes.extend(self.grid[axis].wrapping_mul(self.block[axis]).to_le_bytes());
        }
        bytes.extend(self.kernel.private_segment_size.to_le_bytes());
        bytes.extend(self.lds_size().to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(arguments.to_le_bytes());
        bytes.resize(64, 0);
        bytes
    }

    fn fault(&self, program: &Program, place: Option<([u32; 3], &Wave, usize)>, why: Violation) -> Fault {
        let (workgroup, wave, word) = place.map_or(([0; 3], 0, 0), |(id, wave, word)| (id, wave.index, word));
        let instruction = program.instructions.get(word).and_then(Option::as_ref);
        Fault {
            kernel: self.kernel.name.clone(),
            mnemonic: instruction.map_or("(unknown)", |i| i.op.name()).into(),
            pc: program.base + 4 * word as u64,
            offset: 4 * word as u64,
            workgroup,
            wave,
            lane: why.lane,
            cause: why.cause,
        }
    }
}

/// One workgroup of a launch.
struct Workgroup<'a> {
    launch: &'a Launch<'a>,
    program: &'a Program,
    id: [u32; 3],
    arguments: u64,
    packet: u64,
}

impl Workgroup<'_> {
    fn execute(&self, waves: &mut Vec<Wave>) -> Result<Profile, Fault> {
        let Launch { checks, memory, block, .. } = *self.launch;
        let items = block.iter().product::<u32>();
        let count = items.div_ceil(LANES as u32) as usize;
        if waves.len() < count {
            waves.resize_with(count, Wave::new);
        }
        let waves = &mut waves[..count];
        for (index, wave) in waves.iter_mut().enumerate() {
            self.start(wave, index as u32, items);
        }
        let lds = Lds::new(self.launch.lds_size() as usize, checks.lds_races, checks.lds_unwritten);
        let profile = Profile { waves: count as u64, ..Profile::default() };
        let mut group = Group { memory, program: self.program, checks, lds, profile };
        let mut executed = vec![0u64; count];
        loop {
            for (wave, executed) in waves.iter_mut().zip(&mut executed) {
                self.run(&mut group, wave, executed)?;
            }
            if waves.iter().all(|wave| wave.ended) {
                return Ok(group.profile);
            }
            if waves.iter().all(|wave| wave.ended || wave.at_barrier) {
                if checks.barriers {
                    self.check_barrier(waves)?;
                }
                group.profile.barriers += 1;
                group.lds.barrier();
                waves.iter_mut().for_each(|wave| wave.at_barrier = false);
            }
        }
    }

    /// Runs a wave until it waits, ends or has had its turn.
    fn run(&self, group: &mut Group, wave: &mut Wave, executed: &mut u64) -> Result<(), Fault> {
        let mut counts = [0u32; CLASSES];
        let mut left = SLICE;
        let limit = self.launch.checks.instruction_limit;
        let fault = |wave: &Wave, word: usize, why: Violation| {
            self.launch.fault(self.program, Some((self.id, wave, word)), why)
        };
        while !wave.ended && !wave.at_barrier && left > 0 {
            let word = wave.pc;
            let Some(slot) = self.program.instructions.get(word) else {
                return Err(fault(wave, word, Cause::NoCode.into()));
            };
            let Some(instruction) = slot else {
                let words = &self.launch.kernel.code.words;
                let pair = [0, 1].map(|n| words.get(word + n).copied().unwrap_or(0));
                return Err(fault(wave, word, Cause::UnknownEncoding(pair).into()));
            };
            wave.pc += usize::from(instruction.length);
            wave.execute(group, instruction).map_err(|why| fault(wave, word, why))?;
            counts[instruction.class as usize] += 1;
            left -= 1;
        }
        for (sum, count) in group.profile.instructions.iter_mut().zip(counts) {
            *sum += u64::from(count);
        }
        *executed += u64::from(SLICE - left);
        if limit != 0 && *executed > limit {
            return Err(fault(wave, wave.pc, Cause::InstructionLimit.into()));
        }
        Ok(())
    }

    fn check_barrier(&self, waves: &[Wave]) -> Result<(), Fault> {
        let Some(first) = waves.iter().find(|wave| wave.at_barrier) else { return Ok(()) };
        let place = Some((self.id, first, first.pc - 1));
        let ended = waves.iter().filter(|wave| wave.ended).count() as u32;
        if ended > 0 {
            let cause = Cause::BarrierMissed { waiting: waves.len() as u32 - ended, ended };
            return Err(self.launch.fault(self.program, place, cause.into()));
        }
        if let Some(other) = waves.iter().find(|wave| wave.pc != first.pc) {
            let cause = Cause::BarrierDiverged { other_pc: self.program.base + 4 * (other.pc as u64 - 1) };
            return Err(self.launch.fault(self.program, place, cause.into()));
        }
        Ok(())
    }

    /// The registers of a wave as the dispatcher sets them.
    fn start(&self, wave: &mut Wave, index: u32, items: u32) {
        let Launch { kernel, block, .. } = *self.launch;
        let descriptor = &kernel.descriptor;
        let accumulators = 4 * ((descriptor.rsrc3 & 0x3f) as usize + 1);
        let allocated = 8 * ((descriptor.rsrc1 & 0x3f) as usize + 1);
        wave.pc = ((kernel.entry - kernel.code.base) / 4) as usize;
        wave.scalars = [0; 128];
        (wave.scc, wave.indexing) = (false, false);
        (wave.index, wave.ended, wave.at_barrier) = (index, false, false);
        wave.accumulators = accumulators;
        wave.vectors[..allocated.max(4)].fill([0; LANES]);
        // FLOAT_MODE, DX10_CLAMP, IEEE_MODE and FP16_OVFL have the places of MODE, some shifted.
        let rsrc1 = descriptor.rsrc1;
        wave.mode =
            rsrc1 >> 12 & 0xff | (rsrc1 >> 21 & 1) << 8 | (rsrc1 >> 23 & 1) << 9 | (rsrc1 >> 26 & 1) << 23;
        wave.scratch_size = kernel.private_segment_size as usize;
        wave.scratch.clear();
        wave.scratch.resize(LANES * wave.scratch_size, 0);
        let left = items - index * LANES as u32;
        wave.set_scalar64(EXEC, if left >= 64 { u64::MAX } else { (1 << left) - 1 });
        // User SGPRs in the order of their bits, then the workgroup.
        let mut next = 0;
        let mut push = |value: u64, words: usize| {
            wave.set_scalar64(next, value);
            next += words;
        };
        let user = [
            (0, 0, 4),
            (1, self.packet, 2),
            (2, 0, 2),
            (3, self.arguments, 2),
            (4, 0, 2),
            (5, 0, 2),
            (6, u64::from(kernel.private_segment_size), 1),
        ];
        for (bit, value, words) in user {
            if descriptor.properties >> bit & 1 == 1 {
                push(value, words);
            }
        }
        let mut next = (descriptor.rsrc2 >> 1 & 31) as usize;
        for (axis, id) in self.id.into_iter().enumerate() {
            if descriptor.rsrc2 >> (7 + axis) & 1 == 1 {
                wave.scalars[next] = id;
                next += 1;
            }
        }
        for lane in 0..LANES as u32 {
            let item = index * LANES as u32 + lane;
            let [x, y, z] = [item % block[0], item / block[0] % block[1], item / block[0] / block[1]];
            wave.vectors[0][lane as usize] = x | y << 10 | z << 20;
        }
    }
}
