//! Byte-range locks as QEMU takes them (`block/file-posix.c`).
//!
//! Byte `100 + p` is locked by whoever uses permission `p`; byte `200 + p` by whoever does not share it:
//!
//! ```text
//!              consistent read   write   resize
//! uses               100          101      103
//! does not share     200          201      203
//! ```
//!
//! All locks are *shared* ones, of open file descriptions. Taking them always succeeds; who then finds,
//! by asking whether an exclusive lock would be possible, that another one uses what it does not share, or does
//! not share what it uses, gives up.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

const USED: i64 = 100;
const UNSHARED: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What a file is locked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockMode {
    Read,
    Write,
}

/// Somebody else holds a lock that excludes ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// A name and process number, where they could be found out.
    pub(crate) holder: Option<String>,
}

impl LockMode {
    fn uses(self) -> &'static [i64] {
        match self {
            Self::Read => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    fn does_not_share(self) -> &'static [i64] {
        match self {
            Self::Read => &[WRITE, RESIZE],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }
}

/// Takes the locks of `mode`; answers whether nobody else prevents it.
pub(super) fn take(file: &File, mode: LockMode) -> io::Result<bool> {
    for byte in mode.uses().iter().map(|p| USED + p).chain(mode.does_not_share().iter().map(|p| UNSHARED + p))
    {
        fcntl(file, FcntlArg::F_OFD_SETLK(&range(byte, libc::F_RDLCK)))?;
    }
    let excluded = mode.uses().iter().map(|p| UNSHARED + p);
    for byte in excluded.chain(mode.does_not_share().iter().map(|p| USED + p)) {
        let mut question = range(byte, libc::F_WRLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut question))?;
        if i32::from(question.l_type) != libc::F_UNLCK {
            release(file)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives all locks back.
pub(super) fn release(file: &File) -> io::Result<()> {
    let mut all = range(USED, libc::F_UNLCK);
    all.l_len = UNSHARED + 100 - USED;
    fcntl(file, FcntlArg::F_OFD_SETLK(&all))?;
    Ok(())
}

fn range(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
