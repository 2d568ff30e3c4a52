//! A bounded cache of metadata in sectors of 4 KiB. What changed in memory stays until the log has it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmwright_disk::Disk;

use super::layout::SECTOR;
use crate::Result;

/// Sectors of metadata by their offset in the file.
pub(super) struct Pages {
    slots: Mutex<Slots>,
    capacity: usize,
}

#[derive(Default)]
struct Slots {
    clean: HashMap<u64, Arc<Vec<u8>>>,
    /// In the order in which they came in.
    order: VecDeque<u64>,
    dirty: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Pages {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { slots: Mutex::default(), capacity: (max_bytes / SECTOR as usize).max(16) }
    }

    /// The sector at `at`, a multiple of its length; what the file lacks of it is zeros.
    pub(super) fn get(&self, file: &dyn Disk, at: u64) -> Result<Arc<Vec<u8>>> {
        if let Some(bytes) = self.lock().find(at) {
            return Ok(bytes);
        }
        // Read without the lock, so that others find theirs meanwhile.
        let mut bytes = vec![0; SECTOR as usize];
        file.read_at(&mut bytes, at)?;
        let bytes = Arc::new(bytes);
        let mut slots = self.lock();
        if let Some(newer) = slots.find(at) {
            return Ok(newer);
        }
        while slots.clean.len() >= self.capacity {
            let Some(oldest) = slots.order.pop_front() else { break };
            slots.clean.remove(&oldest);
        }
        slots.clean.insert(at, bytes.clone());
        slots.order.push_back(at);
        Ok(bytes)
    }

    /// Changes bytes that lie within the file, in memory only.
    pub(super) fn put(&self, file: &dyn Disk, data: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (page, skip) = (at - at % SECTOR, (at % SECTOR) as usize);
            let len = (data.len() - done).min(SECTOR as usize - skip);
            let mut bytes = self.get(file, page)?;
            Arc::make_mut(&mut bytes)[skip..skip + len].copy_from_slice(&data[done..done + len]);
            let mut slots = self.lock();
            slots.forget_clean(page);
            slots.dirty.insert(page, bytes);
            done += len;
        }
        Ok(())
    }

    /// How many sectors changed in memory only.
    pub(super) fn dirty_count(&self) -> usize {
        self.lock().dirty.len()
    }

    /// The sectors that changed, in the order of the file.
    pub(super) fn dirty(&self) -> Vec<(u64, Arc<Vec<u8>>)> {
        self.lock().dirty.iter().map(|(at, bytes)| (*at, bytes.clone())).collect()
    }

    /// Notes that the file has all that changed.
    pub(super) fn settle(&self) {
        let mut slots = self.lock();
        let written = std::mem::take(&mut slots.dirty);
        for (at, bytes) in written {
            if slots.clean.len() < self.capacity {
                slots.clean.insert(at, bytes);
                slots.order.push_back(at);
            }
        }
    }

    /// Drops what is known about a range that was written past the cache.
    pub(super) fn forget(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let mut slots = self.lock();
        let gone = |at: u64| at.saturating_add(SECTOR) > offset && at < end;
        slots.clean.retain(|at, _| !gone(*at));
        slots.order.retain(|at| !gone(*at));
        slots.dirty.retain(|at, _| !gone(*at));
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn find(&self, at: u64) -> Option<Arc<Vec<u8>>> {
        self.dirty.get(&at).or_else(|| self.clean.get(&at)).cloned()
    }

    fn forget_clean(&mut self, at: u64) {
        if self.clean.remove(&at).is_some() {
            self.order.retain(|other| *other != at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    #[test]
    fn clean_sectors_never_outgrow_the_bound_and_changed_ones_stay() {
        let file = MemDisk::new(1 << 20);
        let pages = Pages::new(1);
        pages.put(&file, &[7; 10], 4090).unwrap();
        for at in (0..1 << 20).step_by(4096) {
            pages.get(&file, at).unwrap();
        }
        let slots = pages.lock();
        assert!(slots.clean.len() <= 16 && slots.order.len() <= 16);
        drop(slots);
        assert_eq!(pages.dirty_count(), 2);
        assert_eq!(pages.get(&file, 0).unwrap()[4090..], [7; 6]);
        assert_eq!(pages.get(&file, 4096).unwrap()[..5], [7, 7, 7, 7, 0]);
        assert_eq!(file.to_bytes()[4090], 0);
    }
}
