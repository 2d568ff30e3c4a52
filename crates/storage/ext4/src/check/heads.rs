//! Damaged superblocks and descriptors, for which copies stand in.
//!
//! ```text
//!  superblock of use? ── no ─▶ copies, wherever they usually are ─▶ the one that leads to a root directory
//!      │ yes                                                            │
//!      ▼                                                                ▼
//!  descriptors sound? ── no ─▶ their copies, where those say that tables are elsewhere ─▶ in memory
//! ```
//!
//! A check looks at the volume with what stands in laid over it in memory. Only a repair writes that.

use std::collections::HashSet;
use std::sync::Arc;

use vmwright_disk::{Disk, Overlay};

use super::report::{Finding, Place, Report};
use super::{CheckOptions, Checker, Problem, copies, groups, journal, repair, superblock};
use crate::dir_block::get_u16;
use crate::error::{Error, ErrorKind, Result};
use crate::features::incompat;
use crate::group::{self, BLOCK_UNINIT, Group, INODE_UNINIT};
use crate::inode::{self, ROOT_INODE};
use crate::layout::SUPERBLOCK_OFFSET;
use crate::superblock::Superblock;

/// How many findings about groups are looked at.
const FINDINGS: usize = 1 << 18;

/// How many copies of the descriptors are tried.
const COPIES: usize = 8;

/// A disk, with what stands in for its damaged superblock and descriptors laid over it.
pub(super) struct Heads {
    /// The disk itself, where nothing stands in.
    pub(super) disk: Arc<dyn Disk>,
    /// What is laid over it.
    writes: Vec<(u64, Vec<u8>)>,
    /// The damage that this is for.
    findings: Vec<Finding>,
}

/// Finds out whether the superblock is of use, and lets a copy stand in for it if not.
pub(super) fn usable(disk: &Arc<dyn Disk>) -> Result<Heads> {
    let heads = Heads { disk: disk.clone(), writes: Vec::new(), findings: Vec::new() };
    match superblock::read(&**disk) {
        Ok(found) if copies::is_sealed(&found) || repair::agrees(&**disk, &found) => return Ok(heads),
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        _ => {}
    }
    let mut likely = None;
    for copies in [copies::find, copies::search] {
        let best = best_of(disk, &copies(&**disk));
        if let Some((true, best)) = best {
            return Ok(best);
        }
        likely = likely.or(best);
    }
    Ok(likely.map_or(heads, |(_, likely)| likely))
}

/// The copy that leads to a root directory, and the latest of several; answers whether it leads to one.
fn best_of(disk: &Arc<dyn Disk>, copies: &[Superblock]) -> Option<(bool, Heads)> {
    let stand_ins = copies.iter().filter_map(|copy| {
        let (rooted, heads) = stand_in(disk, copy).ok()?;
        // Without either there is nothing that tells it from what is left of a former volume.
        (rooted || copy.features.metadata_csum()).then_some((rooted, copy.raw().s_mkfs_time.get(), heads))
    });
    let best = stand_ins.max_by_key(|(rooted, made, _)| (*rooted, *made));
    best.map(|(rooted, _, heads)| (rooted, heads))
}

/// Lets a copy stand in for the superblock; answers whether there is a root directory then.
fn stand_in(disk: &Arc<dyn Disk>, copy: &Superblock) -> Result<(bool, Heads)> {
    let mut heads = Heads { disk: disk.clone(), writes: Vec::new(), findings: Vec::new() };
    heads.lay(SUPERBLOCK_OFFSET, copy.restored(false).to_vec())?;
    heads.find(Problem::SuperblockInvalid, Place::Superblock);
    heads.mend_groups()?;
    let checker = superblock::open(heads.disk.clone(), &CheckOptions::default())?;
    // Copies do not say whether the journal holds changes, it does.
    if journal::holds_changes(&checker) {
        heads.lay(SUPERBLOCK_OFFSET, copy.restored(true).to_vec())?;
    }
    let rooted = checker.record(ROOT_INODE).is_ok_and(|record| get_u16(&record, 0) & 0xf000 == 0x4000);
    Ok((rooted, heads))
}

/// Whether a finding says that a descriptor is damaged.
fn is_about_descriptors(finding: &Finding) -> bool {
    matches!(finding.kind, Problem::GroupChecksum | Problem::GroupPlace | Problem::GroupOverlap)
}

impl Heads {
    /// Whether anything stands in.
    pub(super) fn any(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Whether descriptors are damaged for which copies might stand in.
    pub(super) fn concern(report: &Report) -> bool {
        report.findings.iter().any(is_about_descriptors)
    }

    /// Adds to a report what the check did not see any more.
    pub(super) fn tell(&self, report: &mut Report, options: &CheckOptions) {
        report.total += self.findings.len() as u64;
        report.clean &= self.findings.is_empty();
        report.findings.splice(0..0, self.findings.iter().cloned());
        report.findings.truncate(options.max_findings);
    }

    /// Writes what stands in to the disk, the superblock last.
    pub(super) fn write(&self, disk: &dyn Disk) -> Result<()> {
        let (last, first): (Vec<_>, Vec<_>) =
            self.writes.iter().partition(|(offset, _)| *offset == SUPERBLOCK_OFFSET);
        // Until the superblock is written, a copy stands in again.
        for writes in [first, last] {
            for (offset, bytes) in writes {
                disk.write_at(bytes, *offset).map_err(|source| Error::disk("write", source))?;
            }
            disk.flush().map_err(|source| Error::disk("flush", source))?;
        }
        Ok(())
    }

    fn lay(&mut self, offset: u64, bytes: Vec<u8>) -> Result<()> {
        if self.writes.is_empty() {
            self.disk = Arc::new(Overlay::new(self.disk.clone()));
        }
        self.disk.write_at(&bytes, offset).map_err(|source| Error::disk("write", source))?;
        self.writes.push((offset, bytes));
        Ok(())
    }

    fn find(&mut self, kind: Problem, place: Place) {
        let (expected, found) = (None, None);
        self.findings.push(Finding { kind, place, field: "", expected, found, repaired: false });
    }

    /// Lets copies stand in for descriptors that are damaged; answers whether any did.
    pub(super) fn mend_groups(&mut self) -> Result<bool> {
        let options = CheckOptions { max_findings: FINDINGS, ..CheckOptions::default() };
        let mut checker = superblock::open(self.disk.clone(), &options)?;
        groups::check(&mut checker)?;
        let found: Vec<Finding> =
            checker.findings.kept.iter().filter(|found| is_about_descriptors(found)).cloned().collect();
        if found.is_empty() {
            return Ok(false);
        }
        let suspects: HashSet<&Place> = found.iter().map(|finding| &finding.place).collect();
        // Of two that overlap, without checksums either may be the one that is damaged.
        let sealed = checker.superblock.features.group_csum();
        let suspect = |number: u32| !sealed || suspects.contains(&Place::Group(number));
        let mut mended = HashSet::new();
        for index in 0..checker.superblock.descriptor_blocks() {
            let block = checker.superblock.descriptor_block(index);
            let mut content = checker.reader.block(block)?;
            let restored = restore(&checker, index, &mut content, &suspect)?;
            if !restored.is_empty() {
                self.lay(block * u64::from(checker.superblock.block_size), content)?;
                mended.extend(restored);
            }
        }
        for &number in &mended {
            if !suspects.contains(&Place::Group(number)) {
                self.find(Problem::GroupPlace, Place::Group(number));
            }
        }
        let gone = |finding: &Finding| match finding.place {
            Place::Group(number) => mended.contains(&number),
            _ => false,
        };
        self.findings.extend(found.into_iter().filter(gone));
        Ok(!mended.is_empty())
    }
}

/// Puts sound copies of descriptors into a block of them, where the copies say that tables are elsewhere. Answers
/// which groups they are of.
fn restore(
    checker: &Checker,
    index: u64,
    content: &mut [u8],
    suspect: &dyn Fn(u32) -> bool,
) -> Result<Vec<u32>> {
    let superblock = &checker.superblock;
    let size = usize::from(superblock.desc_size);
    let first = index * (content.len() / size) as u64;
    let mut waiting: Vec<u32> = (first..u64::from(superblock.groups))
        .take(content.len() / size)
        .filter_map(|number| u32::try_from(number).ok())
        .filter(|number| suspect(*number))
        .collect();
    let mut restored = Vec::new();
    for block in places(superblock, index) {
        if waiting.is_empty() {
            break;
        }
        let Ok(copies) = checker.reader.block(block) else { continue };
        for number in std::mem::take(&mut waiting) {
            let at = (u64::from(number) - first) as usize * size;
            let bytes = &copies[at..at + size];
            let Some(mut copy) = sound(superblock, number, bytes) else {
                waiting.push(number);
                continue;
            };
            let now = group::decode(superblock, &content[at..at + size]);
            let tables = |group: &Group| (group.block_bitmap, group.inode_bitmap, group.inode_table);
            // What else is damaged in a descriptor is put right from what is in use.
            if tables(&copy) == tables(&now) {
                continue;
            }
            promise_nothing(checker, number, &mut copy)?;
            content[at..at + size].copy_from_slice(bytes);
            group::encode(superblock, number, &copy, &mut content[at..at + size]);
            restored.push(number);
        }
    }
    Ok(restored)
}

/// Where the copies are of a block of descriptors.
fn places(superblock: &Superblock, index: u64) -> Vec<u64> {
    let per_block = superblock.block_size / u32::from(superblock.desc_size);
    let spread = superblock.features.has_incompat(incompat::META_BG);
    if spread && index >= superblock.first_meta_group() {
        let first = index * u64::from(per_block);
        let groups = [first + 1, first + u64::from(per_block) - 1];
        let groups = groups.into_iter().filter(|number| *number < u64::from(superblock.groups));
        let groups = groups.filter_map(|number| u32::try_from(number).ok());
        let behind = |group| superblock.group_start(group) + u64::from(superblock.has_superblock(group));
        return groups.map(behind).collect();
    }
    let groups = (1..superblock.groups).filter(|group| superblock.has_superblock(*group)).take(COPIES);
    groups.map(|group| superblock.group_start(group) + 1 + index).collect()
}

/// The copy of a descriptor, if it can be believed.
fn sound(superblock: &Superblock, number: u32, bytes: &[u8]) -> Option<Group> {
    let (expected, found) = group::checksums(superblock, number, bytes);
    let group = group::decode(superblock, bytes);
    (expected == found && group::validate(superblock, number, &group).is_ok()).then_some(group)
}

/// Takes back what a copy says was never used: that may have been long ago. Only of a table in which nothing can be
/// an inode it is still true; what stands there may never have been overwritten.
fn promise_nothing(checker: &Checker, number: u32, group: &mut Group) -> Result<()> {
    group.flags &= !BLOCK_UNINIT;
    if group.flags & INODE_UNINIT != 0 && !is_unused(checker, number, group)? {
        group.flags &= !INODE_UNINIT;
    }
    if group.flags & INODE_UNINIT == 0 {
        group.itable_unused = 0;
    }
    Ok(())
}

/// Whether no record of a table is one of an inode.
fn is_unused(checker: &Checker, number: u32, group: &Group) -> Result<bool> {
    let superblock = &checker.superblock;
    let size = usize::from(superblock.inode_size);
    let mut inode = number.saturating_mul(superblock.inodes_per_group);
    for index in 0..superblock.inode_table_blocks() {
        let content = checker.reader.block(group.inode_table + index)?;
        for record in content.chunks_exact(size) {
            inode = inode.saturating_add(1);
            if record.iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut sealed = record.to_vec();
            inode::seal(superblock, inode, &mut sealed);
            if sealed == record {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
