use super::arch::{Arch, Instruction};

/// The reason why a kernel was not launched. Nothing has been written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The shapes or strides of the tensors do not fit the kernel or each other.
    #[error("{kernel}: `{argument}` has shape {shape:?} and strides {strides:?}, expected {expected}")]
    Shape {
        /// The kernel that was asked for.
        kernel: &'static str,
        /// The tensor at fault.
        argument: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
        /// The expected shape.
        expected: String,
    },
    /// A forced blueprint that the device or the problem rules out.
    #[error("{kernel}: {setting} of {got} cannot run, expected {expected}")]
    Blueprint {
        /// The kernel that was asked for.
        kernel: &'static str,
        /// The field of the blueprint at fault.
        setting: &'static str,
        /// Its value.
        got: String,
        /// The expected value.
        expected: String,
    },
    /// A list that the blueprint needs and the plan does not have.
    #[error("{kernel}: `{argument}` is missing, expected the list of the plan")]
    Missing {
        /// The kernel that was asked for.
        kernel: &'static str,
        /// The list at fault.
        argument: &'static str,
    },
    /// More cubes than one launch can have on this device.
    #[error("{kernel}: {cubes} cubes do not fit into one launch of at most {limit:?}")]
    Grid {
        /// The kernel that was asked for.
        kernel: &'static str,
        /// Cubes needed.
        cubes: usize,
        /// Limits of the axes.
        limit: [u32; 3],
    },
    /// A size beyond the integers of the kernel.
    #[error("{kernel}: `{argument}` is {got}, expected at most {limit}")]
    Range {
        /// The kernel that was asked for.
        kernel: &'static str,
        /// The size at fault.
        argument: &'static str,
        /// Its value.
        got: usize,
        /// The largest value.
        limit: usize,
    },
    /// A device without an instruction of the kernel.
    #[error("{kernel}: {instruction:?} does not exist on {arch}")]
    Instruction {
        /// The kernel that was asked for.
        kernel: &'static str,
        /// The missing instruction.
        instruction: Instruction,
        /// The instruction set of the device.
        arch: Arch,
    },
}

impl Refusal {
    pub(crate) fn blueprint(
        kernel: &'static str,
        setting: &'static str,
        got: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Blueprint { kernel, setting, got: got.to_string(), expected: expected.into() }
    }

    /// A refusal: no matrix unit works in planes of so many lanes, or on such a device.
    pub(crate) fn plane(kernel: &'static str, lanes: u32) -> Self {
        Self::blueprint(kernel, "plane", lanes, "32 or 64 lanes of an NVIDIA or AMD GPU")
    }
}

impl Instruction {
    /// # Errors
    ///
    /// If the architecture does not have it.
    pub fn check(self, kernel: &'static str, arch: Arch) -> Result<(), Refusal> {
        if self.exists_on(arch) {
            return Ok(());
        }
        Err(Refusal::Instruction { kernel, instruction: self, arch })
    }
}
