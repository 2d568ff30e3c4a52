use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::qmp::{PROMPT, Qmp};
use super::render::{Surroundings, render};
use super::{PACKAGE, images};
use crate::admit::Admitted;
use crate::backend::{BoxFuture, Exit, ExitReason, Instance, Pause};
use crate::capabilities::Capabilities;
use crate::console::Console;
use crate::dir;
use crate::error::{Error, Reason, Result};
use crate::identity::ProcessIdentity;
use crate::process::{Process, Witness};
use crate::spawner::{Program, Spawner};

/// How long QEMU may take until its monitor answers; it has loaded the kernel by then.
const START: Duration = Duration::from_secs(30);

/// A machine in QEMU.
pub(super) struct QemuInstance {
    process: Process,
    qmp: Qmp,
    capabilities: Capabilities,
    console: Console,
    agent: Option<AgentSocket>,
}

/// The socket on which QEMU listens for whoever talks to the agent.
struct AgentSocket {
    path: PathBuf,
    /// The connection made at the start, so that nothing is lost which the agent says before somebody asks for it.
    first: Mutex<Option<UnixStream>>,
}

/// Starts QEMU and waits until its monitor answers.
pub(super) async fn launch(
    program: &Path,
    admitted: &Admitted,
    dir: &Path,
    tsc_khz: Option<u64>,
    spawner: &dyn Spawner,
) -> Result<QemuInstance> {
    dir::prepare(dir)?;
    admitted.spec().disks.iter().try_for_each(images::check)?;
    let surroundings = Surroundings { qmp: dir::socket(dir, "q")?, agent: dir::socket(dir, "a")?, tsc_khz };
    let listener = Listener::bind(&surroundings.qmp)?;
    let mut qemu = Program::new(program, render(admitted, &surroundings));
    let (console, far) = Console::new(admitted.spec().console)?;
    if let Some(far) = far {
        let copy = far.try_clone().map_err(|source| Error::host("copy a socket for", program, source))?;
        (qemu.stdin, qemu.stdout) = (Some(copy), Some(far));
    }
    let (reason, said) = watch::channel(None);
    let sockets = vec![surroundings.agent.clone()];
    let process = Process::start(spawner, qemu, Witness { reason: Some(said), success: None, sockets });
    let process = process.await.map_err(|error| or_missing(program, error))?;
    let agent = admitted.spec().agent.then_some(surroundings.agent);
    match process.during(program, "its start", START, connect(listener, reason, agent)).await {
        Ok((qmp, agent)) => {
            let capabilities = admitted.capabilities().clone();
            Ok(QemuInstance { process, qmp, capabilities, console, agent })
        }
        Err(error) => {
            // The child must be gone when the caller learns of the failure.
            process.kill().await;
            Err(error)
        }
    }
}

fn or_missing(program: &Path, error: Error) -> Error {
    match std::fs::metadata(program) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
            Reason::Missing { program: program.to_owned(), package: PACKAGE }.into()
        }
        _ => error,
    }
}

async fn connect(
    listener: Listener,
    reason: watch::Sender<Option<ExitReason>>,
    agent: Option<PathBuf>,
) -> Result<(Qmp, Option<AgentSocket>)> {
    let qmp = Qmp::connect(listener.accept().await?, reason).await?;
    let Some(path) = agent else { return Ok((qmp, None)) };
    // The monitor answers once everything on the command line was made, this socket too.
    let first = dial(&path).await?;
    Ok((qmp, Some(AgentSocket { path, first: Mutex::new(Some(first)) })))
}

async fn dial(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).await.map_err(|source| Error::host("connect to", path, source))
}

/// Where QEMU's monitor calls: nothing has to be polled, and its name is gone once it has called.
struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    fn bind(path: &Path) -> Result<Self> {
        let error = |source| Error::host("listen on", path, source);
        let socket = StdUnixListener::bind(path).map_err(error)?;
        socket.set_nonblocking(true).map_err(error)?;
        Ok(Self { socket: UnixListener::from_std(socket).map_err(error)?, path: path.to_owned() })
    }

    async fn accept(self) -> Result<UnixStream> {
        let accepted = self.socket.accept().await;
        let (stream, _) = accepted.map_err(|source| Error::host("accept on", &self.path, source))?;
        Ok(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A name left behind is found and removed by the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl QemuInstance {
    async fn press_power_button(&self) -> Result<()> {
        // A paused guest cannot notice; a running one takes no harm.
        self.qmp.command("cont", json!({}), PROMPT).await?;
        self.qmp.command("system_powerdown", json!({}), PROMPT).await?;
        Ok(())
    }
}

impl Instance for QemuInstance {
    fn identity(&self) -> &ProcessIdentity {
        self.process.identity()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn wait(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.process.wait())
    }

    fn shutdown(&self, grace: Duration) -> BoxFuture<'_, Exit> {
        Box::pin(async move {
            let asked = async {
                match self.press_power_button().await {
                    Ok(()) => self.process.wait().await,
                    // It is ending, or its monitor is beyond asking.
                    Err(_) => self.process.kill().await,
                }
            };
            match timeout(grace, asked).await {
                Ok(exit) => exit,
                Err(_) => self.process.kill().await,
            }
        })
    }

    fn kill(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.process.kill())
    }

    fn agent(&self) -> BoxFuture<'_, Result<UnixStream>> {
        Box::pin(async move {
            let agent = self.agent.as_ref().ok_or_else(|| Error::absent("agent channel"))?;
            let first = agent.first.lock().unwrap_or_else(PoisonError::into_inner).take();
            match first {
                Some(first) => Ok(first),
                None => dial(&agent.path).await,
            }
        })
    }

    fn console(&self) -> Result<UnixStream> {
        self.console.take()
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }
}

impl Pause for QemuInstance {
    fn pause(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.qmp.command("stop", json!({}), PROMPT).await.map(drop) })
    }

    fn resume(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.qmp.command("cont", json!({}), PROMPT).await.map(drop) })
    }
}
