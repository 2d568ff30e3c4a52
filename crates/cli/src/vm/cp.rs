//! `vmwright vm cp`

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use vmwright_runtime::{PutRequest, Runtime, VmName};

use super::runtime;
use crate::failure::Failure;

/// What `vm cp` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file to copy: LOCAL or NAME:PATH; `-` is standard input
    source: String,
    /// Where to: NAME:PATH or LOCAL; `-` is standard output
    target: String,
}

/// One end of a copy.
enum End {
    Local(PathBuf),
    Guest(VmName, String),
}

/// Copies the file.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let attempt = || format!("cannot copy {} to {}", args.source, args.target);
    match (end(&args.source)?, end(&args.target)?) {
        (End::Local(from), End::Guest(name, path)) => {
            put(&runtime, &from, &name, &path).with_context(attempt)?
        }
        (End::Guest(name, path), End::Local(to)) => get(&runtime, &name, &path, &to).with_context(attempt)?,
        _ => return Err(Failure::usage("one side is a file here, the other NAME:PATH in a machine")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes `NAME:PATH` as a file in a machine and everything else as one here; `./a:b` is always here.
fn end(text: &str) -> anyhow::Result<End> {
    match text.split_once(':') {
        Some((name, path)) if !name.contains('/') => {
            let name = name.parse().map_err(|error| Failure::usage(format!("{text}: {error}")))?;
            Ok(End::Guest(name, path.to_owned()))
        }
        _ => Ok(End::Local(text.into())),
    }
}

/// The name a copy gets where only a folder was named.
fn file_name(path: &Path) -> anyhow::Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("the file has no name to copy it under")
}

fn put(runtime: &Runtime, from: &Path, name: &VmName, path: &str) -> anyhow::Result<()> {
    let is_folder = path.ends_with('/');
    if from == Path::new("-") {
        let request = request(path, None)?;
        runtime.put(name, &request, &mut io::stdin().lock())?;
        return Ok(());
    }
    let path = if is_folder { format!("{path}{}", file_name(from)?) } else { path.to_owned() };
    let mut file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Failure::refused(format!("{} is not a regular file", from.display())));
    }
    runtime.put(name, &request(&path, Some(&metadata))?, &mut file)?;
    Ok(())
}

fn request(path: &str, metadata: Option<&fs::Metadata>) -> anyhow::Result<PutRequest> {
    if !path.starts_with('/') {
        return Err(Failure::usage(format!("the path in the machine must be absolute, not {path:?}")));
    }
    Ok(PutRequest {
        path: path.as_bytes().to_vec(),
        mode: metadata.map(|metadata| (metadata.mode() & 0o777) as u16),
        owner: None,
        modified: metadata.map(|metadata| (metadata.mtime(), metadata.mtime_nsec() as u32)),
    })
}

/// Copies out beside the target and renames, so that a copy that breaks off replaces nothing.
fn get(runtime: &Runtime, name: &VmName, path: &str, to: &Path) -> anyhow::Result<()> {
    if to == Path::new("-") {
        runtime.get(name, path.as_bytes(), &mut io::stdout().lock())?;
        return Ok(());
    }
    let target = if to.is_dir() { to.join(file_name(Path::new(path))?) } else { to.to_owned() };
    let mut partial = target.clone().into_os_string();
    partial.push(".vmwright-part");
    let partial = PathBuf::from(partial);
    let written = write_out(runtime, name, path, &partial);
    match written.and_then(|()| Ok(fs::rename(&partial, &target)?)) {
        Ok(()) => Ok(()),
        Err(error) => {
            let _ = fs::remove_file(&partial);
            Err(error)
        }
    }
}

fn write_out(runtime: &Runtime, name: &VmName, path: &str, partial: &Path) -> anyhow::Result<()> {
    let mut file = File::create(partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let info = runtime.get(name, path.as_bytes(), &mut file)?;
    file.flush()?;
    // Set-id bits out of a guest would be a gift to it.
    fs::set_permissions(partial, fs::Permissions::from_mode(u32::from(info.mode) & 0o777))?;
    Ok(())
}
