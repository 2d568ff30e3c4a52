//! Which blocks of a volume in the making are taken: ranges, since almost everything is neighbours.

use std::collections::BTreeMap;
use std::ops::Range;

use super::no_room;
use crate::error::Result;

/// The blocks that are taken.
#[derive(Debug, Clone)]
pub(super) struct Space {
    /// Starts and ends of what is taken; ranges neither overlap nor touch.
    taken: BTreeMap<u64, u64>,
    first: u64,
    blocks: u64,
    /// Blocks that are taken together.
    cluster: u64,
}

impl Space {
    /// The blocks from `first` on, all free, of a volume of `blocks` blocks.
    pub(super) fn new(first: u64, blocks: u64) -> Self {
        Self { taken: BTreeMap::new(), first, blocks, cluster: 1 }
    }

    /// From now on blocks are taken by clusters, and what is taken so far grows to whole ones.
    pub(super) fn use_clusters(&mut self, cluster: u64) {
        self.cluster = cluster;
        for (start, end) in std::mem::take(&mut self.taken) {
            self.take(start, end - start);
        }
    }

    /// Takes blocks, free ones or not.
    pub(super) fn take(&mut self, start: u64, len: u64) {
        let end = start.saturating_add(len).next_multiple_of(self.cluster).min(self.blocks);
        let start = (start - start % self.cluster).max(self.first);
        if start >= end {
            return;
        }
        // Almost always what is taken continues what was taken before.
        let (from, end) = match self.taken.range_mut(..=start).next_back() {
            Some((&before, before_end)) if *before_end >= start => {
                *before_end = end.max(*before_end);
                (before, *before_end)
            }
            _ => {
                self.taken.insert(start, end);
                (start, end)
            }
        };
        let mut last = end;
        while let Some((&next, &next_end)) = self.taken.range(from + 1..=last).next() {
            self.taken.remove(&next);
            last = last.max(next_end);
        }
        if last > end {
            self.taken.insert(from, last);
        }
    }

    /// What is taken, in order.
    pub(super) fn taken(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.taken.iter().map(|(start, end)| *start..*end)
    }

    /// What is taken of a range, in order.
    pub(super) fn taken_within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.taken.range(..range.start).next_back();
        let from = self.taken.range(range.start..range.end.max(range.start));
        let (first, last) = (range.start, range.end);
        let all = before.into_iter().chain(from);
        all.map(move |(start, end)| (*start).max(first)..(*end).min(last))
            .filter(|part| part.start < part.end)
    }

    /// The first `len` blocks in a row that are free and begin in `range`.
    pub(super) fn find(&self, range: Range<u64>, len: u64) -> Option<u64> {
        let mut at = range.start.max(self.first);
        if let Some((_, &end)) = self.taken.range(..=at).next_back() {
            at = at.max(end);
        }
        for (&start, &end) in self.taken.range(at..) {
            if at >= range.end || start - at >= len {
                break;
            }
            at = end;
        }
        (at < range.end && at.saturating_add(len) <= self.blocks).then_some(at)
    }

    /// Takes `len` blocks for one file, the first free ones from `goal` on and then from the beginning.
    pub(super) fn allocate(&mut self, goal: u64, len: u64) -> Result<Vec<Range<u64>>> {
        let (mut runs, mut rest, mut at): (Vec<Range<u64>>, _, _) = (Vec::new(), len, goal);
        while rest > 0 {
            let found = self.find(at..self.blocks, 1).or_else(|| self.find(self.first..self.blocks, 1));
            let start = found.ok_or_else(no_room)?;
            let room = self.taken.range(start..).next().map_or(self.blocks, |(next, _)| *next) - start;
            let run = start..start + room.min(rest);
            self.take(run.start, run.end - run.start);
            rest -= run.end - run.start;
            at = run.end;
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_found_as_by_looking_at_each_block(
            takes in prop::collection::vec((0_u64..100, 0_u64..20), 0..12),
            from in 0_u64..100, to in 0_u64..110, len in 1_u64..12, cluster in 0_u32..3,
        ) {
            let (first, blocks, cluster) = (u64::from(cluster == 0), 100, 1 << cluster);
            let mut space = Space::new(first, blocks);
            space.use_clusters(cluster);
            let mut bits = vec![false; blocks as usize];
            for (start, len) in takes {
                space.take(start, len);
                let end = (start + len).next_multiple_of(cluster).min(blocks);
                for at in (start - start % cluster).max(first)..end.max(first) {
                    bits[at as usize] |= len > 0 || start % cluster != 0;
                }
            }
            let free = |at: u64| at + len <= blocks && bits[at as usize..(at + len) as usize].iter().all(|bit| !bit);
            prop_assert_eq!(space.find(from..to, len), (from.max(first)..to.min(blocks)).find(|at| free(*at)));
            let taken: Vec<u64> = space.taken().flatten().collect();
            let naive: Vec<u64> = (0..blocks).filter(|at| bits[*at as usize]).collect();
            prop_assert_eq!(taken, naive);
        }
    }
}
