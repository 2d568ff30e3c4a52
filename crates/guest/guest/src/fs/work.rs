use serde::Serialize;
use vmwright_ext4::make::{Made, MakeOptions, make};
use vmwright_ext4::{CheckOptions, Report, check, resize, tune};

use super::{Format, Target};
use crate::Result;

/// What a check has found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Checked {
    /// What is wrong; only the first ones where there are many.
    pub findings: Vec<Found>,
    /// How many things are wrong.
    pub total: u64,
    /// How many of them were put right.
    pub repaired: u64,
    /// Whether nothing is wrong, or nothing any more.
    pub clean: bool,
    /// Whether the journal held changes.
    pub journal_replayed: bool,
    /// What there is: files, directories, symbolic links, devices and the like.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices, pipes and sockets.
    pub special: u64,
    /// Inodes in use, and all.
    pub inodes: (u64, u64),
    /// Blocks in use, and all.
    pub blocks: (u64, u64),
    /// Files and directories that do not lie in one piece.
    pub fragmented: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Found {
    /// A name for it that stays the same from version to version.
    pub code: &'static str,
    /// Where it is, what it is, and what should be there.
    pub text: String,
    /// Whether it can be put right without losing what anyone has written.
    pub repairable: bool,
    /// Whether it was put right.
    pub repaired: bool,
}

impl From<Report> for Checked {
    fn from(report: Report) -> Self {
        let finding = |finding: &vmwright_ext4::Finding| Found {
            code: finding.kind.code(),
            text: finding.to_string(),
            repairable: finding.kind.is_repairable(),
            repaired: finding.repaired,
        };
        let stats = report.stats;
        Self {
            findings: report.findings.iter().map(finding).collect(),
            total: report.total,
            repaired: report.repaired,
            clean: report.clean,
            journal_replayed: report.journal_replayed,
            files: stats.files,
            directories: stats.directories,
            symlinks: stats.symlinks,
            special: stats.special,
            inodes: (stats.inodes_used, stats.inodes),
            blocks: (stats.blocks_used, stats.blocks),
            fragmented: stats.fragmented,
        }
    }
}

/// The size that a filesystem shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewSize {
    /// This many bytes, or a little less.
    Bytes(u64),
    /// As large as its partition allows.
    Largest,
    /// As small as its content allows.
    Smallest,
}

/// What resizing did. Sizes are in bytes.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct Resized {
    pub old_size: u64,
    pub new_size: u64,
    pub moved_blocks: u64,
    pub moved_inodes: u64,
}

impl Target {
    /// Checks the filesystem; with `repair`, puts right what can be put right without losing anything.
    ///
    /// `format` is for a filesystem whose marks are damaged; what holds something else that is known is not repaired.
    pub fn check(&self, format: Option<Format>, repair: bool) -> Result<Checked> {
        let Format::Ext = match format {
            Some(format) => format,
            None => self.format()?,
        };
        // A copy of a superblock may have survived that the volume was made into something else.
        if repair && self.volume().content.is_some() {
            self.format()?;
        }
        let options = CheckOptions { repair, ..CheckOptions::default() };
        let report = check(self.disk().clone(), &options).map_err(|error| self.failed(error))?;
        Ok(report.into())
    }

    /// Makes a filesystem of the ext family on the volume; what is there is lost.
    pub fn make_ext(&self, options: &MakeOptions) -> Result<Made> {
        make(self.disk().clone(), options).map_err(|error| self.failed(error))
    }

    /// The fewest bytes that the filesystem can be shrunk to.
    pub fn minimum(&self) -> Result<u64> {
        let Format::Ext = self.format()?;
        resize::minimum(self.disk().clone()).map_err(|error| self.failed(error))
    }

    /// Gives the filesystem another size; its partition stays as it is.
    pub fn resize(&self, to: NewSize) -> Result<Resized> {
        let Format::Ext = self.format()?;
        let to = match to {
            NewSize::Bytes(bytes) => resize::Target::Bytes(bytes),
            NewSize::Largest => resize::Target::Disk,
            NewSize::Smallest => resize::Target::Minimum,
        };
        let options = resize::Options { now: Some(self.now()), ..resize::Options::default() };
        let done = resize::resize(self.disk().clone(), to, &options);
        let done = done.map_err(|error| self.failed(error))?;
        Ok(Resized {
            old_size: done.old_bytes(),
            new_size: done.new_bytes(),
            moved_blocks: done.moved_blocks,
            moved_inodes: done.moved_inodes,
        })
    }

    /// Changes features and settings; answers the names of the features that there are then.
    pub fn tune(&self, changes: &tune::Changes) -> Result<Vec<&'static str>> {
        let Format::Ext = self.format()?;
        let changes = tune::Changes { now: Some(self.now()), ..changes.clone() };
        let tuned = tune::tune(self.disk().clone(), &changes);
        Ok(tuned.map_err(|error| self.failed(error))?.features)
    }
}
