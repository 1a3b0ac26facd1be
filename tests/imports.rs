//! The files of each crate import neither in a circle nor from a higher layer.
//!
//! An import is a path in a `use` or in code. It counts as one of the file that defines the item, whoever re-exports it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::{fs, path::Path};

/// The top-level modules of each crate, lowest first: one may import from itself and from those before it. Those with a
/// `+` between them are one layer.
const SRC: &str =
    "error simd types reference extension backend dispatch check memory ints indptr cache ops attention lib";
const KERNELS: &str = "device isa math+fp8 code8 element problem+request staging mma attention rows sampling \
                       gemm segment_gemm+merge+bits moe offline lib";

type Names = Vec<String>;
type Words<'a> = [(usize, &'a str)];

#[derive(Default)]
struct Module {
    file: usize,
    items: HashSet<String>,
    /// Imported names, `*` among them, with their paths.
    imports: Vec<(String, Names)>,
}

/// The modules of a crate, and each path in it: file, line, module and names.
#[derive(Default)]
struct Crate {
    modules: HashMap<Names, Module>,
    paths: Vec<(usize, usize, Names, Names)>,
}

/// The words of a source and their lines, without comments and literals.
fn words(source: &str) -> Vec<(usize, &str)> {
    assert!(!source.contains("r#\"") && !source.contains("/*"), "not understood here");
    let (mut words, mut rest, mut line) = (Vec::new(), source, 1);
    while let Some(first) = rest.chars().next() {
        let to = |end: char, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + 1);
        let (len, is_word) = match first {
            '/' if rest.starts_with("//") => (to('\n', 0), false),
            '"' => {
                let (bytes, mut end) = (rest.as_bytes(), 1);
                while bytes[end] != b'"' {
                    end += 1 + usize::from(bytes[end] == b'\\');
                }
                (end + 1, false)
            }
            '\'' if rest[1..].starts_with('\\') => (to('\'', 3), false),
            '\'' if rest.chars().nth(2) == Some('\'') => (to('\'', 1), false),
            ':' if rest.starts_with("::") => (2, true),
            _ => {
                let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                (name.max(first.len_utf8()), !first.is_whitespace())
            }
        };
        if is_word {
            words.push((line, &rest[..len]));
        }
        line += rest[..len].matches('\n').count();
        rest = &rest[len..];
    }
    words
}

/// The words of an item, which ends with `;` or with a block.
fn item_len(words: &Words<'_>) -> usize {
    let mut depth = 0;
    let ends = |&(_, word): &(usize, &str)| {
        depth += i32::from("([{".contains(word)) - i32::from(")]}".contains(word));
        depth == 0 && [";", "}"].contains(&word)
    };
    words.iter().position(ends).map_or(words.len(), |at| at + 1)
}

/// Names and paths of a `use`.
fn imports(words: &Words<'_>) -> Vec<(String, Names)> {
    let (mut found, mut bases, mut path, mut alias) = (Vec::new(), vec![Names::new()], Names::new(), None);
    for pair in words.windows(2) {
        match pair[1].1 {
            "{" => bases.push(path.clone()),
            "," | "}" | ";" => {
                if path != bases[bases.len() - 1] {
                    let last = path.iter().rfind(|name| *name != "self").cloned();
                    found.push((alias.take().or(last).unwrap_or_default(), path));
                }
                if pair[1].1 == "}" {
                    bases.pop();
                }
                path = bases.last().cloned().unwrap_or_default();
            }
            "::" | "as" => {}
            name if pair[0].1 == "as" => alias = Some(name.to_string()),
            name => path.push(name.to_string()),
        }
    }
    found
}

impl Crate {
    fn read(&mut self, file: usize, module: Names, source: &str) {
        const TESTS: [&str; 2] = ["#[cfg(test)]", "#[cfg(all(test,"];
        const ITEMS: [&str; 8] = ["const", "enum", "fn", "static", "struct", "trait", "type", "!"];
        let words = words(source);
        self.modules.insert(module.clone(), Module { file, ..Module::default() });
        let (mut scopes, mut depth, mut at) = (vec![(module, 0)], 0, 0);
        while let Some(&(line, word)) = words.get(at) {
            let next = |ahead: usize| words.get(at + ahead).map_or("", |word| word.1);
            let (module, level) = &scopes[scopes.len() - 1];
            let here = self.modules.get_mut(module).expect("the module of a scope");
            let mut len = 1;
            match word {
                "#" if TESTS.iter().any(|test| (0..8).map(next).collect::<String>().starts_with(test)) => {
                    len = item_len(&words[at..]);
                }
                "use" if next(1) != "<" => {
                    len = item_len(&words[at..]);
                    let imports = imports(&words[at..at + len]);
                    let paths = imports.iter().map(|(_, path)| (file, line, module.clone(), path.clone()));
                    self.paths.extend(paths);
                    here.imports.extend(imports);
                }
                "mod" if next(2) == "{" => {
                    let inner = [&module[..], &[next(1).into()]].concat();
                    self.modules.insert(inner.clone(), Module { file, ..Module::default() });
                    scopes.push((inner, depth + 1));
                }
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    scopes.retain(|&(_, level)| level <= depth);
                }
                item if ITEMS.contains(&item) && depth == *level => {
                    here.items.insert(next(1).into());
                }
                _ if next(1) == "::" => {
                    while next(len) == "::" && !next(len + 1).starts_with(['<', '{', '*', '$', '#']) {
                        len += 2;
                    }
                    let path = (0..len).step_by(2).map(|ahead| next(ahead).into()).collect();
                    self.paths.push((file, line, module.clone(), path));
                }
                _ => {}
            }
            at += len;
        }
    }

    /// The file with the item that a path in a module leads to; none for modules and other crates.
    fn file_of(&self, from: &[String], path: &[String], steps: usize) -> Option<usize> {
        let (first, steps, here) = (path.first()?, steps.checked_sub(1)?, &self.modules[from]);
        match first.as_str() {
            "crate" => self.find(&[], &path[1..], steps),
            "self" | "super" => self.find(from, path, steps),
            _ if here.imports.iter().any(|(name, _)| name == first) => self.find(from, path, steps),
            _ if here.items.contains(first) => Some(here.file),
            _ if self.modules.contains_key(&[from, &path[..1]].concat()) => self.find(from, path, steps),
            _ => None,
        }
    }

    /// The same within a module. An item that is not found is one that a macro makes there.
    fn find(&self, from: &[String], path: &[String], steps: usize) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let (child, here) = ([from, &path[..1]].concat(), &self.modules[from]);
        let by = |end: &[String], rest: &[String]| self.file_of(from, &[end, rest].concat(), steps);
        let named = here.imports.iter().filter(|(name, _)| name == first).map(|(_, end)| by(end, rest));
        let globs = here.imports.iter().filter(|(name, _)| name == "*");
        match first.as_str() {
            "self" => self.find(from, rest, steps),
            "super" => self.find(from.split_last()?.1, rest, steps),
            _ if self.modules.contains_key(&child) && !rest.is_empty() => self.find(&child, rest, steps),
            _ if here.items.contains(first) => Some(here.file),
            _ => match named.reduce(Option::or) {
                Some(found) => found,
                None if self.modules.contains_key(&child) => None,
                None => globs
                    .map(|(_, end)| by(&end[..end.len() - 1], path))
                    .find(Option::is_some)
                    .unwrap_or(Some(here.file)),
            },
        }
    }
}

/// Cycles of imports, imports from a higher layer, and imports that do not say of what.
fn problems(sources: &[(&str, &str)], layers: &str) -> Vec<String> {
    let (mut all, mut found) = (Crate::default(), Vec::new());
    for (file, (name, source)) in sources.iter().enumerate() {
        let parts = name.trim_end_matches(".rs").split('/').filter(|part| !["mod", "lib"].contains(part));
        all.read(file, parts.map(String::from).collect(), source);
    }
    let layer = |name: &str| {
        let top = name.split(['/', '.']).next();
        layers.split(' ').position(|layer| layer.split('+').any(|module| Some(module) == top))
    };
    let mut edges = vec![BTreeMap::new(); sources.len()];
    for (file, line, module, path) in &all.paths {
        let (from, names) = (sources[*file].0, path.join("::"));
        if ["crate", "self", "super"].contains(&&*path[0]) && names.ends_with('*') && from != "lib.rs" {
            found.push(format!("{from}:{line} imports {names}, which does not say what"));
        }
        let Some(to) = all.file_of(module, path, 9).filter(|to| to != file) else { continue };
        let import = format!("{from}:{line} imports {names} of {}", sources[to].0);
        if layer(sources[to].0).is_none() || layer(sources[to].0) > layer(from) {
            found.push(format!("{import}, a higher layer"));
        }
        edges[*file].entry(to).or_insert(import);
    }
    // Files of cycles that were found: one cause is told once.
    let mut seen = HashSet::new();
    for start in 0..sources.len() {
        // The shortest way back.
        let (mut before, mut queue) = (HashMap::new(), VecDeque::from([start]));
        while let Some(at) = queue.pop_front() {
            for &to in edges[at].keys().filter(|&to| !before.contains_key(to)).collect::<Vec<_>>() {
                before.insert(to, at);
                queue.push_back(to);
            }
        }
        let Some(&last) = before.get(&start).filter(|_| !seen.contains(&start)) else { continue };
        let mut cycle = vec![start, last];
        while cycle[cycle.len() - 1] != start {
            cycle.push(before[&cycle[cycle.len() - 1]]);
        }
        let steps = cycle.windows(2).rev().map(|pair| format!("\n    {}", edges[pair[1]][&pair[0]]));
        found.push(format!("a cycle:{}", steps.collect::<String>()));
        seen.extend(cycle);
    }
    found
}

fn read(root: &Path, folder: &Path, sources: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry of the folder").path();
        let name =
            path.strip_prefix(root).expect("a path below the root").to_string_lossy().replace('\\', "/");
        if path.is_dir() {
            read(root, &path, sources);
        } else if !name.ends_with("tests.rs") {
            sources.push((name, fs::read_to_string(&path).expect("a source")));
        }
    }
}

fn check(root: &str, layers: &str) {
    let (root, mut sources) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(root), Vec::new());
    read(&root, &root, &mut sources);
    sources.sort();
    let sources: Vec<_> = sources.iter().map(|(name, source)| (&**name, &**source)).collect();
    let found = problems(&sources, layers);
    assert!(found.is_empty(), "{}:\n{}", root.display(), found.join("\n"));
}

#[test]
fn the_library() {
    check("src", SRC);
}

#[test]
fn the_kernels() {
    check("kernels/src", KERNELS);
}

#[test]
fn wrong_imports_are_found() {
    let low = "// crate::high::A\nconst S: &str = \"\\\"crate::high::C\";\n#[cfg(test)]\n\
               mod tests { use crate::high::High; }\nfn f<'a>(_: &'a str) { crate::high::make::<u8>('\"') }";
    let parts =
        "use crate::{round::*, round::{self, b::{B as C}}};\nfn make() { round::a::start() } struct High;";
    let sources = [
        ("lib.rs", "mod high; mod low; mod round; pub use high::High;"),
        ("low.rs", low),
        ("high/mod.rs", "mod parts;\npub use parts::{self as p, High};\npub(crate) use self::p::make;"),
        ("high/parts.rs", parts),
        ("round/mod.rs", "pub mod a; pub mod b;"),
        ("round/a.rs", "use super::b::B;\npub struct A(B);\npub fn start() {}"),
        ("round/b.rs", "pub struct B(\n    Box<super::a::A>,\n);"),
    ];
    let upward = "low.rs:5 imports crate::high::make of high/parts.rs, a higher layer";
    let vague = "high/parts.rs:1 imports crate::round::*, which does not say what";
    let cycle = "a cycle:\n    round/a.rs:1 imports super::b::B of round/b.rs\n    \
                 round/b.rs:2 imports super::a::A of round/a.rs";
    assert_eq!(problems(&sources, "low round high lib"), [upward, vague, cycle]);
}
