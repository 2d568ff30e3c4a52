//! Test systems, built from the distribution's packages and kept under `target/cache`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::workspace::{root, run as run_command};

/// What the Debian test system holds beyond the essential packages.
const DEBIAN_PACKAGES: &str = "systemd-sysv,dbus,linux-image-cloud-amd64,openssh-server,cloud-init,iproute2,netbase,\
                               attr,acl,python3-minimal";

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
    fs::create_dir_all(root().join("target/cache"))?;
    let partial = tar.with_extension("part.tar");
    let include = format!("--include={DEBIAN_PACKAGES}");
    let mut build = Command::new("mmdebstrap");
    build.args(["--quiet", "--variant=minbase", &include, "bookworm"]).arg(&partial);
    run_command(&mut build)?;
    fs::rename(&partial, &tar)?;
    println!("built {}", tar.display());
    Ok(())
}
