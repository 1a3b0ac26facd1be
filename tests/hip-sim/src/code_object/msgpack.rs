//! As much of MessagePack as the metadata of code objects uses: maps, arrays, strings, integers and
//! booleans.

/// A value that borrows its strings.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    Bool(bool),
    Integer(i64),
    Text(&'a str),
    Array(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// The value that starts at the front of `bytes`; `None` if it is cut off or of another type.
    pub(super) fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        // The metadata nests four deep; a limit keeps a damaged file from using up the stack.
        value(&mut bytes, 16)
    }

    /// What a map has under a key.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter().find(|(name, _)| *name == Value::Text(key)).map(|(_, value)| value)
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    pub(super) fn integer(&self) -> Option<u32> {
        if let Self::Integer(value) = self { u32::try_from(*value).ok() } else { None }
    }

    pub(super) fn array(&self) -> Option<&[Self]> {
        if let Self::Array(values) = self { Some(values) } else { None }
    }
}

fn value<'a>(bytes: &mut &'a [u8], depth: usize) -> Option<Value<'a>> {
    let depth = depth.checked_sub(1)?;
    let tag = take(bytes, 1)?[0];
    Some(match tag {
        0x00..=0x7f => Value::Integer(i64::from(tag)),
        0xe0..=0xff => Value::Integer(i64::from(tag.cast_signed())),
        0x80..=0x8f => map(bytes, usize::from(tag & 0xf), depth)?,
        0x90..=0x9f => array(bytes, usize::from(tag & 0xf), depth)?,
        0xa0..=0xbf => text(bytes, usize::from(tag & 0x1f))?,
        0xc2 | 0xc3 => Value::Bool(tag == 0xc3),
        0xcc..=0xcf => Value::Integer(unsigned(bytes, 1 << (tag - 0xcc))?.cast_signed()),
        0xd0..=0xd3 => {
            let size = 1 << (tag - 0xd0);
            let unused = 64 - 8 * size;
            Value::Integer((unsigned(bytes, size)? << unused).cast_signed() >> unused)
        }
        0xd9..=0xdb => {
            let len = unsigned(bytes, 1 << (tag - 0xd9))?;
            text(bytes, len as usize)?
        }
        0xdc | 0xdd => {
            let len = unsigned(bytes, 2 << (tag - 0xdc))?;
            array(bytes, len as usize, depth)?
        }
        0xde | 0xdf => {
            let len = unsigned(bytes, 2 << (tag - 0xde))?;
            map(bytes, len as usize, depth)?
        }
        _ => return None,
    })
}

fn map<'a>(bytes: &mut &'a [u8], len: usize, depth: usize) -> Option<Value<'a>> {
    (0..len)
        .map(|_| Some((value(bytes, depth)?, value(bytes, depth)?)))
        .collect::<Option<_>>()
        .map(Value::Map)
}

fn array<'a>(bytes: &mut &'a [u8], len: usize, depth: usize) -> Option<Value<'a>> {
    (0..len).map(|_| value(bytes, depth)).collect::<Option<_>>().map(Value::Array)
}

fn text<'a>(bytes: &mut &'a [u8], len: usize) -> Option<Value<'a>> {
    std::str::from_utf8(take(bytes, len)?).ok().map(Value::Text)
}

fn unsigned(bytes: &mut &[u8], size: usize) -> Option<u64> {
    Some(take(bytes, size)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_width() {
        let parse = Value::parse;
        assert_eq!(parse(&[0x07]), Some(Value::Integer(7)));
        assert_eq!(parse(&[0xff]), Some(Value::Integer(-1)));
        assert_eq!(parse(&[0xcd, 1, 2]), Some(Value::Integer(258)));
        assert_eq!(parse(&[0xcf, 0, 0, 0, 1, 0, 0, 0, 0]), Some(Value::Integer(1 << 32)));
        assert_eq!(parse(&[0xd1, 0xff, 0xfe]), Some(Value::Integer(-2)));
        assert_eq!(parse(&[0xc3]), Some(Value::Bool(true)));
        assert_eq!(parse(b"\xd9\x02ab"), Some(Value::Text("ab")));
        assert_eq!(parse(b"\xdc\0\x01\xa1a"), Some(Value::Array(vec![Value::Text("a")])));
        let map = parse(b"\x82\xa1a\x01\xa1b\xde\0\0").expect("a map");
        assert_eq!(map.get("a").and_then(Value::integer), Some(1));
        assert_eq!(map.get("b"), Some(&Value::Map(vec![])));
        assert_eq!(map.get("c"), None);
    }

    #[test]
    fn damaged_values_are_none() {
        assert_eq!(Value::parse(&[]), None);
        assert_eq!(Value::parse(b"\xa3ab"), None);
        assert_eq!(Value::parse(b"\xa1\xff"), None, "not UTF-8");
        assert_eq!(Value::parse(&[0xdd, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(Value::parse(&[0x91; 100]), None, "too deep");
        assert_eq!(Value::parse(&[0xc1]), None);
    }
}
