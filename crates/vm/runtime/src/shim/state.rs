//! What a shim leaves on record: `launch.json` in, `state.json` and `exit.json` out.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vmwright_vmm::fake::Fake;
use vmwright_vmm::{Capabilities, Exit, ExitReason, ProcessIdentity, Spec};

use crate::config::{AgentMode, Restart};
use crate::layout::VmDir;
use crate::{Error, Result, VmName, record};

/// The version of all three records.
pub(crate) const RECORD_VERSION: u32 = 1;

/// What a shim is to run. Written by the starting command, read by the shim it starts, by no one else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) version: u32,
    /// The run's name: tells this run's records from an earlier one's.
    pub(crate) run: String,
    pub(crate) vm: VmName,
    pub(crate) spec: Spec,
    /// What the backend could do when the command looked.
    pub(crate) capabilities: Capabilities,
    pub(crate) monitor: Monitor,
    pub(crate) agent: AgentMode,
    /// How long the agent may take to answer.
    pub(crate) agent_timeout_ms: u64,
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) restart: Restart,
    /// What happens when the starting command goes; nothing where absent.
    pub(crate) lease: Option<LeaseEnd>,
}

/// The program that a shim runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Monitor {
    /// QEMU, and where it keeps what it found out about itself.
    Qemu { program: PathBuf, cache: PathBuf },
    /// A process that stands for a machine.
    Fake(Fake),
}

/// What becomes of a VM whose starting command has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LeaseEnd {
    /// It is stopped.
    Stop,
    /// It is killed, and its directory removed.
    Delete,
}

/// What a shim is responsible for. Written before each step that a crash could leave half done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimState {
    pub(crate) version: u32,
    pub(crate) run: String,
    /// The version of the protocol it speaks.
    pub(crate) protocol: u32,
    pub(crate) shim: ProcessIdentity,
    pub(crate) vmm: Option<ProcessIdentity>,
    /// Its control group, where it has one of its own.
    pub(crate) cgroup: Option<PathBuf>,
    /// What the agent calls itself.
    pub(crate) agent: Option<AgentState>,
    /// When it started, in seconds since 1970.
    pub(crate) started_at: u64,
    pub(crate) restarts: u32,
}

/// What the agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentState {
    pub(crate) version: String,
    pub(crate) boot_id: String,
}

/// How a VM's run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The version of this record.
    pub version: u32,
    /// Which run it was.
    pub run: String,
    /// Who or what brought the end about.
    pub cause: ExitCause,
    /// What the monitor's end looked like, where it ever ran.
    pub vmm: Option<Exit>,
    /// Whether the guest's agent took its leave.
    pub goodbye: bool,
    /// More about it, where there is more.
    pub detail: Option<String>,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// Who or what brought a VM's end about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitCause {
    /// Somebody stopped it.
    Stopped,
    /// The guest powered itself off, or rebooted.
    Guest,
    /// Its time was over.
    Ttl,
    /// Whoever ran it went away.
    Lease,
    /// Its monitor ended, and nobody had asked for it.
    Died,
    /// It never came up.
    StartFailed,
    /// Its shim ended without a record, or the host restarted.
    Lost,
    /// A cause of a later version.
    #[serde(other)]
    Other,
}

impl ExitRecord {
    /// Whether the run ended as it should.
    pub fn is_clean(&self) -> bool {
        matches!(self.cause, ExitCause::Stopped | ExitCause::Guest | ExitCause::Ttl | ExitCause::Lease)
    }
}

/// The cause of an end that nobody outside the guest asked for.
pub(crate) fn unasked(exit: &Exit, goodbye: bool) -> ExitCause {
    match exit.reason {
        ExitReason::GuestShutdown => ExitCause::Guest,
        // A reset is also how a panic ends: only the agent can tell that it was meant.
        ExitReason::GuestReset if goodbye => ExitCause::Guest,
        _ => ExitCause::Died,
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Reads what the starting command wants.
pub(crate) fn read_launch(dir: &VmDir) -> Result<Launch> {
    let path = dir.launch();
    let launch: Launch = record::read(&path)?
        .ok_or_else(|| Error::host("read", &path, std::io::Error::from(std::io::ErrorKind::NotFound)))?;
    match launch.version {
        RECORD_VERSION => Ok(launch),
        found => Err(Error::record_version(&path, found, RECORD_VERSION)),
    }
}

/// Reads what the shim last wrote of itself; a later version is read as far as it is understood.
pub(crate) fn read_state(dir: &VmDir) -> Result<Option<ShimState>> {
    record::read(&dir.state())
}

/// Reads how the last run ended.
pub(crate) fn read_exit(dir: &VmDir) -> Result<Option<ExitRecord>> {
    record::read(&dir.exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: ExitReason) -> Exit {
        Exit { reason, code: Some(0), signal: None, stderr: String::new() }
    }

    #[test]
    fn an_exit_without_goodbye_is_an_error_unless_the_monitor_saw_the_power_off() {
        assert_eq!(unasked(&exit(ExitReason::GuestShutdown), false), ExitCause::Guest);
        assert_eq!(unasked(&exit(ExitReason::GuestReset), true), ExitCause::Guest);
        assert_eq!(unasked(&exit(ExitReason::GuestReset), false), ExitCause::Died);
        assert_eq!(unasked(&exit(ExitReason::GuestPanic), true), ExitCause::Died);
        assert_eq!(unasked(&exit(ExitReason::MonitorFailed), true), ExitCause::Died);
    }

    #[test]
    fn a_cause_of_a_later_version_is_still_read() {
        let json = r#"{"version":2,"run":"r","cause":"eaten","vmm":null,"goodbye":false,"detail":null,"at":0,"new":1}"#;
        let exit: ExitRecord = serde_json::from_str(json).unwrap();
        assert_eq!(exit.cause, ExitCause::Other);
        assert!(!exit.is_clean());
    }
}
