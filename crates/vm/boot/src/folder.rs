//! Where the files of a kernel's modules are.

use std::path::PathBuf;

use vmwright_vfs::{ErrorKind, Root};

use crate::error::Reason;
use crate::{Error, Result};

/// The files below `/lib/modules/RELEASE`, wherever that is.
pub(crate) trait Folder {
    /// Reads one file; `None` where there is none of that name.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>>;
}

/// A folder in a guest.
pub(crate) struct GuestFolder<'a> {
    pub(crate) root: &'a Root,
    pub(crate) path: Vec<u8>,
}

impl Folder for GuestFolder<'_> {
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let path = [self.path.as_slice(), b"/", path.as_bytes()].concat();
        match self.root.read_file(&path, limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::guest(&path)(error)),
        }
    }
}

/// A folder of the host, which the user has named.
pub(crate) struct HostFolder(pub(crate) PathBuf);

impl Folder for HostFolder {
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        // Names come out of the folder's own index.
        if path.split('/').any(|part| part == "..") || path.starts_with('/') {
            return Err(Error::corrupt("modules.dep", 0, "a path leads out of the folder"));
        }
        let path = self.0.join(path);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Ok(metadata) if metadata.len() > limit => {
                Err(Reason::TooLarge { what: "a file of the kernel's modules", limit: limit as usize }.into())
            }
            _ => std::fs::read(&path).map(Some).map_err(Error::host(&path)),
        }
    }
}
