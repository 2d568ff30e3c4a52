//! Connections without sockets of the server's own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use vmwright_nbd::{
    Command, Encryption, Ended, Export, Exports, Negotiated, Observer, SessionLimits, SessionReport,
    Transport, negotiate,
};

use crate::client::Client;

/// One end of a pair of sockets; TLS here is a word that changes nothing but the state.
pub(crate) struct Pipe {
    stream: UnixStream,
    encryption: Mutex<Encryption>,
}

impl Transport for Pipe {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buf)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.stream).write_vectored(parts)
    }

    fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn encryption(&self) -> Encryption {
        *self.encryption.lock().unwrap()
    }

    fn start_tls(&self) -> io::Result<()> {
        *self.encryption.lock().unwrap() = Encryption::Active;
        Ok(())
    }
}

/// What the server's side saw.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) stopping: AtomicBool,
    pub(crate) failures: Mutex<Vec<(Command, u64, u32, String)>>,
}

impl Observer for Watch {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn request_failed(&self, command: Command, offset: u64, len: u32, error: &vmwright_disk::Error) {
        self.failures.lock().unwrap().push((command, offset, len, error.to_string()));
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    Aborted,
    HungUp,
    Refused(vmwright_nbd::Error),
    Session(SessionReport),
}

impl End {
    pub(crate) fn report(self) -> SessionReport {
        match self {
            Self::Session(report) => report,
            other => panic!("{other:?} where there should have been a session"),
        }
    }

    pub(crate) fn refusal(self) -> vmwright_nbd::Error {
        match self {
            Self::Refused(error) => error,
            other => panic!("{other:?} where there should have been a refusal"),
        }
    }

    pub(crate) fn failure(self) -> vmwright_nbd::Error {
        match self.report().ended {
            Ended::Failed(error) => error,
            other => panic!("{other:?} where there should have been a failure"),
        }
    }
}

pub(crate) struct Connection {
    pub(crate) watch: Arc<Watch>,
    thread: JoinHandle<End>,
}

impl Connection {
    pub(crate) fn end(self) -> End {
        self.thread.join().unwrap()
    }
}

/// Serves exports to one client, which has not greeted yet.
pub(crate) fn serve(
    exports: Vec<Export>,
    encryption: Encryption,
    limits: SessionLimits,
    patience: Option<Duration>,
) -> (UnixStream, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // A test that waits for an answer that never comes fails.
    theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ours.set_read_timeout(patience).unwrap();
    ours.set_write_timeout(patience).unwrap();
    let exports = Exports::new(exports).unwrap();
    let watch = Arc::new(Watch::default());
    let watched = watch.clone();
    let thread = std::thread::spawn(move || {
        let pipe = Pipe { stream: ours, encryption: Mutex::new(encryption) };
        match negotiate(&pipe, &exports, &*watched) {
            Ok(Negotiated::Chosen(session)) => End::Session(session.run(&pipe, &limits, &*watched)),
            Ok(Negotiated::Aborted) => End::Aborted,
            Ok(Negotiated::HungUp) => End::HungUp,
            Err(error) => End::Refused(error),
        }
    });
    (theirs, Connection { watch, thread })
}

/// Serves exports to a client that has greeted.
pub(crate) fn connect(exports: Vec<Export>) -> (Client<UnixStream>, Connection) {
    let (stream, connection) = serve(exports, Encryption::Off, SessionLimits::default(), None);
    (Client::connect(stream), connection)
}

/// Serves one export to a client that has chosen it, with chunks or without.
pub(crate) fn chosen(export: Export, structured: bool) -> (Client<UnixStream>, Connection) {
    let name = export.name().to_owned();
    let (mut client, connection) = connect(vec![export]);
    if structured {
        client.structured();
        client.contexts(&name, &["base:allocation"]);
    }
    client.go(&name);
    (client, connection)
}
