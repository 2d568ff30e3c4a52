//! Test systems, built from the distribution's packages and kept under `target/cache`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::workspace::{root, run as run_command};

/// Where the Debian root is kept, as a tar file.
pub(crate) fn debian_tar() -> PathBuf {
    root().join("target/cache/debian.tar")
}

/// Builds what is missing.
pub(crate) fn run() -> Result<()> {
    let tar = debian_tar();
    if tar.is_file() {
        println!("{} is there", tar.display());
        return Ok(());
    }
    run_command(Command::new("scripts/build-debian-root.sh").arg(&tar))?;
    println!("built {}", tar.display());
    Ok(())
}
