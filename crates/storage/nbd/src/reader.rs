use std::io;

use zerocopy::{FromZeros, IntoBytes};

use crate::buffers::Lent;
use crate::command::{Errno, Refusal, Request};
use crate::error::Reason;
use crate::layout::{CMD_DISC, CMD_WRITE, REQUEST_MAGIC, RequestHeader};
use crate::session::{Ended, Shared};
use crate::transport::Transport;
use crate::{Error, MAX_PAYLOAD, Result};

/// How much is read ahead of the requests: many small ones come with one call.
const AHEAD: usize = 16 << 10;

/// The bytes from the client, and how they ended.
pub(crate) struct Reader<'a> {
    transport: &'a dyn Transport,
    ahead: Box<[u8]>,
    start: usize,
    end: usize,
    pub(crate) ended: Option<Ended>,
}

/// One request off the wire.
pub(crate) struct Incoming<'a> {
    pub(crate) cookie: u64,
    pub(crate) request: Result<Request, Refusal>,
    /// The data of a write.
    pub(crate) data: Option<Lent<'a>>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(transport: &'a dyn Transport) -> Self {
        Self { transport, ahead: vec![0; AHEAD].into(), start: 0, end: 0, ended: None }
    }

    /// The next request with its data; nothing once the client has gone or must go, which `ended` then explains.
    pub(crate) fn next<'s>(&mut self, shared: &'s Shared<'_>) -> Option<Incoming<'s>> {
        if self.ended.is_some() {
            return None;
        }
        let incoming = self.receive(shared);
        match incoming {
            Ok(incoming) => Some(incoming),
            Err(ended) => {
                let stopping = shared.observer.is_stopping();
                let broken = !matches!(ended, Ended::Disconnected);
                self.ended = Some(if stopping && broken { Ended::Stopped } else { ended });
                None
            }
        }
    }

    fn receive<'s>(&mut self, shared: &'s Shared<'_>) -> Result<Incoming<'s>, Ended> {
        self.wait(shared)?;
        let mut header = RequestHeader::new_zeroed();
        self.fill(header.as_mut_bytes()).map_err(|error| Ended::Failed(lost(error)))?;
        if header.magic.get() != REQUEST_MAGIC {
            let (expected, actual) = (u64::from(REQUEST_MAGIC), u64::from(header.magic.get()));
            let what = "the mark of a request";
            return Err(Ended::Failed(Reason::Protocol { what, expected, actual }.into()));
        }
        let (kind, length) = (header.kind.get(), header.length.get());
        if kind == CMD_DISC {
            return Err(Ended::Disconnected);
        }
        let mut request = Request::check(&header, &shared.terms);
        let mut data = None;
        if kind == CMD_WRITE && length > MAX_PAYLOAD {
            request =
                request.and(Err(Refusal::new(Errno::Inval, "more than 32 MiB cannot be written at once")));
        }
        if kind == CMD_WRITE && request.is_ok() {
            let mut buffer = shared.buffers.take(length as usize);
            self.fill(&mut buffer).map_err(|error| Ended::Failed(lost(error)))?;
            data = Some(buffer);
        } else if kind == CMD_WRITE {
            self.skip(length).map_err(Ended::Failed)?;
        }
        Ok(Incoming { cookie: header.cookie.get(), request, data })
    }

    /// Waits for the first byte of a request; a client that waits for answers itself may be silent meanwhile.
    fn wait(&mut self, shared: &Shared<'_>) -> Result<(), Ended> {
        while self.start == self.end {
            if shared.observer.is_stopping() || shared.out.is_broken() {
                return Err(Ended::HungUp);
            }
            match self.transport.read(&mut self.ahead) {
                Ok(0) => return Err(Ended::HungUp),
                Ok(n) => (self.start, self.end) = (0, n.min(AHEAD)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => {
                    if !shared.is_busy() {
                        return Err(Ended::Idle);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Ended::HungUp),
                Err(error) => return Err(Ended::Failed(lost(error))),
            }
        }
        Ok(())
    }

    /// Fills the whole of `buf`.
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<()> {
        let ready = &self.ahead[self.start..self.end];
        let count = ready.len().min(buf.len());
        let (first, mut rest) = buf.split_at_mut(count);
        first.copy_from_slice(&ready[..count]);
        self.start += count;
        while !rest.is_empty() && rest.len() < AHEAD {
            let n = match self.transport.read(&mut self.ahead) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?.min(AHEAD),
            };
            let count = n.min(rest.len());
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (first, more) = rest.split_at_mut(count);
            first.copy_from_slice(&self.ahead[..count]);
            (self.start, self.end) = (count, n);
            rest = more;
        }
        crate::transport::read_exact(self.transport, rest)
    }

    /// Passes over the data of a write that is refused. So much data that nobody means it ends the connection.
    fn skip(&mut self, len: u32) -> Result<()> {
        let most = 2 * MAX_PAYLOAD;
        if len > most {
            let (most, actual) = (u64::from(most), u64::from(len));
            return Err(Reason::TooLong { what: "the data of a write", most, actual }.into());
        }
        let mut scratch = [0; 4096];
        let mut left = len as usize;
        while left > 0 {
            let count = left.min(scratch.len());
            self.fill(&mut scratch[..count]).map_err(lost)?;
            left -= count;
        }
        Ok(())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn lost(error: io::Error) -> Error {
    Error::connection("receive a request")(error)
}
