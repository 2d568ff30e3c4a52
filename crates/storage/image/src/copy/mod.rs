//! Whole disks: convert, compare, measure, map and checksum, each written once over maps of extents.
//!
//! ```text
//! extents of the source ─ zeros are skipped ─ chunks ─┬ worker: read, find zeros, write
//!                                                     └ worker: …
//! ```
//!
//! ```
//! use vmwright_disk::{Disk, MemDisk};
//! use vmwright_image::{CreateOptions, Format, FormatChoice, chain, copy};
//!
//! let source = MemDisk::new(1 << 20);
//! source.write_at(b"hello", 65536)?;
//! let dir = tempfile::tempdir()?;
//! let target = dir.path().join("disk.qcow2");
//! let options = copy::ConvertOptions::new(Format::Qcow2);
//! copy::convert(&source, &target, &options, &|_done, _total| {})?;
//!
//! let exact = FormatChoice::Exact(Format::Qcow2);
//! let copied = chain::open(&target, exact, &chain::DenyAll, chain::ChainOptions::read_only())?;
//! assert_eq!(copy::compare(&source, &copied, 2, &|_, _| {})?.first_difference, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checksum;
mod chunks;
mod compact;
mod compare;
mod convert;
pub(crate) mod early;
mod map;
mod measure;
mod options;
mod order;
mod pace;
mod phantom;
mod resume;
mod sum;
mod transfer;
mod verify;

pub use checksum::{Checksum, Digests, checksum, sha256};
pub use compact::{CompactOptions, Compacted, Fill, FindFree, Freed, compact, sparsify, wipe};
pub use compare::{Comparison, compare, compare_strictly};
pub use convert::{convert, copy_data};
pub use map::{MapEntry, map};
pub use measure::{Measure, measure, measure_empty};
pub use options::{Base, ConvertOptions, Converted, SourceIdentity};

/// Is told how many bytes of how many are done; from any thread, and not in order.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // Without an early exit inside a block, so that it is done many bytes at a time.
    bytes.chunks(1024).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// A piece of zeros to be used where some are needed.
fn zeros() -> &'static [u8; ZEROS] {
    &[0; ZEROS]
}

/// The length of [`zeros`].
const ZEROS: usize = 1 << 16;
