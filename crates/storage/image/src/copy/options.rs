use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, FileStamp, HostFile};

use crate::{BackingFile, Error, Format, Layout, ParentId, Result};

/// What a disk is converted to, and how.
#[derive(Clone)]
pub struct ConvertOptions {
    /// The format, and how the image is laid out.
    pub layout: Layout,
    /// What opens the new image, if it is to be encrypted.
    pub secret: Option<Passphrase>,
    /// Whether the content is compressed, in formats that can.
    pub compress: bool,
    /// How hard to compress, on the scale of the algorithm: 1 to 9 for deflate, 1 to 22 for zstd. `None` for the
    /// default: for deflate, the fastest within 2 % of the size that QEMU reaches; for zstd, QEMU's.
    pub level: Option<i32>,
    /// How many threads work; at least one does.
    pub threads: usize,
    /// Whether an existing file is replaced, or a block device overwritten.
    pub force: bool,
    /// What the new image is based on: only what differs from it is stored.
    pub base: Option<Base>,
    /// Whether zeros that the source stores are looked for and left out. Without, what the source stores is stored,
    /// and the host copies it itself where it can.
    pub find_zeros: bool,
    /// Whether the new image may share its bytes with the source where the host can do that, stored zeros among them.
    pub share: bool,
    /// Whether the new image is read again at the end and compared with what was read from the source.
    pub verify: bool,
    /// How many bytes of the source are copied in a second at most.
    pub rate_limit: Option<u64>,
    /// Keeps what was copied where the copy ends early, and goes on from there the next time if the source is still
    /// this one. A base must be part of it, by [`SourceIdentity::with`].
    pub resume: Option<SourceIdentity>,
    /// Ends the copy with an error that [is cancelled](crate::Error::is_cancelled) once it is set.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl ConvertOptions {
    /// The format's defaults, with a thread for each processor.
    pub fn new(format: Format) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(16));
        Self {
            layout: Layout::new(format),
            secret: None,
            compress: false,
            level: None,
            threads,
            force: false,
            base: None,
            find_zeros: true,
            share: true,
            verify: false,
            rate_limit: None,
            resume: None,
            cancel: None,
        }
    }
}

impl std::fmt::Debug for ConvertOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConvertOptions")
            .field("layout", &self.layout)
            .field("secret", &self.secret)
            .field("compress", &self.compress)
            .field("level", &self.level)
            .field("threads", &self.threads)
            .field("force", &self.force)
            .field("base", &self.base.as_ref().map(|base| &base.name))
            .field("find_zeros", &self.find_zeros)
            .field("share", &self.share)
            .field("verify", &self.verify)
            .field("rate_limit", &self.rate_limit)
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

/// What a new image is based on.
#[derive(Clone)]
pub struct Base {
    /// As the new image shall name it.
    pub name: BackingFile,
    /// What it shows.
    pub disk: Arc<dyn Disk>,
    /// What identifies its content, in formats whose images know their parents again.
    pub parent: Option<ParentId>,
}

/// Which source was copied, so that a copy that ended early goes on only with the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity(pub(super) blake3::Hash);

impl SourceIdentity {
    /// The identity of a source that is kept in these files, in this order: which files they are, how long, and when
    /// they last changed. A block device does not say when that was, and is refused.
    pub fn of_files<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        for path in paths {
            if HostFile::open_forced(path.as_ref())?.is_block_device() {
                return Err(Error::unsupported(
                    "going on with a copy of a block device, which may have changed unseen,",
                ));
            }
            hasher.update(&FileStamp::of(path.as_ref())?.to_bytes());
        }
        Ok(Self(hasher.finalize()))
    }

    /// The identity of what is one of several things in the same files, such as a snapshot; or that depends on another.
    pub fn with(&self, detail: &[u8]) -> Self {
        Self(blake3::Hasher::new().update(self.0.as_bytes()).update(detail).finalize())
    }

    /// The identity as bytes.
    pub fn to_bytes(&self) -> [u8; 32] {
        *self.0.as_bytes()
    }
}

/// What a conversion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Converted {
    /// Whether the target was as before up to the end: false for block devices, which are written in place.
    pub atomic: bool,
    /// How many bytes of the source were read.
    pub bytes_read: u64,
    /// How many bytes of content were stored, compressed ones by their compressed length.
    pub bytes_written: u64,
    /// Up to where an earlier copy had come that this one went on with.
    pub resumed_from: u64,
    /// Whether the target was read again and compared.
    pub verified: bool,
}
