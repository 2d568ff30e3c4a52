//! Inodes: every record of every table.

use super::Checker;
use crate::error::Result;
use crate::layout::RawInode;

/// Checks every inode and claims its blocks.
pub(super) fn check(_checker: &mut Checker) -> Result<()> {
    Ok(())
}

/// A record of an inode table, as it is.
pub(crate) struct Found<'a> {
    pub(crate) number: u32,
    pub(crate) raw: RawInode,
    /// The whole record.
    pub(crate) record: &'a [u8],
    /// How many bytes of fields follow the classic 128; what is impossible counts as none.
    pub(crate) extra_isize: u16,
}
