//! A bounded cache of metadata in slices, with write-back under the control of the format.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmwright_disk::Disk;

use crate::{Error, Result};

/// Which kind of table a slice belongs to; each kind is written back on its own, in the format's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    L2,
    Refcount,
    /// The bits of a dirty bitmap.
    Bitmap,
}

/// Slices of metadata by their offset in the file.
///
/// Clean slices are thrown out when room is needed, least recently used first; dirty ones stay until
/// [`Cache::write_back`], which the owner calls when [`Cache::is_crowded`].
pub(crate) struct Cache {
    slots: Mutex<Slots>,
    slice_len: usize,
    capacity: usize,
}

#[derive(Default)]
struct Slots {
    by_offset: HashMap<u64, Slot>,
    clock: VecDeque<u64>,
    dirty: usize,
}

struct Slot {
    bytes: Arc<Vec<u8>>,
    table: Table,
    dirty: bool,
    used: bool,
}

impl Cache {
    /// Makes a cache of slices of `slice_len` bytes that keeps about `max_bytes` in memory.
    pub(crate) fn new(slice_len: usize, max_bytes: usize) -> Self {
        Self { slots: Mutex::default(), slice_len, capacity: (max_bytes / slice_len).max(16) }
    }

    /// The length of a slice in bytes.
    pub(crate) fn slice_len(&self) -> u64 {
        self.slice_len as u64
    }

    /// Whether so much is dirty that it should be written back before more is changed.
    pub(crate) fn is_crowded(&self) -> bool {
        self.lock().dirty * 2 > self.capacity
    }

    /// Whether anything of this kind waits to be written.
    pub(crate) fn is_dirty(&self, table: Table) -> bool {
        let slots = self.lock();
        slots.dirty > 0 && slots.by_offset.values().any(|slot| slot.dirty && slot.table == table)
    }

    /// The slice at `offset`, which must be a multiple of the slice length.
    pub(crate) fn get(&self, file: &dyn Disk, table: Table, offset: u64) -> Result<Arc<Vec<u8>>> {
        if let Some(slot) = self.lock().by_offset.get_mut(&offset) {
            slot.check(table, offset)?;
            slot.used = true;
            return Ok(slot.bytes.clone());
        }
        // Read without the lock, so that others find their slices meanwhile.
        let mut bytes = vec![0; self.slice_len];
        file.read_at(&mut bytes, offset)?;
        let mut slots = self.lock();
        slots.make_room(self.capacity);
        Ok(slots.insert(offset, table, bytes))
    }

    /// Changes the slice at `offset` in memory; it is dirty afterwards.
    pub(crate) fn modify(
        &self,
        file: &dyn Disk,
        table: Table,
        offset: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        self.get(file, table, offset)?;
        let mut slots = self.lock();
        // Only a reader could have pushed it out since, and readers are excluded while metadata changes.
        let Some(slot) = slots.by_offset.get_mut(&offset) else {
            return Err(Error::invalid("the metadata cache", "a slice vanished while it was changed"));
        };
        change(Arc::make_mut(&mut slot.bytes).as_mut_slice());
        let newly_dirty = !std::mem::replace(&mut slot.dirty, true);
        slots.dirty += usize::from(newly_dirty);
        Ok(())
    }

    /// Drops whatever is known about a range, dirty or not: it now holds something else.
    pub(crate) fn forget(&self, start: u64, len: u64) {
        let mut slots = self.lock();
        if slots.by_offset.is_empty() {
            return;
        }
        for offset in (start..start.saturating_add(len)).step_by(self.slice_len) {
            if slots.by_offset.remove(&offset).is_some_and(|slot| slot.dirty) {
                slots.dirty -= 1;
            }
        }
    }

    /// Drops everything, dirty or not.
    pub(crate) fn clear(&self) {
        *self.lock() = Slots::default();
    }

    /// Writes every dirty slice of one kind, in the order of the file; answers whether there were any.
    pub(crate) fn write_back(&self, file: &dyn Disk, table: Table) -> Result<bool> {
        let mut slots = self.lock();
        if slots.dirty == 0 {
            return Ok(false);
        }
        let dirty = slots.by_offset.iter().filter(|(_, slot)| slot.dirty && slot.table == table);
        let dirty: BTreeMap<u64, Arc<Vec<u8>>> =
            dirty.map(|(offset, slot)| (*offset, slot.bytes.clone())).collect();
        for (offset, bytes) in &dirty {
            file.write_at(bytes, *offset)?;
            if let Some(slot) = slots.by_offset.get_mut(offset) {
                slot.dirty = false;
            }
            slots.dirty -= 1;
        }
        Ok(!dirty.is_empty())
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn check(&mut self, table: Table, offset: u64) -> Result<()> {
        if self.table != table && self.dirty {
            let what = "a table that is used both for L2 entries and for refcounts";
            return Err(Error::corrupt(what, offset, "one use", 2));
        }
        self.table = table;
        Ok(())
    }
}

impl Slots {
    /// Throws out clean slices by the clock algorithm until there is room for one more, if possible.
    fn make_room(&mut self, capacity: usize) {
        let mut tries = self.clock.len() * 2;
        while self.by_offset.len() >= capacity && tries > 0 {
            tries -= 1;
            let Some(offset) = self.clock.pop_front() else { return };
            match self.by_offset.get_mut(&offset) {
                None => {}
                Some(slot) if slot.dirty || slot.used => {
                    slot.used = false;
                    self.clock.push_back(offset);
                }
                Some(_) => {
                    self.by_offset.remove(&offset);
                }
            }
        }
    }

    /// Adds a slice unless it came in meanwhile; answers the one that counts.
    fn insert(&mut self, offset: u64, table: Table, bytes: Vec<u8>) -> Arc<Vec<u8>> {
        if let Some(slot) = self.by_offset.get(&offset) {
            return slot.bytes.clone();
        }
        let bytes = Arc::new(bytes);
        self.by_offset.insert(offset, Slot { bytes: bytes.clone(), table, dirty: false, used: true });
        // A forgotten slice may have left its place in the clock behind; two places do no harm, but pile up.
        if self.clock.len() > self.by_offset.len() * 2 {
            let present = &self.by_offset;
            let mut seen = std::collections::HashSet::new();
            self.clock.retain(|at| present.contains_key(at) && seen.insert(*at));
        }
        self.clock.push_back(offset);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    #[test]
    fn the_cache_never_outgrows_its_bound_with_clean_slices() {
        let file = MemDisk::new(1 << 20);
        let cache = Cache::new(512, 16 * 512);
        for offset in (0..1 << 20).step_by(512) {
            cache.get(&file, Table::L2, offset).unwrap();
        }
        let slots = cache.lock();
        assert!(slots.by_offset.len() <= 16 && slots.clock.len() <= 32);
    }

    #[test]
    fn dirty_slices_stay_until_written() {
        let file = MemDisk::new(1 << 20);
        let cache = Cache::new(512, 16 * 512);
        cache.modify(&file, Table::L2, 1024, |bytes| bytes[0] = 7).unwrap();
        for offset in (2048..1 << 20).step_by(512) {
            cache.get(&file, Table::L2, offset).unwrap();
        }
        assert_eq!(cache.get(&file, Table::L2, 1024).unwrap()[0], 7);
        assert_eq!(file.to_bytes()[1024], 0);
        assert!(!cache.write_back(&file, Table::Refcount).unwrap());
        assert!(cache.write_back(&file, Table::L2).unwrap());
        assert_eq!(file.to_bytes()[1024], 7);
        assert!(!cache.is_dirty(Table::L2));
    }

    #[test]
    fn one_table_cannot_be_changed_as_two_kinds() {
        let file = MemDisk::new(4096);
        let cache = Cache::new(512, 4096);
        cache.modify(&file, Table::L2, 0, |bytes| bytes[0] = 1).unwrap();
        let error = cache.get(&file, Table::Refcount, 0).unwrap_err();
        assert_eq!(error.kind(), vmwright_disk::ErrorKind::Corrupt);
    }
}
