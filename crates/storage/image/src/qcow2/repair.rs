//! Rebuilding reference counts, as an image with the dirty bit needs before it is written.
//!
//! Every table is walked and every reference counted; what the refcount blocks say does not matter.

use std::collections::BTreeMap;

use super::Qcow2;
use super::layout::{AT_INCOMPATIBLE, COPIED, INCOMPATIBLE_DIRTY, MAX_L1_BYTES, OFFSET_MASK, REFTABLE_MASK};
use super::map::{L2Entry, read_u64};
use super::state::{State, Writer, read_table};
use super::tables;
use crate::cache::Table;
use crate::{Error, Result};

/// So many clusters have their references counted in memory at most.
const MAX_CLUSTERS: u64 = 1 << 25;

/// How often each cluster of the file is referenced.
pub(super) struct Counts {
    counts: Vec<u32>,
    cluster_bits: u32,
}

impl Counts {
    fn new(image: &Qcow2) -> Result<Self> {
        let clusters = check_size(image)?;
        Ok(Self { counts: vec![0; clusters as usize], cluster_bits: image.header.cluster_bits })
    }

    /// Counts one reference, found at `from`, to every cluster of a range.
    fn add(&mut self, from: u64, start: u64, len: u64) -> Result<()> {
        self.add_times(from, start, len, 1)
    }

    fn add_times(&mut self, from: u64, start: u64, len: u64, times: u32) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let last = start.checked_add(len - 1).map(|last| last >> self.cluster_bits);
        let Some(last) = last.filter(|last| *last < self.counts.len() as u64) else {
            return Err(Error::corrupt("a reference", from, "clusters within the file", start));
        };
        for cluster in start >> self.cluster_bits..=last {
            let count = &mut self.counts[cluster as usize];
            *count = count.saturating_add(times);
        }
        Ok(())
    }

    /// Every cluster of the file with its number of references.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.counts.iter().enumerate().map(|(cluster, count)| (cluster as u64, u64::from(*count)))
    }

    /// How often the cluster at `host` is referenced.
    pub(super) fn get(&self, host: u64) -> u32 {
        self.counts.get((host >> self.cluster_bits) as usize).copied().unwrap_or(0)
    }
}

/// How many clusters the file has, if they are not too many to count references in memory.
fn check_size(image: &Qcow2) -> Result<u64> {
    let clusters = image.file.len().div_ceil(image.header.cluster_size());
    match clusters {
        0..=MAX_CLUSTERS => Ok(clusters),
        _ => Err(Error::unsupported("rebuilding the reference counts of so large an image")),
    }
}

/// Counts every reference that the image makes.
pub(super) fn count(image: &Qcow2, state: &State) -> Result<Counts> {
    let (file, header) = (&*image.file, &state.header);
    let mut counts = Counts::new(image)?;
    counts.add(0, 0, 1)?;
    let writer = &state.writer;
    counts.add(0, writer.reftable_offset, writer.reftable_clusters << header.cluster_bits)?;
    for (index, entry) in writer.reftable.iter().enumerate().filter(|(_, entry)| **entry != 0) {
        counts.add(writer.reftable_offset + index as u64 * 8, entry & REFTABLE_MASK, 1)?;
    }
    counts.add(0, header.l1_offset, u64::from(header.l1_len) * 8)?;
    let mut l2 = L2Tables::new();
    collect_l2(image, &mut l2, header.l1_offset, &state.l1)?;
    for snapshot in tables::snapshots(file, header)? {
        let len = snapshot.l1_bytes()?;
        let l1 =
            read_table(file, header, "the L1 table of a snapshot", snapshot.l1_offset, len, MAX_L1_BYTES)?;
        counts.add(header.snapshots_offset, snapshot.l1_offset, len)?;
        collect_l2(image, &mut l2, snapshot.l1_offset, &l1)?;
    }
    count_l2(image, &mut counts, &l2)?;
    if header.snapshot_count > 0 {
        let len = tables::snapshots_end(file, header)? - header.snapshots_offset;
        counts.add(0, header.snapshots_offset, len)?;
    }
    count_bitmaps(image, &mut counts)?;
    for block in writer.reftable.iter().map(|entry| entry & REFTABLE_MASK).filter(|at| *at != 0) {
        if counts.get(block) != 1 {
            let references = counts.get(block).into();
            return Err(Error::corrupt("a refcount block", block, "nothing else in its place", references));
        }
    }
    Ok(counts)
}

/// Where L2 tables are, with the place of one L1 entry that names each and how many do.
///
/// Snapshots share tables: each is read once, however many do.
type L2Tables = BTreeMap<u64, (u64, u32)>;

fn collect_l2(image: &Qcow2, tables: &mut L2Tables, l1_at: u64, l1: &[u64]) -> Result<()> {
    for (index, entry) in l1.iter().enumerate() {
        let (table, at) = (entry & OFFSET_MASK, l1_at + index as u64 * 8);
        if table == 0 {
            continue;
        }
        image.check_table(table, at)?;
        let (_, times) = tables.entry(table).or_insert((at, 0));
        *times = times.saturating_add(1);
    }
    Ok(())
}

fn count_l2(image: &Qcow2, counts: &mut Counts, tables: &L2Tables) -> Result<()> {
    let cluster_size = image.header.cluster_size();
    let mut bytes = vec![0; cluster_size as usize];
    for (table, (from, times)) in tables {
        counts.add_times(*from, *table, cluster_size, *times)?;
        image.file.read_at(&mut bytes, *table)?;
        for index in (0..bytes.len()).step_by(image.l2_entry_size() as usize) {
            let at = table + index as u64;
            match image.parse_l2(read_u64(&bytes, index), at)? {
                L2Entry::Unallocated | L2Entry::Zero { host: None, .. } => {}
                L2Entry::Zero { host: Some(host), .. } | L2Entry::Data { host, .. } => {
                    counts.add_times(at, host, 1, *times)?;
                }
                L2Entry::Compressed(packed) => counts.add_times(at, packed.host, packed.len, *times)?,
            }
        }
    }
    Ok(())
}

fn count_bitmaps(image: &Qcow2, counts: &mut Counts) -> Result<()> {
    let (file, header) = (&*image.file, &image.header);
    let bitmaps = tables::bitmaps(file, header)?;
    let Some(directory) = header.bitmaps.filter(|_| !bitmaps.is_empty()) else { return Ok(()) };
    counts.add(0, directory.offset, directory.len)?;
    let mut sum = 0u64;
    for bitmap in bitmaps {
        let len = u64::from(bitmap.table_len) * 8;
        let what = "the table of a bitmap";
        // Tables that lie over one another would be read again and again.
        sum = sum.saturating_add(len);
        if sum > file.len() {
            return Err(Error::corrupt(what, bitmap.table_offset, "tables that all fit into the file", sum));
        }
        let table = read_table(file, header, what, bitmap.table_offset, len, MAX_L1_BYTES)?;
        counts.add(bitmap.entry_at, bitmap.table_offset, len)?;
        for (index, entry) in table.iter().enumerate().filter(|(_, entry)| **entry & OFFSET_MASK != 0) {
            counts.add(bitmap.table_offset + index as u64 * 8, entry & OFFSET_MASK, 1)?;
        }
    }
    Ok(())
}

/// Makes the refcounts say what the tables say, and clears the dirty bit.
pub(super) fn rebuild_refcounts(image: &Qcow2, state: &mut State) -> Result<()> {
    check_size(image)?;
    drop_bad_blocks(image, state)?;
    cover_file(image, state)?;
    let counts = count(image, state)?;
    for (cluster, count) in counts.iter() {
        if image.refcount(&state.writer, cluster)? != count {
            image.set_refcount(&state.writer, cluster, count)?;
        }
        if image.cache.is_crowded() {
            image.cache.write_back(&*image.file, Table::Refcount)?;
        }
    }
    fix_copied(image, state, &counts)?;
    // What was freed by moving the refcount table has its new count already.
    state.writer.freed.clear();
    state.writer.first_free = 0;
    image.write_back(state)?;
    image.barrier(&mut state.writer)?;
    let clean = state.header.incompatible & !INCOMPATIBLE_DIRTY;
    state.header.incompatible = clean;
    image.file.write_at(&clean.to_be_bytes(), AT_INCOMPATIBLE)?;
    image.barrier(&mut state.writer)
}

/// Forgets entries of the refcount table that point nowhere.
fn drop_bad_blocks(image: &Qcow2, state: &mut State) -> Result<()> {
    let cluster_size = image.header.cluster_size();
    let len = image.file.len();
    for (index, entry) in state.writer.reftable.iter_mut().enumerate() {
        let at = *entry & REFTABLE_MASK;
        if at != 0
            && (!at.is_multiple_of(cluster_size) || at.checked_add(cluster_size).is_none_or(|end| end > len))
        {
            *entry = 0;
            state.writer.reftable_dirty.insert(index);
        }
    }
    Ok(())
}

/// Makes refcount blocks, at the end of the file, for every cluster that has none.
fn cover_file(image: &Qcow2, state: &mut State) -> Result<()> {
    let per_block = image.width().per_block(image.header.cluster_bits);
    let used = |writer: &Writer| writer.used_end.div_ceil(image.header.cluster_size());
    let writer = &mut state.writer;
    let mut block = 0;
    while block * per_block < used(writer) {
        if block >= writer.reftable.len() as u64 {
            // What moves needs counts of its own, so look at every block again.
            let start = used(writer).max(writer.reftable.len() as u64 * per_block);
            image.grow_reftable(writer, start)?;
            block = 0;
            continue;
        }
        if writer.reftable[block as usize] & REFTABLE_MASK == 0 {
            image.make_refblock(writer, block as usize, used(writer))?;
        }
        block += 1;
    }
    Ok(())
}

/// Sets the flag of every active entry that points to something with exactly one reference.
fn fix_copied(image: &Qcow2, state: &mut State, counts: &Counts) -> Result<()> {
    let flagged = |entry: u64, host: u64| match counts.get(host) {
        1 => entry | COPIED,
        _ => entry & !COPIED,
    };
    let file = &*image.file;
    let slice_len = image.cache.slice_len();
    for index in 0..state.l1.len() {
        let table = state.l1[index] & OFFSET_MASK;
        if table == 0 {
            continue;
        }
        let entry = flagged(state.l1[index], table);
        if entry != state.l1[index] {
            state.l1[index] = entry;
            state.writer.l1_dirty.insert(index);
        }
        for slice_at in (table..table + image.header.cluster_size()).step_by(slice_len as usize) {
            let old = image.cache.get(file, Table::L2, slice_at)?;
            let mut new = old.to_vec();
            for (at, bytes) in new.chunks_exact_mut(8).enumerate() {
                let raw = read_u64(bytes, 0);
                let host = match image.parse_l2(raw, slice_at + at as u64 * 8)? {
                    L2Entry::Data { host, .. } | L2Entry::Zero { host: Some(host), .. } => host,
                    _ => continue,
                };
                bytes.copy_from_slice(&flagged(raw, host).to_be_bytes());
            }
            if new != *old {
                image.cache.modify(file, Table::L2, slice_at, |bytes| bytes.copy_from_slice(&new))?;
            }
        }
        image.relieve(state)?;
    }
    Ok(())
}
