use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

use crate::buffers::Buffers;
use crate::command::{Command, Request, Terms};
use crate::export::ContextId;
use crate::perform::{Failure, perform, refusal_for};
use crate::reader::{Incoming, Reader};
use crate::reply::Outbox;
use crate::transport::Transport;
use crate::{Error, Export};

/// What one connection may take up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// How many requests are carried out at once, each on a thread of its own; at least one, which is the caller's.
    pub requests: usize,
    /// How many bytes the data of all of them may take; 32 MiB at least, which one request may need.
    pub memory: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { requests: 8, memory: 64 << 20 }
    }
}

/// Who is told of what happens on a connection, and decides when it ends.
pub trait Observer: Send + Sync {
    /// Whether the connection is to end once the requests that were received are answered.
    fn is_stopping(&self) -> bool {
        false
    }

    /// Learns that the disk failed a request, which the client is told in general words only.
    fn request_failed(&self, command: Command, offset: u64, len: u32, error: &vmwright_disk::Error) {
        let _ = (command, offset, len, error);
    }
}

/// How the transmission phase ended.
#[derive(Debug)]
pub enum Ended {
    /// The client said goodbye.
    Disconnected,
    /// The client hung up between two requests.
    HungUp,
    /// The client was silent for as long as it may be.
    Idle,
    /// This side was told to stop.
    Stopped,
    /// The client broke the protocol, or the connection broke.
    Failed(Error),
}

/// What was done in a session.
#[derive(Debug)]
pub struct SessionReport {
    /// How it ended.
    pub ended: Ended,
    /// The bytes that clients read.
    pub bytes_read: u64,
    /// The bytes that clients wrote, zeroing and trimming left out.
    pub bytes_written: u64,
    /// How many requests were answered.
    pub requests: u64,
    /// How many of them were answered with an error.
    pub failed_requests: u64,
    /// Whether the disk may have been changed.
    pub changed: bool,
}

/// A connection that has agreed on an export and waits for requests.
#[derive(Debug)]
pub struct Session {
    pub(crate) export: Arc<Export>,
    pub(crate) size: u64,
    pub(crate) structured: bool,
    pub(crate) contexts: Vec<ContextId>,
}

impl Session {
    /// The export that the client chose.
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Carries requests out until the client goes, the connection breaks or the observer says to stop.
    ///
    /// Every request that was received whole is carried out and answered before this returns. Nothing is flushed that
    /// the client did not ask to be. Should the disk panic, so does this, once the connection has ended.
    pub fn run(
        &self,
        transport: &dyn Transport,
        limits: &SessionLimits,
        observer: &dyn Observer,
    ) -> SessionReport {
        let shared = Shared {
            terms: Terms {
                export: &self.export,
                size: self.size,
                structured: self.structured,
                has_contexts: !self.contexts.is_empty(),
            },
            contexts: &self.contexts,
            out: Outbox::new(transport, self.structured),
            buffers: Buffers::new(limits.memory),
            observer,
            most_threads: limits.requests.max(1),
            threads: AtomicUsize::new(1),
            waiting: AtomicUsize::new(0),
            counts: Counts::default(),
        };
        let reader = Mutex::new(Reader::new(transport));
        std::thread::scope(|scope| shared.work(&reader, scope));
        let ended = reader.into_inner().unwrap_or_else(PoisonError::into_inner).ended;
        let ended = match (shared.out.take_failure(), ended) {
            // A client that hangs up need not read its answers.
            (Some(error), None | Some(Ended::HungUp | Ended::Idle | Ended::Failed(_))) => {
                Ended::Failed(error)
            }
            (_, ended) => ended.unwrap_or(Ended::HungUp),
        };
        shared.counts.report(ended)
    }
}

/// What the threads of one connection share.
pub(crate) struct Shared<'a> {
    pub(crate) terms: Terms<'a>,
    pub(crate) contexts: &'a [ContextId],
    pub(crate) out: Outbox<'a>,
    pub(crate) buffers: Buffers,
    pub(crate) observer: &'a dyn Observer,
    most_threads: usize,
    threads: AtomicUsize,
    /// How many threads wait for a request.
    waiting: AtomicUsize,
    counts: Counts,
}

impl Shared<'_> {
    /// Takes turns with the other threads: receives a request, leaves the receiving to the next, carries it out.
    ///
    /// Nothing is handed from thread to thread, and no more requests are received than can be carried out.
    fn work<'scope>(&'scope self, reader: &'scope Mutex<Reader<'_>>, scope: &'scope Scope<'scope, '_>) {
        loop {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let incoming = reader.lock().unwrap_or_else(PoisonError::into_inner).next(self);
            let others_waiting = self.waiting.fetch_sub(1, Ordering::SeqCst) - 1;
            let Some(incoming) = incoming else { return };
            if others_waiting == 0 && self.threads.load(Ordering::SeqCst) < self.most_threads {
                self.threads.fetch_add(1, Ordering::SeqCst);
                let builder = std::thread::Builder::new().name("nbd".into());
                if builder.spawn_scoped(scope, move || self.work(reader, scope)).is_err() {
                    // The host has no more threads: those that are there do.
                    self.threads.fetch_sub(1, Ordering::SeqCst);
                }
            }
            self.carry_out(incoming);
        }
    }

    fn carry_out(&self, incoming: Incoming<'_>) {
        // Should the disk's code give up, the thread that waits for requests must not wait on.
        let _end_if_panicking = HangUp(&self.out);
        let Incoming { cookie, request, data } = incoming;
        let count = |counter: &AtomicU64, by: u64| {
            counter.fetch_add(by, Ordering::Relaxed);
        };
        count(&self.counts.requests, 1);
        let outcome = match &request {
            Ok(request) => perform(self, request, data.as_deref()),
            Err(refusal) => Err(Failure::Refused(*refusal)),
        };
        let refusal = match (outcome, &request) {
            (Ok(()), Ok(Request { command, len, .. })) => {
                match command {
                    Command::Read => count(&self.counts.bytes_read, u64::from(*len)),
                    Command::Write => count(&self.counts.bytes_written, u64::from(*len)),
                    _ => {}
                }
                return;
            }
            (Ok(()) | Err(Failure::Broken), _) => return,
            (Err(Failure::Refused(refusal)), _) => refusal,
            (Err(Failure::Disk(error)), request) => {
                if let Ok(Request { command, offset, len, .. }) = request {
                    self.observer.request_failed(*command, *offset, *len, &error);
                }
                refusal_for(&error)
            }
        };
        count(&self.counts.failed_requests, 1);
        // Where the client cannot be told, the connection is at its end, and `out` knows.
        let _ = self.out.refuse(cookie, refusal);
    }

    /// Whether requests are being carried out, other than by the thread that asks.
    pub(crate) fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) < self.threads.load(Ordering::SeqCst)
    }

    pub(crate) fn note_change(&self) {
        self.counts.changed.store(true, Ordering::Relaxed);
    }
}

/// Ends the connection when dropped while its thread panics.
struct HangUp<'a>(&'a Outbox<'a>);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.give_up();
        }
    }
}

#[derive(Default)]
struct Counts {
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    requests: AtomicU64,
    failed_requests: AtomicU64,
    changed: AtomicBool,
}

impl Counts {
    fn report(self, ended: Ended) -> SessionReport {
        SessionReport {
            ended,
            bytes_read: self.bytes_read.into_inner(),
            bytes_written: self.bytes_written.into_inner(),
            requests: self.requests.into_inner(),
            failed_requests: self.failed_requests.into_inner(),
            changed: self.changed.into_inner(),
        }
    }
}
