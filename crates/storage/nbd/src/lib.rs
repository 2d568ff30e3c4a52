//! The server side of the NBD protocol, over any transport.
//!
//! A connection first agrees on an [`Export`] ([`negotiate`]), then its requests are carried out on the export's disk
//! ([`Session::run`]). Nothing here opens sockets or starts TLS: that is the [`Transport`]'s.
//!
//! ```text
//! client ⇄ Transport ⇄ negotiate ──chosen──► Session::run ⇄ Disk
//!                          │                   reads one request at a time, carries several out at once
//!                          └ refused, aborted, hung up
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use vmwright_disk::MemDisk;
//! use vmwright_nbd::{Export, Exports};
//!
//! let disk = Arc::new(MemDisk::new(1 << 20));
//! let exports = Exports::new(vec![Export::new("scratch", disk).writable()])?;
//! assert!(exports.find("scratch").is_some());
//! // A client that names no export gets the first.
//! assert_eq!(exports.find("").unwrap().name(), "scratch");
//! # Ok::<(), vmwright_nbd::Error>(())
//! ```
//!
//! The protocol is <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>; `docs/nbd.md` says which parts
//! of it are spoken and why.
#![forbid(unsafe_code)]

mod buffers;
mod command;
mod context;
mod error;
mod export;
mod handshake;
mod layout;
mod perform;
mod read;
mod reader;
mod reply;
mod session;
mod status;
mod transport;
mod zeroes;

pub use command::Command;
pub use context::{MetaContext, StatusRange};
pub use error::{Error, ErrorKind, Result};
pub use export::{Export, Exports};
pub use handshake::{Negotiated, negotiate};
pub use session::{Ended, Observer, Session, SessionLimits, SessionReport};
pub use transport::{Encryption, Transport};

/// The largest payload that a client may send or ask for in one request, in bytes: 32 MiB.
pub const MAX_PAYLOAD: u32 = 32 << 20;
