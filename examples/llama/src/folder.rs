//! The files of a model folder, and what may have gone wrong where they are missing.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Opens a file, but nothing that could keep the program waiting for ever.
pub fn open(path: &Path) -> Result<File> {
    let shown = path.display();
    let kind = fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
    ensure!(!kind.is_dir(), "{shown} is a folder, expected a file");
    ensure!(kind.is_file(), "{shown} is a pipe or a device, expected a file");
    File::open(path).with_context(|| format!("cannot read {shown}"))
}

/// The text of a file.
pub fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    ensure_fetched(path, text.as_bytes())?;
    Ok(text)
}

/// Refuses what Git LFS puts in the place of a large file.
pub fn ensure_fetched(path: &Path, content: &[u8]) -> Result<()> {
    ensure!(
        !content.starts_with(b"version https://git-lfs"),
        "{} is only a Git LFS pointer; fetch the file with `git lfs pull`",
        path.display()
    );
    Ok(())
}

/// True if a folder has something of a name, be it a link to nothing, which is then no reason to go on without the file.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The end of a message that something is missing in a folder: what may be meant instead.
pub fn hint(folder: &Path) -> String {
    if folder.is_file() {
        let what =
            if has_extension(folder, "gguf") { "a GGUF file, which is not supported" } else { "a file" };
        return format!("; it is {what}, expected a folder with config.json and *.safetensors");
    }
    if let Some(snapshot) = snapshot(folder) {
        return format!("; it belongs to the cache of the Hugging Face Hub, try {}", snapshot.display());
    }
    let names: Vec<_> = entries(folder).filter_map(|path| Some(path.file_name()?.to_owned())).collect();
    let mut names: Vec<_> = names.iter().filter_map(|name| name.to_str()).collect();
    names.sort_unstable();
    if let Some(name) = names.iter().find(|name| has_extension(Path::new(name), "gguf")) {
        return format!("; {name} is a GGUF file, which is not supported, get the model as safetensors");
    }
    // Names of Hugging Face and of Meta; other files of these endings hold the state of a training.
    let is_pickled = |name: &&&str| {
        (name.starts_with("pytorch_model") && name.ends_with(".bin"))
            || (name.starts_with("consolidated") && name.ends_with(".pth"))
    };
    match *names.iter().filter(is_pickled).copied().collect::<Vec<_>>() {
        [] => String::new(),
        [name] => format!("; convert {name} to safetensors first"),
        [first, .., last] => format!("; convert {first} to {last} to safetensors first"),
    }
}

/// The newest model in a folder of the Hub's cache: of all, of `models--ORGANISATION--NAME`, or of its `snapshots`.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = |model: PathBuf| entries(&model.join("snapshots")).collect::<Vec<_>>();
    let is_model = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("models--"))
    };
    let mut found = snapshots(folder.to_path_buf());
    found.extend(entries(folder).filter(is_model).flat_map(snapshots));
    if folder.ends_with("snapshots") {
        found.extend(entries(folder));
    }
    found.retain(|path| path.join("config.json").exists());
    found.into_iter().max_by_key(|path| path.metadata().and_then(|data| data.modified()).ok())
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}
