//! A fixed list of kernels, whose code a change of names alone must leave as it is.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn_flashinfer_kernels::offline::{Device, Error, Launch, Target};

use crate::kernels::{self, Case};

/// Writes the code of each kernel of the list whose name begins so, each launch of it into a file of its own.
///
/// A file has the name of the case and the place of the launch in it, for kernels may be renamed.
pub fn dump(target: Target, names: &[String], dir: &Path) -> Result<()> {
    let dir = dir.join(target.to_string());
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let device = Device::new(target)?;
    let wanted = |case: &Case| names.is_empty() || names.iter().any(|name| case.name.starts_with(name));
    let cases: Vec<Case> = kernels::cases().into_iter().filter(wanted).collect();
    ensure!(!cases.is_empty(), "no case is named so");
    for Case { name, launch } in cases {
        let launches = match device.record(launch) {
            Ok(launches) => launches,
            Err(refused) => {
                fs::write(dir.join(format!("{name}.txt")), format!("{refused}\n"))?;
                continue;
            }
        };
        ensure!(!launches.is_empty(), "{name} launches nothing on {target}");
        for (at, launch) in launches.iter().enumerate() {
            fs::write(dir.join(format!("{name}-{at}.txt")), text(launch)?)?;
        }
        println!("{target} {name}: {}", launches.len());
    }
    Ok(())
}

/// How a kernel is launched, and its code without its own name.
fn text(launch: &Launch) -> Result<String> {
    let lowered = match launch.lower() {
        Ok(lowered) => lowered,
        // A refused kernel must stay refused for the same reason. Its name is no part of the reason.
        Err(Error::Compiler { reason, .. }) => return Ok(format!("not compiled: {reason}\n")),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    writeln!(text, "grid {:?} block {:?}", lowered.grid, lowered.block)?;
    writeln!(text, "shared memory {} writes {:?}", lowered.shared_memory, lowered.writes)?;
    writeln!(text, "metadata {:?}", launch.metadata())?;
    text += &lowered.assembly.replace(&lowered.entry, "kernel");
    Ok(text)
}
