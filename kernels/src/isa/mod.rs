//! Instructions that CubeCL does not have, as operations of its IR with a lowering for each of its compilers.
//!
//! An operation is known here and nowhere else, so that the next CubeCL is one module's work. Each says which
//! architectures have it ([`Instruction::check`]); whoever emits one has asked before. Should one reach a compiler for
//! another machine all the same, LLVM's backend would abort the process: the lowering refuses it first.

pub(crate) mod amd;
mod arch;
mod attributes;
#[cfg(feature = "compilers")]
mod lowering;
pub(crate) mod nvidia;
#[cfg(all(test, feature = "compilers"))]
mod tests;

pub(crate) use arch::Machine;
pub use arch::{Arch, Instruction};
