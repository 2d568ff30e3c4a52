//! What directories say of one another: whose entries lead where.

use super::Checker;
use super::facts::Directory;

/// What the entries of all directories say.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// For each directory, the first other one that has an entry for it; zero for none.
    pub(super) parents: Vec<u32>,
    /// For each directory, where its `..` leads; zero where it has none that is sound.
    pub(super) dotdots: Vec<u32>,
    /// How many entries lead to each inode, kept group by group where there are any.
    counts: Vec<Option<Box<[u32]>>>,
    per_group: u32,
}

impl Tree {
    pub(super) fn new(groups: u32, per_group: u32, directories: usize) -> Self {
        Self {
            parents: vec![0; directories],
            dotdots: vec![0; directories],
            counts: vec![None; groups as usize],
            per_group,
        }
    }

    /// Counts an entry that leads to an inode.
    pub(super) fn count(&mut self, inode: u32) {
        let (Some(index), per_group) = (inode.checked_sub(1), self.per_group as usize) else { return };
        let (group, index) = (index as usize / per_group, index as usize % per_group);
        let Some(group) = self.counts.get_mut(group) else { return };
        let counts = group.get_or_insert_with(|| vec![0; per_group].into_boxed_slice());
        counts[index] = counts[index].saturating_add(1);
    }

    /// How many entries lead to an inode.
    pub(super) fn counted(&self, inode: u32) -> u32 {
        let Some(index) = inode.checked_sub(1) else { return 0 };
        let (group, index) = ((index / self.per_group) as usize, (index % self.per_group) as usize);
        self.counts.get(group).and_then(|counts| counts.as_ref()).map_or(0, |counts| counts[index])
    }
}

impl Checker {
    /// The number of a directory among all directories.
    pub(super) fn directory_index(&self, inode: u32) -> Option<usize> {
        position(&self.directories, inode)
    }
}

/// The number of an inode among directories that are in order.
pub(super) fn position(directories: &[Directory], inode: u32) -> Option<usize> {
    directories.binary_search_by_key(&inode, |directory| directory.inode).ok()
}
