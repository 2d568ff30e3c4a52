//! Rules of the house that no lint knows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::workspace::{Metadata, root};

/// The only files in which an `unsafe` block may stand.
const UNSAFE_ALLOWED: [&str; 2] = ["crates/vm/agent/src/sys.rs", "crates/vm/runtime/src/sys.rs"];

/// Where processes may be started: the runtime's side, and what is not part of the product.
const PROCESSES_ALLOWED: [&str; 4] = ["crates/vm/", "crates/cli/", "crates/storage/judges/", "xtask/"];

/// Checks every Rust source of the repository.
pub(crate) fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for path in sources()? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root())?.to_string_lossy().into_owned();
        wrong.extend(check_source(&name, &text).into_iter().map(|what| format!("{name}: {what}")));
    }
    wrong.extend(check_manifests()?);
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// All Rust sources of the members, build scripts included.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root().join("crates"), root().join("xtask")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn check_source(name: &str, text: &str) -> Vec<&'static str> {
    let is_test = name.contains("/tests/") || name.ends_with("/tests.rs") || name.contains("/examples/");
    let in_storage = name.starts_with("crates/storage/") && !name.starts_with("crates/storage/judges/");
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let code = || product.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut wrong = Vec::new();
    let uses_unsafe = code().any(|line| line.contains("unsafe {") || line.contains("unsafe fn "));
    if uses_unsafe && !UNSAFE_ALLOWED.contains(&name) && name != "xtask/src/rules.rs" {
        wrong.push("unsafe code outside the files where it is allowed");
    }
    if is_test {
        return wrong;
    }
    let starts_processes = code().any(|line| line.contains("Command::new("));
    if starts_processes && !PROCESSES_ALLOWED.iter().any(|allowed| name.starts_with(allowed)) {
        wrong.push("starts a process outside the runtime's side");
    }
    let touches_files = code().any(|line| line.contains("std::fs") || line.contains("rustix::fs"));
    if in_storage && touches_files && !name.starts_with("crates/storage/disk/") {
        wrong.push("touches host files outside the disk crate");
    }
    wrong
}

/// Checks that each library forbids unsafe code or is one of those that hold an allowed file.
fn check_manifests() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for package in Metadata::load()?.members() {
        let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
        let name = folder.strip_prefix(root())?.to_string_lossy().into_owned();
        let holds_unsafe = UNSAFE_ALLOWED.iter().any(|allowed| allowed.starts_with(&format!("{name}/")));
        let tops = ["src/lib.rs", "src/main.rs"].map(|top| folder.join(top));
        for top in tops.iter().filter(|top| top.is_file()) {
            let text = fs::read_to_string(top)?;
            if !holds_unsafe && !text.contains("#![forbid(unsafe_code)]") {
                wrong.push(format!("{name} does not forbid unsafe code"));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::check_source;

    #[test]
    fn a_storage_crate_may_not_open_host_files() {
        assert_eq!(check_source("crates/storage/image/src/lib.rs", "use std::fs::File;").len(), 1);
        assert!(check_source("crates/storage/disk/src/file.rs", "use std::fs::File;").is_empty());
        assert!(check_source("crates/storage/image/tests/qcow2.rs", "use std::fs::File;").is_empty());
    }

    #[test]
    fn unsafe_code_stays_where_it_is_allowed() {
        assert_eq!(check_source("crates/vm/vmm/src/lib.rs", "unsafe { go() }").len(), 1);
        assert!(check_source("crates/vm/agent/src/sys.rs", "unsafe { go() }").is_empty());
    }
}
