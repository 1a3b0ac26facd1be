//! Compiles the attention kernels for any GPU, without one, and says what became of them.
//!
//! ```sh
//! cargo run -p burn-flashinfer-kernels --features compilers --example lower -- --target gfx942 --target sm_90a
//! cargo run -p burn-flashinfer-kernels --features compilers --example lower -- --case decode-paged-128-bf16 --asm out.s
//! ```
//!
//! With `--dump DIR` it writes the code of a fixed list of kernels, of all modules; `scripts/same-kernels.sh` compares two
//! such folders.
//!
//! With `--record DIR` it writes small launches, of decoding and prefill over ragged and paged keys, that another program
//! can run on an AMD GPU or a simulator of one, each into a folder: the files named below and `launch.json`.
//!
//! | key of `launch.json` | meaning |
//! |---|---|
//! | `target`, `case`, `blueprint` | for the reader |
//! | `code` | file of the linked code object |
//! | `entry` | name of the kernel; its descriptor is the symbol `entry.kd` |
//! | `grid`, `block` | workgroups, and work items of one, on three axes |
//! | `shared_memory` | bytes of dynamic LDS |
//! | `arguments` | the buffers, in order: the kernel's arguments are their addresses, 8 bytes each and nothing else; the last one holds what CubeCL tells the kernel of shapes and scalars |
//! | `arguments[].file`, `.bytes` | the content before the launch; outputs are NaN |
//! | `arguments[].written` | whether the kernel writes it |
//! | `expected.argument` | index of the buffer to compare |
//! | `expected.dtype`, `.elements` | what is in that buffer |
//! | `expected.file` | what should be, as little-endian f64 without rounding |
//! | `expected.tolerance` | the largest difference allowed: twice that of the same sum in f32 with weights and result rounded to the type, plus 1e-5 |

#[path = "lower/dump.rs"]
mod dump;
#[path = "lower/kernels.rs"]
mod kernels;
#[path = "lower/record.rs"]
mod record;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn_flashinfer_kernels::attention::{
    Alignment, Choice, HeadDims, Plan, Problem, RequestShape, Split, Standard,
};
use burn_flashinfer_kernels::offline::{self, Artifact, Count, Kind, Listing, Lowered, Target};
use clap::Parser;
use cubecl::ir::{ElemType, FloatKind};

/// Compiles the attention kernels for GPUs that need not be there.
#[derive(Parser)]
struct Args {
    /// An architecture: gfx908, gfx90a, gfx942, gfx1100, sm_80, sm_89, sm_90a, …
    #[arg(long = "target", default_values = ["gfx942"])]
    targets: Vec<Target>,
    /// One of the cases below, or the beginning of some names.
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Names the cases and stops.
    #[arg(long)]
    list: bool,
    /// Writes the assembly of the only kernel.
    #[arg(long, value_name = "FILE")]
    asm: Option<PathBuf>,
    /// Writes the code object (or PTX) of the only kernel.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Writes the code of a fixed list of kernels, and nothing else; `--case` names some of that list.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["asm", "object", "record", "list"])]
    dump: Option<PathBuf>,
    /// Names the kernels that `--dump` writes and stops.
    #[arg(long)]
    dump_list: bool,
    /// Writes launches that another program can run, and nothing else.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["cases", "asm", "object"])]
    record: Option<PathBuf>,
}

/// An attention problem by name.
struct Case {
    name: String,
    problem: Problem,
    variant: Standard,
    spans: Vec<RequestShape>,
    kind: Kind,
}

/// Llama 3 8B's heads: decoding after 4096 tokens, prefill of 4 x 2048, and both together.
fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let (decode, prefill) = ((1, 4096), (2048, 2048));
    for (phase, all) in [
        ("decode", vec![decode; 64]),
        ("prefill", vec![prefill; 4]),
        ("mixed", [vec![prefill; 4], vec![decode; 64]].concat()),
    ] {
        for (kind_name, kind, lengths) in [
            ("single", Kind::Ragged, &all[..1]),
            ("ragged", Kind::Ragged, &all),
            ("paged", Kind::Paged { page_size: 16 }, &all),
        ] {
            if phase == "mixed" && kind_name == "single" {
                continue;
            }
            for dim in [64, 128, 256] {
                for (dtype_name, dtype) in
                    [("f32", FloatKind::F32), ("f16", FloatKind::F16), ("bf16", FloatKind::BF16)]
                {
                    let problem = Problem {
                        dims: HeadDims { qk: dim, vo: dim },
                        dtype: ElemType::Float(dtype),
                        kv_dtype: ElemType::Float(dtype).into(),
                        q_heads: 32,
                        kv_heads: 8,
                        scale: 1.0 / (dim as f32).sqrt(),
                        align: Alignment { qk: 64, vo: 64 },
                        fp8_mma: false,
                    };
                    cases.push(Case {
                        name: format!("{phase}-{kind_name}-{dim}-{dtype_name}"),
                        problem,
                        variant: Standard { causal: true, ..Standard::new(problem.scale) },
                        spans: RequestShape::following(lengths.iter().copied(), 16),
                        kind,
                    });
                }
            }
        }
    }
    cases
}

const MODEL: &str = "\
inner loop: the region that a backward branch closes with the most matrix instructions; blocks under a condition (the
  mask) count, but for those that the compiler put elsewhere. Loads: how many x how many bytes of a lane; exposed if all
  of them are waited for before the next matrix instruction.
waves: of a SIMD by the registers (512 of a lane in steps of 8 on gfx90a and gfx942, accumulation registers among them,
  at most 8 waves), then of a SIMD and of a compute unit with shared memory (64 KiB) as well.
matrix share: cycles of the matrix unit in those of the loop if nothing overlaps: on gfx942 32 for 32x32x8 and 16 for
  16x16x16 (twice that on gfx90a and gfx908), 16 for a transcendental, 4 for any other vector or memory instruction, none
  for scalar ones, waits and barriers. Two waves of a SIMD can overlap one's matrix cycles with the other's rest.";

fn main() -> Result<()> {
    // SAFETY: no other thread has been started.
    unsafe { offline::keep_assembly() };
    let args = Args::parse();
    if args.dump_list {
        kernels::cases().iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    if let Some(dir) = &args.dump {
        return args.targets.iter().try_for_each(|&target| dump::dump(target, &args.cases, dir));
    }
    if let Some(dir) = &args.record {
        return args.targets.iter().try_for_each(|&target| record::record(target, dir));
    }
    let wanted =
        |case: &Case| args.cases.is_empty() || args.cases.iter().any(|name| case.name.starts_with(name));
    let cases: Vec<Case> = cases().into_iter().filter(wanted).collect();
    ensure!(!cases.is_empty(), "no case is named so; --list names them");
    if args.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    let files = args.asm.is_some() || args.object.is_some();
    ensure!(!files || (cases.len() == 1 && args.targets.len() == 1), "a file holds one case of one target");
    for &target in &args.targets {
        println!("{target}");
        for case in &cases {
            report(target, case, args.asm.as_deref(), args.object.as_deref())?;
        }
    }
    println!("\n{MODEL}");
    Ok(())
}

fn report(target: Target, case: &Case, asm: Option<&Path>, object: Option<&Path>) -> Result<()> {
    let Case { name, problem, variant, spans, kind } = case;
    let plan = Plan::new(&target.profile(), problem, variant, spans, Choice::Auto, Split::Auto)?;
    println!("\n{name}: {plan}");
    let launches = offline::launches(target, problem, variant, spans, *kind, &plan)?;
    let attention = offline::attention_of(&launches);
    for launch in &launches {
        let lowered = match launch.lower() {
            Ok(lowered) => lowered,
            // NVIDIA's logarithm, which a split takes, is bitcode that comes with CUDA.
            Err(error) => {
                println!("  {error}");
                continue;
            }
        };
        print!("{}", describe(&lowered));
        if attention.is_some_and(|attention| std::ptr::eq(attention, launch)) {
            for (file, bytes) in [(asm, lowered.assembly.as_bytes()), (object, lowered.bytes())] {
                if let Some(file) = file {
                    std::fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))?;
                }
            }
        }
    }
    Ok(())
}

fn describe(lowered: &Lowered) -> String {
    // What it was specialised for follows.
    let kernel = lowered.entry.split('_').next().unwrap_or_default();
    let listing = lowered.listing();
    let known = |number: Option<usize>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let (vector, spills) = match lowered.artifact {
        Artifact::Ptx => {
            ptxas(lowered).map_or((None, None), |(registers, spills)| (Some(registers), Some(spills)))
        }
        Artifact::CodeObject(_) => (listing.vector, listing.spills),
    };
    let mut text = String::new();
    let [x, y, z] = lowered.grid;
    let _ = writeln!(
        text,
        "  {kernel:<10} {x} x {y} x {z} cubes of {}  registers: vector {} (accumulation {}), scalar {}  spills {}  \
         scratch {}  shared memory {}",
        lowered.block.iter().product::<u32>(),
        known(vector),
        known(listing.accumulation),
        known(listing.scalar),
        known(spills),
        known(listing.scratch),
        lowered.shared_memory,
    );
    if let Some(occupancy) = lowered.occupancy() {
        let _ = writeln!(
            text,
            "  {:<10} {} by registers, {} a SIMD, {} a compute unit ({} cubes)",
            "waves", occupancy.by_registers, occupancy.simd, occupancy.unit, occupancy.cubes,
        );
    }
    if !listing.inner.is_empty() {
        let _ = writeln!(text, "  {:<10} {}", "inner loop", counts(&listing));
    }
    text
}

fn counts(listing: &Listing) -> String {
    let count = listing.count();
    let loads: Vec<_> = count.loads.iter().map(|(bytes, number)| format!("{number} x {bytes}")).collect();
    let Count { matrix, shared_reads, shared_writes, exchanges, barriers, waits, transcendental, .. } = count;
    let mut text = format!(
        "matrix {matrix}, shared reads {shared_reads} writes {shared_writes}, exchanges {exchanges}, loads {}{}, barriers \
         {barriers}, waits {waits}, transcendental {transcendental}, scalar {}, scratch {}, other {}",
        if loads.is_empty() { "0".to_owned() } else { loads.join(" + ") },
        if count.exposed == Some(true) { " (exposed)" } else { "" },
        count.scalar,
        count.scratch,
        count.other,
    );
    if let (Some(share), Some(matrix), Some(other)) =
        (count.matrix_share(), count.matrix_cycles, count.other_cycles)
    {
        let _ = write!(text, "; matrix share {:.0} % ({matrix} of {} cycles)", share * 100.0, matrix + other);
    }
    text
}

/// Registers and spilled bytes as NVIDIA's assembler tells, if there is one.
fn ptxas(lowered: &Lowered) -> Option<(usize, usize)> {
    let file = std::env::temp_dir().join(format!("lower-{}.ptx", std::process::id()));
    std::fs::write(&file, lowered.bytes()).ok()?;
    let output = std::process::Command::new("ptxas")
        .args(["-v", "-o", "/dev/null", "-arch", &lowered.target.to_string()])
        .arg(&file)
        .output();
    let _ = std::fs::remove_file(&file);
    let text = String::from_utf8(output.ok()?.stderr).ok()?;
    let before = |what: &str| -> Option<usize> {
        let (before, _) = text.split_once(what)?;
        before.split_whitespace().last()?.parse().ok()
    };
    Some((before(" registers")?, before(" bytes spill stores")?))
}
