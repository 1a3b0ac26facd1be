//! The JSON files of a model folder. Errors name the file and the field.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::folder;

/// The object that a file consists of.
pub type Fields = Map<String, Value>;

/// The object in a file, as `T` has it.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = folder::read(path)?;
    fields(&text).and_then(|fields| typed(&fields)).with_context(|| path.display().to_string())
}

/// The object that a text is.
pub fn fields(json: &str) -> Result<Fields> {
    Ok(serde_json::from_str(json)?)
}

/// The fields that `T` has.
pub fn typed<'a, T: Deserialize<'a>>(fields: &'a Fields) -> Result<T> {
    Ok(serde_path_to_error::deserialize(fields)?)
}

/// For a field where null says something else than no field at all, which is [`None`].
pub fn nullable<'a, T: Deserialize<'a>, D: Deserializer<'a>>(
    value: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// One token or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "expected a token id or an array of token ids")]
pub enum TokenIds {
    One(i64),
    Many(Vec<i64>),
}

impl From<TokenIds> for Vec<u32> {
    fn from(ids: TokenIds) -> Self {
        match ids {
            TokenIds::One(id) => tokens(&[id]),
            TokenIds::Many(ids) => tokens(&ids),
        }
    }
}

/// The tokens among numbers. One that no token has, like -1, is left out: nothing will ever be equal to it.
pub fn tokens(ids: &[i64]) -> Vec<u32> {
    ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect()
}

/// A setting that this program does not have, and which numbers turn it off. Null, false and empty values do as well.
pub type Setting = (&'static str, fn(f64) -> bool);

/// The first of `settings` that is not off, in words.
pub fn first_on(fields: &Fields, settings: &[Setting]) -> Option<String> {
    let is_off = |value: &Value, turns_off: fn(f64) -> bool| match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64().is_some_and(turns_off),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(map) => map.is_empty(),
    };
    settings.iter().find_map(|&(name, turns_off)| {
        let value = fields.get(name).filter(|value| !is_off(value, turns_off))?;
        Some(format!("`{name}` is {}", shown(value)))
    })
}

/// The value as it stands in the file, as far as one line of text has room for it.
pub fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
