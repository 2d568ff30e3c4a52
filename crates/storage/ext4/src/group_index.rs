//! Finding a group with enough room without looking at every group: a tree of maxima over the groups.

/// For each group a number, and for ranges of groups the largest of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupIndex {
    /// The tree as an array: node n has the children 2n and 2n+1, the leaves begin at `leaves`.
    nodes: Vec<u32>,
    leaves: usize,
    groups: u32,
}

impl GroupIndex {
    /// Makes an index over the groups' numbers.
    pub(crate) fn new(values: impl ExactSizeIterator<Item = u32>) -> Self {
        let groups = values.len();
        let leaves = groups.next_power_of_two();
        let mut nodes = vec![0; leaves * 2];
        for (node, value) in nodes[leaves..].iter_mut().zip(values) {
            *node = value;
        }
        for at in (1..leaves).rev() {
            nodes[at] = nodes[at * 2].max(nodes[at * 2 + 1]);
        }
        Self { nodes, leaves, groups: groups as u32 }
    }

    /// How many groups it knows.
    pub(crate) fn groups(&self) -> u32 {
        self.groups
    }

    /// The number of a group.
    pub(crate) fn get(&self, group: u32) -> u32 {
        self.nodes.get(self.leaves + group as usize).copied().unwrap_or(0)
    }

    /// The largest number of all.
    pub(crate) fn largest(&self) -> u32 {
        self.nodes.get(1).copied().unwrap_or(0)
    }

    /// Changes the number of a group.
    pub(crate) fn set(&mut self, group: u32, value: u32) {
        let mut at = self.leaves + group as usize;
        if group >= self.groups || self.nodes[at] == value {
            return;
        }
        self.nodes[at] = value;
        while at > 1 {
            at /= 2;
            let largest = self.nodes[at * 2].max(self.nodes[at * 2 + 1]);
            if self.nodes[at] == largest {
                return;
            }
            self.nodes[at] = largest;
        }
    }

    /// The first group from `from` on whose number is `least` or more; `least` is not zero.
    pub(crate) fn next(&self, from: u32, least: u32) -> Option<u32> {
        if from >= self.groups {
            return None;
        }
        let mut at = self.leaves + from as usize;
        // Upwards to the first subtree on the right that has one, then down to its first leaf.
        while self.nodes[at] < least {
            while at % 2 == 1 {
                at /= 2;
            }
            if at == 0 {
                return None;
            }
            at += 1;
        }
        while at < self.leaves {
            at = if self.nodes[at * 2] >= least { at * 2 } else { at * 2 + 1 };
        }
        Some((at - self.leaves) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_next_group_is_the_one_that_a_walk_finds(
            values in prop::collection::vec(0_u32..6, 1..70),
            changes in prop::collection::vec((0_u32..70, 0_u32..9), 0..30),
            from in 0_u32..80, least in 1_u32..9,
        ) {
            let mut values = values;
            let mut index = GroupIndex::new(values.iter().copied());
            for (group, value) in changes {
                index.set(group, value);
                if let Some(held) = values.get_mut(group as usize) {
                    *held = value;
                }
            }
            let walk = (from..values.len() as u32).find(|group| values[*group as usize] >= least);
            prop_assert_eq!(index.next(from, least), walk);
            prop_assert_eq!(index.largest(), values.iter().copied().max().unwrap_or(0));
        }
    }
}
