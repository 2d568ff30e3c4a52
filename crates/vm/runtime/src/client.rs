//! A command's end of a connection to a shim.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::layout::VmDir;
use crate::protocol::{
    Bytes, Exec, ExecExit, Failure, FileInfo, Hello, Kind, MAX_PIECE, Put, Request, WINDOW, json_frame,
    read_frame, write_frame,
};
use crate::{Error, ErrorKind, Result, VmName};

/// A program to run in a guest.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// The program and its arguments; a program without a slash is looked for on the guest's `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// Variables on top of the guest's defaults.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The working directory; the user's home where absent.
    pub cwd: Option<Vec<u8>>,
    /// `name`, `name:group`, `uid` or `uid:gid`; root where absent.
    pub user: Option<String>,
    /// A terminal of so many rows and columns for all three standard streams.
    pub pty: Option<(u16, u16)>,
    /// Whether standard input is fed through [`SessionInput`]; otherwise it is empty.
    pub stdin: bool,
}

/// A file to write in a guest. It replaces an existing one whole, or not at all.
#[derive(Debug, Clone, Default)]
pub struct PutRequest {
    /// The path in the guest, absolute.
    pub path: Vec<u8>,
    /// Permission bits; where absent, the replaced file's, or 0644.
    pub mode: Option<u16>,
    /// User and group numbers; where absent, the replaced file's, or root's.
    pub owner: Option<(u32, u32)>,
    /// When its content last changed: seconds and nanoseconds since 1970.
    pub modified: Option<(i64, u32)>,
}

/// How a program in a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
}

/// What a running program has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// Bytes of its standard output, or of its terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// It ended, and no more output follows.
    Exit(ExitStatus),
}

/// A program running in a guest. Dropping both halves kills it.
#[derive(Debug)]
pub struct Session {
    /// What goes to the program. Copies of it may be used on any thread.
    pub input: SessionInput,
    /// What comes from the program.
    pub output: SessionOutput,
}

/// What comes from a program running in a guest.
#[derive(Debug)]
pub struct SessionOutput {
    connection: Connection,
    shared: Arc<Shared>,
}

/// What goes to a program running in a guest.
#[derive(Debug, Clone)]
pub struct SessionInput(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Whole frames are written under this lock.
    stream: Mutex<UnixStream>,
    window: Mutex<Window>,
    granted: Condvar,
}

/// How much the shim still takes.
#[derive(Debug)]
struct Window {
    left: usize,
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic happens under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SessionInput {
    /// Feeds the program's standard input, waiting while it does not read.
    ///
    /// Somebody must take the output meanwhile. Kind `BrokenPipe` once the program has ended.
    pub fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let len = bytes.len().min(MAX_PIECE);
            let len = self.0.reserve(len)?;
            self.send(Kind::Input, &bytes[..len])?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Ends the program's standard input.
    pub fn close(&self) -> io::Result<()> {
        self.send(Kind::InputEnd, &[])
    }

    /// Sends a signal to the program's process group.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.send(Kind::Signal, &signal.to_le_bytes())
    }

    /// Tells the program's terminal its new size.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let [[a, b], [c, d]] = [rows.to_le_bytes(), columns.to_le_bytes()];
        self.send(Kind::Resize, &[a, b, c, d])
    }

    fn send(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        write_frame(&mut *lock(&self.0.stream), kind, payload)
    }
}

impl Shared {
    /// Waits until the shim takes data, and takes up to `len` of what it grants.
    fn reserve(&self, len: usize) -> io::Result<usize> {
        let mut window = lock(&self.window);
        while window.left == 0 && !window.over {
            window = self.granted.wait(window).unwrap_or_else(PoisonError::into_inner);
        }
        if window.over {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = len.min(window.left);
        window.left -= len;
        Ok(len)
    }

    fn grant(&self, len: usize) {
        lock(&self.window).left += len;
        self.granted.notify_all();
    }

    fn end(&self) {
        lock(&self.window).over = true;
        self.granted.notify_all();
    }
}

impl SessionOutput {
    /// Waits for what the program has to say next; nothing once it has said [`SessionEvent::Exit`].
    pub fn next_event(&mut self) -> Result<Option<SessionEvent>> {
        let event = self.connection.next_event(&self.shared);
        if !matches!(event, Ok(Some(SessionEvent::Stdout(_) | SessionEvent::Stderr(_)))) {
            self.shared.end();
        }
        event
    }
}

impl Drop for SessionOutput {
    fn drop(&mut self) {
        // Copies of the input may outlive this; with nobody to hear the program it has no use.
        let _ = lock(&self.shared.stream).shutdown(Shutdown::Both);
        self.shared.end();
    }
}

/// A connection that carries one request.
#[derive(Debug)]
pub(crate) struct Connection {
    vm: VmName,
    stream: BufReader<UnixStream>,
    over: bool,
    /// Whether the last failure was that nothing came in time, or that the shim had gone.
    silent: bool,
}

impl Connection {
    /// Connects to a VM's shim; nothing where nobody listens.
    pub(crate) fn open(vm: &VmName, dir: &VmDir) -> Result<Option<Self>> {
        let path = dir.shim_socket();
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(source) => return Err(Error::host("connect to", &path, source)),
        };
        let peer = getsockopt(&stream, PeerCredentials)
            .map_err(|error| Error::host("check", &path, error.into()))?;
        if peer.uid() != rustix::process::geteuid().as_raw() {
            return Err(Error::not_private(dir.sockets()));
        }
        let mut connection = Self {
            vm: vm.clone(),
            stream: BufReader::with_capacity(MAX_PIECE, stream),
            over: false,
            silent: false,
        };
        let hello: Hello = match connection.expect(Kind::Hello) {
            Ok(hello) => hello,
            // It was about to end, and nobody took the connection.
            Err(_) if connection.silent => return Ok(None),
            Err(error) => return Err(error),
        };
        match hello.vm == *vm {
            true => Ok(Some(connection)),
            false => Err(connection.broken(format!("is responsible for {}", hello.vm))),
        }
    }

    /// Sends a request.
    pub(crate) fn request(&mut self, request: &Request) -> Result<()> {
        self.send(Kind::Request, request)
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        self.request(request)?;
        self.expect(Kind::Answer)
    }

    /// Bounds how long each read may take.
    pub(crate) fn set_patience(&self, patience: Option<std::time::Duration>) -> Result<()> {
        let set = self.stream.get_ref().set_read_timeout(patience);
        set.map_err(|error| Error::system("set a timeout", error))
    }

    /// Whether the last failure was that nothing came in time, or that the shim had gone.
    pub(crate) fn is_out_of_patience_or_gone(&self) -> bool {
        self.silent
    }

    /// Runs a program.
    pub(crate) fn exec(mut self, request: &ExecRequest) -> Result<Session> {
        self.request(&Request::Exec(exec_request(request)))?;
        let stream = self.stream.get_ref().try_clone();
        let stream = stream.map_err(|error| Error::system("copy a descriptor", error))?;
        let window = Window { left: WINDOW, over: false };
        let shared = Arc::new(Shared {
            stream: Mutex::new(stream),
            window: Mutex::new(window),
            granted: Condvar::new(),
        });
        Ok(Session {
            input: SessionInput(shared.clone()),
            output: SessionOutput { connection: self, shared },
        })
    }

    /// Writes a file from `from`; answers its length.
    pub(crate) fn put(mut self, request: &PutRequest, from: &mut dyn Read) -> Result<u64> {
        self.request(&Request::Put(Put {
            path: request.path.as_slice().into(),
            mode: request.mode,
            owner: request.owner,
            modified: request.modified,
        }))?;
        let (mut window, mut total) = (WINDOW, 0);
        let mut buffer = vec![0; MAX_PIECE];
        loop {
            while window == 0 {
                window += self.credit()?;
            }
            let piece = &mut buffer[..MAX_PIECE.min(window)];
            let len = match from.read(piece) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::system("read what is to be written", error)),
            };
            self.write(Kind::Input, &buffer[..len])?;
            window -= len;
            total += len as u64;
        }
        self.write(Kind::InputEnd, &[])?;
        self.expect::<serde_json::Value>(Kind::Answer)?;
        Ok(total)
    }

    /// Reads a file into `to`.
    pub(crate) fn get(mut self, path: &[u8], to: &mut dyn Write) -> Result<FileInfo> {
        let info = self.ask(&Request::Get { path: path.into() })?;
        loop {
            match self.next()? {
                (Kind::Output, bytes) => {
                    to.write_all(&bytes).map_err(|error| Error::system("write what was read", error))?;
                }
                (Kind::Answer, _) => return Ok(info),
                _ => {}
            }
        }
    }

    fn credit(&mut self) -> Result<usize> {
        match self.next()? {
            (Kind::Credit, payload) => Ok(u32_payload(&payload)),
            _ => Ok(0),
        }
    }

    fn next_event(&mut self, shared: &Shared) -> Result<Option<SessionEvent>> {
        while !self.over {
            match self.next()? {
                (Kind::Output, bytes) => return Ok(Some(SessionEvent::Stdout(bytes))),
                (Kind::ErrorOutput, bytes) => return Ok(Some(SessionEvent::Stderr(bytes))),
                (Kind::Credit, payload) => shared.grant(u32_payload(&payload)),
                (Kind::Answer, payload) => {
                    self.over = true;
                    let exit: ExecExit = self.parse(&payload)?;
                    return match (exit.code, exit.signal) {
                        (Some(code), _) => Ok(Some(SessionEvent::Exit(ExitStatus::Code(code)))),
                        (None, Some(signal)) => Ok(Some(SessionEvent::Exit(ExitStatus::Signal(signal)))),
                        (None, None) => Err(self.broken("does not say how the program ended")),
                    };
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Waits for a frame of one kind; others are passed over.
    fn expect<T: DeserializeOwned>(&mut self, wanted: Kind) -> Result<T> {
        loop {
            let (kind, payload) = self.next()?;
            if kind == wanted {
                return self.parse(&payload);
            }
        }
    }

    /// Waits for a frame; the shim's error becomes ours.
    fn next(&mut self) -> Result<(Kind, Vec<u8>)> {
        match read_frame(&mut self.stream) {
            Ok(Some((Kind::Error, payload))) => {
                self.over = true;
                let failure: Failure = self.parse(&payload)?;
                Err(Error::shim_says(&self.vm, failure.kind(), failure.message))
            }
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => {
                self.silent = true;
                Err(self.broken("went away"))
            }
            Err(error) => {
                use io::ErrorKind::{ConnectionReset, TimedOut, WouldBlock};
                self.silent = matches!(error.kind(), ConnectionReset | TimedOut | WouldBlock);
                Err(self.host("read from", error))
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T> {
        serde_json::from_slice(payload)
            .map_err(|error| self.broken(format!("sent what is no answer: {error}")))
    }

    fn send(&mut self, kind: Kind, value: &impl Serialize) -> Result<()> {
        let frame = json_frame(kind, value).map_err(|error| self.host("put together a request to", error))?;
        let sent = self.stream.get_mut().write_all(&frame);
        sent.or_else(|error| self.survives(error))
    }

    fn write(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        let sent = write_frame(self.stream.get_mut(), kind, payload);
        sent.or_else(|error| self.survives(error))
    }

    /// What the shim said before it hung up explains more than that it did.
    fn survives(&self, error: io::Error) -> Result<()> {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(self.host("write to", error)),
        }
    }

    fn host(&self, action: &'static str, error: io::Error) -> Error {
        Error::shim(&self.vm, ErrorKind::Io, format!("is out of reach: cannot {action} it: {error}"))
    }

    fn broken(&self, what: impl Into<String>) -> Error {
        Error::shim(&self.vm, ErrorKind::Io, what)
    }
}

fn u32_payload(payload: &[u8]) -> usize {
    payload.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize)
}

fn exec_request(request: &ExecRequest) -> Exec {
    let bytes = |bytes: &Vec<u8>| Bytes::from(bytes.as_slice());
    Exec {
        argv: request.argv.iter().map(bytes).collect(),
        env: request.env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        cwd: request.cwd.as_ref().map(bytes),
        user: request.user.clone(),
        pty: request.pty,
        stdin: request.stdin,
    }
}
