//! Sector bitmaps of images with a parent: which sectors are here.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmwright_disk::Disk;

use super::{SECTOR, Shape};
use crate::{Error, Result};

/// The bitmaps of the blocks in use lately, and those that changed in memory only.
pub(super) struct Bitmaps {
    bytes: usize,
    capacity: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_block: HashMap<usize, Bitmap>,
    dirty: usize,
}

struct Bitmap {
    /// A bit per sector, the highest of each byte first.
    bits: Vec<u8>,
    dirty: bool,
}

impl Bitmap {
    fn get(&self, sector: u64) -> bool {
        self.bits.get(sector as usize / 8).is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
    }
}

impl Bitmaps {
    pub(super) fn new(shape: Shape, cache_bytes: usize) -> Self {
        let bytes = (shape.block_size / SECTOR / 8).max(1) as usize;
        Self { bytes, capacity: (cache_bytes / bytes).max(16), known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so many bitmaps wait to be written that they should be.
    pub(super) fn is_crowded(&self) -> bool {
        self.lock().dirty * 2 > self.capacity
    }

    /// Whether any bitmap waits to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.lock().dirty > 0
    }

    /// The bitmap of a block, read from `at` if it is not known.
    fn load<'a>(
        &self,
        known: &'a mut Known,
        file: &dyn Disk,
        block: usize,
        at: u64,
    ) -> Result<&'a mut Bitmap> {
        if !known.by_block.contains_key(&block) {
            if at.checked_add(self.bytes as u64).is_none_or(|end| end > file.len()) {
                return Err(Error::corrupt("a sector bitmap", at, "a bitmap within the file", block as u64));
            }
            let mut bits = vec![0; self.bytes];
            file.read_at(&mut bits, at)?;
            if known.by_block.len() >= self.capacity {
                // Any clean ones: they are read again when needed.
                known.by_block.retain(|_, bitmap| bitmap.dirty);
            }
            known.by_block.insert(block, Bitmap { bits, dirty: false });
        }
        let missing = || Error::corrupt("a sector bitmap", at, "one that is known", block as u64);
        known.by_block.get_mut(&block).ok_or_else(missing)
    }

    /// Whether a sector of a block is here, and for how many sectors of `0..end` that is the same.
    pub(super) fn run(
        &self,
        file: &dyn Disk,
        block: usize,
        at: u64,
        sectors: Range<u64>,
    ) -> Result<(bool, u64)> {
        let mut known = self.lock();
        let bitmap = self.load(&mut known, file, block, at)?;
        let here = bitmap.get(sectors.start);
        let same = sectors.clone().take_while(|sector| bitmap.get(*sector) == here).count();
        Ok((here, same as u64))
    }

    /// Notes that sectors of a block are here now.
    pub(super) fn set(&self, file: &dyn Disk, block: usize, at: u64, sectors: Range<u64>) -> Result<()> {
        let mut known = self.lock();
        let bitmap = self.load(&mut known, file, block, at)?;
        let mut changed = false;
        for sector in sectors {
            if let Some(byte) = bitmap.bits.get_mut(sector as usize / 8) {
                let bit = 0x80 >> (sector % 8);
                changed |= *byte & bit == 0;
                *byte |= bit;
            }
        }
        if changed && !bitmap.dirty {
            bitmap.dirty = true;
            known.dirty += 1;
        }
        Ok(())
    }

    /// A block has a new place, where no sector is here yet.
    pub(super) fn begin(&self, block: usize) {
        let mut known = self.lock();
        let old = known.by_block.insert(block, Bitmap { bits: vec![0; self.bytes], dirty: false });
        known.dirty -= usize::from(old.is_some_and(|old| old.dirty));
    }

    /// Forgets the bitmap of a block that has no place any more.
    pub(super) fn forget(&self, block: usize) {
        let mut known = self.lock();
        let old = known.by_block.remove(&block);
        known.dirty -= usize::from(old.is_some_and(|old| old.dirty));
    }

    /// Writes what changed, each bitmap to where `place` says; answers whether there was any.
    pub(super) fn write_back(&self, file: &dyn Disk, place: impl Fn(usize) -> Option<u64>) -> Result<bool> {
        let mut known = self.lock();
        let known = &mut *known;
        let mut dirty: Vec<_> = known.by_block.iter_mut().filter(|(_, bitmap)| bitmap.dirty).collect();
        dirty.sort_by_key(|(block, _)| **block);
        let any = !dirty.is_empty();
        for (block, bitmap) in dirty {
            if let Some(at) = place(*block) {
                file.write_at(&bitmap.bits, at)?;
            }
            bitmap.dirty = false;
            known.dirty -= 1;
        }
        Ok(any)
    }
}
