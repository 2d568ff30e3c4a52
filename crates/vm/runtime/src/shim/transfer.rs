//! Bytes between a command and a stream of the agent: programs, and files either way.

use std::cell::{Cell, RefCell};
use std::io;

use serde_bytes::ByteBuf;
use tokio::sync::Notify;
use vmwright_agent_proto::{self as agent, ExitStatus, Message, WindowSize};

use super::Shared;
use super::agent::{Arrived, Stream};
use super::server::{Reader, Writer};
use crate::ErrorKind;
use crate::protocol::{Bytes, Exec, ExecExit, FileInfo, Kind, MAX_PIECE, Put, WINDOW};

fn bytes(bytes: Bytes) -> ByteBuf {
    ByteBuf::from(Vec::from(bytes))
}

/// Opens a stream, or tells the command why there is none.
async fn open(request: agent::Request, writer: &mut Writer, shared: &Shared) -> io::Result<Option<Stream>> {
    match shared.hub.open(request) {
        Some(Ok(stream)) => Ok(Some(stream)),
        Some(Err(error)) => {
            let kind = match error.kind() {
                agent::ErrorKind::TooLarge => ErrorKind::InvalidInput,
                agent::ErrorKind::TooManyStreams => ErrorKind::InUse,
                _ => ErrorKind::Io,
            };
            writer.fail(kind, error.to_string()).await.map(|()| None)
        }
        None => writer.fail(ErrorKind::Io, "the agent in the guest does not answer").await.map(|()| None),
    }
}

/// Runs a program.
pub(super) async fn exec(exec: Exec, reader: Reader, mut writer: Writer, shared: &Shared) -> io::Result<()> {
    let request = agent::Request::Exec(agent::Exec {
        argv: exec.argv.into_iter().map(bytes).collect(),
        env: exec.env.into_iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        cwd: exec.cwd.map(bytes),
        user: exec.user,
        pty: exec.pty.map(|(rows, columns)| WindowSize { rows, columns }),
        stdin: exec.stdin,
    });
    let Some(stream) = open(request, &mut writer, shared).await? else { return Ok(()) };
    let input = Input::default();
    tokio::select! {
        done = deliver(&stream, &input, &mut writer) => done,
        // The command went away: dropping the stream ends the program.
        gone = input.receive(&stream, reader) => gone,
        () = input.feed(&stream) => Ok(()),
    }
}

/// Writes a file.
pub(super) async fn put(put: Put, reader: Reader, mut writer: Writer, shared: &Shared) -> io::Result<()> {
    let request = agent::Request::Put(agent::Put {
        path: bytes(put.path),
        mode: put.mode,
        owner: put.owner,
        modified: put.modified,
    });
    let Some(stream) = open(request, &mut writer, shared).await? else { return Ok(()) };
    let input = Input::default();
    tokio::select! {
        done = deliver(&stream, &input, &mut writer) => done,
        gone = input.receive(&stream, reader) => gone,
        () = input.feed(&stream) => Ok(()),
    }
}

/// Reads a file.
pub(super) async fn get(
    path: Bytes,
    mut reader: Reader,
    mut writer: Writer,
    shared: &Shared,
) -> io::Result<()> {
    let request = agent::Request::Get { path: bytes(path) };
    let Some(stream) = open(request, &mut writer, shared).await? else { return Ok(()) };
    let input = Input::default();
    tokio::select! {
        done = deliver(&stream, &input, &mut writer) => done,
        // Nothing more is to come from the command but its end.
        _ = reader.next() => Ok(()),
    }
}

/// Passes on what arrives on the stream, up to its end.
///
/// The agent may send more only when the command has taken what was there: a slow command slows its own
/// program down and nobody else's.
async fn deliver(stream: &Stream, input: &Input, writer: &mut Writer) -> io::Result<()> {
    loop {
        tokio::select! {
            arrived = stream.inbox.take() => {
                if pass_on(&arrived, stream, writer).await? {
                    return Ok(());
                }
            }
            () = input.granted.notified() => {
                let grant = input.grant.take();
                writer.frame(Kind::Credit, &grant.to_le_bytes()).await?;
            }
        }
    }
}

/// Passes on what has arrived; answers whether that was the end.
async fn pass_on(arrived: &Arrived, stream: &Stream, writer: &mut Writer) -> io::Result<bool> {
    if let Some(info) = arrived.file {
        writer.json(Kind::Answer, &file_info(info)).await?;
    }
    for (kind, bytes) in [(Kind::Output, &arrived.output), (Kind::ErrorOutput, &arrived.error_output)] {
        for piece in bytes.chunks(MAX_PIECE) {
            writer.frame(kind, piece).await?;
            stream.consumed(piece.len());
        }
    }
    match &arrived.last {
        Some(Message::Exited(status)) => {
            let exit = match *status {
                ExitStatus::Code(code) => ExecExit { code: Some(code), signal: None },
                ExitStatus::Signal(signal) => ExecExit { code: None, signal: Some(signal) },
            };
            writer.json(Kind::Answer, &exit).await?;
        }
        Some(Message::Failed(failure)) => writer.agent_failure(failure).await?,
        Some(Message::Done) => writer.json(Kind::Answer, &serde_json::Value::Null).await?,
        Some(_) => writer.fail(ErrorKind::Io, "the agent broke the request off").await?,
        None if arrived.lost => {
            writer.fail(ErrorKind::Io, "the agent went away before it had answered").await?;
        }
        None => return Ok(false),
    }
    Ok(true)
}

fn file_info(info: agent::FileInfo) -> FileInfo {
    FileInfo { size: info.size, mode: info.mode, uid: info.uid, gid: info.gid, modified: info.modified }
}

/// What a command has sent and the agent has not taken yet; at most one window.
#[derive(Default)]
struct Input {
    waiting: RefCell<Vec<u8>>,
    ended: Cell<bool>,
    arrived: Notify,
    /// Bytes to grant to the command.
    grant: Cell<u32>,
    granted: Notify,
}

impl Input {
    /// Takes in what the command sends, until it goes. Signals overtake the data before them.
    async fn receive(&self, stream: &Stream, mut reader: Reader) -> io::Result<()> {
        while let Some((kind, payload)) = reader.next().await? {
            match (kind, payload.as_slice()) {
                (Kind::Input, bytes) => {
                    let mut waiting = self.waiting.borrow_mut();
                    if waiting.len() + bytes.len() > WINDOW {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    waiting.extend_from_slice(bytes);
                }
                (Kind::InputEnd, _) => self.ended.set(true),
                (Kind::Signal, &[a, b, c, d]) => {
                    stream.send(Message::Signal(i32::from_le_bytes([a, b, c, d])))
                }
                (Kind::Resize, &[a, b, c, d]) => {
                    let rows = u16::from_le_bytes([a, b]);
                    let columns = u16::from_le_bytes([c, d]);
                    stream.send(Message::Resize(WindowSize { rows, columns }));
                }
                _ => {}
            }
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Gives the agent what waits, as it takes it; never ends.
    async fn feed(&self, stream: &Stream) {
        let mut said = false;
        loop {
            let taken = {
                let mut waiting = self.waiting.borrow_mut();
                let taken = stream.send_data(&waiting);
                waiting.drain(..taken);
                taken
            };
            if taken > 0 {
                // A window is far below what fits.
                self.grant.set(self.grant.get() + taken as u32);
                self.granted.notify_one();
            }
            let is_empty = self.waiting.borrow().is_empty();
            if is_empty && self.ended.get() && !said {
                stream.send(Message::Eof);
                said = true;
            }
            tokio::select! {
                () = self.arrived.notified() => {}
                () = stream.inbox.room(), if !is_empty => {}
            }
        }
    }
}

/// Asks the guest to power off, and waits for the agent's answer; answers whether there was an agent to ask.
pub(super) async fn power_off(shared: &Shared) -> bool {
    let request = agent::Request::Shutdown(agent::Shutdown::PowerOff);
    let Some(Ok(stream)) = shared.hub.open(request) else { return false };
    loop {
        let arrived = stream.inbox.take().await;
        match arrived.last {
            Some(Message::Failed(_) | Message::Reset) => return false,
            Some(_) => return true,
            // An agent that leaves at once has been heard too.
            None if arrived.lost => return true,
            None => {}
        }
    }
}
