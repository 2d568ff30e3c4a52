//! How often each cluster is referenced, in two bytes for each cluster near one that is.

use std::collections::{BTreeMap, HashMap};

/// So many clusters share an allocation.
const PAGE: u64 = 4096;

/// Reference counts by cluster.
#[derive(Default)]
pub(super) struct Counts {
    pages: BTreeMap<u64, Vec<u16>>,
    /// What is beyond a count of `u16::MAX`.
    more: HashMap<u64, u64>,
}

impl Counts {
    /// How often a cluster is referenced.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let Some(page) = self.pages.get(&(cluster / PAGE)) else { return 0 };
        match page[(cluster % PAGE) as usize] {
            u16::MAX => u64::from(u16::MAX) + self.more.get(&cluster).copied().unwrap_or(0),
            count => count.into(),
        }
    }

    /// Changes the count of a cluster.
    pub(super) fn set(&mut self, cluster: u64, count: u64) {
        let page = self.pages.entry(cluster / PAGE).or_insert_with(|| vec![0; PAGE as usize]);
        let place = &mut page[(cluster % PAGE) as usize];
        let had_more = *place == u16::MAX;
        *place = u16::try_from(count).unwrap_or(u16::MAX);
        match count.checked_sub(u16::MAX.into()) {
            Some(more) => {
                self.more.insert(cluster, more);
            }
            None if had_more => {
                self.more.remove(&cluster);
            }
            None => {}
        }
    }

    /// Counts further references to a cluster.
    pub(super) fn add(&mut self, cluster: u64, times: u64) {
        self.set(cluster, self.get(cluster).saturating_add(times));
    }

    /// Every cluster with references, in the order of the file, and how many it has.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let page = |(page, counts): (&u64, &Vec<u16>)| {
            let first = page * PAGE;
            let used = counts.iter().enumerate().filter(|(_, count)| **count > 0);
            used.map(|(index, _)| first + index as u64).collect::<Vec<_>>()
        };
        self.pages.iter().flat_map(page).map(|cluster| (cluster, self.get(cluster)))
    }

    /// The last cluster with a reference.
    pub(super) fn last(&self) -> Option<u64> {
        let used = |(page, counts): (&u64, &Vec<u16>)| {
            counts.iter().rposition(|count| *count > 0).map(|index| page * PAGE + index as u64)
        };
        self.pages.iter().rev().find_map(used)
    }

    /// Whether any cluster of a range is referenced.
    pub(super) fn any(&self, start: u64, end: u64) -> bool {
        let mut pages = self.pages.range(start / PAGE..=end.saturating_sub(1) / PAGE);
        pages.any(|(page, counts)| {
            let first = start.saturating_sub(page * PAGE) as usize;
            let last = (end - page * PAGE).min(PAGE) as usize;
            counts[first..last].iter().any(|count| *count > 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_are_as_in_a_plain_map(
            changes in proptest::collection::vec((0u64..20_000, 0u64..140_000), 0..60),
            range in (0u64..20_000, 1u64..9000),
        ) {
            let (mut counts, mut plain) = (Counts::default(), BTreeMap::new());
            for (cluster, count) in changes {
                counts.set(cluster, count);
                plain.insert(cluster, count);
            }
            plain.retain(|_, count| *count > 0);
            for cluster in 0..20_001 {
                prop_assert_eq!(counts.get(cluster), plain.get(&cluster).copied().unwrap_or(0));
            }
            prop_assert_eq!(counts.last(), plain.keys().next_back().copied());
            prop_assert!(counts.iter().eq(plain.iter().map(|(cluster, count)| (*cluster, *count))));
            let end = range.0 + range.1;
            prop_assert_eq!(counts.any(range.0, end), plain.range(range.0..end).next().is_some());
        }
    }
}
