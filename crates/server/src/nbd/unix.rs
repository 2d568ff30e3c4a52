//! Sockets that are files.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Reason;
use crate::{Error, Result};

/// The longest name, without the NUL that ends it.
const LONGEST: usize = 107;
const BACKLOG: i32 = 128;

/// A listening socket whose name goes when it does.
#[derive(Debug)]
pub(super) struct NamedSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

impl NamedSocket {
    /// Listens on a name that only this user may connect to; what a server that crashed left there is removed.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let len = path.as_os_str().as_bytes().len();
        if len > LONGEST {
            return Err(Reason::LongName { path: path.to_owned(), len }.into());
        }
        let fail = |source: io::Error| Error::host("listen on", path.display(), source);
        // Two servers that find the same name stale at once would remove each other's.
        let _lock = lock_folder(path).map_err(fail)?;
        remove_stale(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let socket = socket.map_err(|error| fail(error.into()))?;
        let open = || {
            // The mode of the socket becomes that of its name, so there is no moment at which others may connect.
            rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::net::listen(&socket, BACKLOG)
        };
        open().map_err(|error| fail(error.into()))?;
        let listener = UnixListener::from(socket);
        let metadata = fs::symlink_metadata(path).map_err(fail)?;
        let named = Self { listener, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
        if metadata.mode() & 0o777 != 0o600 {
            // The filesystem has not taken the mode over.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
        }
        Ok(named)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for NamedSocket {
    fn drop(&mut self) {
        let ours = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| ours(&metadata)) {
            // A name that stays is found stale by the next server.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps other servers from binding in the same folder until dropped.
fn lock_folder(path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    rustix::fs::flock(&folder, FlockOperation::LockExclusive)?;
    Ok(folder)
}

/// Removes a socket that nobody listens on; refuses everything else that has the name.
fn remove_stale(path: &Path) -> Result<()> {
    let fail = |source: io::Error| Error::host("listen on", path.display(), source);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Reason::NotASocket { path: path.to_owned() }.into());
        }
        Ok(_) => {}
    }
    // Waits for nobody: the queue of a server that hangs may be full.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| fail(error.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|error| fail(error.into()))?;
    match rustix::net::connect(&probe, &address) {
        Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path).map_err(fail),
        // Somebody listens, or it cannot be told.
        Ok(()) | Err(_) => Err(Reason::Listening { path: path.to_owned() }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use vmwright_disk::ErrorKind;

    #[test]
    fn only_the_owner_may_connect_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = NamedSocket::bind(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists(), "the name goes with the socket");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = NamedSocket::bind(&path).unwrap();
        assert_eq!(NamedSocket::bind(&path).unwrap_err().kind(), ErrorKind::InUse);
        UnixStream::connect(live.path()).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert_eq!(NamedSocket::bind(&path).unwrap_err().kind(), ErrorKind::Exists);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(NamedSocket::bind(&link).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_name_that_clients_could_not_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = NamedSocket::bind(&dir.path().join("x".repeat(120))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("at most 107 bytes"), "{error}");
    }

    #[test]
    fn the_name_stays_if_somebody_else_has_taken_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = NamedSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
