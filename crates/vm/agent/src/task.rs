//! What a stream is doing.

use std::io;

use vmwright_agent_proto::{Failure, StreamId};

use crate::files::{Reading, Writing};
use crate::process::Process;

/// The work of one stream.
pub(crate) enum Task {
    Process(Box<Process>),
    Writing(Box<Writing>),
    Reading(Reading),
}

/// Which of a task's descriptors an event is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
}

/// Numbers below this are the server's own descriptors.
const FIRST_TOKEN: u64 = 8;

/// The number under which a task's descriptor is watched.
pub(crate) fn token(id: StreamId, role: Role) -> u64 {
    FIRST_TOKEN + (u64::from(id.get()) << 2 | role as u64)
}

/// The stream that a token belongs to.
pub(crate) fn stream_of(token: u64) -> Option<u32> {
    u32::try_from(token.checked_sub(FIRST_TOKEN)? >> 2).ok()
}

/// Why a request is not carried out.
pub(crate) type Failed = Box<Failure>;

/// States what was attempted and why it failed.
pub(crate) fn failed(action: impl Into<String>, error: &io::Error) -> Failed {
    let errno = error.raw_os_error().unwrap_or(crate::sys::EINVAL);
    Box::new(Failure { errno, action: action.into() })
}
