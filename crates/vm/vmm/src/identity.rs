use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which process, so that neither a reused number nor a restart of the host can be mistaken for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// The process's number.
    pub pid: u32,
    /// When it started, in clock ticks since the host's start (`/proc/PID/stat`, field 22).
    pub start_time: u64,
    /// The host's boot in which it ran (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

impl ProcessIdentity {
    /// Reads the identity of a process that exists now, or nothing where there is none of this number.
    pub fn of(pid: u32) -> Result<Option<Self>> {
        match start_time(pid)? {
            Some(start_time) => Ok(Some(Self { pid, start_time, boot_id: boot_id()? })),
            None => Ok(None),
        }
    }

    /// The identity of the calling process.
    pub fn current() -> Result<Self> {
        let pid = std::process::id();
        let error = || Error::host("find", Path::new("/proc/self"), io::ErrorKind::NotFound.into());
        Self::of(pid)?.ok_or_else(error)
    }

    /// Whether exactly this process exists and has not ended; one that nobody has waited for has ended.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(self.boot_id == boot_id()? && start_time(self.pid)? == Some(self.start_time))
    }

    /// Kills exactly this process, and says whether it was there to be killed.
    ///
    /// The process is held by a descriptor before its identity is compared, so its number cannot pass to another one in between.
    pub fn kill(&self) -> Result<bool> {
        self.signal(Signal::KILL)
    }

    /// Asks exactly this process to end, and says whether it was there to be asked.
    pub fn terminate(&self) -> Result<bool> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> Result<bool> {
        let error = |source: rustix::io::Errno| {
            Error::host("signal", Path::new(&format!("/proc/{}", self.pid)), source.into())
        };
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
        let held = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(held) => held,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(source) => return Err(error(source)),
        };
        if !self.is_alive()? {
            return Ok(false);
        }
        match pidfd_send_signal(held, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(source) => Err(error(source)),
        }
    }
}

/// The identifier of the host's current boot.
pub fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|source| Error::host("read", path, source))?;
    Ok(text.trim().to_owned())
}

/// When a process started, or nothing where it does not exist or is a zombie.
fn start_time(pid: u32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read(&path) {
        Ok(stat) => stat,
        // A process that ends between open and read gives ESRCH.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(source) => return Err(Error::host("read", Path::new(&path), source)),
    };
    let malformed = || Error::host("understand", Path::new(&path), io::ErrorKind::InvalidData.into());
    parse_start_time(&stat).ok_or_else(malformed)
}

/// Reads state and field 22; the name before them is in parentheses and may itself hold any byte but zero.
fn parse_start_time(stat: &[u8]) -> Option<Option<u64>> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((!matches!(state, "Z" | "X" | "x")).then_some(start_time))
}
