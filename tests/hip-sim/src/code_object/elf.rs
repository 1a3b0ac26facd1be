//! The parts of an ELF file that a loader of code objects looks at, with every offset checked.

use object::LittleEndian as Little;
use object::elf::{
    FileHeader64, PF_X, PT_LOAD, ProgramHeader64, Rela64, SHF_ALLOC, SHT_DYNSYM, SectionHeader64,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};

use super::LoadError;

type Header = FileHeader64<Little>;

pub(super) struct Elf<'a> {
    image: &'a [u8],
    header: &'a Header,
}

/// A segment that is loaded.
pub(super) struct Segment<'a> {
    pub(super) address: u64,
    pub(super) memory_size: u64,
    pub(super) bytes: &'a [u8],
    pub(super) is_code: bool,
}

/// An entry of the dynamic symbol table.
pub(super) struct Symbol<'a> {
    pub(super) name: &'a str,
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) defined: bool,
    pub(super) weak: bool,
}

impl From<object::read::Error> for LoadError {
    fn from(_: object::read::Error) -> Self {
        Self::Truncated
    }
}

impl<'a> Elf<'a> {
    /// A 64-bit little-endian ELF file.
    pub(super) fn new(image: &'a [u8]) -> Result<Self, LoadError> {
        let header = Header::parse(image).and_then(|header| header.endian().map(|Little| header));
        Ok(Self { image, header: header.map_err(|_| LoadError::NotAnElf)? })
    }

    /// Size of the file of which `header` is the start: where the linker puts the section headers, last.
    pub(super) fn file_size(header: &[u8; size_of::<Header>()]) -> Result<u64, LoadError> {
        let header = Elf::new(header)?.header;
        let sections = u64::from(header.e_shnum(Little)) * size_of::<SectionHeader64<Little>>() as u64;
        header.e_shoff(Little).checked_add(sections).ok_or(LoadError::Truncated)
    }

    /// ABI, version of the ABI, machine and its flags.
    pub(super) fn target(&self) -> (u8, u8, u16, u32) {
        let ident = self.header.e_ident();
        (ident.os_abi.0, ident.abi_version, self.header.e_machine(Little).0, self.header.e_flags(Little).0)
    }

    fn program_headers(&self) -> Result<&'a [ProgramHeader64<Little>], LoadError> {
        Ok(self.header.program_headers(Little, self.image)?)
    }

    /// The segments that are loaded.
    pub(super) fn segments(&self) -> Result<Vec<Segment<'a>>, LoadError> {
        let loaded = self.program_headers()?.iter().filter(|header| header.p_type(Little) == PT_LOAD);
        let segment = |header: &'a ProgramHeader64<Little>| {
            Ok(Segment {
                address: header.p_vaddr(Little),
                memory_size: header.p_memsz(Little),
                bytes: header.data(Little, self.image).map_err(|()| LoadError::Truncated)?,
                is_code: header.p_flags(Little).contains(PF_X),
            })
        };
        loaded.map(segment).collect()
    }

    pub(super) fn symbols(&self) -> Result<Vec<Symbol<'a>>, LoadError> {
        let sections = self.header.sections(Little, self.image)?;
        let table = sections.symbols(Little, self.image, SHT_DYNSYM)?;
        let symbol = |symbol| {
            let name = std::str::from_utf8(table.symbol_name(Little, symbol)?);
            Ok(Symbol {
                name: name.map_err(|_| LoadError::Metadata("a name is not UTF-8"))?,
                address: symbol.st_value(Little),
                size: symbol.st_size(Little),
                defined: !symbol.is_undefined(Little),
                weak: symbol.is_weak(),
            })
        };
        table.iter().map(symbol).collect()
    }

    pub(super) fn relocations(&self) -> Result<Vec<&'a Rela64<Little>>, LoadError> {
        let sections = self.header.sections(Little, self.image)?;
        let allocated = sections.iter().filter(|section| section.sh_flags(Little).contains(SHF_ALLOC));
        let tables = allocated.filter_map(|section| section.rela(Little, self.image).transpose());
        Ok(tables.collect::<Result<Vec<_>, _>>()?.into_iter().flat_map(|(table, _)| table).collect())
    }

    /// Content of the note with this owner and type.
    pub(super) fn note(&self, owner: &[u8], kind: u32) -> Result<Option<&'a [u8]>, LoadError> {
        for header in self.program_headers()? {
            let Some(mut notes) = header.notes(Little, self.image)? else { continue };
            while let Some(note) = notes.next()? {
                if note.n_type(Little).0 == kind && note.name() == owner {
                    return Ok(Some(note.desc()));
                }
            }
        }
        Ok(None)
    }
}

pub(super) fn bytes(image: &[u8], offset: u64, len: u64) -> Result<&[u8], LoadError> {
    let end = offset.checked_add(len).ok_or(LoadError::Truncated)?;
    image.get(offset as usize..end as usize).ok_or(LoadError::Truncated)
}

pub(super) fn half(image: &[u8], offset: u64) -> Result<u16, LoadError> {
    Ok(u16::from_le_bytes(array(image, offset)?))
}

pub(super) fn word(image: &[u8], offset: u64) -> Result<u32, LoadError> {
    Ok(u32::from_le_bytes(array(image, offset)?))
}

/// A doubleword.
pub(super) fn word8(image: &[u8], offset: u64) -> Result<u64, LoadError> {
    Ok(u64::from_le_bytes(array(image, offset)?))
}

fn array<const N: usize>(image: &[u8], offset: u64) -> Result<[u8; N], LoadError> {
    bytes(image, offset, N as u64)?.try_into().map_err(|_| LoadError::Truncated)
}
