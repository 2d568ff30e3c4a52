use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{Error, Result};

/// Which file a name stands for, and what tells that it has not changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// The same, but nobody can set it back.
    changed: (i64, i64),
}

impl FileStamp {
    /// The stamp of what `path` stands for now.
    pub fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::host("stat", path, source))?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// The stamp as bytes, to be kept and compared.
    pub fn to_bytes(&self) -> [u8; 56] {
        let (modified, changed) = (self.modified, self.changed);
        let times = [modified.0, modified.1, changed.0, changed.1];
        let mut bytes = [0; 56];
        let words = [self.device, self.inode, self.len].map(u64::to_le_bytes);
        let words = words.into_iter().chain(times.map(i64::to_le_bytes));
        for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
            part.copy_from_slice(&word);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_changes_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, b"one").unwrap();
        let stamp = FileStamp::of(&path).unwrap();
        assert_eq!(FileStamp::of(&path).unwrap().to_bytes(), stamp.to_bytes());
        std::fs::write(&path, b"longer").unwrap();
        assert_ne!(FileStamp::of(&path).unwrap().to_bytes(), stamp.to_bytes());
    }
}
