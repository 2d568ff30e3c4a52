//! The directory of one machine, and the sockets in it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::error::{Error, Reason, Result};

/// The longest path of a socket: 108 bytes with the closing zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Makes sure that a directory exists which nobody but its owner can enter.
pub(crate) fn prepare(dir: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(Error::host("create", dir, source)),
    }
    let metadata = fs::symlink_metadata(dir).map_err(|source| Error::host("read", dir, source))?;
    let problem = |problem| Err(Reason::Directory { path: dir.to_owned(), problem }.into());
    if !metadata.is_dir() {
        return problem("is not a directory");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return problem("belongs to another user");
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return problem("can be entered by others than its owner: its mode must be 0700");
    }
    Ok(())
}

/// The path of a socket in the directory, free to be bound.
///
/// A socket left there is unlinked only once a connection to it has been refused, which proves that nobody listens.
pub(crate) fn socket(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(Reason::SocketPath { path, len, max: SOCKET_PATH_MAX }.into());
    }
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.file_type().is_socket() => free(path),
        Ok(_) => Err(Reason::Directory { path, problem: "is there already, and is no socket" }.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(source) => Err(Error::host("read", &path, source)),
    }
}

fn free(path: PathBuf) -> Result<PathBuf> {
    match UnixStream::connect(&path) {
        Ok(_) => Err(Reason::InUse { path }.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(&path).map_err(|source| Error::host("remove", &path, source))?;
            Ok(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
        Err(source) => Err(Error::host("connect to", &path, source)),
    }
}
