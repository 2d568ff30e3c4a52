use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};
use crate::identity::boot_id;

/// A directory for answers that stay true until the host boots again or a program changes.
///
/// It is nothing but a shortcut: what cannot be read is found out again, what cannot be written is not kept.
#[derive(Debug, Clone)]
pub(crate) struct Cache(PathBuf);

/// What an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    /// The host's boot.
    boot_id: String,
    /// The program that was asked.
    program: PathBuf,
    /// Its device, inode and length, which change when it is replaced.
    file: [u64; 3],
    /// When it was changed, in nanoseconds.
    changed: [i64; 2],
}

#[derive(Serialize, Deserialize)]
struct Entry<T> {
    key: Key,
    value: T,
}

impl Key {
    /// The key of answers that a program as it is now gives on this boot.
    pub(crate) fn of(program: &Path) -> Result<Self> {
        let error = |source| Error::host("read", program, source);
        let path = fs::canonicalize(program).map_err(error)?;
        let metadata = fs::metadata(&path).map_err(error)?;
        Ok(Self {
            boot_id: boot_id()?,
            program: path,
            file: [metadata.dev(), metadata.ino(), metadata.len()],
            changed: [metadata.mtime(), metadata.mtime_nsec()],
        })
    }
}

impl Cache {
    /// A cache in a directory, which is made when something is kept.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// What was kept under this name, if it still holds.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str, key: &Key) -> Option<T> {
        let text = fs::read(self.0.join(name)).ok()?;
        let entry: Entry<T> = serde_json::from_slice(&text).ok()?;
        (entry.key == *key).then_some(entry.value)
    }

    /// Keeps an answer.
    ///
    /// It is written in place and at once: no temporary file can be left behind, and one who reads half of it
    /// reads no JSON and finds out for itself.
    pub(crate) fn put<T: Serialize>(&self, name: &str, key: &Key, value: &T) {
        let entry = Entry { key: key.clone(), value };
        let Ok(text) = serde_json::to_vec(&entry) else { return };
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(self.0.join(name));
        let _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, &text));
    }
}
