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

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> std::process::Child {
        std::process::Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn a_reused_pid_is_not_killed() {
        let mut child = sleeper();
        let now = ProcessIdentity::of(child.id()).unwrap().unwrap();
        let earlier = ProcessIdentity { start_time: now.start_time - 1, ..now.clone() };
        assert!(!earlier.is_alive().unwrap());
        assert!(!earlier.kill().unwrap());
        assert!(now.is_alive().unwrap(), "the process that has the number now lives on");
        assert!(now.kill().unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn a_pid_from_before_the_host_restarted_is_not_killed() {
        let mut child = sleeper();
        let now = ProcessIdentity::of(child.id()).unwrap().unwrap();
        let before =
            ProcessIdentity { boot_id: "00000000-0000-0000-0000-000000000000".into(), ..now.clone() };
        assert!(!before.is_alive().unwrap() && !before.kill().unwrap());
        assert!(now.is_alive().unwrap());
        assert!(now.terminate().unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_has_ended_is_gone_even_while_nobody_has_waited_for_it() {
        let mut child = sleeper();
        let identity = ProcessIdentity::of(child.id()).unwrap().unwrap();
        assert!(identity.kill().unwrap());
        while identity.is_alive().unwrap() {
            std::thread::yield_now();
        }
        assert_eq!(ProcessIdentity::of(identity.pid).unwrap(), None, "it is a zombie now");
        assert!(!identity.kill().unwrap());
        child.wait().unwrap();
        assert!(!identity.kill().unwrap());
    }

    #[test]
    fn numbers_that_no_process_has_are_nobody() {
        for pid in [0, u32::MAX, i32::MAX.unsigned_abs()] {
            assert_eq!(ProcessIdentity::of(pid).unwrap(), None);
            let nobody = ProcessIdentity { pid, start_time: 0, boot_id: boot_id().unwrap() };
            assert!(!nobody.is_alive().unwrap() && !nobody.kill().unwrap());
        }
        assert!(ProcessIdentity::current().unwrap().is_alive().unwrap());
    }

    #[test]
    fn a_name_full_of_parentheses_does_not_move_the_fields() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        let stat = format!("77 (a) R 1 (b\n) {fields}");
        assert_eq!(parse_start_time(stat.as_bytes()), Some(Some(4242)));
        let zombie = format!("77 (x) {}", fields.replace('S', "Z"));
        assert_eq!(parse_start_time(zombie.as_bytes()), Some(None));
        for bad in [
            "",
            "77",
            "77 (x",
            "77 (x)",
            "77 (x) S 1 2",
            "77 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x",
        ] {
            assert_eq!(parse_start_time(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
