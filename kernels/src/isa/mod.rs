//! Instructions that CubeCL does not have, as operations of its IR with a lowering for each of its compilers.
//!
//! An operation is known only here, so that the next CubeCL is one module's work. Each names the
//! architectures that have it ([`Instruction::check`](crate::Instruction::check)); its callers have checked
//! that. If one reached a compiler for another device all the same, LLVM's backend would abort the process:
//! the lowering refuses it first.

pub(crate) mod amd;
mod attributes;
#[cfg(feature = "compilers")]
mod lowering;
pub(crate) mod nvidia;
