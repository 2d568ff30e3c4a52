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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_new_directory_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("vm");
        prepare(&vm).unwrap();
        assert_eq!(fs::metadata(&vm).unwrap().permissions().mode() & 0o777, 0o700);
        prepare(&vm).unwrap();
    }

    #[test]
    fn a_link_or_a_file_is_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        fs::write(&file, b"").unwrap();
        for path in [link, file] {
            assert_eq!(prepare(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_socket_is_unlinked_only_once_a_connection_was_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(socket(dir.path(), "a").unwrap_err().kind(), ErrorKind::InUse);
        assert!(path.exists(), "a socket that somebody listens on stays");
        drop(listener);
        assert!(path.exists());
        assert_eq!(socket(dir.path(), "a").unwrap(), path);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_the_place_of_a_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"precious").unwrap();
        assert_eq!(socket(dir.path(), "a").unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_of_107_bytes_is_the_longest_that_fits() {
        let dir = tempfile::tempdir().unwrap();
        let room = SOCKET_PATH_MAX - dir.path().as_os_str().len() - 1;
        let longest = socket(dir.path(), &"s".repeat(room)).unwrap();
        UnixListener::bind(longest).unwrap();
        let error = socket(dir.path(), &"s".repeat(room + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("has 108 bytes, at most 107 fit"), "{error}");
    }
}
