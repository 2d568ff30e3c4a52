//! Quota files: what they say that users, groups and projects use.

use super::Checker;
use crate::error::Result;

/// Compares the quota files with what was counted.
pub(super) fn check(_checker: &mut Checker) -> Result<()> {
    Ok(())
}

/// What was counted for each user, group and project.
#[derive(Debug, Default)]
pub(crate) struct Usage {}

/// Counts an inode in use: `bytes` is the space that it takes.
pub(super) fn account(_checker: &mut Checker, _inode: &super::inodes::Found<'_>, _bytes: u64) {}
