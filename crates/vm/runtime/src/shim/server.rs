//! Commands that come to the shim's socket, each with one request.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use vmwright_agent_proto::Failure as AgentFailure;

use super::Shared;
use super::state::ExitCause;
use super::supervisor::Order;
use super::transfer;
use crate::ErrorKind;
use crate::protocol::{Failure, HEADER, Header, Hello, Kind, PROTOCOL, Request, Status, frame, json_frame};

/// How many commands are served at once; the agent has no more streams than that.
const MAX_CONNECTIONS: usize = 64;
/// How long a command may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is read from a command at a time, as long as it sends little.
const READ_BUFFER: usize = 4 * 1024;

/// Serves commands for as long as the shim lives.
pub(super) async fn serve(listener: UnixListener, shared: Rc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_ours(&stream) && shared.connections.get() < MAX_CONNECTIONS => {
                shared.connections.set(shared.connections.get() + 1);
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    // A command that went away is its own affair.
                    let _ = connection(stream, &shared).await;
                    shared.connections.set(shared.connections.get() - 1);
                    shared.disconnected.notify_waiters();
                });
            }
            Ok(_) => {}
            Err(error) => {
                shared.log.line(&format!("cannot accept a connection: {error}"));
                // Out of descriptors, most likely: better later than in a busy loop.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whether the other end belongs to the user that the shim belongs to.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

async fn connection(stream: UnixStream, shared: &Rc<Shared>) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut reader = Reader(BufReader::with_capacity(READ_BUFFER, reader));
    let mut writer = Writer(writer);
    let (vm, run) = (shared.launch.vm.clone(), shared.launch.run.clone());
    writer.json(Kind::Hello, &Hello { protocol: PROTOCOL, vm, run }).await?;
    let first = tokio::time::timeout(PATIENCE, reader.next()).await;
    let Ok(first) = first else { return Ok(()) };
    let Some((Kind::Request, payload)) = first? else { return Ok(()) };
    let request = match serde_json::from_slice(&payload) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("the shim of an earlier version does not know this request: {error}");
            return writer.fail(ErrorKind::Unsupported, message).await;
        }
    };
    drop(payload);
    match request {
        Request::Status => {
            let agent = shared.hub.status().borrow().hello.is_some();
            let vmm = shared.vmm.borrow().clone();
            writer.json(Kind::Answer, &Status { vmm, agent }).await
        }
        Request::Exec(exec) => transfer::exec(exec, reader, writer, shared).await,
        Request::Put(put) => transfer::put(put, reader, writer, shared).await,
        Request::Get { path } => transfer::get(path, reader, writer, shared).await,
        Request::Stop { grace_ms, force } => {
            let grace = if force { Duration::ZERO } else { Duration::from_millis(grace_ms) };
            // A second order while the first is carried out changes only its patience.
            let _ = shared.orders.try_send(Order { cause: ExitCause::Stopped, grace });
            tell_exit(writer, shared).await
        }
        Request::Wait => tokio::select! {
            told = tell_exit(writer, shared) => told,
            // Nothing more is to come from the command but its end.
            _ = reader.next() => Ok(()),
        },
    }
}

/// Answers with how the VM ended, once it has.
async fn tell_exit(mut writer: Writer, shared: &Shared) -> io::Result<()> {
    let mut exit = shared.exit.subscribe();
    let Ok(exit) = exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) else { return Ok(()) };
    writer.json(Kind::Answer, &exit).await
}

/// The half that frames come in through.
pub(super) struct Reader(BufReader<OwnedReadHalf>);

impl Reader {
    /// The next frame of a known kind; nothing at the end. Not to be cancelled half way and used again.
    pub(super) async fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        loop {
            let mut header = [0; HEADER];
            if self.0.read(&mut header[..1]).await? == 0 {
                return Ok(None);
            }
            self.0.read_exact(&mut header[1..]).await?;
            let header = Header::parse(header)?;
            let mut payload = vec![0; header.len];
            self.0.read_exact(&mut payload).await?;
            if let Some(kind) = header.kind {
                return Ok(Some((kind, payload)));
            }
        }
    }
}

/// The half that frames go out through.
pub(super) struct Writer(OwnedWriteHalf);

impl Writer {
    pub(super) async fn frame(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.0.write_all(&frame(kind, payload)?).await
    }

    pub(super) async fn json(&mut self, kind: Kind, value: &impl Serialize) -> io::Result<()> {
        self.0.write_all(&json_frame(kind, value)?).await
    }

    pub(super) async fn fail(&mut self, kind: ErrorKind, message: impl Into<String>) -> io::Result<()> {
        self.json(Kind::Error, &Failure::new(kind, message)).await
    }

    /// Passes on why the agent did not do something. Its words are the guest's.
    pub(super) async fn agent_failure(&mut self, failure: &AgentFailure) -> io::Result<()> {
        let why = io::Error::from_raw_os_error(failure.errno);
        let kind = match why.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            io::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
            _ => ErrorKind::Io,
        };
        let action = super::agent::printable(&failure.action, 1024);
        self.fail(kind, format!("{action}: {why}")).await
    }
}
