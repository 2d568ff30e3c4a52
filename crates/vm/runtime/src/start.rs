use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use vmwright_vmm::{Accelerator, Backend, Capabilities, Engine, Profile, Spec};

use crate::boot_files::BootFiles;
use crate::config::{BackendChoice, VmConfig};
use crate::error::GuestSilence;
use crate::layout::VmDir;
use crate::lock::FileLock;
use crate::machine::{self, Answer, Event, Request};
use crate::protocol::{Ready, Report, StartFailure};
use crate::runtime::{Runtime, parse_config};
use crate::shim::state::{Launch, LeaseEnd, Monitor, RECORD_VERSION};
use crate::store::{OperationKind, Outcome, VmChange, VmRow};
use crate::{Error, Result, VmInfo, VmName, disks, fault, layout, logs, record, shim};

/// How many of the console's last lines an error carries.
const CONSOLE_LINES: usize = 20;
/// What a shim may need beyond what its agent may, to say how it went.
const SHIM_OVERHEAD: Duration = Duration::from_secs(120);
/// What of the environment a shim inherits. It lives long, and its monitor needs nothing else.
const KEPT_ENVIRONMENT: &[&str] = &["PATH", "HOME", "TMPDIR", "RUST_BACKTRACE", "VMWRIGHT_FAULT"];

/// How a VM is started.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// How long the agent in the guest may take to answer.
    pub agent_timeout: Duration,
}

impl Default for StartOptions {
    fn default() -> Self {
        Self { agent_timeout: Duration::from_secs(120) }
    }
}

/// A VM that runs.
#[derive(Debug, Clone)]
pub struct Started {
    /// The VM.
    pub vm: VmInfo,
    /// What executes it, where this call has started it.
    pub engine: Option<Engine>,
    /// What the user should know, such as that KVM did not work and another engine was taken.
    pub notices: Vec<String>,
}

/// What is to be launched and in what way it may be tried again.
struct Plan {
    spec: Spec,
    capabilities: Vec<Capabilities>,
    monitor: Monitor,
    /// Whether the user left the engine to us.
    may_fall_back: bool,
}

/// A shim that reported its VM running, with the connection it reported through.
pub(crate) struct Running {
    ready: Ready,
    engine: Engine,
    notices: Vec<String>,
    run: String,
    control: UnixStream,
}

impl Runtime {
    /// Boots a VM and waits until the agent in its guest answers. One that runs already is left as it is.
    pub fn start(&self, name: &VmName, options: &StartOptions) -> Result<Started> {
        // Without a lease nothing hangs on the connection.
        self.start_leased(name, options, None, None).map(|(started, _)| started)
    }

    /// Starts a VM; with a lease, it lives no longer than the connection that is answered.
    pub(crate) fn start_leased(
        &self,
        name: &VmName,
        options: &StartOptions,
        lease: Option<LeaseEnd>,
        lock: Option<FileLock>,
    ) -> Result<(Started, Option<UnixStream>)> {
        let row = self.row(name)?;
        match machine::request(row.state, Request::Start) {
            Ok(Answer::Already) => {
                let vm = self.info(row)?;
                return Ok((Started { vm, engine: None, notices: Vec::new() }, None));
            }
            Ok(Answer::Proceed) => {}
            Err(refusal) => return Err(Error::refused(name, Request::Start, refusal)),
        }
        let operation = self.begin(name, OperationKind::Start)?;
        fault::point("start.intended");
        let running = match self.bring_up(&row, options, lease, lock) {
            Ok(running) => running,
            Err(error) => {
                // The shim is gone or never was; what it left is removed before the next attempt may begin.
                let cleared = self.clear_run(name);
                self.store()?.finish(operation, Outcome::Failed, None)?;
                self.store()?.record_event(name, "start failed", &error.to_string())?;
                return cleared.and(Err(error));
            }
        };
        fault::point("start.ready");
        let change = VmChange {
            state: machine::event(row.state, Event::Started).unwrap_or(machine::State::Running),
            pid: Some(running.ready.vmm.pid),
            socket_path: Some(self.home.vm(name).shim_socket()),
            run: Some(running.run),
            detail: None,
        };
        self.store()?.finish(operation, Outcome::Done, Some(&change))?;
        self.store()?.record_event(name, "started", &running.engine.to_string())?;
        fault::point("start.done");
        let vm = self.inspect(name)?;
        let started = Started { vm, engine: Some(running.engine), notices: running.notices };
        Ok((started, Some(running.control)))
    }

    /// Everything between the intent and the agent's answer.
    fn bring_up(
        &self,
        row: &VmRow,
        options: &StartOptions,
        lease: Option<LeaseEnd>,
        mut lock: Option<FileLock>,
    ) -> Result<Running> {
        let name = &row.name;
        let config = parse_config(row)?;
        disks::check(name, &config)?;
        if lock.is_none() {
            // A shim that was killed while it cleared up may have left the rest of that to us.
            self.clear_run(name)?;
        }
        let mut plan = self.plan(name, &config)?;
        let mut notices = Vec::new();
        loop {
            let admitted = vmwright_vmm::choose(&plan.spec, &plan.capabilities).map_err(Error::vmm)?;
            let engine = admitted.engine();
            let capabilities = admitted.capabilities().clone();
            let mut spec = plan.spec.clone();
            let boot = BootFiles::of(self, &config, admitted.profile())?;
            let dir = self.home.vm(name);
            let lock = match lock.take() {
                Some(lock) => lock,
                None => FileLock::exclusive(&dir.lock(), Some(Duration::from_secs(10)))?,
            };
            fault::point("start.locked");
            if let Some(boot) = boot {
                boot.place(&dir, &mut spec.boot)?;
            }
            let launch = Launch {
                version: RECORD_VERSION,
                run: VmName::random("run")?.to_string(),
                vm: name.clone(),
                spec,
                capabilities,
                monitor: plan.monitor.clone(),
                agent: config.agent,
                agent_timeout_ms: millis(options.agent_timeout),
                ttl_ms: config.ttl.map(millis),
                restart: config.restart,
                lease,
            };
            match self.launch(&dir, &launch, lock)? {
                (Report::Ready(ready), control) => {
                    return Ok(Running { ready, engine, notices, run: launch.run, control });
                }
                (Report::Failed(failure), _) => {
                    self.wait_unlocked(name, Duration::from_secs(10))?;
                    if falls_back(&failure, engine, plan.may_fall_back) {
                        notices.push(format!("{name}: on KVM {}; started without it", failure.message));
                        plan.may_fall_back = false;
                        plan.spec.machine.accelerator = Accelerator::Tcg;
                        continue;
                    }
                    return Err(start_error(name, &dir, failure));
                }
            }
        }
    }

    /// Finds out what is asked for and who could serve it.
    fn plan(&self, name: &VmName, config: &VmConfig) -> Result<Plan> {
        let boot = vmwright_vmm::Boot {
            cmdline: config.cmdline_append.clone(),
            ..vmwright_vmm::Boot::direct("kernel")
        };
        let vmm_name = name.as_str().parse().map_err(|error| Error::invalid(format!("{error}")))?;
        let mut spec = Spec::new(vmm_name, boot);
        spec.machine.accelerator = config.accelerator;
        spec.machine.cpus = config.cpus;
        spec.machine.memory = config.memory;
        spec.disks = vec![disks::for_monitor(config)];
        let may_fall_back = config.accelerator == Accelerator::Auto;
        if let BackendChoice::Fake(fake) = &config.backend {
            spec.profile = Some(Profile::Fake);
            let capabilities = vec![vmwright_vmm::fake::Fake::capabilities()];
            return Ok(Plan { spec, capabilities, monitor: Monitor::Fake(fake.clone()), may_fall_back });
        }
        let qemu = self.qemu();
        let mut capabilities = self.probe(&qemu)?;
        match &config.backend {
            BackendChoice::Profile(profile) => spec.profile = Some(*profile),
            BackendChoice::Monitor(monitor) => capabilities.retain(|one| one.profile.backend() == monitor),
            BackendChoice::Auto | BackendChoice::Fake(_) => {}
        }
        debug_assert_eq!(qemu.name(), "qemu");
        let monitor = Monitor::Qemu { program: qemu.program().to_owned(), cache: self.vmm_cache() };
        Ok(Plan { spec, capabilities, monitor, may_fall_back })
    }

    /// Starts a shim and waits for its report.
    fn launch(&self, dir: &VmDir, launch: &Launch, lock: FileLock) -> Result<(Report, UnixStream)> {
        for stale in [dir.exit(), dir.state()] {
            layout::remove_file(&stale)?;
        }
        record::write(&dir.launch(), launch)?;
        fault::point("start.launch-written");
        let pair = UnixStream::pair().map_err(|error| Error::system("make a pair of sockets", error))?;
        let (ours, theirs) = pair;
        self.spawn_shim(dir, &launch.vm, theirs, lock)?;
        fault::point("start.spawned");
        let patience = Duration::from_millis(launch.agent_timeout_ms) + SHIM_OVERHEAD;
        ours.set_read_timeout(Some(patience)).map_err(|error| Error::system("set a timeout", error))?;
        let mut line = String::new();
        let read = BufReader::new(&ours).read_line(&mut line);
        match read {
            Ok(1..) => {}
            // The shim died; what it may have left is cleared up by the caller.
            Ok(0) => {
                return Err(Error::start(
                    &launch.vm,
                    format!("its shim ended; see {}", dir.shim_log().display()),
                ));
            }
            Err(error) => return Err(Error::start(&launch.vm, format!("its shim does not report: {error}"))),
        }
        let report = serde_json::from_str(&line)
            .map_err(|error| Error::start(&launch.vm, format!("its shim reports nonsense: {error}")))?;
        Ok((report, ours))
    }

    /// Starts the shim's process, which has left this one's session when this returns.
    fn spawn_shim(&self, dir: &VmDir, vm: &VmName, control: UnixStream, lock: FileLock) -> Result<()> {
        let path = self.find_binary()?;
        let fail = |source| Error::host("start the shim from", &path, source);
        // Opened once and run through the descriptor: a file replaced meanwhile is another program.
        let binary = File::open(&path).map_err(fail)?;
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.shim_log());
        let log = log.map_err(|source| Error::host("open", &dir.shim_log(), source))?;
        let kept = KEPT_ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
        command.arg0("vmwright").arg(shim::ARGUMENT).arg(self.home.root()).arg(vm.as_str());
        command.env_clear().envs(kept);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(control)));
        command.stdout(Stdio::from(lock.into_fd())).stderr(Stdio::from(log));
        let mut child = command.spawn().map_err(fail)?;
        // It forks and ends at once; its child, which is nobody's to reap, goes on.
        child.wait().map(drop).map_err(fail)
    }

    fn find_binary(&self) -> Result<PathBuf> {
        if let Some(binary) = &self.binary {
            return Ok(binary.clone());
        }
        if let Some(binary) = std::env::var_os("VMWRIGHT_BIN").filter(|binary| !binary.is_empty()) {
            return Ok(binary.into());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut candidates = std::env::split_paths(&path).map(|dir| dir.join("vmwright"));
        candidates.find(|candidate| is_program(candidate)).ok_or_else(Error::no_binary)
    }
}

/// Whether a start that failed is tried once more without KVM.
///
/// Whatever its probe said, a guest that never answers may not run on this host's KVM; where the user left
/// the engine open, one failure is enough to take the other.
fn falls_back(failure: &StartFailure, engine: Engine, is_open: bool) -> bool {
    failure.silent && engine == Engine::Kvm && is_open
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn start_error(name: &VmName, dir: &VmDir, failure: StartFailure) -> Error {
    match failure.silent {
        true => {
            let console = last_lines(dir).unwrap_or_default();
            Error::silence(name, GuestSilence { what: failure.message, console })
        }
        false => Error::start(name, failure.message),
    }
}

/// The console's last lines, fit for a terminal.
fn last_lines(dir: &VmDir) -> io::Result<Vec<String>> {
    let tail = logs::tail(&dir.console_log(), 16 * 1024)?;
    let text = String::from_utf8_lossy(&tail);
    let lines =
        text.lines().map(|line| line.trim_end().replace(|c: char| c.is_control() && c != '\t', "\u{FFFD}"));
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    Ok(lines[lines.len().saturating_sub(CONSOLE_LINES)..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_silent_guest_on_kvm_that_nobody_asked_for_is_tried_without_it() {
        let failure = |silent| StartFailure { silent, message: String::new() };
        assert!(falls_back(&failure(true), Engine::Kvm, true));
        assert!(!falls_back(&failure(true), Engine::Kvm, false));
        assert!(!falls_back(&failure(true), Engine::Tcg, true));
        assert!(!falls_back(&failure(false), Engine::Kvm, true));
    }
}
