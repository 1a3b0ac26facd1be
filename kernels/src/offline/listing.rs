//! Analysis of the assembly: registers, and the instructions of the hot loop.

use std::collections::BTreeMap;

use super::lowered::Lowered;
use super::target::Target;
use crate::device::Arch;

/// The instructions of a kernel.
#[derive(Debug, Clone)]
pub struct Listing {
    target: Target,
    /// Vector registers of a lane, accumulation registers among them where they are of one file (gfx90a, gfx942).
    /// None for PTX, whose registers the driver allocates.
    pub vector: Option<usize>,
    /// Accumulation registers of a lane.
    pub accumulation: Option<usize>,
    /// Scalar registers of a wave.
    pub scalar: Option<usize>,
    /// Registers that did not fit, vector and scalar.
    pub spills: Option<usize>,
    /// Bytes of a lane's own memory.
    pub scratch: Option<usize>,
    /// All instructions and labels, in order.
    pub lines: Vec<String>,
    /// The inner loop: of the regions that a backward branch closes the one with the most matrix instructions, and of
    /// those the shortest. Blocks under a condition are in it, but for those that the compiler put elsewhere.
    pub inner: Vec<String>,
}

/// The instructions of a stretch of code by the hardware unit that they use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// `v_mfma`, `v_wmma`, `mma.sync`.
    pub matrix: usize,
    /// Reads of shared memory (`ldmatrix` among them).
    pub shared_reads: usize,
    /// Writes of shared memory.
    pub shared_writes: usize,
    /// Exchanges between lanes.
    pub exchanges: usize,
    /// Loads of global memory by the bytes of a lane, `cp.async` among them.
    pub loads: BTreeMap<usize, usize>,
    /// Barriers of the cube.
    pub barriers: usize,
    /// Waits for memory.
    pub waits: usize,
    /// Exponentials, logarithms, reciprocals and roots.
    pub transcendental: usize,
    /// Instructions of a scalar unit, including branches; in PTX there are none.
    pub scalar: usize,
    /// Accesses to a lane's own memory: a spill or an array that did not get into registers.
    pub scratch: usize,
    /// All the others.
    pub other: usize,
    /// The loop waits for all of its wide loads before its next matrix instruction: then nothing of this wave
    /// hides their latency. Of AMD only.
    pub exposed: Option<bool>,
    /// Cycles that the matrix unit of a SIMD is busy, on CDNA.
    pub matrix_cycles: Option<usize>,
    /// Cycles of all vector and memory instructions at 4 for each and 16 for a transcendental, on CDNA.
    pub other_cycles: Option<usize>,
}

/// The number of waves of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Waves of a SIMD that the registers allow.
    pub by_registers: usize,
    /// Cubes of a compute unit that shared memory allows.
    pub cubes: usize,
    /// Waves of a SIMD, and of the four of a compute unit.
    pub simd: usize,
    /// Waves of a compute unit.
    pub unit: usize,
}

impl Listing {
    pub(super) fn of(assembly: &str, target: Target) -> Self {
        let field = |name: &str| {
            let found = assembly.lines().find_map(|line| line.trim().strip_prefix(name));
            found.and_then(|value| value.trim().parse().ok())
        };
        let spills = [".vgpr_spill_count:", ".sgpr_spill_count:"].map(field);
        let lines: Vec<String> = assembly.lines().filter_map(instruction).collect();
        Self {
            target,
            vector: field(".vgpr_count:"),
            accumulation: field(".agpr_count:").or(field("- .agpr_count:")),
            scalar: field(".sgpr_count:"),
            spills: spills[0].zip(spills[1]).map(|(vector, scalar): (usize, usize)| vector + scalar),
            scratch: field(".private_segment_fixed_size:"),
            inner: inner_loop(&lines).to_vec(),
            lines,
        }
    }

    /// The number of instructions in the inner loop whose name begins so.
    pub fn inner_count(&self, name: &str) -> usize {
        self.inner.iter().filter(|line| mnemonic(line).starts_with(name)).count()
    }

    /// The inner loop, counted.
    pub fn count(&self) -> Count {
        let mut count = Count::default();
        let (mut matrix_cycles, mut other_cycles) = (0, 0);
        for line in self.inner.iter().filter(|line| !is_label(line)) {
            let name = mnemonic(line);
            let before = (count.matrix, count.scalar + count.barriers + count.waits, count.transcendental);
            count.add(name, line);
            if count.matrix > before.0 {
                matrix_cycles += mfma_cycles(self.target.arch(), name);
            } else if count.transcendental > before.2 {
                other_cycles += 16;
            } else if count.scalar + count.barriers + count.waits == before.1 {
                other_cycles += 4;
            }
        }
        count.exposed = matches!(self.target, Target::Gfx(_)).then(|| self.loads_are_exposed());
        if matches!(self.target, Target::Gfx(0x908 | 0x90a | 0x942)) {
            (count.matrix_cycles, count.other_cycles) = (Some(matrix_cycles), Some(other_cycles));
        }
        count
    }
}

impl Listing {
    fn loads_are_exposed(&self) -> bool {
        let wide = |line: &String| {
            let name = mnemonic(line);
            name.contains("_load_") && !name.starts_with("ds_") && !name.starts_with("s_") && width(name) >= 8
        };
        let Some(last) = self.inner.iter().rposition(wide) else { return false };
        // From there on, around the loop.
        let around = self.inner[last..].iter().chain(&self.inner[..last]);
        let mut next = around.filter(|line| is_matrix(mnemonic(line)) || line.contains("vmcnt(0)"));
        next.next().is_some_and(|line| !is_matrix(mnemonic(line)))
    }
}

impl Count {
    fn add(&mut self, name: &str, line: &str) {
        const TRANSCENDENTAL: [&str; 12] = [
            "v_exp_", "v_log_", "v_rcp_", "v_rsq_", "v_sqrt_", "v_sin_", "v_cos_", "ex2.", "lg2.", "rcp.",
            "rsqrt.", "sqrt.",
        ];
        let starts = |names: &[&str]| names.iter().any(|start| name.starts_with(start));
        if is_matrix(name) {
            self.matrix += 1;
        } else if starts(&["ds_bpermute", "ds_permute", "ds_swizzle", "shfl."]) || line.contains("_dpp") {
            self.exchanges += 1;
        } else if starts(&["ds_read", "ds_load", "ldmatrix", "ld.shared"]) {
            self.shared_reads += 1;
        } else if starts(&["ds_write", "ds_store", "st.shared"]) {
            self.shared_writes += 1;
        } else if starts(&["global_load", "flat_load", "buffer_load", "ld.global", "cp.async.c"])
            && !name.starts_with("cp.async.commit")
        {
            *self.loads.entry(width(name)).or_default() += 1;
        } else if starts(&["s_barrier", "bar.", "barrier."]) {
            self.barriers += 1;
        } else if starts(&["s_waitcnt", "s_wait_", "cp.async.wait"]) {
            self.waits += 1;
        } else if starts(&TRANSCENDENTAL) {
            self.transcendental += 1;
        } else if starts(&["scratch_", "ld.local", "st.local"]) {
            self.scratch += 1;
        } else if starts(&["s_"]) {
            self.scalar += 1;
        } else {
            self.other += 1;
        }
    }

    /// The share of the matrix unit's cycles in the time that one wave alone takes if nothing overlaps.
    pub fn matrix_share(&self) -> Option<f64> {
        let (matrix, other) = self.matrix_cycles.zip(self.other_cycles)?;
        (matrix + other > 0).then(|| matrix as f64 / (matrix + other) as f64)
    }
}

impl Lowered {
    /// The instructions, counted.
    pub fn listing(&self) -> Listing {
        Listing::of(&self.assembly, self.target)
    }

    /// The number of waves of this kernel that a core runs at once.
    pub fn occupancy(&self) -> Option<Occupancy> {
        let listing = self.listing();
        let vector = listing.vector?.max(1);
        let (file, granule, most) = match self.target {
            Target::Gfx(0x908) => (256, 4, 10),
            Target::Gfx(0x90a | 0x942) => (512, 8, 8),
            _ => return None,
        };
        let by_registers = (file / vector.next_multiple_of(granule)).min(most);
        let units: u32 = self.block.iter().product();
        let waves = units.div_ceil(self.target.plane()) as usize;
        // The hardware hands out shared memory in 512 bytes.
        let cubes = match self.shared_memory.next_multiple_of(512) {
            0 => usize::MAX,
            bytes => 65536 / bytes,
        };
        // The waves of a cube are spread over the four SIMDs in turn.
        let fitting = match waves {
            1..=4 => by_registers * (4 / waves),
            _ => by_registers / waves.div_ceil(4),
        };
        let cubes = cubes.min(fitting);
        let unit = cubes * waves;
        Some(Occupancy { by_registers, cubes, simd: unit.div_ceil(4), unit })
    }
}

/// The instruction or label of a line, without comment, directive and predicate.
fn instruction(line: &str) -> Option<String> {
    let line = line.split("//").next()?;
    // In PTX a semicolon ends an instruction, for AMD it begins a comment.
    let line = match line.split_once(';') {
        Some((before, _)) => before,
        None => line,
    };
    let line = line.trim();
    if is_label(line) {
        return Some(line.to_owned());
    }
    let line = match line.strip_prefix('@') {
        Some(predicated) => predicated.split_once(char::is_whitespace)?.1.trim(),
        None => line,
    };
    let name = mnemonic(line);
    let is_name = name.starts_with(|c: char| c.is_ascii_lowercase());
    (is_name && !name.ends_with(':')).then(|| line.to_owned())
}

fn is_label(line: &str) -> bool {
    line.ends_with(':') && (line.starts_with(".L") || line.starts_with("$L"))
}

fn mnemonic(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

fn is_matrix(name: &str) -> bool {
    ["v_mfma", "v_wmma", "mma.sync", "wgmma"].iter().any(|start| name.starts_with(start))
}

fn inner_loop(lines: &[String]) -> &[String] {
    let labels: BTreeMap<&str, usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| is_label(line))
        .map(|(at, line)| (line.trim_end_matches(':'), at))
        .collect();
    let mut best: (usize, &[String]) = (0, &[]);
    for (at, line) in lines.iter().enumerate() {
        let name = mnemonic(line);
        if !(name.starts_with("s_cbranch") || name == "s_branch" || name.starts_with("bra")) {
            continue;
        }
        let to = line.split_whitespace().last().and_then(|label| labels.get(label));
        let Some(&start) = to.filter(|&&start| start < at) else { continue };
        let region = &lines[start..=at];
        let matrix = region.iter().filter(|line| is_matrix(mnemonic(line))).count();
        if matrix > best.0 || (matrix == best.0 && matrix > 0 && region.len() < best.1.len()) {
            best = (matrix, region);
        }
    }
    best.1
}

/// Bytes that a lane loads.
fn width(name: &str) -> usize {
    let (scalar, vector) = (name.split('_').next_back().unwrap_or_default(), name.split('.'));
    match scalar {
        "dwordx4" | "b128" => return 16,
        "dwordx3" | "b96" => return 12,
        "dwordx2" | "b64" => return 8,
        "dword" | "b32" => return 4,
        "ushort" | "sshort" | "u16" | "i16" | "d16" => return 2,
        "ubyte" | "sbyte" | "u8" | "i8" => return 1,
        _ => {}
    }
    if name.starts_with("cp.async") {
        return 16;
    }
    let mut bytes = 0;
    let mut elements = 1;
    for part in vector {
        match part {
            "v2" => elements = 2,
            "v4" => elements = 4,
            _ => {
                let bits = part.trim_start_matches(['b', 'u', 's', 'f']).parse::<usize>();
                bytes = bits.map_or(bytes, |bits| bits / 8);
            }
        }
    }
    bytes * elements
}

/// Cycles that one instruction keeps the matrix unit of a SIMD busy. The peak of MI300X (1307 TFLOP/s of f16 at 2.1 GHz
/// on 304 x 4 SIMDs) is 512 operations a cycle; MI250X (383 TFLOP/s, 1.7 GHz, 220 x 4) and MI100 have half of that.
fn mfma_cycles(arch: Arch, name: &str) -> usize {
    let cycles = if name.contains("32x32x8") { 32 } else { 16 };
    if arch == Arch::Gfx(0x942) { cycles } else { 2 * cycles }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inner_loop_is_the_densest() {
        let text = ".LBB0_1:\n\ts_nop 0\n.LBB0_2:\n\tv_mfma_f32_16x16x16_f16 v[0:3], v[0:1], v[0:1], 0 ; note\n\
                    \tglobal_load_dwordx4 v[0:3], v0, s[0:1]\n\ts_cbranch_scc1 .LBB0_2\n\ts_branch .LBB0_1\n\
                    .vgpr_count: 12\n";
        let listing = Listing::of(text, Target::Gfx(0x942));
        assert_eq!(listing.inner.len(), 4);
        assert_eq!(listing.vector, Some(12));
        let count = listing.count();
        assert_eq!((count.matrix, count.loads, count.scalar), (1, [(16, 1)].into(), 1));
        assert_eq!((count.matrix_cycles, count.other_cycles), (Some(16), Some(4)));
        assert_eq!(count.exposed, Some(false));
        let text = text.replace("\ts_cbranch_scc1", "\ts_waitcnt vmcnt(0)\n\ts_cbranch_scc1");
        assert_eq!(Listing::of(&text, Target::Gfx(0x942)).count().exposed, Some(true));
    }

    #[test]
    fn widths() {
        for (name, bytes) in [
            ("global_load_dwordx4", 16),
            ("global_load_dword", 4),
            ("flat_load_b128", 16),
            ("ld.global.nc.v4.b32", 16),
            ("ld.global.v2.u32", 8),
            ("ld.global.b32", 4),
            ("cp.async.cg.shared.global.L2::128B", 16),
        ] {
            assert_eq!(width(name), bytes, "{name}");
        }
    }
}
