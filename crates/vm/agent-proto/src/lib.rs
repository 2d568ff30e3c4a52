//! The messages and framing between host and guest agent.
//!
//! A [`Session`] is one end of the channel and does no I/O: the host's shim, the agent and the fuzzers all
//! drive the same state machine.
//!
//! ```text
//!  host                                                agent
//!   │                                 magic, epoch 0 ◄──┤  "here I am", where it writes first
//!   ├──► magic, epoch, versions                         │
//!   │                     magic, epoch, versions, hello ◄┤
//!   ├──► stream 1: open(exec)                           │
//!   ├──► stream 2: open(put)     stream 1: started, data ◄┤
//!   ├──► stream 2: data, eof     stream 1: exited · 2: done ◄┤
//! ```
//!
//! Bytes before the magic are dropped, frames of another epoch are ignored, and a new epoch ends all
//! streams: a channel that was cut anywhere, or restored from a snapshot, finds its feet again. Data flows
//! within credit windows, streams take turns, and what a hostile peer can make this side hold is bounded by
//! [`MAX_STREAMS`], [`WINDOW`] and [`MAX_FRAME`]. The whole protocol is told in `docs/agent.md`.
//!
//! ```
//! use std::num::NonZeroU64;
//! use vmwright_agent_proto::{Event, Hello, Message, Mode, Request, Session};
//!
//! let mut host = Session::host(NonZeroU64::new(7).unwrap());
//! let hello = Hello { version: "0.1.0".into(), mode: Mode::Service, boot_id: [0; 16] };
//! let mut agent = Session::agent(hello);
//! let ping = host.open(Request::Ping)?;
//!
//! let mut answered = false;
//! while !answered {
//!     agent.feed(host.output());
//!     host.wrote(usize::MAX);
//!     while let Some(event) = agent.next_event()? {
//!         if let Event::Message(stream, Message::Open(Request::Ping)) = event {
//!             agent.send(stream, Message::Done)?;
//!         }
//!     }
//!     host.feed(agent.output());
//!     agent.wrote(usize::MAX);
//!     while let Some(event) = host.next_event()? {
//!         answered |= event == Event::Message(ping, Message::Done);
//!     }
//! }
//! # Ok::<(), vmwright_agent_proto::Error>(())
//! ```
#![forbid(unsafe_code)]

mod boot;
mod error;
mod frame;
mod message;
mod session;
mod stream;

pub use boot::{BOOT_CONFIG_PATH, BootConfig, PORT_NAME, RootDevice, Then};
pub use error::{Error, ErrorKind, Result};
pub use frame::MAX_FRAME;
pub use message::{
    Exec, ExitStatus, Failure, FileInfo, Goodbye, Hello, Message, Mode, Put, Request, Shutdown, WindowSize,
};
pub use serde_bytes::ByteBuf;
pub use session::{Event, MAX_DATA, MAX_STREAMS, Session, StreamId, VERSION_MAX, VERSION_MIN, WINDOW};
