//! What a client can ask of a range besides its bytes.

use vmwright_disk::{Disk, ExtentKind};

use crate::layout::{STATE_HOLE, STATE_ZERO};

/// A range of an export that has one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The length in bytes, never zero.
    pub len: u64,
    /// The status, as the context defines it.
    pub flags: u32,
}

/// Something that is known about each range of an export, such as whether it changed since the last backup.
///
/// A dirty bitmap of an image is one named `qemu:dirty-bitmap:NAME`, whose flags are 1 where the bitmap is set.
pub trait MetaContext: Send + Sync {
    /// The name: a namespace, a colon, and what it is there.
    fn name(&self) -> &str;

    /// The status of the bytes from `offset` on, which is less than the length of the export.
    fn status_at(&self, offset: u64) -> vmwright_disk::Result<StatusRange>;
}

/// The name of the one context that the protocol itself defines.
pub(crate) const ALLOCATION: &str = "base:allocation";
/// The name of QEMU's context that says how deep in a chain of images the bytes are.
pub(crate) const DEPTH: &str = "qemu:allocation-depth";

/// `base:allocation`: what reads as zeros is a hole too, as writing there may need space.
pub(crate) fn allocation_at(disk: &dyn Disk, offset: u64) -> vmwright_disk::Result<StatusRange> {
    let extent = disk.extent_at(offset)?;
    let flags = if extent.is_zero() { STATE_HOLE | STATE_ZERO } else { 0 };
    Ok(StatusRange { len: extent.len, flags })
}

/// `qemu:allocation-depth`: 0 where nothing in the chain holds the bytes, 1 in the image itself, 2 in its base …
pub(crate) fn depth_at(disk: &dyn Disk, offset: u64) -> vmwright_disk::Result<StatusRange> {
    let extent = disk.extent_at(offset)?;
    let flags = match extent.kind {
        ExtentKind::Unallocated => 0,
        _ => extent.depth.saturating_add(1),
    };
    Ok(StatusRange { len: extent.len, flags })
}
