//! Internal snapshots: states of the disk that are kept within the image.
//!
//! ```text
//! create   counts up, flags cleared ─ flush ─ copy of L1, new table of snapshots ─ flush ─ header ─ flush ─ old table freed
//! apply    counts up ─ flush ─ new L1 ─ flush ─ header (size, L1) ─ flush ─ what was active loses its references
//! delete   new table of snapshots ─ flush ─ header ─ flush ─ counts down ─ flush ─ flags set
//! ```
//!
//! The header changes in one write within a sector, so that after a crash the old state or the new one shows.

use std::sync::RwLockWriteGuard;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use vmwright_disk::Disk;
use zerocopy::IntoBytes;

use super::layout::{
    AT_SIZE, AT_SNAPSHOTS, COPIED, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY, MAX_L1_BYTES, RawSnapshot,
};
use super::state::{State, read_table};
use super::tables::{self, Snapshot};
use super::{Qcow2, counts::Counts};
use crate::error::Reason;
use crate::{Error, Result, SnapshotInfo};

/// The longest name, as in QEMU.
const MAX_NAME: usize = 255;

/// The internal snapshots of an image.
///
/// Every change is durable when the call returns, and whatever was written to the image before it as well.
pub struct Snapshots<'a> {
    image: &'a Qcow2,
}

impl<'a> Snapshots<'a> {
    pub(crate) fn new(image: &'a Qcow2) -> Self {
        Self { image }
    }

    /// All snapshots, in the order of the image.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>> {
        let state = self.image.read_state();
        let snapshots = tables::snapshots(&*self.image.file, &state.header)?;
        Ok(snapshots.into_iter().map(|snapshot| snapshot.info).collect())
    }

    /// Keeps the present state of the disk as a snapshot, whose id is new; several may have the same name.
    pub fn create(&self, name: &str) -> Result<SnapshotInfo> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Error::invalid("the name of a snapshot", "it must have 1 to 255 bytes"));
        }
        let mut state = self.image.begin()?;
        let result = self.image.create_snapshot(&mut state, name);
        self.image.settle(&mut state, result)
    }

    /// Makes the disk what it was when a snapshot was taken, its size included; what it holds now is lost.
    ///
    /// `id_or_name` is an id or else a name; an error of kind not found where no snapshot has either. Refused where
    /// there are dirty bitmaps: they would not know what changed.
    pub fn apply(&self, id_or_name: &str) -> Result<()> {
        let mut state = self.image.begin()?;
        let result = self.image.apply_snapshot(&mut state, id_or_name);
        self.image.settle(&mut state, result)
    }

    /// Removes a snapshot, with the machine state in it if there is one, and gives its space back.
    pub fn delete(&self, id_or_name: &str) -> Result<()> {
        let mut state = self.image.begin()?;
        let result = self.image.delete_snapshot(&mut state, id_or_name);
        self.image.settle(&mut state, result)
    }
}

impl std::fmt::Debug for Snapshots<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Snapshots").field(&self.list()).finish()
    }
}

impl Qcow2 {
    /// Makes everything written so far durable and keeps others from changing anything.
    pub(super) fn begin(&self) -> Result<RwLockWriteGuard<'_, State>> {
        self.prepare()?;
        let mut state = self.write_state();
        self.write_back(&mut state)?;
        self.barrier(&mut state.writer)?;
        Ok(state)
    }

    /// Ends a change of tables. After a failure in its midst, what is known in memory may not be what is in the file,
    /// so that nothing more is written.
    pub(super) fn settle<T>(&self, state: &mut State, result: Result<T>) -> Result<T> {
        if result.is_err() {
            // What cannot be read may be anything.
            let header = super::open::read_header(&*self.file);
            let dirty = header.map_or(true, |header| header.has(INCOMPATIBLE_DIRTY));
            state.writer.broken |= dirty || !self.is_settled(state);
        }
        result
    }

    /// Whether nothing waits to be written.
    fn is_settled(&self, state: &State) -> bool {
        let writer = &state.writer;
        writer.l1_dirty.is_empty()
            && writer.reftable_dirty.is_empty()
            && writer.freed.is_empty()
            && !self.cache.is_dirty(crate::cache::Table::L2)
            && !self.cache.is_dirty(crate::cache::Table::Refcount)
    }

    fn create_snapshot(&self, state: &mut State, name: &str) -> Result<SnapshotInfo> {
        if state.header.has(INCOMPATIBLE_DATA_FILE) {
            return Err(Error::unsupported("an internal snapshot of an image with an external data file"));
        }
        let (snapshots, mut table) = self.read_snapshot_table(state)?;
        if snapshots.len() as u64 >= u64::from(tables::MAX_SNAPSHOTS) {
            return Err(Reason::Full.into());
        }
        let active = self.references(&state.l1, state.header.l1_offset)?;
        self.check_can_share(state, &active.counts)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let highest = snapshots.iter().filter_map(|snapshot| snapshot.info.id.parse::<u64>().ok()).max();
        let info = SnapshotInfo {
            id: highest.unwrap_or(0).saturating_add(1).to_string(),
            name: name.to_owned(),
            vm_state_size: 0,
            date_sec: now.as_secs() as u32,
            date_nsec: now.subsec_nanos(),
            vm_clock_sec: 0,
            vm_clock_nsec: 0,
            icount: None,
        };

        self.set_dirty(state, true)?;
        self.clear_flags(state, &active)?;
        for (index, entry) in state.l1.iter_mut().enumerate().filter(|(_, entry)| **entry & COPIED != 0) {
            *entry &= !COPIED;
            state.writer.l1_dirty.insert(index);
        }
        self.share(state, &active.counts)?;
        let l1 = state.l1.clone();
        let l1_at = self
            .write_new_table(state, &l1.iter().flat_map(|entry| entry.to_be_bytes()).collect::<Vec<_>>())?;
        table.extend(encode(&info, l1_at, state.l1.len() as u32, state.header.size));
        self.write_back(state)?;
        self.switch_snapshots(state, &table, snapshots.len() + 1)?;
        self.set_dirty(state, false)?;
        Ok(info)
    }

    fn apply_snapshot(&self, state: &mut State, id_or_name: &str) -> Result<()> {
        let (snapshots, _) = self.read_snapshot_table(state)?;
        let snapshot = &snapshots[tables::find_snapshot(&snapshots, id_or_name)?];
        if !tables::bitmaps(&*self.file, &state.header)?.is_empty() {
            let why = "the image has dirty bitmaps, which would not know what changed";
            return Err(Error::invalid("applying a snapshot", why));
        }
        let (mut l1, shown) = self.read_snapshot(snapshot)?;
        let size = snapshot.disk_size.unwrap_or(state.header.size);
        if size > i64::MAX as u64 {
            return Err(Error::corrupt(
                "the disk size of a snapshot",
                snapshot.l1_offset,
                "at most 2^63 - 1",
                size,
            ));
        }
        let needed = size.div_ceil(self.header.l2_coverage());
        if needed > MAX_L1_BYTES / 8 {
            return Err(Error::corrupt(
                "the disk size of a snapshot",
                snapshot.l1_offset,
                "what L1 can map",
                size,
            ));
        }
        l1.resize(l1.len().max(needed as usize), 0);
        l1.iter_mut().for_each(|entry| *entry &= !COPIED);
        let mut active = self.references(&state.l1, state.header.l1_offset)?.counts;
        self.add_table(&mut active, state.header.l1_offset, state.l1.len() as u64 * 8);
        self.check_can_release(state, &active)?;
        self.check_can_share(state, &shown.counts)?;

        self.set_dirty(state, true)?;
        self.clear_flags(state, &shown)?;
        self.share(state, &shown.counts)?;
        let bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let l1_at = self.write_new_table(state, &bytes)?;
        self.write_back(state)?;
        self.barrier(&mut state.writer)?;
        let mut fields = [0; 24];
        fields[..8].copy_from_slice(&size.to_be_bytes());
        fields[8..12].copy_from_slice(&state.header.encryption.to_be_bytes());
        fields[12..16].copy_from_slice(&(l1.len() as u32).to_be_bytes());
        fields[16..].copy_from_slice(&l1_at.to_be_bytes());
        self.file.write_at(&fields, AT_SIZE)?;
        self.barrier(&mut state.writer)?;
        (state.header.size, state.header.l1_offset, state.header.l1_len) = (size, l1_at, l1.len() as u32);
        state.l1 = l1;
        self.size.store(size, Ordering::Release);
        self.unshare(state, &active)?;
        self.collect_metadata_again(state)?;
        self.set_dirty(state, false)
    }

    fn delete_snapshot(&self, state: &mut State, id_or_name: &str) -> Result<()> {
        let (snapshots, mut table) = self.read_snapshot_table(state)?;
        let index = tables::find_snapshot(&snapshots, id_or_name)?;
        let snapshot = &snapshots[index];
        let (l1, shown) = self.read_snapshot(snapshot)?;
        let mut less = shown.counts;
        self.add_table(&mut less, snapshot.l1_offset, l1.len() as u64 * 8);
        self.check_can_release(state, &less)?;
        table.drain(snapshot.entry.clone());

        self.set_dirty(state, true)?;
        self.switch_snapshots(state, &table, snapshots.len() - 1)?;
        self.unshare(state, &less)?;
        self.set_flags(state)?;
        self.write_back(state)?;
        self.collect_metadata_again(state)?;
        self.set_dirty(state, false)
    }

    /// Writes all snapshots anew with what version 3 wants to know of each; those that lack it have the size of the
    /// active disk, as nobody knows better.
    pub(super) fn complete_snapshots(&self) -> Result<()> {
        let mut state = self.begin()?;
        let (snapshots, bytes) = self.read_snapshot_table(&state)?;
        let mut table = Vec::new();
        for snapshot in &snapshots {
            match snapshot.disk_size {
                Some(_) => table.extend(&bytes[snapshot.entry.clone()]),
                None => table.extend(encode(
                    &snapshot.info,
                    snapshot.l1_offset,
                    snapshot.l1_len,
                    state.header.size,
                )),
            }
        }
        let result = self.switch_snapshots(&mut state, &table, snapshots.len());
        self.settle(&mut state, result)
    }

    /// The snapshots, and the bytes of their table.
    fn read_snapshot_table(&self, state: &State) -> Result<(Vec<Snapshot>, Vec<u8>)> {
        let snapshots = tables::snapshots(&*self.file, &state.header)?;
        let len = snapshots.last().map_or(0, |last| last.entry.end);
        let mut bytes = vec![0; len];
        super::inspect::Padded(self.file.clone()).read_at(&mut bytes, state.header.snapshots_offset)?;
        Ok((snapshots, bytes))
    }

    /// The L1 table of a snapshot and what it refers to.
    fn read_snapshot(&self, snapshot: &Snapshot) -> Result<(Vec<u64>, super::share::References)> {
        let (at, len, what) = (snapshot.l1_offset, snapshot.l1_bytes()?, "the L1 table of a snapshot");
        let l1 = read_table(&*self.file, &self.header, what, at, len, MAX_L1_BYTES)?;
        let references = self.references(&l1, at)?;
        Ok((l1, references))
    }

    pub(super) fn add_table(&self, counts: &mut Counts, at: u64, len: u64) {
        if len > 0 {
            for cluster in at >> self.header.cluster_bits..=(at + len - 1) >> self.header.cluster_bits {
                counts.add(cluster, 1);
            }
        }
    }

    /// Writes a table to new clusters in a row; nothing points to it yet. An empty one is nowhere.
    pub(super) fn write_new_table(&self, state: &mut State, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let cluster_size = self.header.cluster_size();
        let clusters = (bytes.len() as u64).div_ceil(cluster_size);
        let at = self.allocate_row(&mut state.writer, clusters)?;
        self.file.write_at(bytes, at)?;
        let rest = clusters * cluster_size - bytes.len() as u64;
        if rest > 0 {
            self.file.zero_at(at + bytes.len() as u64, rest)?;
        }
        Ok(at)
    }

    /// Writes a table of snapshots and lets the header name it; what the old one took is freed.
    fn switch_snapshots(&self, state: &mut State, table: &[u8], count: usize) -> Result<()> {
        if table.len() as u64 > tables::MAX_TABLE {
            return Err(Reason::Full.into());
        }
        let mut old = Counts::default();
        if state.header.snapshot_count > 0 {
            let len = tables::snapshots_end(&*self.file, &state.header)? - state.header.snapshots_offset;
            self.add_table(&mut old, state.header.snapshots_offset, len);
        }
        let at = self.write_new_table(state, table)?;
        self.write_back(state)?;
        self.barrier(&mut state.writer)?;
        let mut fields = [0; 12];
        fields[..4].copy_from_slice(&(count as u32).to_be_bytes());
        fields[4..].copy_from_slice(&at.to_be_bytes());
        self.file.write_at(&fields, AT_SNAPSHOTS)?;
        self.barrier(&mut state.writer)?;
        (state.header.snapshot_count, state.header.snapshots_offset) = (count as u32, at);
        self.unshare(state, &old)
    }

    fn collect_metadata_again(&self, state: &mut State) -> Result<()> {
        state.writer.metadata.clear();
        self.collect_metadata(state)
    }
}

/// An entry of the table of snapshots.
fn encode(info: &SnapshotInfo, l1_at: u64, l1_len: u32, disk_size: u64) -> Vec<u8> {
    let raw = RawSnapshot {
        l1_table_offset: l1_at.into(),
        l1_size: l1_len.into(),
        id_str_size: (info.id.len() as u16).into(),
        name_size: (info.name.len() as u16).into(),
        date_sec: info.date_sec.into(),
        date_nsec: info.date_nsec.into(),
        vm_clock_nsec: info
            .vm_clock_sec
            .wrapping_mul(1_000_000_000)
            .wrapping_add(info.vm_clock_nsec.into())
            .into(),
        vm_state_size: u32::try_from(info.vm_state_size).unwrap_or(0).into(),
        extra_data_size: 24.into(),
    };
    let mut entry = raw.as_bytes().to_vec();
    for extra in [info.vm_state_size, disk_size, info.icount.unwrap_or(u64::MAX)] {
        entry.extend(extra.to_be_bytes());
    }
    entry.extend(info.id.as_bytes());
    entry.extend(info.name.as_bytes());
    entry.resize(entry.len().next_multiple_of(8), 0);
    entry
}
