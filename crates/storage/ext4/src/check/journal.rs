//! The journal: found, held against what it may be, and followed in memory.
//!
//! What it holds is part of the volume: everything else is checked as it will be once that is replayed.

use std::collections::HashMap;
use std::sync::Arc;

use vmwright_disk::Overlay;

use super::reader::Reader;
use super::report::Place;
use super::{Checker, Problem, superblock};
use crate::block_cache::{BlockCache, Redirect};
use crate::error::{Error, ErrorKind, Result};
use crate::features::{compat, incompat};
use crate::inode::Inode;
use crate::journal::{self, JournalSuperblock};
use crate::mapping::{self, RunPlace};
use crate::volume::{Ext4, Options};

/// How much of the journal's map is kept in memory.
const CACHE: usize = 1 << 20;

/// The smallest journal, in blocks.
const MIN_BLOCKS: u64 = 1024;

/// The type of a journal's superblock that has no features.
const TYPE_V1: u32 = 3;
/// Where the features of later ones begin, with the UUID and the number of users behind them.
const FEATURES: usize = 0x24;
const UUID: std::ops::Range<usize> = 0x30..0x40;
const USERS: usize = 0x40;

/// The size of the journal's superblock.
const SUPERBLOCK: usize = 1024;

/// Checks the journal and follows it.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let features = checker.superblock.features;
    let pending = features.has_incompat(incompat::RECOVER);
    let raw = checker.superblock.raw();
    let inode = raw.s_journal_inum.get();
    let external = raw.s_journal_uuid != [0; 16];
    if !features.has_compat(compat::HAS_JOURNAL) {
        if pending || inode != 0 || external {
            checker.findings.add_field(
                Problem::JournalFlag,
                Place::Superblock,
                "journal without has_journal",
            );
        }
        return Ok(());
    }
    if external {
        if inode != 0 {
            checker.findings.add_field(
                Problem::JournalFlag,
                Place::Superblock,
                "a journal here and elsewhere",
            );
        }
        if pending {
            checker.findings.add(Problem::JournalElsewhere, Place::Superblock);
        }
        return Ok(());
    }
    let Some(journal) = Journal::find(checker, inode) else {
        checker.findings.add(Problem::JournalInode, Place::Inode(inode));
        return Ok(());
    };
    let head = match journal.superblock() {
        Ok(head) => head,
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(_) => {
            checker.findings.add(Problem::JournalSuperblock, Place::Inode(inode));
            return Ok(());
        }
    };
    if !pending {
        if head.start() != 0 {
            checker.findings.add_field(
                Problem::JournalFlag,
                Place::Superblock,
                "content but no needs_recovery",
            );
        }
        return Ok(());
    }
    match replay(checker) {
        Ok(()) => superblock::reload(checker),
        Err(error) if error.kind() == ErrorKind::Io => Err(error),
        Err(_) => follow(checker, &journal, &head),
    }
}

/// Whether the journal holds changes, whatever the superblock says.
pub(super) fn holds_changes(checker: &Checker) -> bool {
    let raw = checker.superblock.raw();
    let here = checker.superblock.features.has_compat(compat::HAS_JOURNAL) && raw.s_journal_uuid == [0; 16];
    let journal = if here { Journal::find(checker, raw.s_journal_inum.get()) } else { None };
    journal.is_some_and(|journal| journal.superblock().is_ok_and(|head| head.start() != 0))
}

/// Replays the journal onto an overlay in memory, with all that a kernel does when it mounts the volume: fast
/// commits are applied and what is left of removed files is freed.
fn replay(checker: &mut Checker) -> Result<()> {
    let overlay = Arc::new(Overlay::new(checker.reader.disk().clone()));
    drop(Ext4::open(overlay.clone(), Options::writable())?);
    let superblock = &checker.superblock;
    checker.reader = Reader::new(overlay, superblock.block_size, superblock.blocks);
    checker.journal_replayed = true;
    Ok(())
}

/// Lets everything be read as the journal has it, where the volume is in no state to be mounted.
fn follow(checker: &mut Checker, journal: &Journal, head: &JournalSuperblock) -> Result<()> {
    let place = Place::Inode(journal.inode.number);
    let read = |index: u32| journal.read(index);
    let (blocks, size) = (checker.superblock.blocks, checker.superblock.inode_size);
    let recovery = match journal::recover(head, &read, blocks, size) {
        Ok(recovery) => recovery,
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(_) => {
            checker.findings.add(Problem::JournalContent, place);
            return Ok(());
        }
    };
    let mut redirects = HashMap::with_capacity(recovery.blocks.len());
    for (block, replayed) in &recovery.blocks {
        let at = journal.block(replayed.index)?;
        redirects.insert(*block, Redirect { block: at, escaped: replayed.escaped });
    }
    if !recovery.fast_commits.is_empty() {
        checker.findings.add(Problem::FastCommits, place);
    }
    checker.reader.redirect(redirects);
    checker.journal_replayed = true;
    superblock::reload(checker)
}

/// The file of the journal.
struct Journal {
    cache: BlockCache,
    superblock: crate::superblock::Superblock,
    inode: Inode,
}

impl Journal {
    /// Finds the journal's inode; `None` where it cannot be one.
    fn find(checker: &Checker, number: u32) -> Option<Self> {
        let superblock = checker.superblock.clone();
        let index = number.checked_sub(1).filter(|_| number <= superblock.inodes)?;
        let group = checker.groups.get((index / superblock.inodes_per_group) as usize)?;
        let at = (index % superblock.inodes_per_group) as usize * usize::from(superblock.inode_size);
        let block_size = checker.reader.block_size();
        let block = checker.reader.block(group.inode_table.checked_add((at / block_size) as u64)?).ok()?;
        let record = block.get(at % block_size..at % block_size + usize::from(superblock.inode_size))?;
        let inode = Inode::parse(&superblock, number, record).ok()?;
        let file = inode.file_type == vmwright_vfs::FileType::Regular && inode.links > 0;
        let disk = checker.reader.disk().clone();
        let cache = BlockCache::new(disk, superblock.block_size, superblock.blocks, CACHE, false);
        let journal = Self { cache, superblock, inode };
        let long = journal.inode.size / block_size as u64 >= MIN_BLOCKS;
        (file && long && journal.is_whole()).then_some(journal)
    }

    /// Whether the whole size is mapped.
    fn is_whole(&self) -> bool {
        let blocks = self.inode.size.div_ceil(self.superblock.block_size.into());
        let mut at = 0;
        while at < blocks {
            match mapping::run_at(&self.cache, &self.superblock, &self.inode, at) {
                Ok(run) if run.len > 0 && matches!(run.place, RunPlace::Written(_)) => at += run.len,
                _ => return false,
            }
        }
        true
    }

    fn superblock(&self) -> Result<JournalSuperblock> {
        let block = self.read(0)?;
        let word = |at: usize| u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let first = word(4) == TYPE_V1;
        let unknown = first && (FEATURES..=USERS).step_by(4).any(|at| !UUID.contains(&at) && word(at) != 0);
        if unknown || (!first && word(USERS) > 1) {
            let place = crate::error::Place::Journal(0);
            return Err(Error::corrupt(place, "the journal is of a version that does not have its features"));
        }
        let blocks = self.inode.size / u64::from(self.superblock.block_size);
        JournalSuperblock::parse(&block[..SUPERBLOCK], self.superblock.block_size, blocks)
    }

    /// Where a block of the journal is.
    fn block(&self, index: u32) -> Result<u64> {
        match mapping::run_at(&self.cache, &self.superblock, &self.inode, index.into())?.place {
            RunPlace::Written(block) => Ok(block),
            _ => Err(Error::corrupt(crate::error::Place::Journal(index.into()), "the journal has a hole")),
        }
    }

    fn read(&self, index: u32) -> Result<Vec<u8>> {
        Ok(self.cache.read(self.block(index)?)?.to_vec())
    }
}
