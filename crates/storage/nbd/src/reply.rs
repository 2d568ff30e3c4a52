use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use zerocopy::IntoBytes;

use crate::command::Refusal;
use crate::layout::{
    CHUNK_BLOCK_STATUS, CHUNK_DONE, CHUNK_ERROR, CHUNK_MAGIC, CHUNK_NONE, CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE, ChunkHeader, Descriptor, Hole, SIMPLE_REPLY_MAGIC, SimpleReply,
};
use crate::transport::{Transport, write_all};
use crate::{Error, Result};

/// What goes back to the client: whole messages, one after the other, from any thread.
pub(crate) struct Outbox<'a> {
    transport: &'a dyn Transport,
    writing: Mutex<()>,
    structured: bool,
    broken: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// The client cannot be answered any more.
pub(crate) struct Broken;

impl<'a> Outbox<'a> {
    pub(crate) fn new(transport: &'a dyn Transport, structured: bool) -> Self {
        Self {
            transport,
            writing: Mutex::default(),
            structured,
            broken: AtomicBool::new(false),
            failure: Mutex::default(),
        }
    }

    pub(crate) fn is_structured(&self) -> bool {
        self.structured
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Why the client could not be answered, if so.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Says that a request without an answer of its own was carried out.
    pub(crate) fn done(&self, cookie: u64) -> Result<(), Broken> {
        self.simple(cookie, 0, &[])
    }

    /// Says that a request was not carried out, or failed.
    pub(crate) fn refuse(&self, cookie: u64, refusal: Refusal) -> Result<(), Broken> {
        let errno = refusal.errno as u32;
        if !self.structured {
            return self.simple(cookie, errno, &[]);
        }
        let why = refusal.why.as_bytes();
        let length = u16::try_from(why.len()).unwrap_or(0);
        let why = &why[..usize::from(length)];
        self.chunk(cookie, CHUNK_ERROR, true, &[&errno.to_be_bytes(), &length.to_be_bytes(), why])
    }

    /// Answers a whole read in the form that has no chunks.
    pub(crate) fn simple_data(&self, cookie: u64, data: &[u8]) -> Result<(), Broken> {
        self.simple(cookie, 0, data)
    }

    /// Answers a part of a read, or the last one.
    pub(crate) fn data(&self, cookie: u64, offset: u64, data: &[u8], last: bool) -> Result<(), Broken> {
        self.chunk(cookie, CHUNK_OFFSET_DATA, last, &[&offset.to_be_bytes(), data])
    }

    /// Says that a part of a read is zeros, or the last one.
    pub(crate) fn hole(&self, cookie: u64, offset: u64, len: u32, last: bool) -> Result<(), Broken> {
        let hole = Hole { offset: offset.into(), length: len.into() };
        self.chunk(cookie, CHUNK_OFFSET_HOLE, last, &[hole.as_bytes()])
    }

    /// Ends an answer in chunks.
    pub(crate) fn none(&self, cookie: u64) -> Result<(), Broken> {
        self.chunk(cookie, CHUNK_NONE, true, &[])
    }

    /// Answers for one context of a status request, or for the last one.
    pub(crate) fn status(
        &self,
        cookie: u64,
        context: u32,
        ranges: &[Descriptor],
        last: bool,
    ) -> Result<(), Broken> {
        self.chunk(cookie, CHUNK_BLOCK_STATUS, last, &[&context.to_be_bytes(), ranges.as_bytes()])
    }

    fn simple(&self, cookie: u64, error: u32, data: &[u8]) -> Result<(), Broken> {
        let magic = SIMPLE_REPLY_MAGIC.into();
        let reply = SimpleReply { magic, error: error.into(), cookie: cookie.into() };
        self.send(&mut [IoSlice::new(reply.as_bytes()), IoSlice::new(data)])
    }

    fn chunk(&self, cookie: u64, kind: u16, last: bool, payload: &[&[u8]]) -> Result<(), Broken> {
        let length: usize = payload.iter().map(|part| part.len()).sum();
        let flags = if last { CHUNK_DONE } else { 0 };
        let header = ChunkHeader {
            magic: CHUNK_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie: cookie.into(),
            // Payloads are at most 32 MiB and a few bytes.
            length: u32::try_from(length).unwrap_or(u32::MAX).into(),
        };
        let mut parts =
            [IoSlice::new(header.as_bytes()), IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
        for (part, bytes) in parts[1..].iter_mut().zip(payload) {
            *part = IoSlice::new(bytes);
        }
        self.send(&mut parts)
    }

    fn send(&self, parts: &mut [IoSlice<'_>]) -> Result<(), Broken> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_broken() {
            return Err(Broken);
        }
        let result = write_all(self.transport, parts);
        let Err(error) = result else { return Ok(()) };
        // Whatever followed a message that is there in part would be taken for the rest of it.
        self.give_up();
        drop(writing);
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        Err(Broken)
    }

    /// Answers nothing any more, and ends the connection.
    pub(crate) fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
        self.transport.hang_up();
    }
}
