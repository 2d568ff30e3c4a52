//! Sharing clusters between the active tables and those of snapshots.

use std::collections::BTreeMap;

use super::Qcow2;
use super::counts::Counts;
use super::layout::{AT_INCOMPATIBLE, COMPRESSED, COPIED, INCOMPATIBLE_DIRTY, OFFSET_MASK, Version};
use super::map::{L2Entry, read_u64};
use super::state::State;
use crate::cache::Table;
use crate::{Error, Result};

/// What an L1 table refers to.
pub(super) struct References {
    /// How often each cluster is referenced, L2 tables among them.
    pub(super) counts: Counts,
    /// Where the L2 tables are.
    tables: Vec<u64>,
}

impl Qcow2 {
    /// Collects what an L1 table refers to, out of the file. Damage is found before anything is changed.
    pub(super) fn references(&self, l1: &[u64], l1_at: u64) -> Result<References> {
        let mut tables = BTreeMap::new();
        for (index, entry) in l1.iter().enumerate().filter(|(_, entry)| **entry & OFFSET_MASK != 0) {
            self.check_table(entry & OFFSET_MASK, l1_at + index as u64 * 8)?;
            *tables.entry(entry & OFFSET_MASK).or_insert(0u64) += 1;
        }
        let (bits, mut counts) = (self.header.cluster_bits, Counts::default());
        let mut bytes = vec![0; self.header.cluster_size() as usize];
        for (&table, &times) in &tables {
            counts.add(table >> bits, times);
            self.file.read_at(&mut bytes, table)?;
            for index in (0..bytes.len()).step_by(self.l2_entry_size() as usize) {
                match self.parse_l2(read_u64(&bytes, index), table + index as u64)? {
                    L2Entry::Unallocated | L2Entry::Zero { host: None, .. } => {}
                    L2Entry::Zero { host: Some(host), .. } | L2Entry::Data { host, .. } => {
                        counts.add(host >> bits, times);
                    }
                    L2Entry::Compressed(packed) => {
                        let last = packed.host.saturating_add(packed.len - 1) >> bits;
                        for cluster in packed.host >> bits..=last {
                            counts.add(cluster, times);
                        }
                    }
                }
            }
        }
        Ok(References { counts, tables: tables.into_keys().collect() })
    }

    /// Makes sure that counts can go up by `more`.
    pub(super) fn check_can_share(&self, state: &State, more: &Counts) -> Result<()> {
        for (cluster, times) in more.iter() {
            let count = self.refcount(&state.writer, cluster)?;
            if count == 0 {
                let at = cluster << self.header.cluster_bits;
                return Err(Error::corrupt("the refcount of a cluster in use", at, "at least 1", 0));
            }
            if count.checked_add(times).is_none_or(|sum| sum > self.width().max()) {
                return Err(Error::unsupported("one more snapshot with reference counts of this width"));
            }
        }
        Ok(())
    }

    /// Makes sure that counts can go down by `less`.
    pub(super) fn check_can_release(&self, state: &State, less: &Counts) -> Result<()> {
        for (cluster, times) in less.iter() {
            let count = self.refcount(&state.writer, cluster)?;
            if count < times {
                let at = cluster << self.header.cluster_bits;
                return Err(Error::corrupt("the refcount of a cluster", at, "as many as references", count));
            }
        }
        Ok(())
    }

    /// Lets counts go up.
    pub(super) fn share(&self, state: &mut State, more: &Counts) -> Result<()> {
        for (cluster, times) in more.iter() {
            let count = self.refcount(&state.writer, cluster)?.saturating_add(times);
            self.set_refcount(&state.writer, cluster, count)?;
            self.relieve(state)?;
        }
        Ok(())
    }

    /// Lets counts go down, which nothing in the file relies on any more, and gives back the space of what is free.
    pub(super) fn unshare(&self, state: &mut State, less: &Counts) -> Result<()> {
        let mut holes: Vec<(u64, u64)> = Vec::new();
        for (cluster, times) in less.iter() {
            let count = self.refcount(&state.writer, cluster)?.saturating_sub(times);
            self.set_refcount(&state.writer, cluster, count)?;
            if count == 0 {
                state.writer.first_free = state.writer.first_free.min(cluster);
                state.writer.metadata.remove(&cluster);
                match holes.last_mut() {
                    Some((first, len)) if *first + *len == cluster => *len += 1,
                    _ => holes.push((cluster, 1)),
                }
            }
            self.relieve(state)?;
        }
        state.writer.pack_at = 0;
        self.unpacked.clear();
        self.write_back(state)?;
        self.barrier(&mut state.writer)?;
        for (first, len) in holes {
            self.punch(first << self.header.cluster_bits, len)?;
        }
        Ok(())
    }

    /// Clears the flags of all entries of L2 tables: what they point to is shared from now on.
    pub(super) fn clear_flags(&self, state: &mut State, references: &References) -> Result<()> {
        self.change_entries(state, &references.tables, |_, raw| Ok(raw & !COPIED))
    }

    /// Sets every flag of the active tables to what the counts say.
    pub(super) fn set_flags(&self, state: &mut State) -> Result<()> {
        let bits = self.header.cluster_bits;
        let mut tables = Vec::new();
        for index in 0..state.l1.len() {
            let entry = state.l1[index];
            let table = entry & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            let one = self.refcount(&state.writer, table >> bits)? == 1;
            let right = if one { entry | COPIED } else { entry & !COPIED };
            if right != entry {
                state.l1[index] = right;
                state.writer.l1_dirty.insert(index);
            }
            tables.push(table);
        }
        tables.sort_unstable();
        tables.dedup();
        self.change_entries(state, &tables, |state, raw| {
            let one = self.refcount(&state.writer, (raw & OFFSET_MASK) >> bits)? == 1;
            Ok(if one { raw | COPIED } else { raw & !COPIED })
        })
    }

    /// Changes those entries of L2 tables that name a plain cluster.
    fn change_entries(
        &self,
        state: &mut State,
        tables: &[u64],
        change: impl Fn(&State, u64) -> Result<u64>,
    ) -> Result<()> {
        let step = self.l2_entry_size() as usize;
        for table in tables {
            for slice_at in
                (*table..table + self.header.cluster_size()).step_by(self.cache.slice_len() as usize)
            {
                let old = self.cache.get(&*self.file, Table::L2, slice_at)?;
                let mut new = old.to_vec();
                for index in (0..new.len()).step_by(step) {
                    let raw = read_u64(&new, index);
                    if raw & COMPRESSED == 0 && raw & OFFSET_MASK != 0 {
                        new[index..index + 8].copy_from_slice(&change(state, raw)?.to_be_bytes());
                    }
                }
                if new != *old {
                    self.cache
                        .modify(&*self.file, Table::L2, slice_at, |bytes| bytes.copy_from_slice(&new))?;
                }
            }
            self.relieve(state)?;
        }
        Ok(())
    }

    /// Says in the header whether counts and flags are being changed: after a crash, both are made right before the
    /// next change. Version 2 has no such bit; there a crash leaves leaks, and flags that cost a copy.
    pub(super) fn set_dirty(&self, state: &mut State, dirty: bool) -> Result<()> {
        if self.header.version == Version::V2 {
            return self.barrier(&mut state.writer);
        }
        let rest = state.header.incompatible & !INCOMPATIBLE_DIRTY;
        let bits = if dirty { rest | INCOMPATIBLE_DIRTY } else { rest };
        self.barrier(&mut state.writer)?;
        self.file.write_at(&bits.to_be_bytes(), AT_INCOMPATIBLE)?;
        self.barrier(&mut state.writer)?;
        state.header.incompatible = bits;
        Ok(())
    }
}
