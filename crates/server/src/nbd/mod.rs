//! Disks for NBD clients: `qemu-img`, `nbdcopy`, `nbd-client`, another machine.
//!
//! ```text
//! unix socket ─┐            one thread per client reads, a few more carry requests out
//! TCP ─────────┴─ Server ─► Wire (TLS) ─► vmwright_nbd::Session ─► Disk
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use vmwright_disk::MemDisk;
//! use vmwright_server::nbd::{Config, Export, Listen, Server, Stop};
//!
//! let dir = tempfile::tempdir()?;
//! let export = Export::new("scratch", Arc::new(MemDisk::new(1 << 20))).writable();
//! let server = Server::bind(Config::new(vec![export], Listen::Unix(dir.path().join("nbd.sock"))))?;
//!
//! let stop = Stop::new()?;
//! // Elsewhere, such as on a signal:
//! stop.stop();
//! let report = server.run(&stop)?;
//! assert_eq!(report.clients, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod event;
mod listen;
mod serve;
mod socket;
mod stop;
mod tls;
mod unix;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use vmwright_nbd::Exports;

use crate::Result;
use crate::error::Reason;

pub use event::{Cause, Event, Peer};
pub use listen::Listen;
pub use serve::{Report, Server};
pub use stop::Stop;
pub use tls::{Tls, TlsMode};
pub use vmwright_nbd::{Command, Export, MetaContext, SessionLimits, StatusRange};

/// How long a server goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lifetime {
    /// Until it is told to stop.
    #[default]
    Persistent,
    /// Until the last client that used an export has gone, or it is told to stop; looking at what there is does not count.
    LastClient,
}

/// What clients may take up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many may be connected at once; more are turned away. 16 by default.
    pub clients: usize,
    /// What each of them may take up.
    pub session: SessionLimits,
    /// How long one may take to choose an export; 30 seconds by default.
    pub negotiation: Duration,
    /// How long one may neither ask nor take an answer; forever by default, as a paused machine does neither.
    pub idle: Option<Duration>,
    /// How long requests that were received may take once the server is told to stop; 10 seconds by default.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 16,
            session: SessionLimits::default(),
            negotiation: Duration::from_secs(30),
            idle: None,
            drain: Duration::from_secs(10),
        }
    }
}

/// Who is told of events: called from any thread, which waits meanwhile.
pub type Listener = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// What is served, where and to whom.
#[derive(Clone)]
pub struct Config {
    /// The disks. A client that names none gets the first.
    pub exports: Vec<Export>,
    /// Where clients connect; at least one place.
    pub listen: Vec<Listen>,
    /// Whether addresses other than the loopback's are allowed.
    pub remote: bool,
    /// Whether clients on unix sockets must belong to the user of this process, or to root.
    pub same_user: bool,
    /// Encryption, if any.
    pub tls: Option<Tls>,
    /// How long the server goes on.
    pub lifetime: Lifetime,
    /// What clients may take up.
    pub limits: Limits,
    /// Who is told of events.
    pub events: Option<Listener>,
}

impl Config {
    /// Serves on one place, until told to stop.
    pub fn new(exports: Vec<Export>, listen: Listen) -> Self {
        Self {
            exports,
            listen: vec![listen],
            remote: false,
            same_user: false,
            tls: None,
            lifetime: Lifetime::Persistent,
            limits: Limits::default(),
            events: None,
        }
    }

    fn exports(&self) -> Result<Exports> {
        Exports::new(self.exports.clone()).map_err(|error| Reason::Exports(error).into())
    }

    fn tell(&self, event: &Event<'_>) {
        if let Some(events) = &self.events {
            events(event);
        }
    }
}
