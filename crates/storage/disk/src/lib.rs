//! Positioned I/O on byte ranges, and changes of host files that happen wholly or not at all.
//!
//! A [`Disk`] is a range of bytes with a length. Host files, memory, windows into other disks, image
//! formats, partitions and encrypted containers all are disks, and stack:
//!
//! ```text
//! host file ← overlay (transaction) ← qcow2 ← partition ← ext4
//! ```
//!
//! Every layer can say *where* its bytes are ([`Disk::extent_at`]), so that copying, comparing and measuring
//! are written once, above all layers.
//!
//! ```
//! use vmwright_disk::{Disk, MemDisk, Window};
//! use std::sync::Arc;
//!
//! let disk = Arc::new(MemDisk::new(1 << 20));
//! let part = Window::new(disk.clone(), 4096, 8192)?;
//! part.write_at(b"hello", 0)?;
//! let mut bytes = [0; 5];
//! disk.read_at(&mut bytes, 4096)?;
//! assert_eq!(&bytes, b"hello");
//! # Ok::<(), vmwright_disk::Error>(())
//! ```
//!
//! # Three ways to write
//!
//! | way | type | for |
//! |---|---|---|
//! | all at once | [`Transaction`] | editing what exists: after a crash each image is as before or as after |
//! | anew | [`FreshFile`] | making a file that has its name only when it is complete |
//! | in place | [`Transaction`] in [`WriteMode::Ordered`] | serving and devices: durable after [`Disk::flush`] |
//!
//! A transaction keeps changes in an [`Overlay`] above each host file, beneath the image format. Its commit first makes a
//! *redo file* durable that describes the whole change, then applies it:
//!
//! ```text
//!            │ redo written, synced │ named │ applied, synced │ redo void │ removed
//! after a crash:        old                  │   new (the redo is replayed)  │   new
//! ```
//!
//! ```
//! use vmwright_disk::{Access, Disk, Transaction, TransactionOptions};
//!
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("disk.raw");
//! std::fs::write(&path, vec![0; 1 << 20])?;
//!
//! let txn = Transaction::begin(TransactionOptions::default());
//! let disk = txn.open(&path, Access::Write)?;
//! disk.write_at(b"hello", 4096)?;
//! disk.set_len(2 << 20)?;
//!
//! // Nothing has happened to the file so far.
//! assert_eq!(std::fs::metadata(&path)?.len(), 1 << 20);
//! assert_eq!(txn.plan()?.files[0].new_len, 2 << 20);
//!
//! txn.commit()?;
//! assert_eq!(std::fs::read(&path)?[4096..4101], *b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What an interrupted commit leaves is found by [`pending`] and settled by [`recover()`]; opening a file in a transaction
//! does so by itself. `docs/formats/redo.md` has the format and the argument for each step.
//!
//! # Features
//!
//! `test-util` adds `fault` (disks and a simulated host that fail and forget) and `conformance` (what every disk
//! must do), for the tests of crates above.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod error;
mod extent;
#[cfg(any(test, feature = "test-util"))]
pub mod fault;
mod file;
mod free;
mod fresh;
mod host;
mod mem;
mod opened;
mod overlay;
mod recover;
mod redo;
mod runs;
mod stamp;
mod store;
mod transaction;
mod window;
mod wipe;

pub use error::{Error, ErrorKind, Result};
pub use extent::{Extent, ExtentKind, FileId};
pub use file::{HostFile, Sharing};
pub use free::FreeMap;
pub use fresh::FreshFile;
pub use mem::MemDisk;
pub use overlay::Overlay;
pub use recover::{Pending, Recovered, Recovery, pending, recover};
pub use stamp::FileStamp;
pub use transaction::{Access, FilePlan, Plan, Transaction, TransactionOptions, WriteMode};
pub use window::Window;
pub use wipe::Wipe;

/// A range of bytes that can be read and written at any position, from several threads at once.
///
/// Offsets and lengths are in bytes. A range that does not lie wholly within `0..len()` is an error of kind
/// [`ErrorKind::InvalidInput`] and has no effect; an empty range within it does nothing. Writing never makes
/// a disk longer.
pub trait Disk: Send + Sync {
    /// The length in bytes.
    fn len(&self) -> u64;

    /// Whether the disk holds no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every attempt to change the disk is refused with [`ErrorKind::ReadOnly`].
    fn is_read_only(&self) -> bool;

    /// Fills the whole of `buf` from the bytes at `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes the whole of `data` at `offset`. Durable only after [`Disk::flush`].
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;

    /// Makes a range read as zeros, without allocating space where the layer can avoid it.
    fn zero_at(&self, offset: u64, len: u64) -> Result<()>;

    /// Gives the space of a range back where the layer can. What the range reads as afterwards is either
    /// zeros or, where nothing could be given back, what it held before.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Takes the space that a range needs from the host ahead of writing it, without changing a byte; answers false
    /// where the layer cannot.
    fn reserve(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(false)
    }

    /// Changes the length; new bytes read as zeros. Layers of fixed size answer [`ErrorKind::Unsupported`].
    fn set_len(&self, len: u64) -> Result<()>;

    /// Makes every write that returned before this call durable, down to the medium.
    fn flush(&self) -> Result<()>;

    /// Says where the bytes from `offset` on are kept, for as long a range as one answer holds for.
    ///
    /// The extent starts exactly at `offset` and is not empty; `offset` must be less than [`Disk::len`].
    /// Callers merge neighbours; layers return the longest range that is cheap to find.
    fn extent_at(&self, offset: u64) -> Result<Extent>;
}

/// Checks that `offset..offset + len` lies within a disk of `disk_len` bytes; used by implementors.
pub fn check_range(offset: u64, len: u64, disk_len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= disk_len => Ok(()),
        _ => Err(Error::out_of_range(offset, len, disk_len)),
    }
}
