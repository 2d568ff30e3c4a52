//! Carrying requests out on the disk.

use vmwright_disk::{Disk, ErrorKind};

use crate::command::{Command, Errno, Refusal, Request};
use crate::layout::{CMD_FLAG_FUA, CMD_FLAG_REQ_ONE};
use crate::reply::Broken;
use crate::session::Shared;
use crate::{read, status, zeroes};

/// How much a client can have read ahead at once: the protocol promises nothing, and nothing must tie a worker up.
const MOST_CACHED: u32 = 32 << 20;
const CACHE_STEP: u32 = 1 << 20;

/// Why a request did not succeed.
pub(crate) enum Failure {
    /// The client is told.
    Refused(Refusal),
    /// The client is told in general words, the server's owner in detail.
    Disk(vmwright_disk::Error),
    /// The client cannot be told anything.
    Broken,
}

pub(crate) type Outcome = Result<(), Failure>;

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<vmwright_disk::Error> for Failure {
    fn from(error: vmwright_disk::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<Broken> for Failure {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

/// Carries one request out, and answers it if it succeeds.
pub(crate) fn perform(shared: &Shared<'_>, request: &Request, data: Option<&[u8]>) -> Outcome {
    let export = shared.terms.export;
    let disk = &**export.disk();
    let (offset, len) = (request.offset, u64::from(request.len));
    let changes = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
    if changes {
        // Whatever fails may have been done in part.
        shared.note_change();
    }
    match request.command {
        Command::Read => return read::answer(disk, request, &shared.out, &shared.buffers),
        Command::BlockStatus => return answer_status(shared, request),
        Command::Write => disk.write_at(data.unwrap_or_default(), offset)?,
        Command::Trim => disk.discard(offset, len)?,
        Command::WriteZeroes => zeroes::zero(export, request)?,
        Command::Cache => cache(shared, disk, request)?,
        Command::Flush => flush(shared, disk)?,
    }
    if changes && request.has(CMD_FLAG_FUA) {
        disk.flush()?;
    }
    Ok(shared.out.done(request.cookie)?)
}

/// What a reader cannot have changed need not be made durable.
fn flush(shared: &Shared<'_>, disk: &dyn Disk) -> vmwright_disk::Result<()> {
    match shared.terms.export.is_read_only() {
        true => Ok(()),
        false => disk.flush(),
    }
}

fn answer_status(shared: &Shared<'_>, request: &Request) -> Outcome {
    let (export, size) = (shared.terms.export, shared.terms.size);
    let range = (request.offset, request.len);
    let contexts = shared.contexts;
    for (index, context) in contexts.iter().enumerate() {
        let ranges = status::describe(export, *context, range, request.has(CMD_FLAG_REQ_ONE), size)?;
        let last = index + 1 == contexts.len();
        shared.out.status(request.cookie, context.number(), &ranges, last)?;
    }
    Ok(())
}

/// Has the host read ahead what a client says it will want.
fn cache(shared: &Shared<'_>, disk: &dyn Disk, request: &Request) -> vmwright_disk::Result<()> {
    let end = request.offset + u64::from(request.len.min(MOST_CACHED));
    let mut at = request.offset;
    let mut buffer = shared.buffers.take(CACHE_STEP as usize);
    while at < end {
        let extent = disk.extent_at(at)?;
        let mut stop = extent.end().min(end).max(at + 1);
        if !extent.is_zero() {
            stop = stop.min(at + u64::from(CACHE_STEP));
            disk.read_at(&mut buffer[..(stop - at) as usize], at)?;
        }
        at = stop;
    }
    Ok(())
}

/// What a client is told of an error of the disk: what it can act on, and no names of the host.
pub(crate) fn refusal_for(error: &vmwright_disk::Error) -> Refusal {
    match error.kind() {
        ErrorKind::NoSpace => Refusal::new(Errno::NoSpc, "there is no space left on the host"),
        ErrorKind::ReadOnly => Refusal::new(Errno::Perm, "the disk is read-only"),
        ErrorKind::InvalidInput => Refusal::new(Errno::Inval, "the disk does not allow that"),
        ErrorKind::Corrupt => Refusal::new(Errno::Io, "the image is damaged there"),
        ErrorKind::Unsupported => Refusal::new(Errno::Io, "the image cannot be used that way there"),
        _ => Refusal::new(Errno::Io, "the host could not do it"),
    }
}
