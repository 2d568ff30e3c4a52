use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmwright_nbd::{Exports, SessionReport, Transport};

use super::event::{Cause, Event, Peer};
use super::listen::{Listen, Open};
use super::socket::Socket;
use super::stop::{Stop, Wake};
use super::wire::Wire;
use super::{Config, Lifetime, client};
use crate::error::Reason;
use crate::{Error, Result};

/// How long no client is taken in after the host could not, for want of descriptors most likely.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What a server did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// How many clients used an export.
    pub clients: u64,
    /// How many of them broke the protocol or lost the connection.
    pub broken: u64,
    /// The bytes that clients read.
    pub bytes_read: u64,
    /// The bytes that clients wrote, zeroing and trimming left out.
    pub bytes_written: u64,
    /// How many requests were answered with an error.
    pub failed_requests: u64,
}

/// A server that listens already; clients wait until it runs.
///
/// Dropping it gives its names up and writes nothing.
pub struct Server {
    config: Config,
    exports: Exports,
    listeners: Vec<Open>,
}

impl Server {
    /// Opens every place to listen on.
    pub fn bind(config: Config) -> Result<Self> {
        let exports = config.exports()?;
        if config.listen.is_empty() {
            return Err(Reason::NoListener.into());
        }
        let open = config.listen.iter().map(|listen| Open::bind(listen, config.remote));
        let listeners = open.collect::<Result<_>>()?;
        Ok(Self { config, exports, listeners })
    }

    /// Where it listens, with the ports that were taken.
    pub fn places(&self) -> Result<Vec<Listen>> {
        self.listeners.iter().map(Open::place).collect()
    }

    /// Serves clients until told to stop, or until the last one has gone; then flushes what they wrote.
    ///
    /// An error says that the host cannot wait for clients, or that what one wrote could not be made durable.
    pub fn run(self, stop: &Stop) -> Result<Report> {
        let Self { config, exports, listeners } = self;
        let wake = Wake::new().map_err(|error| Error::host("make", "an event descriptor", error))?;
        let shared = Shared {
            config: &config,
            exports,
            wake,
            stopping: AtomicBool::new(false),
            state: Mutex::default(),
            gone: Condvar::new(),
        };
        let waited = std::thread::scope(|scope| {
            let waited = shared.take_clients(&listeners, stop, scope);
            // Nobody else is to connect while the last ones are served.
            drop(listeners);
            shared.drain();
            waited
        });
        let flushed = shared.flush();
        let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        waited.and(flushed)?;
        match state.failure {
            Some(error) => Err(error),
            None => Ok(state.report),
        }
    }
}

/// What all clients' threads share.
pub(super) struct Shared<'a> {
    pub(super) config: &'a Config,
    pub(super) exports: Exports,
    wake: Wake,
    stopping: AtomicBool,
    state: Mutex<State>,
    gone: Condvar,
}

#[derive(Default)]
struct State {
    last_client: u64,
    connected: HashMap<u64, Arc<Wire>>,
    /// Whether an export was used.
    used: bool,
    report: Report,
    failure: Option<Error>,
}

impl Shared<'_> {
    /// Takes clients in until that ends.
    fn take_clients<'scope>(
        &'scope self,
        listeners: &[Open],
        stop: &Stop,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<()> {
        let mut pause = None;
        loop {
            self.wake.clear();
            if stop.is_stopped() || self.is_over() {
                return Ok(());
            }
            let mut waits = vec![
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            ];
            if pause.is_none() {
                waits.extend(
                    listeners.iter().map(|open| PollFd::from_borrowed_fd(open.as_fd(), PollFlags::IN)),
                );
            }
            match poll(&mut waits, pause.take().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::host("wait for", "clients", error)),
            }
            for open in listeners {
                match open.accept() {
                    Ok(Some((socket, peer))) => self.take_in(socket, peer, scope),
                    Ok(None) => {}
                    Err(error) => {
                        self.config.tell(&Event::NotAccepted { error: &error });
                        pause = Some(PAUSE);
                    }
                }
            }
        }
    }

    /// Gives a client a thread, or turns it away.
    fn take_in<'scope>(&'scope self, socket: Socket, peer: Peer, scope: &'scope Scope<'scope, '_>) {
        let config = self.config;
        let mut state = self.lock();
        state.last_client += 1;
        let number = state.last_client;
        let cause = match peer {
            Peer::Local { uid, .. } if config.same_user && !is_ours(uid) => Some(Cause::OtherUser),
            _ if state.connected.len() >= config.limits.clients => Some(Cause::TooMany),
            _ => None,
        };
        let wire = Arc::new(Wire::new(socket, config.tls.clone(), config.limits.negotiation));
        if cause.is_none() {
            state.connected.insert(number, wire.clone());
        }
        drop(state);
        config.tell(&Event::Connected { client: number, peer });
        if let Some(cause) = cause {
            return config.tell(&Event::Gone { client: number, cause });
        }
        let serve = move || {
            // A disk that gives up must not take other clients with it.
            let served = catch_unwind(AssertUnwindSafe(|| client::serve(self, number, &wire)));
            wire.hang_up();
            self.part_with(number);
            if served.is_err() {
                config.tell(&Event::Gone { client: number, cause: Cause::Panicked });
            }
        };
        let thread = std::thread::Builder::new().name(format!("nbd-{number}"));
        if let Err(error) = thread.spawn_scoped(scope, serve) {
            self.part_with(number);
            config.tell(&Event::Gone { client: number, cause: Cause::Host(error) });
        }
    }

    fn part_with(&self, number: u64) {
        self.lock().connected.remove(&number);
        self.gone.notify_all();
        self.wake.wake();
    }

    /// Whether the last client has gone, where that is the end.
    fn is_over(&self) -> bool {
        let state = self.lock();
        self.config.lifetime == Lifetime::LastClient && state.used && state.connected.is_empty()
    }

    /// Lets clients have the answers to what they asked, for as long as that may take.
    fn drain(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let end = Instant::now().checked_add(self.config.limits.drain);
        let mut state = self.lock();
        state.connected.values().for_each(|wire| wire.stop_receiving());
        while !state.connected.is_empty() {
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                state.connected.values().for_each(|wire| wire.hang_up());
                return;
            }
            state = self.gone.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes everything durable that clients could change.
    fn flush(&self) -> Result<()> {
        for export in self.exports.iter().filter(|export| !export.is_read_only()) {
            let flushed = export.disk().flush();
            flushed.map_err(|source| Reason::Flush { export: export.name().to_owned(), source })?;
        }
        Ok(())
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    pub(super) fn note_use(&self) {
        self.lock().used = true;
    }

    /// Keeps the first reason why something is not durable.
    pub(super) fn note_failure(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
    }

    pub(super) fn count(&self, session: &SessionReport) {
        let report = &mut self.lock().report;
        report.clients += 1;
        report.broken += u64::from(!client::ended_well(session));
        report.bytes_read = report.bytes_read.saturating_add(session.bytes_read);
        report.bytes_written = report.bytes_written.saturating_add(session.bytes_written);
        report.failed_requests = report.failed_requests.saturating_add(session.failed_requests);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a user is that of this process, or root who may do as it likes anyway.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
