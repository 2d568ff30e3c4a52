//! Link counts: how many names an inode has.

use super::facts::{Fact, mark};
use super::{Checker, Place, Problem};
use crate::dir_block::TYPE_DIRECTORY;
use crate::error::Result;
use crate::features::ro_compat;
use crate::inode::{ROOT_INODE, flags};

/// The most links that an inode can count. Directories with more subdirectories count one.
const LINK_MAX: u32 = 65000;

/// The bit of `s_feature_compat` for inodes that a server puts there and nobody names.
const IMAGIC_INODES: u32 = 0x2;

/// `i_flags` of such an inode.
const IMAGIC: u32 = 0x2000;

/// Compares link counts with the names found.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let per_group = checker.superblock.inodes_per_group;
    for group in 0..checker.superblock.groups {
        let used = |facts: &[Fact]| {
            let numbers = (0_u32..).zip(facts).filter(|(_, fact)| fact.marks & mark::USED != 0);
            numbers.map(|(index, fact)| (group * per_group + index + 1, *fact)).collect::<Vec<_>>()
        };
        let inodes = checker.facts.group(group).map(used).unwrap_or_default();
        for (inode, fact) in inodes {
            one(checker, inode, fact);
        }
    }
    Ok(())
}

/// Whether nobody names an inode and none has to.
fn nameless(checker: &Checker, inode: u32) -> bool {
    let (superblock, raw) = (&checker.superblock, checker.superblock.raw());
    let hidden = [raw.s_orphan_file_inum.get(), raw.s_prj_quota_inum.get()];
    hidden.contains(&inode) || inode != ROOT_INODE && inode < superblock.first_inode()
}

fn one(checker: &mut Checker, inode: u32, fact: Fact) {
    if nameless(checker, inode) {
        return;
    }
    let mut names = checker.tree.counted(inode);
    let holds_value = names == 0 && fact.marks & mark::EA_INODE != 0;
    if let Some(values) = checker.xattrs.values.get(&inode).copied().filter(|_| holds_value) {
        references(checker, inode, values);
        names = 1;
    }
    let features = &checker.superblock.features;
    if names == 0 {
        if !features.has_compat(IMAGIC_INODES) || !has_flag(checker, inode, IMAGIC) {
            checker.findings.add(Problem::Unattached, Place::Inode(inode));
            if fact.kind != TYPE_DIRECTORY {
                checker.repairs.reconnect(inode);
            }
        }
        return;
    }
    let directory = fact.kind == TYPE_DIRECTORY;
    if directory && names > LINK_MAX {
        if !features.has_ro_compat(ro_compat::DIR_NLINK) {
            let place = Place::Inode(inode);
            checker.findings.field(Problem::DirNlink, place, "", names.into());
        }
        names = 1;
    }
    let stated = u32::from(fact.links);
    // A directory that once had too many keeps counting one.
    let overflowed = directory && names > 1 && stated == 1 && has_flag(checker, inode, flags::INDEX);
    if names != stated && !overflowed {
        let (expected, found) = (names.into(), stated.into());
        let place = Place::Inode(inode);
        checker.findings.mismatch(Problem::LinkCount, place, "i_links_count", expected, found);
        checker.repairs.links(inode, names);
    }
}

fn has_flag(checker: &Checker, inode: u32, flag: u32) -> bool {
    checker.record(inode).is_ok_and(|record| crate::dir_block::get_u32(&record, 0x20) & flag != 0)
}

/// Holds how many attributes have their value in an inode against what that says.
fn references(checker: &mut Checker, inode: u32, values: u64) {
    let Ok(record) = checker.record(inode) else { return };
    let word = |at: usize| crate::dir_block::get_u32(&record, at);
    let (accessed, changed, version) = (word(0x08), word(0x0c), word(0x24));
    let stated = u64::from(changed) << 32 | u64::from(version);
    // An older form counts nothing, and has the two times equal.
    if stated != values && changed != accessed {
        let place = Place::Inode(inode);
        checker.findings.mismatch(Problem::ValueReferences, place, "references", values, stated);
        checker.repairs.value_references(inode, values);
    }
}
