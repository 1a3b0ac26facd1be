//! Loads the code objects that LLVM's AMDGPU backend links: ELF files with the code, a descriptor per
//! kernel and metadata about its arguments.

use std::fmt;
use std::sync::{Arc, OnceLock};

use object::LittleEndian as Little;
use object::read::elf::Rela as _;

use crate::memory::Memory;

mod bundle;
mod elf;
mod metadata;

use elf::{Elf, Symbol};

/// A code object in the device's memory.
#[derive(Debug)]
pub struct CodeObject {
    pub kernels: Vec<Kernel>,
    /// Address at which its segments were placed.
    pub base: u64,
    /// Name, address and size of each variable.
    pub variables: Vec<(String, u64, u64)>,
}

/// What a launch needs to know about a kernel.
#[derive(Debug)]
pub struct Kernel {
    pub name: String,
    /// Address of the first instruction.
    pub entry: u64,
    pub kernarg_size: u32,
    /// Bytes of LDS, without what the launch adds.
    pub group_segment_size: u32,
    /// Bytes of scratch per work-item.
    pub private_segment_size: u32,
    pub wavefront_size: u32,
    pub max_flat_workgroup_size: u32,
    pub descriptor: KernelDescriptor,
    /// The arguments of the source, in its order.
    pub arguments: Vec<Argument>,
    /// What the dispatch has to fill in, with the offset in the arguments.
    pub hidden: Vec<(HiddenKind, u32)>,
    pub code: Arc<Code>,
}

/// The instructions of a code object.
pub struct Code {
    /// Address of the first word.
    pub base: u64,
    pub words: Vec<u32>,
    /// Decoded by the first launch.
    pub decoded: OnceLock<crate::decode::Program>,
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({:#x}, {} words)", self.base, self.words.len())
    }
}

/// The registers of `NAME.kd` that set a wave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelDescriptor {
    pub rsrc1: u32,
    pub rsrc2: u32,
    pub rsrc3: u32,
    pub properties: u16,
}

/// An argument of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    pub offset: u32,
    pub size: u32,
    pub kind: ArgumentKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgumentKind {
    Value,
    /// Address in global memory.
    Buffer,
}

/// An argument that the compiler added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenKind {
    None,
    BlockCountX,
    BlockCountY,
    BlockCountZ,
    GroupSizeX,
    GroupSizeY,
    GroupSizeZ,
    RemainderX,
    RemainderY,
    RemainderZ,
    GlobalOffsetX,
    GlobalOffsetY,
    GlobalOffsetZ,
    GridDims,
    PrintfBuffer,
    HostcallBuffer,
    Heap,
    DefaultQueue,
    CompletionAction,
    MultigridSync,
    DynamicLdsSize,
    PrivateBase,
    SharedBase,
    QueuePtr,
}

/// Why a code object cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    NotAnElf,
    /// An offset points out of the file.
    Truncated,
    /// For another device than gfx942 with sramecc and without xnack.
    WrongTarget {
        abi: u8,
        machine: u16,
        flags: u32,
    },
    /// A code object version other than 4, 5 and 6.
    WrongVersion {
        abi_version: u8,
    },
    /// A bundle without an entry for gfx942.
    NotInBundle,
    NoMetadata,
    /// The metadata lacks this or has it in another form.
    Metadata(&'static str),
    UnsupportedArgument(String),
    UnsupportedRelocation(u32),
    UndefinedSymbol(String),
    OutOfMemory,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnElf => write!(f, "not a 64-bit little-endian ELF file"),
            Self::Truncated => write!(f, "the file is cut off or damaged"),
            Self::WrongTarget { abi, machine, flags } => write!(
                f,
                "made for another target than gfx942:sramecc+:xnack- \
                 (ABI {abi}, machine {machine}, flags {flags:#x})"
            ),
            Self::WrongVersion { abi_version } => {
                write!(f, "ABI version {abi_version}, not that of code object version 4, 5 or 6")
            }
            Self::NotInBundle => write!(f, "the bundle has no code object for gfx942"),
            Self::NoMetadata => write!(f, "no AMDGPU metadata"),
            Self::Metadata(what) => write!(f, "damaged metadata: {what}"),
            Self::UnsupportedArgument(kind) => write!(f, "unsupported kernel argument {kind}"),
            Self::UnsupportedRelocation(kind) => write!(f, "unsupported relocation type {kind}"),
            Self::UndefinedSymbol(name) => write!(f, "undefined symbol {name}"),
            Self::OutOfMemory => write!(f, "out of device memory"),
        }
    }
}

impl std::error::Error for LoadError {}

impl CodeObject {
    /// Loads an ELF file, or the entry for gfx942 of a bundle as `clang` writes it, into device memory.
    pub fn load(image: &[u8], memory: &Memory) -> Result<Self, LoadError> {
        let elf = Elf::new(bundle::unpack(image)?)?;
        check_target(&elf)?;
        let note = elf.note(b"AMDGPU", NT_AMDGPU_METADATA)?.ok_or(LoadError::NoMetadata)?;
        let kernels = metadata::kernels(note)?;
        let symbols = elf.symbols()?;
        let (size, mut content) = lay_out(&elf)?;
        let base = memory.allocate(size);
        if base == 0 {
            return Err(LoadError::OutOfMemory);
        }
        let placed = relocate(&elf, &symbols, &mut content, base)
            .and_then(|()| Ok(Arc::new(code(&elf, &content, base)?)))
            .and_then(|code| {
                kernels.into_iter().map(|kernel| place(kernel, &symbols, &content, base, &code)).collect()
            })
            .and_then(|kernels: Vec<_>| {
                let target = memory.resolve(base, size).map_err(|_| LoadError::OutOfMemory)?;
                // SAFETY: resolved, and `content` has `size` bytes.
                unsafe { target.copy_from_nonoverlapping(content.as_ptr(), size) };
                memory.mark_written(base, size);
                Ok(kernels)
            });
        let kernels = placed.inspect_err(|_| {
            let _freed = memory.free(base);
        })?;
        let variables = symbols.iter().filter(|symbol| symbol.defined && symbol.size > 0);
        let variables = variables
            .map(|symbol| (symbol.name.into(), base.wrapping_add(symbol.address), symbol.size))
            .collect();
        Ok(Self { kernels, base, variables })
    }

    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// The code object or bundle that starts at an address of which only that is known.
    ///
    /// # Safety
    /// The memory there is one of them as a linker writes it, whole, and stays unchanged for `'a`; or at
    /// least 64 bytes of anything else.
    pub unsafe fn image<'a>(start: *const u8) -> Result<&'a [u8], LoadError> {
        // SAFETY: 64 bytes, by the caller's promise.
        let header: &[u8; 64] = unsafe { &*start.cast() };
        let size = if bundle::is_bundle(header) {
            // SAFETY: the caller's promise.
            unsafe { bundle::file_size(start) }
        } else {
            Elf::file_size(header)?
        };
        // SAFETY: the caller's promise: the file has this size.
        Ok(unsafe { std::slice::from_raw_parts(start, size as usize) })
    }
}

const NT_AMDGPU_METADATA: u32 = 32;

fn check_target(elf: &Elf) -> Result<(), LoadError> {
    const ELFOSABI_AMDGPU_HSA: u8 = 64;
    const EM_AMDGPU: u16 = 224;
    const MACH: u32 = 0xff;
    const MACH_GFX942: u32 = 0x4c;
    const XNACK: u32 = 0x300;
    const XNACK_ON: u32 = 0x300;
    const SRAMECC: u32 = 0xc00;
    const SRAMECC_OFF: u32 = 0x800;
    let (abi, abi_version, machine, flags) = elf.target();
    if abi != ELFOSABI_AMDGPU_HSA
        || machine != EM_AMDGPU
        || flags & MACH != MACH_GFX942
        || flags & XNACK == XNACK_ON
        || flags & SRAMECC == SRAMECC_OFF
    {
        return Err(LoadError::WrongTarget { abi, machine, flags });
    }
    if !(2..=4).contains(&abi_version) {
        return Err(LoadError::WrongVersion { abi_version });
    }
    Ok(())
}

/// Size and content of the loaded segments, from address 0 of the file's own.
fn lay_out(elf: &Elf) -> Result<(usize, Vec<u8>), LoadError> {
    /// Far above any program; a damaged header must not ask for gigabytes.
    const LIMIT: u64 = 1 << 28;
    let segments = elf.segments()?;
    let mut content = Vec::new();
    for segment in &segments {
        let end = segment.address.checked_add(segment.memory_size.max(segment.bytes.len() as u64));
        let end = end.filter(|&end| end < LIMIT).ok_or(LoadError::Truncated)? as usize;
        content.resize(content.len().max(end), 0);
        let start = segment.address as usize;
        content[start..start + segment.bytes.len()].copy_from_slice(segment.bytes);
    }
    Ok((content.len(), content))
}

fn relocate(elf: &Elf, symbols: &[Symbol], content: &mut [u8], base: u64) -> Result<(), LoadError> {
    const ABS32_LO: u32 = 1;
    const ABS32_HI: u32 = 2;
    const ABS64: u32 = 3;
    const RELATIVE64: u32 = 13;
    for relocation in elf.relocations()? {
        let (kind, place) = (relocation.r_type(Little, false).0, relocation.r_offset(Little));
        let target = if kind == RELATIVE64 {
            base
        } else {
            let symbol = symbols.get(relocation.r_sym(Little, false) as usize).ok_or(LoadError::Truncated)?;
            match (symbol.defined, symbol.weak) {
                (true, _) => base.wrapping_add(symbol.address),
                (false, true) => 0,
                (false, false) => return Err(LoadError::UndefinedSymbol(symbol.name.into())),
            }
        };
        let value = target.wrapping_add_signed(relocation.r_addend(Little)).to_le_bytes();
        let value = match kind {
            ABS64 | RELATIVE64 => &value[..],
            ABS32_LO => &value[..4],
            ABS32_HI => &value[4..],
            kind => return Err(LoadError::UnsupportedRelocation(kind)),
        };
        let place = content.get_mut(place as usize..).and_then(|rest| rest.get_mut(..value.len()));
        place.ok_or(LoadError::Truncated)?.copy_from_slice(value);
    }
    Ok(())
}

/// The words of the executable segment, relocated.
fn code(elf: &Elf, content: &[u8], base: u64) -> Result<Code, LoadError> {
    let segments = elf.segments()?;
    let text = segments.iter().find(|segment| segment.is_code).ok_or(LoadError::Metadata("no code"))?;
    let bytes = elf::bytes(content, text.address, text.bytes.len() as u64)?;
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    Ok(Code { base: base.wrapping_add(text.address), words: words.collect(), decoded: OnceLock::new() })
}

/// Puts the metadata and the descriptor of a kernel together.
fn place(
    kernel: metadata::KernelMetadata,
    symbols: &[Symbol],
    content: &[u8],
    base: u64,
    code: &Arc<Code>,
) -> Result<Kernel, LoadError> {
    let symbol = symbols.iter().find(|symbol| symbol.name == kernel.symbol && symbol.defined);
    let address = symbol.ok_or_else(|| LoadError::UndefinedSymbol(kernel.symbol.clone()))?.address;
    let descriptor = elf::bytes(content, address, 64)?;
    // The entry is relative to the descriptor.
    let entry = base.wrapping_add(address).wrapping_add(elf::word8(descriptor, 16)?);
    if !(code.base..code.base + 4 * code.words.len() as u64).contains(&entry) {
        return Err(LoadError::Metadata("the entry of a kernel lies outside of the code"));
    }
    let fits = |end: Option<u32>| end.is_some_and(|end| end <= kernel.kernarg_size);
    let inside = |argument: &Argument| fits(argument.offset.checked_add(argument.size));
    if !kernel.arguments.iter().all(inside) || !kernel.hidden.iter().all(|&(_, offset)| fits(Some(offset))) {
        return Err(LoadError::Metadata("an argument lies outside of the arguments"));
    }
    Ok(Kernel {
        name: kernel.name,
        entry,
        kernarg_size: kernel.kernarg_size,
        group_segment_size: kernel.group_segment_size,
        private_segment_size: kernel.private_segment_size,
        wavefront_size: kernel.wavefront_size,
        max_flat_workgroup_size: kernel.max_flat_workgroup_size,
        descriptor: KernelDescriptor {
            rsrc1: elf::word(descriptor, 48)?,
            rsrc2: elf::word(descriptor, 52)?,
            rsrc3: elf::word(descriptor, 44)?,
            properties: elf::half(descriptor, 56)?,
        },
        arguments: kernel.arguments,
        hidden: kernel.hidden,
        code: Arc::clone(code),
    })
}

#[cfg(test)]
mod tests;
