use crate::{Error, ErrorKind, Result};

/// What is copied, and how much at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOptions {
    /// Whether devices, fifos and set-id bits are copied. Left out otherwise: a guest's set-id program is the
    /// host's problem once it is there.
    pub special: bool,
    /// Whether owners are copied; otherwise files belong to who copies (on the host) or to root (in a guest).
    pub owners: bool,
    /// The most bytes that files may have together, holes included.
    pub max_bytes: u64,
    /// The most files and directories.
    pub max_entries: u64,
}

impl Default for CopyOptions {
    /// Neither special files nor owners; at most 1 TiB and 10 million files.
    fn default() -> Self {
        Self { special: false, owners: false, max_bytes: 1 << 40, max_entries: 10_000_000 }
    }
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CopySummary {
    /// Files of any type, links and directories.
    pub entries: u64,
    /// The lengths of the files together.
    pub bytes: u64,
    /// The guest's or host's paths of what was left out, because it is special; the first hundred.
    pub skipped: Vec<String>,
    /// How many were left out.
    pub skipped_count: u64,
}

/// The most names that a summary remembers.
const SKIPPED_MAX: usize = 100;

impl CopySummary {
    pub(super) fn skip(&mut self, path: &[u8]) {
        self.skipped_count += 1;
        if self.skipped.len() < SKIPPED_MAX {
            self.skipped.push(String::from_utf8_lossy(path).into_owned());
        }
    }

    pub(super) fn count_entry(&mut self, path: &[u8], options: &CopyOptions) -> Result<()> {
        self.entries += 1;
        match self.entries > options.max_entries {
            true => Err(Error::guest_path(ErrorKind::Unsupported, path, "more files than the limit allows")),
            false => Ok(()),
        }
    }

    /// Counts the length of a file before any of it is copied.
    pub(super) fn count_bytes(&mut self, path: &[u8], size: u64, options: &CopyOptions) -> Result<()> {
        self.bytes = self.bytes.saturating_add(size);
        match self.bytes > options.max_bytes {
            true => Err(Error::guest_path(ErrorKind::Unsupported, path, "more bytes than the limit allows")),
            false => Ok(()),
        }
    }
}
