use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::admit::Admitted;
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::identity::ProcessIdentity;
use crate::spawner::Spawner;

/// The name of the virtio-serial port that carries the agent's channel.
///
/// The agent looks for it in `/sys/class/virtio-ports/*/name`.
pub const AGENT_PORT: &str = vmwright_agent_proto::PORT_NAME;

/// A future behind a pointer, as object-safe traits need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A virtual machine monitor.
pub trait Backend: Send + Sync {
    /// The backend's name, such as `qemu`: the first part of its profiles' names.
    fn name(&self) -> &'static str;

    /// Finds out what the installed version can do, for each profile; the preferred one first.
    fn probe<'a>(&'a self, spawner: &'a dyn Spawner) -> BoxFuture<'a, Result<Vec<Capabilities>>>;

    /// Starts a machine and returns once its monitor runs and answers.
    ///
    /// `dir` is the machine's own directory, readable by its owner alone (mode 0700); the backend puts sockets
    /// there and removes them when the monitor has ended. On failure, and when the future
    /// is dropped, no process is left behind. It needs a tokio runtime with I/O and time.
    fn launch<'a>(
        &'a self,
        spec: &'a Admitted,
        dir: &'a Path,
        start: Start,
        resources: Resources<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Instance>>>;
}

/// What a machine begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// The boot that the specification describes.
    Boot,
}

/// What the caller lends to a launch.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Resources<'a> {
    /// Creates the monitor's processes.
    pub spawner: &'a dyn Spawner,
}

impl<'a> Resources<'a> {
    /// Lends a spawner.
    pub fn new(spawner: &'a dyn Spawner) -> Self {
        Self { spawner }
    }
}

/// A machine whose monitor was started.
///
/// All methods take `&self` and may run at the same time. Dropping an instance whose monitor still runs kills it.
pub trait Instance: Send + Sync {
    /// The monitor's process.
    fn identity(&self) -> &ProcessIdentity;

    /// What this machine can do; its facets equal what is offered here.
    fn capabilities(&self) -> &Capabilities;

    /// Waits until the monitor has ended and says how; once it has, answers the same at once.
    fn wait(&self) -> BoxFuture<'_, Exit>;

    /// Asks the guest to power off as a power button would, gives it the time stated, then kills.
    ///
    /// A guest without anything that listens to its power button uses all the time: where
    /// the agent answers, ask it first. A machine that has ended already answers its exit.
    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, Exit>;

    /// Kills the monitor and waits for its end; a machine that has ended already answers its exit.
    fn kill(&self) -> BoxFuture<'_, Exit>;

    /// Connects to the agent's channel; one connection at a time is served.
    fn agent(&self) -> BoxFuture<'_, Result<UnixStream>>;

    /// Hands over the guest's console, once: what the guest prints is read from it, what is written is typed.
    ///
    /// Take it and keep reading where the specification has a console: a guest whose console is
    /// full waits. It ends with the monitor.
    fn console(&self) -> Result<UnixStream>;

    /// Pauses and resumes, where that is offered.
    fn pause(&self) -> Option<&dyn Pause>;
}

/// Stops and continues a guest's processors.
pub trait Pause: Send + Sync {
    /// Stops the processors; a paused guest stays paused.
    fn pause(&self) -> BoxFuture<'_, Result<()>>;

    /// Lets the processors continue; a running guest stays running.
    fn resume(&self) -> BoxFuture<'_, Result<()>>;
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why it ended.
    pub reason: ExitReason,
    /// The monitor's exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended the monitor.
    pub signal: Option<i32>,
    /// The last lines that the monitor wrote to its standard error.
    pub stderr: String,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered off.
    GuestShutdown,
    /// The guest reset itself, which is also how a microVM without power-off and a panic end.
    GuestReset,
    /// The guest reported a panic.
    GuestPanic,
    /// The caller killed it, or its grace was over.
    Killed,
    /// The monitor ended by itself or by somebody else's signal.
    MonitorFailed,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::GuestShutdown => "the guest powered off",
            Self::GuestReset => "the guest reset",
            Self::GuestPanic => "the guest panicked",
            Self::Killed => "it was killed",
            Self::MonitorFailed => "the monitor failed",
        })
    }
}
