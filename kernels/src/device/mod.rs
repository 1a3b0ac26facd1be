//! A device, and what launchers check against it: limits, instruction sets, sizes of launches, shapes of tensors.

mod arch;
pub(crate) mod grid;
mod profile;
mod refusal;
pub(crate) mod tensor;

pub(crate) use arch::Machine;
pub use arch::{Arch, Instruction};
pub use profile::DeviceProfile;
pub use refusal::Refusal;
pub use tensor::{KvLayout, Result};
