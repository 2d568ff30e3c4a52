//! Putting right what can be put right without losing anything.
//!
//! ```text
//!  journal, orphans ─▶ check ─▶ names, records, descriptors ─┐
//!                        ▲      nothing of those wrong:      │
//!                        │        bitmaps, counts ───────────┤
//!                        │      nothing of those wrong:      │
//!                        │        names in lost+found, quotas│
//!                        └───────────────────────────────────┘ until nothing is left that can be put right
//! ```
//!
//! Each round checks the volume anew, so that no repair builds on what another has changed. What a check
//! without repairs finds at the end is what is left.

mod bitmaps;
mod extents;
mod records;
mod superblock;
mod volume;
mod wanted;
mod write;

use std::collections::HashSet;
use std::sync::Arc;

use vmwright_disk::Disk;

use super::heads::Heads;
use super::report::{Finding, Findings};
use super::{CheckOptions, Checker, Place, Problem, Report, copies};
use crate::error::{Error, ErrorKind, Result};

pub(super) use superblock::agrees;
pub(crate) use wanted::Repairs;

/// How many rounds are made at most.
const ROUNDS: usize = 32;

/// The inode of the list of bad blocks, and where in a record the map is.
const BAD_BLOCKS: u32 = 1;
const I_BLOCK: usize = 0x28;

/// How many findings of a round are looked at for repairs.
const FINDINGS: usize = 1 << 18;

/// Puts right what can be of what a check has found; what stands in for superblock and descriptors is written first.
pub(super) fn run(
    disk: &Arc<dyn Disk>,
    options: &CheckOptions,
    heads: &Heads,
    mut first: Report,
) -> Result<Report> {
    if disk.is_read_only() {
        return Err(Error::plain(ErrorKind::ReadOnly, "the disk beneath the filesystem is read-only"));
    }
    if first.total == 0 && !first.journal_replayed {
        return Ok(first);
    }
    if is_beyond(&heads.disk, options)? {
        return Ok(first);
    }
    let mut guard = match volume::guard(&heads.disk) {
        Ok(guard) => guard,
        // Whether anybody uses the volume cannot be told.
        Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(first),
        Err(error) => return Err(error),
    };
    if let Some((guard, now)) = &mut guard {
        guard.announce(disk, *now)?;
    }
    if heads.any() {
        heads.write(&**disk)?;
    }
    volume::recover(disk);
    // A journal that is still to be replayed would undo repairs, or be undone by them.
    if !volume::is_pending(disk) {
        for _ in 0..ROUNDS {
            if !round(disk, options)? {
                break;
            }
        }
    }
    let last = super::look(disk, options)?;
    if heads.any() && last.clean {
        superblock::refresh_copies(disk)?;
    }
    disk.flush().map_err(|source| Error::disk("flush", source))?;
    if let Some((guard, now)) = &mut guard {
        guard.release(disk, *now)?;
    }
    settle(&mut first, &last);
    Ok(first)
}

/// Whether there is nothing that a repair could rely on: bad blocks lie under what is to be read, or the
/// superblock contradicts its checksum and its copies.
fn is_beyond(disk: &Arc<dyn Disk>, options: &CheckOptions) -> Result<bool> {
    let checker = super::superblock::open(disk.clone(), options)?;
    if !copies::is_sealed(&checker.superblock) && !agrees(&**disk, &checker.superblock) {
        return Ok(true);
    }
    let record = checker.record(BAD_BLOCKS);
    Ok(record.is_ok_and(|record| record[I_BLOCK..I_BLOCK + 60].iter().any(|byte| *byte != 0)))
}

/// Checks once and repairs what comes next; answers whether anything was written.
fn round(disk: &Arc<dyn Disk>, options: &CheckOptions) -> Result<bool> {
    let options = CheckOptions { max_findings: FINDINGS, ..*options };
    let mut checker = super::superblock::open(disk.clone(), &options)?;
    checker.repairing = true;
    checker.run()?;
    // Blocks that the journal holds newer would be changed where nobody looks.
    if checker.reader.is_redirected() {
        return Ok(false);
    }
    records::apply(&mut checker)?;
    if checker.written > 0 {
        return Ok(true);
    }
    bitmaps::apply(&mut checker)?;
    if checker.written > 0 {
        return Ok(true);
    }
    if volume::apply(disk, &checker) {
        return Ok(true);
    }
    bitmaps::mark_clean(&mut checker)?;
    Ok(checker.written > 0)
}

/// Says of each finding whether it is gone, and how much is left.
fn settle(first: &mut Report, last: &Report) {
    let left: HashSet<(Problem, &Place)> =
        last.findings.iter().map(|found| (found.kind, &found.place)).collect();
    let complete = (last.findings.len() as u64) == last.total;
    for finding in &mut first.findings {
        finding.repaired = complete && !left.contains(&(finding.kind, &finding.place));
    }
    let known: HashSet<(Problem, Place)> =
        first.findings.iter().map(|found| (found.kind, found.place.clone())).collect();
    // What was hidden behind something else is told too.
    let hidden = last.findings.iter().filter(|found| !known.contains(&(found.kind, found.place.clone())));
    let hidden: Vec<Finding> = hidden.cloned().collect();
    first.total += hidden.len() as u64;
    first.findings.extend(hidden);
    first.repaired = first.findings.iter().filter(|finding| finding.repaired).count() as u64;
    first.clean = last.clean;
    first.stats = last.stats;
}

impl Findings {
    /// The inodes of which something is wrong that no repair can put right.
    pub(super) fn suspects(&self) -> HashSet<u32> {
        // What is too short may grow, and holes in directories are filled.
        let harmless = |found: &Finding| match found.kind {
            Problem::InodeSize => found.expected > found.found,
            Problem::ExtentRange => found.field == super::extent_tree::HOLE,
            _ => false,
        };
        let wrong = self.kept.iter().filter(|found| !found.kind.is_repairable() && !harmless(found));
        let inode = |place: &Place| match place {
            Place::Inode(inode) | Place::Content { inode, .. } => Some(*inode),
            _ => None,
        };
        wrong.filter_map(|found| inode(&found.place)).collect()
    }

    /// Whether everything found can be put right without guessing, so that what is not in use is free.
    fn are_certain(&self) -> bool {
        let unsafe_ones =
            self.kept.iter().filter(|found| found.kind.is_damage() && !found.kind.is_repairable());
        self.kept.len() as u64 == self.total && unsafe_ones.count() == 0
    }
}

impl Checker {
    /// Whether a repair may write a block: it has one owner at most.
    fn may_write(&self, block: u64) -> bool {
        self.repairing && !self.reader.is_redirected() && !self.claims.twice.has(self.claims.cluster(block))
    }
}
