//! A control group of the VM's own, where the host lets this user have one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where this process's group lies in the hierarchy of version 2, if there is one.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let point = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
    })?;
    Some(Path::new(point).join(path))
}

/// The group that a VM would have, beside nothing else of that name.
pub(super) fn planned(name: &str) -> Option<PathBuf> {
    Some(own_group()?.join(format!("vmwright-{name}")))
}

/// Makes the group and enters it; answers whether that was allowed.
pub(super) fn enter(group: &Path) -> bool {
    let entered = match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return false,
        _ => fs::write(group.join("cgroup.procs"), b"0"),
    };
    if entered.is_err() {
        // An empty group of ours that could not be entered; it has no other use.
        let _ = fs::remove_dir(group);
    }
    entered.is_ok()
}

/// Leaves the group and removes it.
pub(super) fn leave(group: &Path) -> io::Result<()> {
    if let Some(parent) = group.parent() {
        fs::write(parent.join("cgroup.procs"), b"0")?;
    }
    remove(group)
}

/// Kills whatever is left in a group whose shim is gone, and removes it.
pub(crate) fn clear(group: &Path) -> io::Result<()> {
    match fs::write(group.join("cgroup.kill"), b"1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !group.exists() => return Ok(()),
        // Kernels before 5.14 cannot; then the group must be empty already.
        _ => {}
    }
    remove(group)
}

fn remove(group: &Path) -> io::Result<()> {
    // A killed process leaves its group when it is reaped, which may take a moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}
