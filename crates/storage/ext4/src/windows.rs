//! Room that is kept behind files while they grow, so that files written in turns stay in one piece.
//!
//! A window is known in memory alone: its blocks are free on the volume. Others take from it only when nothing
//! else is left; then all windows are given up.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// How many files room is kept for at a time.
const MOST: usize = 4096;

/// The windows of all files, in clusters counted from the beginning of the volume.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// By the first cluster: the end, and the inode.
    ranges: BTreeMap<u64, (u64, u32)>,
    owners: HashMap<u32, u64>,
    /// How many clusters all windows together have.
    kept: u64,
}

impl Windows {
    /// Keeps a range for an inode, which gives up what it had; ranges of others are left as they are.
    pub(crate) fn keep(&mut self, inode: u32, range: Range<u64>) {
        self.drop_of(inode);
        if self.owners.len() >= MOST {
            self.clear();
        }
        let end = self.ranges.range(range.start..range.end).next().map_or(range.end, |(start, _)| *start);
        let before = self.ranges.range(..range.start).next_back();
        if range.start < end && before.is_none_or(|(_, (before, _))| *before <= range.start) {
            self.ranges.insert(range.start, (end, inode));
            self.kept += end - range.start;
            self.owners.insert(inode, range.start);
        }
    }

    /// Gives up what is kept for an inode.
    pub(crate) fn drop_of(&mut self, inode: u32) {
        if let Some(start) = self.owners.remove(&inode) {
            let end = self.ranges.remove(&start).map_or(start, |(end, _)| end);
            self.kept -= end - start;
        }
    }

    /// How many clusters are kept for all files together.
    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// Gives up everything; answers whether there was anything.
    pub(crate) fn clear(&mut self) -> bool {
        let any = !self.ranges.is_empty();
        self.ranges.clear();
        self.owners.clear();
        self.kept = 0;
        any
    }

    /// The first part of a range of at least `least` clusters that is kept for nobody but `owner`; answers how
    /// far behind the range's start it is, and its length.
    pub(crate) fn clear_run(&self, range: Range<u64>, owner: u32, least: u32) -> Option<(u32, u32)> {
        let part = |at: u64, end: u64| {
            let long = at < end && end - at >= u64::from(least);
            // Runs lie within a group.
            long.then(|| ((at - range.start) as u32, (end - at) as u32))
        };
        if self.ranges.is_empty() {
            return part(range.start, range.end);
        }
        let mut at = range.start;
        if let Some((_, (end, who))) = self.ranges.range(..=range.start).next_back()
            && *who != owner
        {
            at = at.max(*end);
        }
        for (start, (end, who)) in self.ranges.range(range.start..range.end) {
            if *who == owner {
                continue;
            }
            if let Some(found) = part(at, *start) {
                return Some(found);
            }
            at = at.max(*end);
        }
        part(at, range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_find_the_room_between_windows() {
        let mut windows = Windows::default();
        windows.keep(1, 10..20);
        windows.keep(2, 25..30);
        assert_eq!(windows.clear_run(0..100, 3, 5), Some((0, 10)));
        assert_eq!(windows.clear_run(12..100, 3, 5), Some((8, 5)));
        assert_eq!(windows.clear_run(12..100, 3, 6), Some((18, 70)));
        assert_eq!(windows.clear_run(12..100, 1, 6), Some((0, 13)));
        assert_eq!(windows.clear_run(12..18, 3, 1), None);
        windows.keep(3, 15..40);
        assert_eq!(windows.clear_run(30..40, 4, 1), Some((0, 10)), "it would overlap another");
        windows.keep(1, 5..50);
        assert_eq!(windows.clear_run(0..100, 3, 1), Some((0, 5)));
        assert_eq!(windows.clear_run(5..25, 3, 1), None, "up to the next");
        assert_eq!(windows.kept(), 20 + 5, "5..25 for the first, 25..30 for the second");
        assert!(windows.clear());
        assert_eq!(windows.kept(), 0);
        assert!(!windows.clear());
    }
}
