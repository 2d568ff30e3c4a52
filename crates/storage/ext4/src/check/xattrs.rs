//! Extended attributes, in inodes, in blocks, in inodes of their own.

use super::Checker;
use crate::error::Result;

/// Checks what is left to check once all inodes were seen, such as reference counts of blocks.
pub(super) fn check(_checker: &mut Checker) -> Result<()> {
    Ok(())
}

/// What is known of attributes outside their inodes.
#[derive(Debug, Default)]
pub(crate) struct Attributes {}

/// Checks the attributes of an inode in use, in it and in its block, which is claimed here when it is first
/// met. Answers how many sectors the block adds to those of the inode.
pub(super) fn inode(_checker: &mut Checker, _inode: &super::inodes::Found<'_>) -> u64 {
    0
}
