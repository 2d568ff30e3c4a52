use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vmwright_nbd::{Encryption, Transport};

use super::socket::Socket;
use super::tls::{Secured, Tls, TlsMode};

/// The bytes to and from one client, encrypted or not.
pub(super) struct Wire {
    socket: Socket,
    tls: Option<Tls>,
    secured: OnceLock<Secured>,
    /// When the client must have chosen an export.
    deadline: Mutex<Option<Instant>>,
}

impl Wire {
    pub(super) fn new(socket: Socket, tls: Option<Tls>, negotiation: Duration) -> Self {
        let deadline = Mutex::new(Instant::now().checked_add(negotiation));
        Self { socket, tls, secured: OnceLock::new(), deadline }
    }

    /// Ends the time for choosing; from here on only silence counts.
    pub(super) fn negotiated(&self, idle: Option<Duration>) -> io::Result<()> {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.socket.set_patience(idle)
    }

    /// Takes no more from the client; what it was promised still goes out.
    pub(super) fn stop_receiving(&self) {
        self.socket.shutdown(Shutdown::Read);
    }

    /// Ends the connection in good order.
    pub(super) fn close(&self) {
        if let Some(secured) = self.secured.get() {
            // A client that does not take this much is not waited for.
            let _ = self.socket.set_patience(Some(Duration::from_secs(1)));
            let _ = secured.close(&Timed(self));
        }
        self.socket.shutdown(Shutdown::Both);
    }

    /// Lets the next call wait no longer than until the deadline.
    fn be_patient(&self) -> io::Result<()> {
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(deadline) = deadline else { return Ok(()) };
        match deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            Some(left) => self.socket.set_patience(Some(left)),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Transport for Wire {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.secured.get() {
            Some(secured) => secured.read(&Timed(self), buf),
            None => Timed(self).read(buf),
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.secured.get() {
            Some(secured) => secured.write(&Timed(self), parts),
            None => Timed(self).write_vectored(parts),
        }
    }

    fn hang_up(&self) {
        self.socket.shutdown(Shutdown::Both);
    }

    fn encryption(&self) -> Encryption {
        match (&self.tls, self.secured.get()) {
            (None, _) => Encryption::Off,
            (Some(_), Some(_)) => Encryption::Active,
            (Some(tls), None) => match tls.mode() {
                TlsMode::Allowed => Encryption::Offered,
                TlsMode::Required => Encryption::Required,
            },
        }
    }

    fn start_tls(&self) -> io::Result<()> {
        let Some(tls) = &self.tls else { return Err(io::ErrorKind::Unsupported.into()) };
        let secured = Secured::accept(Arc::clone(tls.config()), &mut Timed(self))?;
        self.secured.set(secured).map_err(|_| io::ErrorKind::AlreadyExists.into())
    }
}

/// The socket, on which each call ends in time and says so in one way.
pub(super) struct Timed<'a>(&'a Wire);

impl Timed<'_> {
    fn run<T>(&self, mut call: impl FnMut(&Socket) -> io::Result<T>) -> io::Result<T> {
        loop {
            self.0.be_patient()?;
            match call(&self.0.socket) {
                // A signal that some other part of the process waits for.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client was silent for too long",
                    ));
                }
                result => return result,
            }
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.run(|socket| socket.read(buf))
    }
}

impl Read for &Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.run(|socket| socket.read(buf))
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.run(|socket| socket.write(&[IoSlice::new(buf)]))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.run(|socket| socket.write(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for &Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.run(|socket| socket.write(&[IoSlice::new(buf)]))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
