//! Kernels compiled for a device that is not present.
//!
//! A [`Device`] stands in for one. The launchers run on its client without a change, it records the launches,
//! and each can be [lowered](Launch::lower) to the file that a driver would load, with its assembly.
//! Instructions that the architecture lacks are refused before that, as in a real launch.

#[cfg(test)]
mod isa_tests;
mod listing;
mod lowered;
mod recorder;
mod target;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use cubecl::prelude::*;
use cubecl::{Compiler, client::Client, define_kernel, server::CubeCount};
use cubecl_core::device::DeviceId;
use cubecl_llvm::nvptx::ptx_version::PtxVersion;
use cubecl_llvm::{LlvmTarget, PlironArtifact, PlironCompiler, PlironOptions};

use crate::attention::{self, Attention, Batch, Inputs, Kernels, KvScales, Plan, Problem, RequestShape};
use crate::code8::Code8;
use crate::device::{DeviceProfile, KvLayout, Refusal};
use crate::element::Element;
pub use listing::{Count, Listing, Occupancy};
pub use lowered::{Artifact, Lowered};
use recorder::{Log, Recorded, Recorder};
pub use target::{Target, UnknownTarget};

/// The reason why there is no code.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The launcher refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The compiler refused, or the kernel's own code.
    #[error("{kernel} for {target}: {reason}")]
    Compiler {
        /// The kernel.
        kernel: &'static str,
        /// The architecture.
        target: Target,
        /// The message of the compiler.
        reason: String,
    },
    /// A launch that does not say how many cubes it has, or none at all.
    #[error("nothing was launched that could be compiled")]
    Nothing,
    /// The process holds as many devices as it can count.
    #[error("there are too many devices")]
    Devices,
}

/// The places of the keys, without the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Requests one after the other.
    Ragged,
    /// Keys in pages.
    Paged {
        /// Tokens of a page.
        page_size: usize,
    },
}

/// A stand-in for a device. A process should make few: each stays until its end.
pub struct Device {
    target: Target,
    client: Client,
    log: Log,
}

impl Device {
    /// # Errors
    ///
    /// If there are 65536 already.
    pub fn new(target: Target) -> Result<Self, Error> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let index = NEXT.fetch_add(1, Ordering::Relaxed);
        let (id, log) = (DeviceId::new(0, index), Log::default());
        let server = Recorder::new(id, target.properties(), log.clone());
        let client = Client::try_init(id, server).map_err(|_| Error::Devices)?;
        Ok(Self { target, client, log })
    }

    /// The client that launchers take.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The launches of `launch` on this device, in order.
    ///
    /// # Errors
    ///
    /// If the launcher refuses.
    pub fn record(&self, launch: impl FnOnce(&Client) -> Result<(), Refusal>) -> Result<Vec<Launch>, Error> {
        launch(&self.client)?;
        Ok(self.launches())
    }

    /// The launches since the last call, in order.
    pub fn launches(&self) -> Vec<Launch> {
        // Launches are handed over without waiting; this waits for them. It cannot fail.
        let _ = self.client.flush();
        let log: &Mutex<Vec<Recorded>> = &self.log;
        let recorded = std::mem::take(&mut *log.lock().unwrap_or_else(PoisonError::into_inner));
        recorded.into_iter().map(|recorded| Launch { target: self.target, recorded }).collect()
    }
}

/// The driver of the code, in the format of `cuDriverGetVersion`: 12.8.
const CUDA: i32 = 12080;

/// A launch that did not happen.
pub struct Launch {
    target: Target,
    recorded: Recorded,
}

impl Launch {
    /// The buffers in binding order: their bytes at the time of the launch, or how many there are if none was written.
    pub fn buffers(&self) -> &[Result<Vec<u8>, usize>] {
        &self.recorded.buffers
    }

    /// The last argument of the kernel, after the buffers: scalars, lengths, shapes and strides.
    pub fn metadata(&self) -> Vec<u8> {
        self.recorded.info.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Compiles the kernel.
    ///
    /// # Errors
    ///
    /// If the compiler refuses it.
    pub fn lower(&self) -> Result<Lowered, Error> {
        let CubeCount::Static(x, y, z) = self.recorded.count else { return Err(Error::Nothing) };
        let kernel = &*self.recorded.kernel;
        let failed = |reason: String| Error::Compiler {
            kernel: kernel.name(),
            target: self.target,
            reason: cause(&reason),
        };
        let definition = define_kernel(kernel).map_err(|error| failed(error.to_string()))?;
        let block = definition.settings.cube_dim;
        let (target, options) = match self.target {
            Target::Gfx(_) => {
                (LlvmTarget::AmdGpu, PlironOptions { arch: self.target.gfx(), ..Default::default() })
            }
            Target::Sm(_) => (
                LlvmTarget::Nvptx,
                // As CubeCL's runtime has it: the metadata is a parameter, and PTX is of the version of the driver.
                PlironOptions {
                    sm_arch: self.target.sm(),
                    grid_constants: true,
                    ptx_version: PtxVersion::for_driver(CUDA),
                    ..Default::default()
                },
            ),
        };
        let artifact = PlironCompiler { target }.compile(definition, &options);
        let (artifact, assembly, ir, entry, shared_memory, io) =
            match artifact.map_err(|error| failed(error.to_string()))? {
                PlironArtifact::AmdGpuCode(module) => (
                    Artifact::CodeObject(module.code_object.to_vec()),
                    module
                        .asm
                        .ok_or_else(|| failed(format!("no assembly was kept, for {ASSEMBLY} is not set")))?,
                    module.ir,
                    module.entrypoint,
                    module.shared_memory_size,
                    module.io,
                ),
                PlironArtifact::NvptxCode(module) => {
                    let text = module.ptx.iter().map(|&byte| byte as u8 as char);
                    let text: String = text.take_while(|&byte| byte != '\0').collect();
                    (Artifact::Ptx, text, module.ir, module.entrypoint, module.shared_memory_size, module.io)
                }
                PlironArtifact::Jit(_) => return Err(failed("compiled for this machine".into())),
            };
        Ok(Lowered {
            target: self.target,
            artifact,
            assembly,
            ir,
            entry,
            grid: [x, y, z],
            block: [block.x, block.y, block.z],
            shared_memory,
            writes: io.iter().map(|io| io.is_writable()).collect(),
        })
    }
}

/// An error of CubeCL's without its preamble and the trace of the stack.
fn cause(reason: &str) -> String {
    let lines = reason.lines().map(str::trim).take_while(|line| !line.starts_with("Backtrace"));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let cause = lines.iter().rposition(|line| line.starts_with("Caused by")).map_or(0, |at| at + 1);
    lines[cause..].join(" ")
}

/// CubeCL keeps the assembly of a code object if this variable is set; its value is not read.
const ASSEMBLY: &str = "CUBECL_DEBUG_PLIRON";

/// Makes the compiler for AMD keep the assembly, without which [`Launch::lower`] fails there.
///
/// # Safety
///
/// Sets an environment variable: no other thread may read or write the environment but through `std`. At the beginning
/// of `main` there is no other thread.
pub unsafe fn keep_assembly() {
    // SAFETY: the caller's promise.
    unsafe { std::env::set_var(ASSEMBLY, "1") };
}

/// A tensor without gaps, of elements of so many bytes, to which nothing was written.
pub fn tensor(client: &Client, shape: &[usize], element: usize) -> TensorBinding {
    let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    let handle = client.empty(shape.iter().product::<usize>() * element);
    // SAFETY: the buffer is as long as the shape, without gaps.
    unsafe { TensorBinding::from_raw_parts(handle, strides.into(), shape.to_vec().into()) }
}

/// The tensors of an attention problem, without LSE. Int8 has a scale for each token and head, fp8 for each head.
pub fn attention(client: &Client, problem: &Problem, requests: &[RequestShape], kind: Kind) -> Attention {
    let tensor = |shape: &[usize], element| tensor(client, shape, element);
    let Problem { dims, dtype, kv_dtype, q_heads, kv_heads, scale, .. } = *problem;
    let (size, kv_size, count) = (dtype.size(), kv_dtype.size(), requests.len());
    let tokens = requests.iter().map(|request| request.qo_len).sum();
    let indptr = || tensor(&[count + 1], 4);
    let (batch, places) = match kind {
        Kind::Ragged => {
            let keys = requests.iter().map(|request| request.kv_len).sum();
            (Batch::Ragged { qo_indptr: indptr(), kv_indptr: indptr() }, vec![keys])
        }
        Kind::Paged { page_size } => {
            let pages = requests.iter().map(|request| request.kv_len.div_ceil(page_size.max(1))).sum();
            let batch = Batch::Paged {
                qo_indptr: indptr(),
                kv_indptr: indptr(),
                indices: tensor(&[pages], 4),
                last_page_len: tensor(&[count], 4),
                layout: KvLayout::Nhd,
            };
            (batch, vec![pages, page_size])
        }
    };
    let heads = |dim| [places.as_slice(), &[kv_heads, dim]].concat();
    let kv_scales = match kv_dtype {
        Element::Number(_) => None,
        Element::Code(Code8::Fp8(_)) => Some(KvScales { k: tensor(&[1], 4), v: tensor(&[kv_heads], 4) }),
        Element::Code(Code8::Int8) => Some(KvScales { k: tensor(&heads(1), 4), v: tensor(&heads(1), 4) }),
    };
    Attention {
        q: tensor(&[tokens, q_heads, dims.qk], size),
        k: tensor(&heads(dims.qk), kv_size),
        v: tensor(&heads(dims.vo), kv_size),
        output: tensor(&[tokens, q_heads, dims.vo], size),
        lse: None,
        batch,
        scale,
        dtype,
        kv_dtype,
        kv_scales,
        inputs: Inputs::default(),
        mask: None,
    }
}

/// The launches of a plan: attention, before it its preparation if there is any, and after it the merge of
/// chunks if there is any.
///
/// # Errors
///
/// If the problem is refused, as it would be on the machine.
pub fn launches(
    target: Target,
    problem: &Problem,
    variant: &dyn Kernels,
    requests: &[RequestShape],
    kind: Kind,
    plan: &Plan,
) -> Result<Vec<Launch>, Error> {
    Device::new(target)?.record(|client| {
        let attention = attention(client, problem, requests, kind);
        // SAFETY: the recorder runs no kernel, so nothing reads the lists.
        unsafe { attention::launch(client, attention, variant, plan.upload(client)) }
    })
}

/// The attention kernel of a batch as planned, compiled.
///
/// # Errors
///
/// If the problem is refused, or the compiler refuses the kernel.
pub fn lower(
    target: Target,
    problem: &Problem,
    variant: &dyn Kernels,
    requests: &[RequestShape],
    kind: Kind,
    plan: &Plan,
) -> Result<Lowered, Error> {
    let launches = launches(target, problem, variant, requests, kind, plan)?;
    attention_of(&launches).ok_or(Error::Nothing)?.lower()
}

/// Attention itself, of the [`launches`] of a batch.
pub fn attention_of(launches: &[Launch]) -> Option<&Launch> {
    // The others work on buffers of this one.
    launches.iter().max_by_key(|launch| launch.buffers().len())
}

impl Target {
    /// The limits of a device of this architecture.
    pub fn profile(self) -> DeviceProfile {
        DeviceProfile::from_properties(&self.properties())
    }
}
