//! What is to be put right, gathered while a volume is checked.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How many repairs of one kind are remembered; the next round finds the rest.
const LIMIT: usize = 1 << 20;

/// What is to be put right once everything was seen.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// Inodes that are too damaged for anything to be concluded from them.
    pub(in crate::check) suspects: HashSet<u32>,
    /// Directories whose index is dropped.
    pub(super) rebuilt: BTreeSet<u32>,
    /// Groups whose inodes were used, whatever they say.
    pub(super) initialised: BTreeSet<u32>,
    /// Where the `..` of directories leads.
    pub(super) parents: BTreeMap<u32, u32>,
    /// Inodes without a name.
    pub(super) nameless: BTreeSet<u32>,
    pub(super) links: BTreeMap<u32, u32>,
    pub(super) references: BTreeMap<u32, u64>,
    pub(super) quotas: BTreeMap<(u32, u32), (i64, i64)>,
    pub(super) holes: BTreeSet<(u32, u64)>,
}

impl Repairs {
    /// Lets the index of a directory be dropped.
    pub(in crate::check) fn rebuild(&mut self, directory: u32) {
        bounded(&mut self.rebuilt, directory);
    }

    /// Lets a group no longer say that inodes of it were never used.
    pub(in crate::check) fn initialise(&mut self, group: u32) {
        bounded(&mut self.initialised, group);
    }

    /// Lets a directory lead to its parent.
    pub(in crate::check) fn lead_up(&mut self, directory: u32, parent: u32) {
        if self.parents.len() < LIMIT {
            self.parents.insert(directory, parent);
        }
    }

    /// Gives an inode a name in `lost+found`.
    pub(in crate::check) fn reconnect(&mut self, inode: u32) {
        bounded(&mut self.nameless, inode);
    }

    /// Corrects a link count.
    pub(in crate::check) fn links(&mut self, inode: u32, links: u32) {
        if self.links.len() < LIMIT {
            self.links.insert(inode, links);
        }
    }

    /// Corrects how many attributes have their value in an inode.
    pub(in crate::check) fn value_references(&mut self, inode: u32, references: u64) {
        if self.references.len() < LIMIT {
            self.references.insert(inode, references);
        }
    }

    /// Corrects what a quota file says that somebody uses: by how many bytes and inodes.
    pub(in crate::check) fn quota(&mut self, file: u32, id: u32, by: (i64, i64)) {
        if self.quotas.len() < LIMIT {
            self.quotas.insert((file, id), by);
        }
    }

    /// Puts an empty block into a hole of a directory.
    pub(in crate::check) fn fill(&mut self, directory: u32, logical: u64) {
        if self.holes.len() < LIMIT {
            self.holes.insert((directory, logical));
        }
    }
}

fn bounded(set: &mut BTreeSet<u32>, number: u32) {
    if set.len() < LIMIT {
        set.insert(number);
    }
}
