//! One process per VM, which owns the VM's monitor and speaks with its agent.
//!
//! ```text
//! command ──spawn──▶ shim ──spawn, PDEATHSIG──▶ monitor ◀─channel─▶ agent in the guest
//!    │  control pair  │ ▲                          │
//!    └────────────────┘ └──── shim.sock ◀── any number of commands
//! ```
//!
//! A shim never opens the store: it writes `state.json` and `exit.json`, which commands read. It holds the
//! lock on the VM's directory as long as it lives.

mod agent;
pub(crate) mod cgroup;
pub(crate) mod log;
mod server;
pub(crate) mod state;
mod supervisor;
mod transfer;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{LocalSet, spawn_local};
use vmwright_vmm::fake::Fake;
use vmwright_vmm::qemu::Qemu;
use vmwright_vmm::{Backend, ProcessIdentity};

use self::agent::Hub;
use self::log::Log;
use self::state::{ExitCause, ExitRecord, Launch, LeaseEnd, Monitor, RECORD_VERSION, ShimState, now};
use self::supervisor::{Control, Ended, Order, chain};
use crate::layout::{self, Home, VmDir};
use crate::protocol::{PROTOCOL, Ready, Report, StartFailure};
use crate::{Error, Result, VmName, fault, process, record, sys};

pub use self::log::MAX_LOG;

/// The first argument of a program that is to be a shim: `vmwright __shim HOME NAME`.
pub const ARGUMENT: &str = "__shim";

/// How long answers to commands that wait for the VM's end may take to be taken.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What all tasks of a shim share. One thread runs them all.
pub(crate) struct Shared {
    launch: Launch,
    dir: VmDir,
    identity: ProcessIdentity,
    hub: Rc<Hub>,
    log: Log,
    state: RefCell<ShimState>,
    vmm: RefCell<Option<ProcessIdentity>>,
    orders: mpsc::Sender<Order>,
    exit: watch::Sender<Option<ExitRecord>>,
    /// The half of the control connection that reports go through.
    reports: RefCell<Option<OwnedWriteHalf>>,
    connections: Cell<usize>,
    disconnected: Notify,
}

impl Shared {
    /// Changes what is on record of this shim.
    fn note(&self, change: impl FnOnce(&mut ShimState)) {
        let mut state = self.state.borrow_mut();
        change(&mut state);
        if let Err(error) = record::write(&self.dir.state(), &*state) {
            self.log.line(&chain(&error));
        }
    }

    async fn report_ready(&self, ready: Ready) {
        self.report(&Report::Ready(ready)).await;
    }

    /// Tells the starting command; that it has gone is noticed elsewhere.
    async fn report(&self, report: &Report) {
        let Some(mut half) = self.reports.borrow_mut().take() else { return };
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            let _ = half.write_all(&line).await;
        }
        // Kept open: its end tells the command that this process has ended.
        *self.reports.borrow_mut() = Some(half);
    }
}

/// Is a shim, as `vmwright __shim` and tests' programs call it; `args` are what follows [`ARGUMENT`].
///
/// Standard input is the control connection to the starting command, standard output the descriptor that
/// the VM's lock is held through, standard error a log. Must be called before the process has a second
/// thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match begin(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is no one to print to: the command that waits is told through the control connection.
            let failure = StartFailure { silent: false, message: chain(&error) };
            if let Ok(line) = serde_json::to_vec(&Report::Failed(failure)) {
                let _ = rustix::io::write(rustix::stdio::stdin(), &[line.as_slice(), b"\n"].concat());
            }
            ExitCode::FAILURE
        }
    }
}

fn begin(args: impl IntoIterator<Item = OsString>) -> Result<()> {
    let mut args = args.into_iter();
    let (Some(home), Some(name)) = (args.next(), args.next()) else {
        return Err(Error::invalid("a shim is started by `vmwright vm start`, with a home and a name"));
    };
    let name: VmName = name.to_str().unwrap_or_default().parse()?;
    let dir = Home::at(Path::new(&home))?.vm(&name);
    let setup = |error: io::Error| Error::system("set up the shim", error);
    sys::detach().map_err(setup)?;
    let _ = rustix::thread::set_name(c"vmwright-shim");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| setup(error.into()))?;
    std::env::set_current_dir("/").map_err(setup)?;
    let control = rustix::stdio::stdin().try_clone_to_owned().map_err(setup)?;
    let lock = rustix::stdio::stdout().try_clone_to_owned().map_err(setup)?;
    let launch = state::read_launch(&dir)?;
    silence_standard_streams().map_err(setup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(setup)?;
    LocalSet::new().block_on(&runtime, supervise(launch, dir, control))?;
    // Held to the very end: while it is, nobody else touches the VM's directory.
    drop(lock);
    Ok(())
}

/// Points standard input and output elsewhere: the monitor and its helpers must not inherit what they were.
fn silence_standard_streams() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    Ok(())
}

async fn supervise(launch: Launch, dir: VmDir, control: OwnedFd) -> Result<()> {
    let setup = |error: io::Error| Error::system("set up the shim", error);
    let control = StdStream::from(control);
    control.set_nonblocking(true).map_err(setup)?;
    let (incoming, outgoing) = UnixStream::from_std(control).map_err(setup)?.into_split();
    let mut control = Control::new(incoming);
    let (orders, mut received) = mpsc::channel(4);
    let shared = shared(launch, dir, outgoing, orders)?;
    let cgroup = cgroup::planned(&format!("{}-{}", shared.launch.vm, shared.launch.run));
    // On record before it exists: what is never made need not be found, what is made must be.
    shared.state.borrow_mut().cgroup = cgroup.clone();
    record::write(&shared.dir.state(), &*shared.state.borrow())?;
    fault::point("shim.noted");
    let entered = cgroup.filter(|group| cgroup::enter(group));
    let ended = match prepare(&shared) {
        Ok(()) => serve(&shared, &mut received, &mut control).await,
        Err(error) => not_begun(&shared, chain(&error)),
    };
    clean_up(&shared, ended, entered.as_deref()).await
}

fn shared(
    launch: Launch,
    dir: VmDir,
    reports: OwnedWriteHalf,
    orders: mpsc::Sender<Order>,
) -> Result<Rc<Shared>> {
    let identity = process::own()?;
    let log = Log::open(&dir.shim_log()).map_err(|source| Error::host("open", &dir.shim_log(), source))?;
    let state = ShimState {
        version: RECORD_VERSION,
        run: launch.run.clone(),
        protocol: PROTOCOL,
        shim: identity.clone(),
        vmm: None,
        cgroup: None,
        agent: None,
        started_at: now(),
        restarts: 0,
    };
    Ok(Rc::new(Shared {
        launch,
        dir,
        identity,
        hub: Hub::new(),
        log,
        state: RefCell::new(state),
        vmm: RefCell::new(None),
        orders,
        exit: watch::Sender::new(None),
        reports: RefCell::new(Some(reports)),
        connections: Cell::new(0),
        disconnected: Notify::new(),
    }))
}

/// Makes the directory of sockets and listens in it.
fn prepare(shared: &Rc<Shared>) -> Result<()> {
    layout::private_dir(shared.dir.sockets())?;
    let path = shared.dir.shim_socket();
    let fail = |source| Error::host("listen on", &path, source);
    let listener = match StdListener::bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Only a refused connection proves that nobody listens.
            match StdStream::connect(&path) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => return Err(fail(error)),
            }
            layout::remove_file(&path)?;
            StdListener::bind(&path).map_err(fail)?
        }
        other => other.map_err(fail)?,
    };
    listener.set_nonblocking(true).map_err(fail)?;
    let listener = UnixListener::from_std(listener).map_err(fail)?;
    spawn_local(server::serve(listener, shared.clone()));
    fault::point("shim.listening");
    Ok(())
}

async fn serve(shared: &Rc<Shared>, orders: &mut mpsc::Receiver<Order>, control: &mut Control) -> Ended {
    let backend: Box<dyn Backend> = match &shared.launch.monitor {
        Monitor::Qemu { program, cache } => Box::new(Qemu::new(program, cache)),
        Monitor::Fake(Fake { program, fault }) => Box::new(Fake::new(program).with_fault(*fault)),
    };
    spawn_local(obey_signals(shared.clone()));
    spawn_local(reap(shared.clone()));
    match vmwright_vmm::admit(&shared.launch.spec, &shared.launch.capabilities) {
        Ok(admitted) => supervisor::run(shared, &*backend, &admitted, orders, control).await,
        Err(refusals) => not_begun(shared, refusals.to_string()),
    }
}

/// The end of a VM whose monitor was never started.
fn not_begun(shared: &Shared, message: String) -> Ended {
    let exit = ExitRecord {
        version: RECORD_VERSION,
        run: shared.launch.run.clone(),
        cause: ExitCause::StartFailed,
        vmm: None,
        goodbye: false,
        detail: Some(message.clone()),
        at: now(),
    };
    Ended { exit, failure: Some(StartFailure { silent: false, message }) }
}

/// A signal to end is an order to stop; a host that shuts down sends one.
async fn obey_signals(shared: Rc<Shared>) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let order = Order { cause: ExitCause::Stopped, grace: Duration::from_secs(5) };
        let _ = shared.orders.try_send(order);
    }
}

/// Reaps what the monitor's children left to this process.
async fn reap(shared: Rc<Shared>) {
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    while children.recv().await.is_some() {
        let vmm = shared.vmm.borrow().as_ref().map(|vmm| vmm.pid);
        for pid in orphans().into_iter().filter(|pid| vmm.is_some_and(|vmm| vmm != *pid)) {
            wait_for(pid);
        }
    }
}

/// The children of this process.
fn orphans() -> Vec<u32> {
    let pid = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/self/task/{pid}/children")).unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn wait_for(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // That it is none of ours any more is fine.
    let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::NOHANG);
}

/// Takes everything down in the reverse order of its making; the record of it goes last.
async fn clean_up(shared: &Rc<Shared>, ended: Ended, entered: Option<&Path>) -> Result<()> {
    for pid in orphans() {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // A child cannot hand its number on before it is reaped here.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        }
    }
    fault::point("shim.ended");
    shared.log.line(&format!("ended: {:?}", ended.exit));
    record::write(&shared.dir.exit(), &ended.exit)?;
    fault::point("shim.exit-written");
    layout::remove_dir(shared.dir.sockets())?;
    fault::point("shim.sockets-removed");
    if let Some(group) = entered
        && let Err(error) = cgroup::leave(group)
    {
        shared.log.line(&format!("cannot remove the control group {}: {error}", group.display()));
    }
    layout::remove_dir(&shared.dir.boot())?;
    layout::remove_file(&shared.dir.launch())?;
    layout::remove_file(&shared.dir.state())?;
    fault::point("shim.cleaned");
    // A command that waits for a failed start still reads the console, and removes the rest itself.
    let is_waited_for = ended.failure.is_some() && ended.exit.cause != ExitCause::Lease;
    if shared.launch.lease == Some(LeaseEnd::Delete) && !is_waited_for {
        layout::remove_dir(shared.dir.path())?;
    }
    if let Some(failure) = ended.failure {
        shared.report(&Report::Failed(failure)).await;
    }
    shared.exit.send_replace(Some(ended.exit));
    let taken = async {
        while shared.connections.get() > 0 {
            shared.disconnected.notified().await;
        }
    };
    // Commands that wait get their answer; those that do not take it are not waited for.
    let _ = tokio::time::timeout(LAST_WORDS, taken).await;
    Ok(())
}

/// A number for a session that no other one has.
fn epoch() -> NonZeroU64 {
    let mut bytes = [0; 8];
    // Where the host has no random numbers, time at least differs.
    let random = sys::random(&mut bytes).map(|()| u64::from_le_bytes(bytes));
    NonZeroU64::new(random.unwrap_or_else(|_| now())).unwrap_or(NonZeroU64::MIN)
}
