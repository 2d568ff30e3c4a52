//! What changes while an image is open, behind one lock.

use std::collections::{BTreeSet, HashSet};

use vmwright_disk::Disk;

use super::bitmap_data::Tracked;
use super::layout::{Header, MAX_L1_BYTES};
use crate::{Error, Result};

/// The tables that are kept in memory whole.
pub(super) struct State {
    /// The header as it stands in the file. What never changes while an image is open (version, cluster size, widths)
    /// is read from [`Qcow2::header`](super::Qcow2) without this lock.
    pub(super) header: Header,
    /// The active L1 table.
    pub(super) l1: Vec<u64>,
    /// What only writing needs.
    pub(super) writer: Writer,
}

/// What writing needs to know, read when the first change is made.
#[derive(Default)]
pub(super) struct Writer {
    /// Whether the rest is filled in and the image is marked as changed.
    pub(super) ready: bool,
    /// The refcount table.
    pub(super) reftable: Vec<u64>,
    pub(super) reftable_offset: u64,
    pub(super) reftable_clusters: u64,
    /// Entries that changed in memory only.
    pub(super) reftable_dirty: BTreeSet<usize>,
    pub(super) l1_dirty: BTreeSet<usize>,
    /// Clusters that lose one reference once no table on disk has it any more.
    pub(super) freed: Vec<Freed>,
    /// Every cluster before this one is in use.
    pub(super) first_free: u64,
    /// Where the last cluster ends that was ever in use. The file is made longer than that ahead of need, reads as
    /// zeros from there on, and is cut to this length by a flush.
    pub(super) used_end: u64,
    /// Clusters that hold tables, so that a damaged image never has data written over them.
    pub(super) metadata: HashSet<u64>,
    /// Where the next compressed cluster can go, if its cluster has room left.
    pub(super) pack_at: u64,
    /// The bitmaps that note every change.
    pub(super) tracked: Vec<Tracked>,
    /// Set when a flush failed: what the host kept is unknown from then on.
    pub(super) broken: bool,
}

/// A cluster that loses a reference.
#[derive(Debug, Clone, Copy)]
pub(super) struct Freed {
    pub(super) cluster: u64,
    /// Whether its space shall go back to the host if that was the last reference.
    pub(super) punch: bool,
}

impl State {
    /// Reads the active L1 table.
    pub(super) fn read(file: &dyn Disk, header: &Header) -> Result<Self> {
        let needed = header.size.div_ceil(header.l2_coverage());
        let len = u64::from(header.l1_len);
        if len < needed {
            return Err(Error::corrupt("the size of the L1 table", 36, "enough entries for the disk", len));
        }
        let l1 = read_table(file, header, "the L1 table", header.l1_offset, len * 8, MAX_L1_BYTES)?;
        Ok(Self { header: header.clone(), l1, writer: Writer::default() })
    }
}

/// Reads a table of 64-bit numbers that must lie within the file, be aligned and not be too long.
pub(super) fn read_table(
    file: &dyn Disk,
    header: &Header,
    what: &'static str,
    offset: u64,
    len: u64,
    max: u64,
) -> Result<Vec<u64>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    if len > max {
        return Err(Error::corrupt(what, offset, "a table of a size that QEMU accepts", len));
    }
    if !offset.is_multiple_of(header.cluster_size()) || offset == 0 {
        return Err(Error::corrupt(what, offset, "a multiple of the cluster size", offset));
    }
    if offset.checked_add(len).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt(what, offset, "a table within the file", len));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, offset)?;
    Ok(bytes.chunks_exact(8).map(|chunk| super::map::read_u64(chunk, 0)).collect())
}
