//! Allocating clusters and giving them back: the refcount table and its blocks.
//!
//! Counts change in the cache. What reaches the file when is decided in `flush`; only growing the refcount
//! table makes its own order, since it moves a table that the header points to.

use vmwright_disk::ErrorKind;

use super::Qcow2;
use super::layout::{AT_REFTABLE, MAX_REFTABLE_BYTES, OFFSET_MASK, REFTABLE_MASK};
use super::map::L2Entry;
use super::refcount::Width;
use super::state::{Freed, Writer};
use crate::cache::Table;
use crate::error::Reason;
use crate::{Error, Result};

/// A run of clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clusters {
    /// The offset of the first in the file.
    pub(super) host: u64,
    pub(super) count: u64,
    /// Whether they are known to be zeros, never having been used.
    pub(super) fresh: bool,
}

/// The file grows by at most so many bytes ahead of need.
const MAX_AHEAD: u64 = 32 << 20;

impl Qcow2 {
    pub(super) fn width(&self) -> Width {
        Width::new(self.header.refcount_order)
    }

    fn per_block(&self) -> u64 {
        self.width().per_block(self.header.cluster_bits)
    }

    /// Where the count of a cluster is: the offset of its slice and the index within; `None` if no refcount
    /// block exists, which means zero.
    fn refcount_place(&self, writer: &Writer, cluster: u64) -> Result<Option<(u64, u64)>> {
        let block = cluster / self.per_block();
        let entry = usize::try_from(block).ok().and_then(|index| writer.reftable.get(index));
        let at = entry.copied().unwrap_or(0) & REFTABLE_MASK;
        if at == 0 {
            return Ok(None);
        }
        let cluster_size = self.header.cluster_size();
        let end = at.checked_add(cluster_size);
        if !at.is_multiple_of(cluster_size) || end.is_none_or(|end| end > self.file.len()) {
            let entry_at = writer.reftable_offset + block * 8;
            return Err(Error::corrupt("a refcount table entry", entry_at, "a block within the file", at));
        }
        let (index, per_slice) = (cluster % self.per_block(), self.per_slice());
        Ok(Some((at + index / per_slice * self.cache.slice_len(), index % per_slice)))
    }

    /// How often a cluster is referenced.
    pub(super) fn refcount(&self, writer: &Writer, cluster: u64) -> Result<u64> {
        let Some((slice_at, index)) = self.refcount_place(writer, cluster)? else { return Ok(0) };
        let slice = self.cache.get(&*self.file, Table::Refcount, slice_at)?;
        Ok(self.width().get(&slice, index))
    }

    /// Changes the count of a cluster, whose refcount block must exist.
    pub(super) fn set_refcount(&self, writer: &Writer, cluster: u64, count: u64) -> Result<()> {
        let Some((slice_at, index)) = self.refcount_place(writer, cluster)? else {
            let at = cluster << self.header.cluster_bits;
            return Err(Error::corrupt("the refcount of a cluster", at, "a refcount block", 0));
        };
        let width = self.width();
        if count > width.max() {
            let at = cluster << self.header.cluster_bits;
            return Err(Error::corrupt("the refcount of a cluster", at, "a count that fits", count));
        }
        self.cache.modify(&*self.file, Table::Refcount, slice_at, |bytes| width.set(bytes, index, count))
    }

    /// Allocates a run of 1 to `max` clusters: the first free ones there are. Their content is unknown unless they
    /// are fresh.
    pub(super) fn allocate(&self, writer: &mut Writer, max: u64) -> Result<Clusters> {
        loop {
            let first = self.next_free(writer, writer.first_free)?;
            writer.first_free = first;
            if self.cover(writer, first)? {
                // The new refcount block took the cluster.
                continue;
            }
            // Stay within what one refcount block covers: the next one may have to be made.
            let limit = max.min(self.per_block() - first % self.per_block());
            let count = self.count_free(writer, first, limit)?;
            let fresh = self.claim(writer, first, count)?;
            self.set_refcounts(writer, first, count, 1)?;
            writer.first_free = first + count;
            return Ok(Clusters { host: first << self.header.cluster_bits, count, fresh });
        }
    }

    /// Allocates so many clusters in a row, behind all that are in use; answers the first.
    ///
    /// ```text
    /// first: the clusters │ refcount blocks that cover both │ free
    /// ```
    pub(super) fn allocate_run(&self, writer: &mut Writer, count: u64) -> Result<u64> {
        let per_block = self.per_block();
        let mut first = writer.used_end.div_ceil(self.header.cluster_size());
        loop {
            let missing = self.missing_blocks(writer, first, count);
            let covered = writer.reftable.len() as u64;
            if missing.last().is_some_and(|block| *block >= covered) {
                self.grow_reftable(writer, first.max(covered * per_block))?;
                first = writer.used_end.div_ceil(self.header.cluster_size());
                continue;
            }
            let end = first + count + missing.len() as u64;
            if let Some(used) = self.last_in_use(writer, first, end)? {
                // Counted although the file ends before it.
                first = used + 1;
                continue;
            }
            self.claim(writer, first, end - first)?;
            for (index, block) in missing.iter().enumerate() {
                self.make_refblock(writer, *block as usize, first + count + index as u64)?;
            }
            self.set_refcounts(writer, first, end - first, 1)?;
            return Ok(first);
        }
    }

    /// Which refcount blocks are missing to cover `count` clusters from `first` on, and these blocks behind them.
    fn missing_blocks(&self, writer: &Writer, first: u64, count: u64) -> Vec<u64> {
        let per_block = self.per_block();
        let mut blocks = Vec::new();
        loop {
            let last = (first + count + blocks.len() as u64 - 1) / per_block;
            let is_missing = |block: &u64| {
                writer.reftable.get(*block as usize).is_none_or(|entry| entry & REFTABLE_MASK == 0)
            };
            let missing: Vec<u64> = (first / per_block..=last).filter(is_missing).collect();
            if missing.len() == blocks.len() {
                return missing;
            }
            blocks = missing;
        }
    }

    fn last_in_use(&self, writer: &Writer, first: u64, end: u64) -> Result<Option<u64>> {
        for cluster in (first..end).rev() {
            if self.refcount(writer, cluster)? != 0 {
                return Ok(Some(cluster));
            }
        }
        Ok(None)
    }

    /// How many clusters from a free one on are free, up to `limit`; they have one refcount block.
    fn count_free(&self, writer: &Writer, first: u64, limit: u64) -> Result<u64> {
        let (width, per_slice) = (self.width(), self.per_slice());
        let mut count = 0;
        while count < limit {
            let Some((slice_at, index)) = self.refcount_place(writer, first + count)? else { break };
            let slice = self.cache.get(&*self.file, Table::Refcount, slice_at)?;
            let here = (limit - count).min(per_slice - index);
            let free =
                (index..index + here).take_while(|index| width.get(&slice, *index) == 0).count() as u64;
            count += free;
            if free < here {
                break;
            }
        }
        Ok(count.max(1))
    }

    /// Sets the counts of a run of clusters, whose refcount blocks must exist.
    fn set_refcounts(&self, writer: &Writer, first: u64, count: u64, to: u64) -> Result<()> {
        let (width, per_slice) = (self.width(), self.per_slice());
        let mut done = 0;
        while done < count {
            let Some((slice_at, index)) = self.refcount_place(writer, first + done)? else {
                // Says what is wrong.
                return self.set_refcount(writer, first + done, to);
            };
            let here = (count - done).min(per_slice - index);
            self.cache.modify(&*self.file, Table::Refcount, slice_at, |bytes| {
                (index..index + here).for_each(|index| width.set(bytes, index, to));
            })?;
            done += here;
        }
        Ok(())
    }

    /// How many counts a slice of a refcount block has.
    fn per_slice(&self) -> u64 {
        self.cache.slice_len() * 8 / u64::from(self.width().bits())
    }

    /// The first cluster from `cluster` on whose count is zero.
    fn next_free(&self, writer: &Writer, mut cluster: u64) -> Result<u64> {
        let (width, per_slice) = (self.width(), self.per_slice());
        loop {
            let Some((slice_at, index)) = self.refcount_place(writer, cluster)? else { return Ok(cluster) };
            let slice = self.cache.get(&*self.file, Table::Refcount, slice_at)?;
            match (index..per_slice).find(|index| width.get(&slice, *index) == 0) {
                Some(free) => return Ok(cluster + (free - index)),
                None => cluster += per_slice - index,
            }
        }
    }

    /// Allocates `count` clusters in a row, whose content is unknown; for tables, answers where they begin.
    pub(super) fn allocate_row(&self, writer: &mut Writer, count: u64) -> Result<u64> {
        let mut first = self.next_free(writer, writer.first_free)?;
        let mut found = 0;
        while found < count {
            let next = first + found;
            if self.cover(writer, next)? || self.refcount(writer, next)? > 0 {
                first = self.next_free(writer, next + 1)?;
                found = 0;
            } else {
                found += 1;
            }
        }
        self.claim(writer, first, count)?;
        for cluster in first..first + count {
            self.set_refcount(writer, cluster, 1)?;
        }
        writer.metadata.extend(first..first + count);
        Ok(first << self.header.cluster_bits)
    }

    /// Allocates one cluster for a table, filled with zeros.
    pub(super) fn allocate_table(&self, writer: &mut Writer) -> Result<u64> {
        let Clusters { host, fresh, .. } = self.allocate(writer, 1)?;
        if !fresh {
            self.file.zero_at(host, self.header.cluster_size())?;
        }
        writer.metadata.insert(host >> self.header.cluster_bits);
        Ok(host)
    }

    /// Makes sure that free clusters may be taken: within reach, within the file, and not in use as tables.
    /// Answers whether they were never used before.
    fn claim(&self, writer: &mut Writer, first: u64, count: u64) -> Result<bool> {
        if !writer.ready {
            // An empty refcount table would call everything free.
            return Err(Reason::MarkedCorrupt.into());
        }
        if let Some(cluster) = (first..first + count).find(|cluster| writer.metadata.contains(cluster)) {
            let at = cluster << self.header.cluster_bits;
            return Err(Error::corrupt("the refcount of a table", at, "at least 1", 0));
        }
        let end = first.checked_add(count).and_then(|end| end.checked_mul(self.header.cluster_size()));
        let Some(end) = end.filter(|end| *end <= OFFSET_MASK) else {
            return Err(Reason::Full.into());
        };
        if end > self.file.len() {
            self.grow_file(end)?;
        }
        let fresh = first << self.header.cluster_bits >= writer.used_end;
        writer.used_end = writer.used_end.max(end);
        self.cache.forget(first << self.header.cluster_bits, count << self.header.cluster_bits);
        Ok(fresh)
    }

    /// Makes the file reach `end`, and a little further so that this is not needed for every cluster.
    fn grow_file(&self, end: u64) -> Result<()> {
        let ahead = (end / 16).min(MAX_AHEAD);
        let ahead = ahead - ahead % self.header.cluster_size();
        match self.file.set_len(end + ahead) {
            Ok(()) => Ok(()),
            // The host may set a limit that lies in between.
            Err(_) if ahead > 0 && self.file.set_len(end).is_ok() => Ok(()),
            Err(error) if error.kind() == ErrorKind::Unsupported => Err(Reason::DeviceFull { end }.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the refcount block that covers a free cluster, unless it exists; answers whether it had to.
    ///
    /// The block takes that very cluster: nothing else that it covers can be in use.
    fn cover(&self, writer: &mut Writer, cluster: u64) -> Result<bool> {
        let block = cluster / self.per_block();
        if block >= writer.reftable.len() as u64 {
            self.grow_reftable(writer, cluster)?;
            return Ok(true);
        }
        if writer.reftable[block as usize] & REFTABLE_MASK != 0 {
            return Ok(false);
        }
        self.make_refblock(writer, block as usize, cluster)?;
        self.set_refcount(writer, cluster, 1)?;
        Ok(true)
    }

    /// Makes the refcount block `block` at a free cluster, all its counts zero.
    pub(super) fn make_refblock(&self, writer: &mut Writer, block: usize, cluster: u64) -> Result<()> {
        let at = cluster << self.header.cluster_bits;
        if !self.claim(writer, cluster, 1)? {
            // Nothing points here yet, so this may reach the file at any time.
            self.file.zero_at(at, self.header.cluster_size())?;
        }
        writer.reftable[block] = at;
        writer.reftable_dirty.insert(block);
        writer.metadata.insert(cluster);
        Ok(())
    }

    /// Moves the refcount table to `start`, where it has room to grow; nothing from `start` on is in use or
    /// has a refcount block.
    ///
    /// ```text
    /// start: new table │ refcount blocks that cover both │ free
    /// ```
    pub(super) fn grow_reftable(&self, writer: &mut Writer, start: u64) -> Result<()> {
        let (cluster_size, per_block) = (self.header.cluster_size(), self.per_block());
        let first_block = start / per_block;
        let (mut table, mut blocks) = (1, 1);
        let entries = loop {
            let last_block = (start + table + blocks - 1) / per_block;
            let entries = (last_block + 1).max(writer.reftable.len() as u64 * 3 / 2);
            let needed = ((entries * 8).div_ceil(cluster_size), last_block + 1 - first_block);
            if needed == (table, blocks) {
                break table * cluster_size / 8;
            }
            (table, blocks) = (needed.0.max(table), needed.1.max(blocks));
        };
        if entries * 8 > MAX_REFTABLE_BYTES {
            return Err(Reason::Full.into());
        }
        self.claim(writer, start, table + blocks)?;
        let mut new = writer.reftable.clone();
        new.resize(entries as usize, 0);
        for index in 0..blocks {
            let block = first_block + index;
            let at = (start + table + index) * cluster_size;
            new[block as usize] = at;
            let mut counts = vec![0; cluster_size as usize];
            for cluster in (start..start + table + blocks).filter(|cluster| cluster / per_block == block) {
                self.width().set(&mut counts, cluster % per_block, 1);
            }
            self.file.write_at(&counts, at)?;
        }
        self.switch_reftable(writer, start, table, new)?;
        writer.metadata.extend(start..start + table + blocks);
        Ok(())
    }

    /// Makes a new refcount table durable, then lets the header point to it.
    fn switch_reftable(&self, writer: &mut Writer, start: u64, clusters: u64, new: Vec<u64>) -> Result<()> {
        let at = start << self.header.cluster_bits;
        let bytes: Vec<u8> = new.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.cache.write_back(&*self.file, Table::Refcount)?;
        self.file.write_at(&bytes, at)?;
        self.barrier(writer)?;
        let mut fields = [0; 12];
        fields[..8].copy_from_slice(&at.to_be_bytes());
        fields[8..].copy_from_slice(&(clusters as u32).to_be_bytes());
        self.file.write_at(&fields, AT_REFTABLE)?;
        self.barrier(writer)?;

        let old = writer.reftable_offset >> self.header.cluster_bits;
        for cluster in old..old + writer.reftable_clusters {
            writer.metadata.remove(&cluster);
            writer.freed.push(Freed { cluster, punch: false });
        }
        writer.reftable = new;
        writer.reftable_dirty.clear();
        writer.reftable_offset = at;
        writer.reftable_clusters = clusters;
        Ok(())
    }

    /// Notes that the active tables no longer reference what `entry` names.
    pub(super) fn release(&self, writer: &mut Writer, entry: L2Entry, punch: bool) -> Result<()> {
        let mut freed = Vec::new();
        self.list_released(writer, entry, punch, &mut freed)?;
        writer.freed.extend(freed);
        Ok(())
    }

    /// Lists the clusters that `entry` names, which the active tables are about to reference no longer.
    pub(super) fn list_released(
        &self,
        writer: &Writer,
        entry: L2Entry,
        punch: bool,
        freed: &mut Vec<Freed>,
    ) -> Result<()> {
        let bits = self.header.cluster_bits;
        let clusters = match entry {
            L2Entry::Unallocated | L2Entry::Zero { host: None, .. } => return Ok(()),
            // Nothing counts references in an external data file.
            L2Entry::Zero { .. } | L2Entry::Data { .. } if self.has_data_file() => return Ok(()),
            L2Entry::Zero { host: Some(host), .. } | L2Entry::Data { host, .. } => {
                host >> bits..=host >> bits
            }
            L2Entry::Compressed(packed) => {
                self.unpacked.clear();
                let last = packed.host.saturating_add(packed.len - 1);
                packed.host >> bits..=last >> bits
            }
        };
        for cluster in clusters {
            self.check_in_use(writer, cluster)?;
            freed.push(Freed { cluster, punch });
        }
        Ok(())
    }

    /// Notes that the active L1 table no longer references an L2 table that snapshots still do.
    pub(super) fn release_table(&self, writer: &mut Writer, table: u64) -> Result<()> {
        let cluster = table >> self.header.cluster_bits;
        self.check_in_use(writer, cluster)?;
        writer.freed.push(Freed { cluster, punch: false });
        Ok(())
    }

    /// How often a cluster is referenced that is in use.
    pub(super) fn check_in_use(&self, writer: &Writer, cluster: u64) -> Result<u64> {
        match self.refcount(writer, cluster)? {
            0 => {
                let at = cluster << self.header.cluster_bits;
                Err(Error::corrupt("the refcount of a cluster in use", at, "at least 1", 0))
            }
            references => Ok(references),
        }
    }

    /// Takes the references away that were noted by [`Qcow2::release`], after the tables are durable.
    pub(super) fn apply_freed(&self, writer: &mut Writer) -> Result<()> {
        let mut freed = std::mem::take(&mut writer.freed);
        freed.sort_unstable_by_key(|freed| freed.cluster);
        let (mut hole, mut hole_count) = (0, 0);
        for Freed { cluster, punch } in freed {
            let Some(count) = self.refcount(writer, cluster)?.checked_sub(1) else { continue };
            self.set_refcount(writer, cluster, count)?;
            if count > 0 {
                continue;
            }
            writer.first_free = writer.first_free.min(cluster);
            let host = cluster << self.header.cluster_bits;
            if punch && host != hole + hole_count * self.header.cluster_size() {
                self.punch(hole, hole_count)?;
                (hole, hole_count) = (host, 0);
            }
            hole_count += u64::from(punch);
        }
        // A compressed cluster must not begin in a cluster that may have been given back.
        writer.pack_at = 0;
        self.punch(hole, hole_count)
    }

    pub(super) fn punch(&self, host: u64, clusters: u64) -> Result<()> {
        let len = (clusters << self.header.cluster_bits).min(self.file.len().saturating_sub(host));
        if len > 0 {
            self.file.discard(host, len)?;
        }
        Ok(())
    }
}
