//! A lock on a file that lasts as long as any process has the descriptor it was taken through.
//!
//! An open-file-description lock is handed on with its descriptor: the starting command gives its lock to
//! the shim, and there is no moment in which a VM has an owner and no lock. The kernel lets go of it when
//! the last holder ends, however that happens.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Error, Result};

/// A lock that is held while this, or a copy of its descriptor, exists.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Takes the lock, waiting at most so long for another holder; kind `InUse` where that is too short.
    pub(crate) fn exclusive(path: &Path, patience: Option<Duration>) -> Result<Self> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let file = open(path)?;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))) {
                Ok(_) => return Ok(Self(file)),
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(error) => return Err(Error::host("lock", path, error.into())),
            }
            if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
                let busy = std::io::Error::from_raw_os_error(libc::EBUSY);
                return Err(Error::layer(crate::ErrorKind::InUse, Error::host("lock", path, busy)));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether anybody holds the lock, without taking it for even a moment.
    pub(crate) fn is_held(path: &Path) -> Result<bool> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(Error::host("open", path, source)),
        };
        let mut lock = whole(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))
            .map_err(|error| Error::host("lock", path, error.into()))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    /// The descriptor, to be handed on together with the lock.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0.into()
    }
}

impl AsFd for FileLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(|source| Error::host("open", path, source))
}

/// A lock over the whole file.
fn whole(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_lock_lives_on_in_a_child_that_was_given_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!FileLock::is_held(&path).unwrap());
        let lock = FileLock::exclusive(&path, None).unwrap();
        assert!(FileLock::is_held(&path).unwrap());
        assert!(FileLock::exclusive(&path, None).is_err());
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(lock.into_fd())).spawn().unwrap();
        assert!(FileLock::is_held(&path).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!FileLock::is_held(&path).unwrap());
    }
}
