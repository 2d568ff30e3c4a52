//! One child process: its identity, the tail of its standard error, its exit, its end at our hands.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitStatus;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::backend::{Exit, ExitReason};
use crate::error::{Error, Reason, Result};
use crate::identity::ProcessIdentity;
use crate::spawner::{Program, Spawner};

/// How much of a monitor's standard error is kept.
const TAIL: usize = 4096;

/// How long a monitor that closed its connections may take to end, and what it left in its pipes to be read.
const DRAIN: Duration = Duration::from_secs(1);

/// The answer of the quicker of two futures.
pub(crate) enum Either<A, B> {
    First(A),
    Second(B),
}

/// Runs two futures until one of them answers, and drops the other.
pub(crate) async fn race<A: Future, B: Future>(first: A, second: B) -> Either<A::Output, B::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| {
        if let Poll::Ready(answer) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(answer));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// What a backend knows about the end of its child beyond the exit status.
#[derive(Default)]
pub(crate) struct Witness {
    /// Says why the machine ended; closed when nothing more will be said.
    pub(crate) reason: Option<watch::Receiver<Option<ExitReason>>>,
    /// What an exit with code 0 means that nothing else explains.
    pub(crate) success: Option<ExitReason>,
    /// Sockets that the child leaves behind.
    pub(crate) sockets: Vec<PathBuf>,
}

/// A child that a task of its own waits for; dropping this kills the child.
pub(crate) struct Process {
    identity: ProcessIdentity,
    kill: watch::Sender<bool>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Starts a program whose standard error becomes the tail in its exit.
    pub(crate) async fn start(spawner: &dyn Spawner, mut program: Program, witness: Witness) -> Result<Self> {
        let path = program.path.clone();
        let (stderr, errors) =
            stderr_pipe().map_err(|source| Error::host("make a pipe for", &path, source))?;
        program.stderr = Some(stderr);
        let spawned = spawner.spawn(program);
        let child = spawned.map_err(|source| Error::host("run", &path, source))?;
        let identity = child.id().map(ProcessIdentity::of).transpose()?.flatten();
        let (kill, killed) = watch::channel(false);
        let (exited, mut exit) = watch::channel(None);
        tokio::spawn(supervise(child, errors, witness, killed, exited));
        match identity {
            Some(identity) => Ok(Self { identity, kill, exit }),
            // It has ended already, before its identity could be read.
            None => Err(ended(&path, "its start", &wait(&mut exit).await)),
        }
    }

    /// Which process it is.
    pub(crate) fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Exit {
        wait(&mut self.exit.clone()).await
    }

    /// Kills it and waits for its end.
    pub(crate) async fn kill(&self) -> Exit {
        self.kill.send_replace(true);
        self.wait().await
    }

    /// Lets a step of the start take its time, but not longer than stated nor than the child lives.
    pub(crate) async fn during<T>(
        &self,
        path: &Path,
        what: &'static str,
        limit: Duration,
        step: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match race(timeout(limit, step), self.wait()).await {
            Either::First(Ok(Ok(answer))) => Ok(answer),
            // A monitor that gives up closes its connections first: its last words say more than the closing.
            Either::First(Ok(Err(error))) => match timeout(DRAIN, self.wait()).await {
                Ok(exit) => Err(ended(path, what, &exit)),
                Err(_) => Err(error),
            },
            Either::First(Err(_)) => Err(Reason::Timeout { what, after: limit }.into()),
            Either::Second(exit) => Err(ended(path, what, &exit)),
        }
    }
}

fn ended(path: &Path, during: &'static str, exit: &Exit) -> Error {
    let status = match (exit.code, exit.signal) {
        (Some(code), _) => format!("code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    };
    let program = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Reason::Exited { program, during, status, stderr: exit.stderr.clone() }.into()
}

async fn wait(exit: &mut watch::Receiver<Option<Exit>>) -> Exit {
    match exit.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(exit)) => exit.clone(),
        // The task is gone with its runtime, and has killed the child in going.
        _ => Exit { reason: ExitReason::Killed, code: None, signal: None, stderr: String::new() },
    }
}

/// A pipe whose writing end a child inherits.
fn stderr_pipe() -> io::Result<(OwnedFd, pipe::Receiver)> {
    let (sender, receiver) = pipe::pipe()?;
    Ok((sender.into_blocking_fd()?, receiver))
}

async fn supervise(
    mut child: Child,
    errors: impl AsyncRead + Unpin + Send + 'static,
    witness: Witness,
    mut kill: watch::Receiver<bool>,
    exited: watch::Sender<Option<Exit>>,
) {
    let errors = tokio::spawn(tail(errors));
    // An error of `changed` means that the instance was dropped.
    let first = race(child.wait(), kill.changed()).await;
    let (status, killed) = match first {
        Either::First(status) => (status, false),
        Either::Second(_) => {
            // It fails only where the child has ended, which is what was wanted.
            let _ = child.start_kill();
            (child.wait().await, true)
        }
    };
    let stderr = timeout(DRAIN, errors).await.ok().and_then(Result::ok).unwrap_or_default();
    let reason = match witness.reason {
        Some(said) => timeout(DRAIN, last(said)).await.unwrap_or_default(),
        None => None,
    };
    for socket in witness.sockets {
        // The child is gone, so whatever is there is its own leftover.
        let _ = std::fs::remove_file(socket);
    }
    let status = status.ok();
    let success = status.filter(ExitStatus::success).and(witness.success);
    let reason = match reason {
        Some(reason) => reason,
        None if killed => ExitReason::Killed,
        None => success.unwrap_or(ExitReason::MonitorFailed),
    };
    let (code, signal) = (status.and_then(|s| s.code()), status.and_then(|s| s.signal()));
    exited.send_replace(Some(Exit { reason, code, signal, stderr }));
}

/// The last thing said before the speaker fell silent for ever.
async fn last(mut said: watch::Receiver<Option<ExitReason>>) -> Option<ExitReason> {
    while said.changed().await.is_ok() {}
    *said.borrow()
}

/// Reads to the end and keeps the last bytes as text.
async fn tail(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = VecDeque::with_capacity(TAIL);
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        kept.extend(&buffer[..count]);
        kept.drain(..kept.len().saturating_sub(TAIL));
    }
    String::from_utf8_lossy(kept.make_contiguous()).into_owned()
}
