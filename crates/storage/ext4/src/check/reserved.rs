//! Reserved inodes: bad blocks, the root, the journal, quotas, orphans, room for growing.

use super::facts::{Fact, mark};
use super::inodes::{Found, kind_number};
use super::{Checker, Problem, content};
use crate::error::Result;
use crate::features::{compat, ro_compat};
use crate::inode::{ROOT_INODE, flags};

const BAD_BLOCKS: u32 = 1;
const BOOT_LOADER: u32 = 5;
/// The inode of the blocks reserved for more descriptors.
pub(super) const RESIZE: u32 = 7;
const JOURNAL: u32 = 8;

/// Whether an inode is one of those kept for quotas, whether in use or not.
pub(super) fn is_quota(checker: &Checker, number: u32) -> bool {
    let project = checker.superblock.raw().s_prj_quota_inum.get();
    number == 3 || number == 4 || (project != 0 && number == project)
}

/// Checks an inode that is reserved; answers whether that is all there is to check.
pub(super) fn check(checker: &mut Checker, found: &Found<'_>) -> Result<bool> {
    let raw = checker.superblock.raw();
    let features = checker.superblock.features;
    let quotas = [raw.s_usr_quota_inum.get(), raw.s_grp_quota_inum.get(), raw.s_prj_quota_inum.get()];
    let orphans = raw.s_orphan_file_inum.get();
    match found.number {
        BAD_BLOCKS => bad_blocks(checker, found).map(|()| true),
        ROOT_INODE => {
            if !found.is_directory() {
                checker.findings.add(Problem::RootInode, found.place());
            }
            Ok(false)
        }
        JOURNAL => {
            let used = raw.s_journal_inum == JOURNAL;
            file(checker, found, used)
        }
        number if is_quota(checker, number) => {
            let used = features.has_ro_compat(ro_compat::QUOTA) && quotas.contains(&number);
            file(checker, found, used)
        }
        number if number == orphans => {
            let used = features.has_compat(compat::ORPHAN_FILE);
            file(checker, found, used)
        }
        number if number < checker.superblock.first_inode() => other(checker, found).map(|()| true),
        _ => Ok(false),
    }
}

/// An inode that is a regular file where it is used, and empty where not.
fn file(checker: &mut Checker, found: &Found<'_>, used: bool) -> Result<bool> {
    take(checker, found);
    if used {
        if !found.is_regular() {
            let mode = found.raw.i_mode.get().into();
            checker.findings.field(Problem::ReservedInode, found.place(), "mode", mode);
        }
        return content::check(checker, found).map(|()| true);
    }
    if found.links() != 0 || found.raw.i_blocks_lo != 0 || found.word(0) != 0 {
        checker.findings.add_field(Problem::ReservedInode, found.place(), "not in use but not empty");
    }
    Ok(found.links() == 0)
}

fn other(checker: &mut Checker, found: &Found<'_>) -> Result<()> {
    take(checker, found);
    let wrong = match found.number {
        BOOT_LOADER => found.is_directory(),
        RESIZE => found.raw.i_mode != 0 && !found.is_regular(),
        _ => found.raw.i_mode != 0,
    };
    if wrong {
        let mode = found.raw.i_mode.get().into();
        checker.findings.field(Problem::ReservedInode, found.place(), "mode", mode);
    }
    content::check(checker, found)
}

/// A reserved inode is in use whatever it holds.
fn take(checker: &mut Checker, found: &Found<'_>) {
    let fact = Fact { kind: kind_number(found.kind()), marks: mark::USED, links: found.links() };
    checker.facts.put(found.number, fact);
}

fn bad_blocks(checker: &mut Checker, found: &Found<'_>) -> Result<()> {
    take(checker, found);
    let raw = &found.raw;
    let clear = raw.i_mode == 0
        && raw.i_uid == 0
        && raw.i_gid == 0
        && raw.i_links_count == 0
        && raw.i_file_acl_lo == 0
        && !found.has(flags::INLINE_DATA);
    if !clear {
        checker.findings.add(Problem::BadBlocks, found.place());
    }
    content::check_bad_blocks(checker, found)
}
