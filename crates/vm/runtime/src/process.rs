//! Ending exactly the process that was meant.
//!
//! A pid alone names whoever has it now. What the store and the state files keep is a
//! [`ProcessIdentity`]: pid, start time and boot id; a signal goes through a pidfd that was compared with
//! those first.

use std::time::{Duration, Instant};

use vmwright_vmm::ProcessIdentity;

use crate::{Error, Result};

/// How long a process may take to go once it is killed; a loaded host reaps slowly.
const DYING: Duration = Duration::from_secs(10);

/// The identity of the calling process.
pub(crate) fn own() -> Result<ProcessIdentity> {
    ProcessIdentity::current().map_err(Error::vmm)
}

/// Whether exactly this process runs; one that cannot be looked at is taken to.
pub(crate) fn is_alive(process: &ProcessIdentity) -> bool {
    process.is_alive().unwrap_or(true)
}

/// Waits until it is gone, at most so long; answers whether it is.
pub(crate) fn wait_gone(process: &ProcessIdentity, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while is_alive(process) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Kills it, if it is there, and waits until it is gone; answers whether it was there.
pub(crate) fn kill(process: &ProcessIdentity) -> Result<bool> {
    let was_there = process.kill().map_err(Error::vmm)?;
    if was_there && !wait_gone(process, DYING) {
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        return Err(Error::system("end a killed process", late));
    }
    Ok(was_there)
}
