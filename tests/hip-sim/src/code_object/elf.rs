//! The parts of an ELF file that a loader of code objects looks at, read with every offset checked.

use super::LoadError;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const SHT_RELA: u32 = 4;
const SHT_DYNSYM: u32 = 11;
const SHF_ALLOC: u64 = 2;

const HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;

pub(super) struct Elf<'a> {
    image: &'a [u8],
}

/// A program header.
pub(super) struct Segment<'a> {
    pub(super) address: u64,
    pub(super) memory_size: u64,
    pub(super) bytes: &'a [u8],
    kind: u32,
    flags: u32,
}

impl Segment<'_> {
    pub(super) fn is_loaded(&self) -> bool {
        self.kind == PT_LOAD
    }

    pub(super) fn is_code(&self) -> bool {
        self.is_loaded() && self.flags & PF_X != 0
    }
}

/// A section header.
struct Section<'a> {
    kind: u32,
    flags: u64,
    link: u32,
    bytes: &'a [u8],
}

/// An entry of the dynamic symbol table.
pub(super) struct Symbol<'a> {
    pub(super) name: &'a str,
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) defined: bool,
    pub(super) weak: bool,
}

pub(super) struct Relocation {
    pub(super) address: u64,
    pub(super) kind: u32,
    pub(super) symbol: usize,
    pub(super) addend: u64,
}

impl<'a> Elf<'a> {
    /// A 64-bit little-endian ELF file.
    pub(super) fn new(image: &'a [u8]) -> Result<Self, LoadError> {
        if !image.starts_with(b"\x7fELF\x02\x01") {
            return Err(LoadError::NotAnElf);
        }
        bytes(image, 0, HEADER as u64)?;
        Ok(Self { image })
    }

    /// Size of the file of which `header` is the start: where the linker puts the section headers, last.
    pub(super) fn file_size(header: &[u8; HEADER]) -> Result<u64, LoadError> {
        let elf = Elf::new(header)?;
        let sections = u64::from(half(elf.image, 60)?) * SECTION_HEADER;
        word8(elf.image, 40)?.checked_add(sections).ok_or(LoadError::Truncated)
    }

    /// ABI, version of the ABI, machine and its flags.
    pub(super) fn target(&self) -> Result<(u8, u8, u16, u32), LoadError> {
        Ok((self.image[7], self.image[8], half(self.image, 18)?, word(self.image, 48)?))
    }

    pub(super) fn segments(&self) -> Result<Vec<Segment<'a>>, LoadError> {
        self.table(32, 56, PROGRAM_HEADER, |header| {
            Ok(Segment {
                kind: word(header, 0)?,
                flags: word(header, 4)?,
                address: word8(header, 16)?,
                memory_size: word8(header, 40)?,
                bytes: bytes(self.image, word8(header, 8)?, word8(header, 32)?)?,
            })
        })
    }

    fn sections(&self) -> Result<Vec<Section<'a>>, LoadError> {
        const SHT_NOBITS: u32 = 8;
        self.table(40, 60, SECTION_HEADER, |header| {
            let kind = word(header, 4)?;
            let size = if kind == SHT_NOBITS { 0 } else { word8(header, 32)? };
            Ok(Section {
                kind,
                flags: word8(header, 8)?,
                link: word(header, 40)?,
                bytes: bytes(self.image, word8(header, 24)?, size)?,
            })
        })
    }

    /// The headers of which the file's header has the offset and the number.
    fn table<T>(
        &self,
        offset: u64,
        count: u64,
        size: u64,
        read: impl Fn(&'a [u8]) -> Result<T, LoadError>,
    ) -> Result<Vec<T>, LoadError> {
        let (start, count) = (word8(self.image, offset)?, u64::from(half(self.image, count)?));
        let headers = bytes(self.image, start, count * size)?;
        headers.chunks_exact(size as usize).map(read).collect()
    }

    pub(super) fn symbols(&self) -> Result<Vec<Symbol<'a>>, LoadError> {
        const STB_WEAK: u8 = 2;
        let sections = self.sections()?;
        let Some(table) = sections.iter().find(|section| section.kind == SHT_DYNSYM) else {
            return Ok(vec![]);
        };
        let names = sections.get(table.link as usize).ok_or(LoadError::Truncated)?.bytes;
        let symbol = |entry: &'a [u8]| {
            Ok(Symbol {
                name: text(names, word(entry, 0)? as usize)?,
                weak: entry[4] >> 4 == STB_WEAK,
                defined: half(entry, 6)? != 0,
                address: word8(entry, 8)?,
                size: word8(entry, 16)?,
            })
        };
        table.bytes.chunks_exact(24).map(symbol).collect()
    }

    pub(super) fn relocations(&self) -> Result<Vec<Relocation>, LoadError> {
        let relocation = |entry: &[u8]| {
            Ok(Relocation {
                address: word8(entry, 0)?,
                kind: word(entry, 8)?,
                symbol: word(entry, 12)? as usize,
                addend: word8(entry, 16)?,
            })
        };
        let sections = self.sections()?;
        let tables =
            sections.iter().filter(|section| section.kind == SHT_RELA && section.flags & SHF_ALLOC != 0);
        tables.flat_map(|table| table.bytes.chunks_exact(24)).map(relocation).collect()
    }

    /// Content of the note with this owner and type.
    pub(super) fn note(&self, owner: &[u8], kind: u32) -> Result<Option<&'a [u8]>, LoadError> {
        for segment in self.segments()?.iter().filter(|segment| segment.kind == PT_NOTE) {
            let mut notes = segment.bytes;
            while !notes.is_empty() {
                let (name_size, size) = (u64::from(word(notes, 0)?), u64::from(word(notes, 4)?));
                let start = 12 + name_size.next_multiple_of(4);
                let content = bytes(notes, start, size)?;
                if word(notes, 8)? == kind && bytes(notes, 12, name_size)? == owner {
                    return Ok(Some(content));
                }
                let next = start + size.next_multiple_of(4);
                notes = notes.get(next as usize..).unwrap_or_default();
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

/// A string that ends with a zero byte.
fn text(names: &[u8], offset: usize) -> Result<&str, LoadError> {
    let rest = names.get(offset..).ok_or(LoadError::Truncated)?;
    let len = rest.iter().position(|&byte| byte == 0).ok_or(LoadError::Truncated)?;
    std::str::from_utf8(&rest[..len]).map_err(|_| LoadError::Metadata("a name is not UTF-8"))
}
