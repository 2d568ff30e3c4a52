//! Checking: whether a volume is sound, and what is wrong with it if not.
//!
//! ```text
//!  superblock, or a copy ─▶ journal followed in memory ─▶ groups ─▶ orphans
//!      │
//!      ▼                     facts: what each inode is        claims: which clusters are in use
//!  inodes: every inode of every table, its extents or block map, its attributes
//!      │
//!      ▼
//!  directories ─▶ connectivity ─▶ links ─▶ bitmaps and counts ─▶ quota
//! ```
//!
//! Nothing that is read is believed: what is wrong is noted and the check goes on. Everything kept in memory
//! is bounded by the volume's geometry, which is itself held against the length of the disk.

mod bitmaps;
mod bits;
mod block_map;
mod connectivity;
mod content;
mod copies;
mod dir_index;
mod dir_walk;
mod directories;
mod extent_tree;
mod facts;
mod groups;
mod heads;
mod inline;
mod inodes;
mod journal;
mod links;
mod mmp;
mod orphans;
mod problem;
mod quota;
mod reader;
mod record;
mod repair;
mod report;
mod reserved;
mod resize_inode;
mod special;
mod superblock;
mod tree;
mod xattr_entries;
mod xattrs;

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::error::Result;
use crate::group::Group;
use crate::superblock::Superblock;
use facts::{Claims, Directory, DirectoryBlock, Facts};
use reader::Reader;
use report::Findings;

pub use problem::Problem;
pub use report::{Finding, Place, Report, Stats};

/// How a volume is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckOptions {
    /// Whether to put right what can be put right without losing anything. If not, nothing is written.
    pub repair: bool,
    /// How many findings are kept; the rest are counted.
    pub max_findings: usize,
}

impl Default for CheckOptions {
    /// Only looks, and keeps a thousand findings.
    fn default() -> Self {
        Self { repair: false, max_findings: 1000 }
    }
}

/// Checks the filesystem on a disk.
///
/// # Errors
///
/// Kind `Corrupt` where there is no filesystem, or so little of one left that nothing can be checked;
/// `Unsupported` where it uses features that are not known, or is larger than can be checked.
pub fn check(disk: Arc<dyn Disk>, options: &CheckOptions) -> Result<Report> {
    let mut heads = heads::usable(&disk)?;
    let mut report = look(&heads.disk, options)?;
    if heads::Heads::concern(&report) && heads.mend_groups()? {
        report = look(&heads.disk, options)?;
    }
    heads.tell(&mut report, options);
    match options.repair {
        true => repair::run(&disk, options, &heads, report),
        false => Ok(report),
    }
}

/// Checks what is on a disk, and writes nothing.
fn look(disk: &Arc<dyn Disk>, options: &CheckOptions) -> Result<Report> {
    let mut checker = superblock::open(disk.clone(), options)?;
    checker.run()?;
    Ok(checker.into_report())
}

/// A check under way: what every pass works on.
pub(crate) struct Checker {
    pub(crate) reader: Reader,
    /// The geometry is validated, everything else is as found.
    pub(crate) superblock: Superblock,
    /// The descriptors as found, whatever their checksums.
    pub(crate) groups: Vec<Group>,
    pub(crate) findings: Findings,
    pub(crate) facts: Facts,
    pub(crate) claims: Claims,
    /// In the order of their inodes.
    pub(crate) directories: Vec<Directory>,
    /// In the order of their inodes and of their content.
    pub(crate) directory_blocks: Vec<DirectoryBlock>,
    pub(crate) stats: Stats,
    pub(crate) journal_replayed: bool,
    /// Whether there is a file of 2 GiB or more.
    pub(crate) has_large_files: bool,
    /// What the pass over extended attributes knows.
    pub(crate) xattrs: xattrs::Attributes,
    /// What the pass over quotas knows.
    pub(crate) quota: quota::Usage,
    /// What directories say of one another.
    pub(crate) tree: tree::Tree,
    /// What is to be put right once everything was seen.
    pub(crate) repairs: repair::Repairs,
    /// Whether passes put right what they can, and how often they did.
    pub(crate) repairing: bool,
    pub(crate) written: u64,
}

impl Checker {
    /// Runs every pass, in the order in which one builds on another.
    fn run(&mut self) -> Result<()> {
        journal::check(self)?;
        superblock::check(self)?;
        groups::check(self)?;
        resize_inode::check(self)?;
        orphans::check(self)?;
        inodes::check(self)?;
        xattrs::check(self)?;
        directories::check(self)?;
        connectivity::check(self)?;
        links::check(self)?;
        bitmaps::check(self)?;
        quota::check(self)
    }

    fn into_report(self) -> Report {
        let repaired = self.findings.kept.iter().filter(|finding| finding.repaired);
        let damage = repaired.clone().filter(|finding| finding.kind.is_damage()).count() as u64;
        Report {
            clean: damage == self.findings.damage,
            total: self.findings.total,
            repaired: repaired.count() as u64,
            findings: self.findings.kept,
            journal_replayed: self.journal_replayed,
            stats: self.stats,
        }
    }
}
