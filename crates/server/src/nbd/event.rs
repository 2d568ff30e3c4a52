use std::net::SocketAddr;

use vmwright_nbd::{Command, SessionReport};

use crate::Error;

/// Who a client is, as far as the host knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A process of this host.
    Local {
        /// Its process id.
        pid: u32,
        /// The user it belongs to.
        uid: u32,
    },
    /// A network address.
    Remote(SocketAddr),
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { pid, uid } => write!(f, "process {pid} of user {uid}"),
            Self::Remote(address) => write!(f, "{address}"),
        }
    }
}

/// Why a client's connection ended that used no export.
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// It only looked at what there is.
    Looked,
    /// As many clients are connected as may be.
    TooMany,
    /// It belongs to another user.
    OtherUser,
    /// It did what it may not, or was silent for too long.
    Failed(vmwright_nbd::Error),
    /// The host could not.
    Host(std::io::Error),
    /// The code of a disk gave up; other clients go on.
    Panicked,
}

/// Something that happened. Clients are numbered from one.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A client connected.
    Connected {
        /// Its number.
        client: u64,
        /// Who it is.
        peer: Peer,
    },
    /// A client chose an export and can use it.
    Serving {
        /// Its number.
        client: u64,
        /// The export's name.
        export: &'a str,
        /// Whether the connection is encrypted.
        encrypted: bool,
    },
    /// The disk failed a request.
    RequestFailed {
        /// The client's number.
        client: u64,
        /// The export's name.
        export: &'a str,
        /// What was asked.
        command: Command,
        /// The offset in bytes.
        offset: u64,
        /// The length in bytes.
        len: u32,
        /// What the disk says, which the client is not told.
        error: &'a vmwright_disk::Error,
    },
    /// A client that used an export has gone.
    Served {
        /// Its number.
        client: u64,
        /// The export's name.
        export: &'a str,
        /// What it did, and how it ended.
        report: &'a SessionReport,
    },
    /// A client has gone, or was turned away, that used no export.
    Gone {
        /// Its number.
        client: u64,
        /// Why.
        cause: Cause,
    },
    /// What a client wrote could not be made durable when it went; the server goes on and ends with this error.
    NotFlushed {
        /// The client's number.
        client: u64,
        /// Why.
        error: &'a Error,
    },
    /// The host could not take a client in; the server tries again.
    NotAccepted {
        /// Why.
        error: &'a std::io::Error,
    },
}
