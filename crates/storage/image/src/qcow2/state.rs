//! What changes while an image is open, behind one lock.

use super::layout::{Header, MAX_L1_BYTES};
use crate::{Error, Result};
use vmwright_disk::Disk;

/// The tables that are kept in memory whole.
pub(super) struct State {
    /// The active L1 table.
    pub(super) l1: Vec<u64>,
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
        Ok(Self { l1 })
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
    if offset % header.cluster_size() != 0 || offset == 0 {
        return Err(Error::corrupt(what, offset, "a multiple of the cluster size", offset));
    }
    if offset.checked_add(len).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt(what, offset, "a table within the file", len));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, offset)?;
    let mut numbers = Vec::with_capacity(bytes.len() / 8);
    for chunk in bytes.chunks_exact(8) {
        numbers.push(super::map::read_u64(chunk, 0));
    }
    Ok(numbers)
}
