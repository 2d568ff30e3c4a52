use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::{Fake, Fault, LISTEN_ARGUMENT};
use crate::admit::Admitted;
use crate::backend::{BoxFuture, Exit, ExitReason, Instance, Pause};
use crate::capabilities::Capabilities;
use crate::console::Console;
use crate::dir;
use crate::error::{Error, Reason, Result};
use crate::identity::ProcessIdentity;
use crate::process::{Process, Witness};
use crate::spawner::{Program, Spawner};

/// How long the program may take until it listens.
const LISTEN: Duration = Duration::from_secs(10);

/// How often it is tried whether the program listens.
const RETRY: Duration = Duration::from_millis(1);

/// A process that stands for a machine.
pub(super) struct FakeInstance {
    process: Process,
    capabilities: Capabilities,
    socket: Option<PathBuf>,
    console: Console,
    /// The connection that proved the start, for whoever asks first.
    first: Mutex<Option<UnixStream>>,
    /// The far ends of connections that are never answered; `None` where the agent answers.
    silent: Option<Mutex<Vec<UnixStream>>>,
}

pub(super) async fn launch(
    fake: &Fake,
    spec: &Admitted,
    dir: &Path,
    spawner: &dyn Spawner,
) -> Result<FakeInstance> {
    dir::prepare(dir)?;
    let socket = dir::socket(dir, "a")?;
    let mut program = Program::new(&fake.program, vec![LISTEN_ARGUMENT.into(), socket.clone().into()]);
    let (console, far) = Console::new(spec.spec().console)?;
    attach(&mut program, far)?;
    let sockets = vec![socket.clone()];
    let witness = Witness { reason: None, success: Some(ExitReason::GuestShutdown), sockets };
    let process = Process::start(spawner, program, witness).await?;
    let first = process.during(&fake.program, "its start", LISTEN, connect(&socket)).await?;
    sleep(fake.fault.delay()).await;
    match fake.fault {
        Fault::StartFails => {
            // Here as elsewhere the child must not survive a start that failed after it was spawned.
            process.kill().await;
            return Err(
                Reason::Protocol { program: "fake", problem: "fails as it was told", source: None }.into()
            );
        }
        Fault::DiesAfter(millis) => die_later(process.identity().clone(), millis),
        _ => {}
    }
    Ok(FakeInstance {
        process,
        capabilities: spec.capabilities().clone(),
        socket: spec.spec().agent.then_some(socket),
        console,
        first: Mutex::new(Some(first)),
        silent: (fake.fault == Fault::AgentSilent).then(Mutex::default),
    })
}

/// Gives the process its console as standard input and output.
fn attach(program: &mut Program, console: Option<OwnedFd>) -> Result<()> {
    if let Some(console) = console {
        let copy =
            console.try_clone().map_err(|source| Error::host("copy a socket for", &program.path, source))?;
        (program.stdin, program.stdout) = (Some(copy), Some(console));
    }
    Ok(())
}

async fn connect(socket: &Path) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(_) => sleep(RETRY).await,
        }
    }
}

fn die_later(identity: ProcessIdentity, millis: u64) {
    tokio::spawn(async move {
        sleep(Duration::from_millis(millis)).await;
        // Where it has ended by itself there is nothing left to break.
        let _ = identity.kill();
    });
}

impl Instance for FakeInstance {
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
            // It fails only for a process that has gone, whose exit is then at hand.
            let _ = self.process.identity().terminate();
            match timeout(grace, self.process.wait()).await {
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
            let socket = self.socket.as_ref().ok_or_else(|| Error::absent("agent channel"))?;
            if let Some(silent) = &self.silent {
                let pair = UnixStream::pair().map_err(|source| Error::host("connect to", socket, source))?;
                silent.lock().unwrap_or_else(PoisonError::into_inner).push(pair.1);
                return Ok(pair.0);
            }
            let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(first) = first {
                return Ok(first);
            }
            UnixStream::connect(socket).await.map_err(|source| Error::host("connect to", socket, source))
        })
    }

    fn console(&self) -> Result<UnixStream> {
        self.console.take()
    }

    fn pause(&self) -> Option<&dyn Pause> {
        None
    }
}
