use super::target::Target;

/// The file that a driver loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Artifact {
    /// A linked code object of AMD.
    CodeObject(Vec<u8>),
    /// The assembly, which is PTX.
    Ptx,
}

/// A compiled kernel and how it is launched.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// The device that it was compiled for.
    pub target: Target,
    /// The file that a driver loads.
    pub artifact: Artifact,
    /// The text of the instructions.
    pub assembly: String,
    /// LLVM's own language, before its passes.
    pub ir: String,
    /// Name of the kernel.
    pub entry: String,
    /// Cubes.
    pub grid: [u32; 3],
    /// Units of a cube.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_memory: usize,
    /// True for each buffer that the kernel writes, in binding order.
    pub writes: Vec<bool>,
}

impl Lowered {
    /// The bytes of the artifact.
    pub fn bytes(&self) -> &[u8] {
        match &self.artifact {
            Artifact::CodeObject(bytes) => bytes,
            Artifact::Ptx => self.assembly.as_bytes(),
        }
    }
}
