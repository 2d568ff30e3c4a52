use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::{AgentMode, CreateRequest};
use crate::protocol;
use crate::runtime::Runtime;
use crate::shim::state::LeaseEnd;
use crate::{ErrorKind, ExecRequest, PutRequest, Result, Session, StartOptions, StopOptions, VmInfo, VmName};

/// How long a killed VM may take to be gone.
const GOING: Duration = Duration::from_secs(15);

/// A VM that is run for as long as somebody wants it.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// What it is to be.
    pub vm: CreateRequest,
    /// How it is started.
    pub start: StartOptions,
    /// How the agent runs in it.
    pub agent: AgentMode,
    /// Whether the VM, with what was written to its disk, stays afterwards, stopped.
    pub keep: bool,
}

impl RunRequest {
    /// Runs a VM whose agent is process 1, and throws it away afterwards.
    pub fn new(vm: CreateRequest) -> Self {
        Self { vm, start: StartOptions::default(), agent: AgentMode::Init, keep: false }
    }
}

/// A VM that lives no longer than this value, or this process.
///
/// [`Ephemeral::finish`] ends it and says how that went. Dropping it, or dying, ends it too: its shim notices.
#[derive(Debug)]
pub struct Ephemeral<'a> {
    runtime: &'a Runtime,
    vm: VmInfo,
    notices: Vec<String>,
    keep: bool,
    /// While this is open, the VM lives.
    lease: UnixStream,
}

impl Runtime {
    /// Makes a VM, boots it and holds it.
    pub fn run(&self, request: &RunRequest) -> Result<Ephemeral<'_>> {
        let name = match &request.vm.name {
            Some(name) => name.clone(),
            None => VmName::random("run")?,
        };
        let lock = self.create_with(&name, &request.vm, request.agent, !request.keep)?;
        let end = if request.keep { LeaseEnd::Stop } else { LeaseEnd::Delete };
        let (started, control) = match self.start_leased(&name, &request.start, Some(end), Some(lock)) {
            Ok(started) => started,
            Err(error) => {
                self.erase(&name)?;
                return Err(error);
            }
        };
        let Some(lease) = control else {
            return Err(crate::Error::start(&name, "somebody else has started it"));
        };
        Ok(Ephemeral { runtime: self, vm: started.vm, notices: started.notices, keep: request.keep, lease })
    }
}

impl Ephemeral<'_> {
    /// The VM.
    pub fn vm(&self) -> &VmInfo {
        &self.vm
    }

    /// Its name.
    pub fn name(&self) -> &VmName {
        &self.vm.name
    }

    /// What the user should know about the start.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Runs a program in it.
    pub fn exec(&self, request: &ExecRequest) -> Result<Session> {
        self.runtime.exec(&self.vm.name, request)
    }

    /// Writes a file in it.
    pub fn put(&self, request: &PutRequest, from: &mut dyn std::io::Read) -> Result<u64> {
        self.runtime.put(&self.vm.name, request, from)
    }

    /// Ends it. One that is kept is powered off, so that its disk is whole; another one is killed and all of
    /// it removed.
    pub fn finish(self) -> Result<()> {
        let Self { runtime, vm, keep, lease, .. } = self;
        if keep {
            let stopped = runtime.stop(&vm.name, &StopOptions::default()).map(drop);
            drop(lease);
            return stopped;
        }
        if let Ok(connection) = runtime.connect(&vm.name) {
            let request = protocol::Request::Stop { grace_ms: 0, force: true };
            connection.end(&request, Some(GOING))?;
        }
        drop(lease);
        runtime.wait_unlocked(&vm.name, GOING)?;
        match runtime.erase(&vm.name) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
