//! Blocks of metadata: a bounded cache of clean ones, and the changed ones until they are written.
//!
//! Every block of metadata is read through here, so that a block whose newest content is still in the
//! journal, or only in memory, is never read from its place. The content of files is not kept; it goes
//! through [`BlockCache::read_data`], which follows the journal too.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use vmwright_disk::Disk;

use crate::error::{Error, Place, Result};
use crate::features::incompat;
use crate::mmp::Guard;
use crate::superblock::Superblock;
use crate::write_behind::WriteBehind;

/// The content of one block.
pub(crate) type Block = Arc<Vec<u8>>;

/// The most bytes that neighbouring dirty blocks are gathered into for one write.
const GATHER: usize = 1 << 20;

/// Where the newest content of a block is, when that is not its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Redirect {
    /// The block of the volume that holds it: one of the journal's.
    pub(crate) block: u64,
    /// Whether its first four bytes were zeroed in the journal, because they equal the journal's magic.
    pub(crate) escaped: bool,
}

/// What the first four bytes of an escaped block are.
const ESCAPED: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// Hashes block numbers: a multiplication spreads them, and there are too few at a time for bad ones to hurt.
#[derive(Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte) ^ self.0));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Blocks by their numbers, each with when it was last used.
type Blocks = HashMap<u64, (Block, u64), BuildHasherDefault<BlockHasher>>;

/// When the older half of the blocks was last used.
fn median_age(blocks: &Blocks) -> u64 {
    let mut ages: Vec<u64> = blocks.values().map(|(_, used)| *used).collect();
    let middle = ages.len() / 2;
    if ages.is_empty() { 0 } else { *ages.select_nth_unstable(middle).1 }
}

/// See the module.
pub(crate) struct BlockCache {
    disk: Arc<dyn Disk>,
    block_size: usize,
    blocks: u64,
    clean: Mutex<Clean>,
    dirty: Blocks,
    /// Counts changes, so that blocks that change no more are written first.
    changes: u64,
    behind: WriteBehind,
    redirects: HashMap<u64, Redirect>,
    /// The disk that redirected blocks are on, where it is another one.
    elsewhere: Option<Arc<dyn Disk>>,
    /// How many clean blocks are kept, and how many dirty ones before they are written early.
    capacity: usize,
    /// Whether dirty blocks may reach the disk.
    writable: bool,
    bytes_written: u64,
    /// What tells others that the volume is being changed, and the time to tell.
    guard: Option<(Guard, i64)>,
}

#[derive(Default)]
struct Clean {
    blocks: Blocks,
    clock: u64,
}

impl Clean {
    fn get(&mut self, block: u64) -> Option<Block> {
        self.clock += 1;
        let (content, used) = self.blocks.get_mut(&block)?;
        *used = self.clock;
        Some(content.clone())
    }

    fn put(&mut self, block: u64, content: Block, capacity: usize) {
        self.clock += 1;
        self.blocks.insert(block, (content, self.clock));
        if self.blocks.len() > capacity {
            // Dropping the older half at once costs a constant per block.
            let median = median_age(&self.blocks);
            self.blocks.retain(|_, (_, used)| *used >= median);
        }
    }
}

impl BlockCache {
    /// Makes an empty cache of at most `bytes` over a volume of `blocks` blocks.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        block_size: u32,
        blocks: u64,
        bytes: usize,
        writable: bool,
    ) -> Self {
        let block_size = block_size as usize;
        Self {
            disk,
            block_size,
            blocks,
            clean: Mutex::default(),
            dirty: Blocks::default(),
            changes: 0,
            behind: WriteBehind::default(),
            redirects: HashMap::new(),
            elsewhere: None,
            capacity: (bytes / block_size).max(16),
            writable,
            bytes_written: 0,
            guard: None,
        }
    }

    /// The size of a block in bytes.
    pub(crate) fn block_size(&self) -> u64 {
        self.block_size as u64
    }

    /// The disk beneath.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Lets others be told before anything is written.
    pub(crate) fn set_guard(&mut self, guard: Guard, now: i64) {
        self.guard = Some((guard, now));
    }

    /// Takes away what tells others, for a cache that goes on in place of this one.
    pub(crate) fn take_guard(&mut self) -> Option<(Guard, i64)> {
        self.guard.take()
    }

    /// Goes on telling others.
    pub(crate) fn put_guard(&mut self, guard: Option<(Guard, i64)>) {
        self.guard = guard;
    }

    /// Lets what tells others follow a change of the checksums' seed.
    pub(crate) fn reseed_guard(&mut self, superblock: &Superblock) {
        if let Some((guard, _)) = &mut self.guard {
            guard.reseed(superblock);
        }
    }

    /// Tells others that everything is written; the next change tells them anew.
    pub(crate) fn release_guard(&mut self, superblock: &Superblock, now: i64) -> Result<()> {
        if !superblock.features.has_incompat(incompat::MMP) {
            self.guard = None;
        }
        let Some((guard, time)) = &mut self.guard else { return Ok(()) };
        *time = now;
        guard.follow(superblock);
        guard.release(&self.disk, now)
    }

    fn announce(&mut self) -> Result<()> {
        match &mut self.guard {
            Some((guard, now)) => guard.announce(&self.disk, *now),
            None => Ok(()),
        }
    }

    /// Lets reads of some blocks be answered from elsewhere.
    pub(crate) fn redirect(&mut self, redirects: HashMap<u64, Redirect>) {
        self.redirects = redirects;
        *self.clean.get_mut().unwrap_or_else(PoisonError::into_inner) = Clean::default();
    }

    /// Lets redirected blocks be read from another disk.
    pub(crate) fn redirect_to(&mut self, disk: Arc<dyn Disk>) {
        self.elsewhere = Some(disk);
    }

    /// Whether any block is to be read from elsewhere.
    pub(crate) fn has_redirects(&self) -> bool {
        !self.redirects.is_empty()
    }

    /// Whether the newest content of a block is not in its place on the disk.
    pub(crate) fn is_redirected(&self, block: u64) -> bool {
        self.redirects.contains_key(&block)
    }

    fn offset(&self, block: u64) -> Result<u64> {
        if block >= self.blocks {
            return Err(Error::corrupt(Place::Block(block), "it lies beyond the end of the volume"));
        }
        Ok(block * self.block_size as u64)
    }

    /// Reads a block of metadata.
    pub(crate) fn read(&self, block: u64) -> Result<Block> {
        if let Some((content, _)) = self.dirty.get(&block) {
            return Ok(content.clone());
        }
        if let Some(content) = self.clean.lock().unwrap_or_else(PoisonError::into_inner).get(block) {
            return Ok(content);
        }
        let content = Arc::new(self.fetch(block)?);
        let mut clean = self.clean.lock().unwrap_or_else(PoisonError::into_inner);
        clean.put(block, content.clone(), self.capacity);
        Ok(content)
    }

    /// Reads a block from the journal or from its place.
    fn fetch(&self, block: u64) -> Result<Vec<u8>> {
        let mut content = vec![0; self.block_size];
        if let (Some(source), Some(disk)) = (self.redirects.get(&block), &self.elsewhere) {
            let offset = source.block.saturating_mul(self.block_size as u64);
            disk.read_at(&mut content, offset).map_err(|source| Error::disk("read", source))?;
            if source.escaped {
                content[..4].copy_from_slice(&ESCAPED);
            }
            return Ok(content);
        }
        let own = Redirect { block, escaped: false };
        let source = self.redirects.get(&block).copied().unwrap_or(own);
        let offset = self.offset(source.block)?;
        self.disk.read_at(&mut content, offset).map_err(|source| Error::disk("read", source))?;
        self.behind.lay_over(&mut content, offset);
        if source.escaped {
            content[..4].copy_from_slice(&ESCAPED);
        }
        Ok(content)
    }

    /// Gives access to a block in order to change it.
    pub(crate) fn modify(&mut self, block: u64) -> Result<&mut Vec<u8>> {
        self.changes += 1;
        let changes = self.changes;
        if !self.dirty.contains_key(&block) {
            self.make_room()?;
            let clean = self.clean.get_mut().unwrap_or_else(PoisonError::into_inner);
            let content = match clean.blocks.remove(&block) {
                Some((content, _)) => content,
                None => Arc::new(self.fetch(block)?),
            };
            self.dirty.insert(block, (content, changes));
        }
        let (content, used) = self.dirty.get_mut(&block).expect("it was inserted above");
        *used = changes;
        Ok(Arc::make_mut(content))
    }

    /// Replaces a block without reading it.
    pub(crate) fn put(&mut self, block: u64, content: Vec<u8>) -> Result<()> {
        self.offset(block)?;
        self.changes += 1;
        if let Some(held) = self.dirty.get_mut(&block) {
            *held = (Arc::new(content), self.changes);
            return Ok(());
        }
        self.make_room()?;
        self.forget(block, 1);
        self.dirty.insert(block, (Arc::new(content), self.changes));
        Ok(())
    }

    /// Forgets what is kept of blocks that hold metadata no longer; nothing of them will be written.
    pub(crate) fn forget(&mut self, start: u64, len: u64) {
        let clean = self.clean.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(end) = start.checked_add(len) else { return };
        let kept = clean.blocks.len() + self.dirty.len();
        if len > kept as u64 {
            clean.blocks.retain(|block, _| !(start..end).contains(block));
            self.dirty.retain(|block, _| !(start..end).contains(block));
            return;
        }
        for block in start..end {
            clean.blocks.remove(&block);
            self.dirty.remove(&block);
        }
    }

    /// Writes dirty blocks early where too many have gathered: the half that was left alone the longest, so that
    /// bitmaps and directories at work are written once.
    fn make_room(&mut self) -> Result<()> {
        if !self.writable || self.dirty.len() < self.capacity {
            return Ok(());
        }
        let median = median_age(&self.dirty);
        let old = self.dirty.iter().filter(|(_, (_, used))| *used <= median);
        let numbers = old.map(|(block, _)| *block).collect();
        self.write_dirty(numbers)
    }

    /// Writes every dirty block, neighbours together, and content that waits.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let numbers = self.dirty.keys().copied().collect();
        self.write_dirty(numbers)
    }

    /// Writes some dirty blocks, which are clean then.
    fn write_dirty(&mut self, mut numbers: Vec<u64>) -> Result<()> {
        // A block whose content waits may have become metadata since.
        self.write_waiting()?;
        numbers.sort_unstable();
        let mut rest = numbers.as_slice();
        while let Some(&first) = rest.first() {
            let limit = (GATHER / self.block_size).max(1);
            let run = rest.iter().zip(first..).take(limit).take_while(|(a, b)| **a == *b).count();
            let (gathered, later) = rest.split_at(run);
            self.write_run(first, gathered)?;
            rest = later;
        }
        let clean = self.clean.get_mut().unwrap_or_else(PoisonError::into_inner);
        for block in numbers {
            if let Some((content, _)) = self.dirty.remove(&block) {
                clean.put(block, content, self.capacity);
            }
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> Result<()> {
        if self.behind.waiting().is_some() {
            self.announce()?;
        }
        if let Some((offset, bytes)) = self.behind.waiting() {
            self.disk.write_at(bytes, offset).map_err(|source| Error::disk("write", source))?;
            self.behind.written();
        }
        Ok(())
    }

    fn write_run(&mut self, first: u64, blocks: &[u64]) -> Result<()> {
        let offset = self.offset(first)?;
        let mut contents =
            blocks.iter().filter_map(|block| self.dirty.get(block)).map(|(content, _)| content);
        if let ([_], Some(single)) = (blocks, contents.next()) {
            let single = single.clone();
            return self.write_data(&single, offset);
        }
        let mut bytes = Vec::with_capacity(blocks.len() * self.block_size);
        for (content, _) in blocks.iter().filter_map(|block| self.dirty.get(block)) {
            bytes.extend_from_slice(content);
        }
        self.write_data(&bytes, offset)
    }

    /// Reads bytes that are not metadata, at a byte offset of the volume, within whole mapped blocks.
    pub(crate) fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let direct = |buf: &mut [u8], offset| {
            self.disk.read_at(buf, offset).map_err(|source| Error::disk("read", source))
        };
        if self.redirects.is_empty() {
            direct(buf, offset)?;
            self.behind.lay_over(buf, offset);
            return Ok(());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (block, within) = (at / self.block_size as u64, (at % self.block_size as u64) as usize);
            let step = (self.block_size - within).min(buf.len() - done);
            let part = &mut buf[done..done + step];
            match self.redirects.contains_key(&block) {
                true => part.copy_from_slice(&self.fetch(block)?[within..within + step]),
                false => direct(part, at)?,
            }
            done += step;
        }
        self.behind.lay_over(buf, offset);
        Ok(())
    }

    /// Writes content of a file at a byte offset of the volume: now, or together with what continues it.
    pub(crate) fn write_content(&mut self, data: &[u8], offset: u64) -> Result<()> {
        if self.behind.take(data, offset) {
            self.bytes_written += data.len() as u64;
            return Ok(());
        }
        self.write_waiting()?;
        if self.behind.take(data, offset) {
            self.bytes_written += data.len() as u64;
            return Ok(());
        }
        self.write_data(data, offset)
    }

    /// Whether any of some bytes are not on the disk yet.
    pub(crate) fn is_waiting(&self, offset: u64, len: u64) -> bool {
        self.behind.overlaps(offset, len)
    }

    /// Writes bytes at a byte offset of the volume, now.
    pub(crate) fn write_data(&mut self, data: &[u8], offset: u64) -> Result<()> {
        if self.behind.overlaps(offset, data.len() as u64) {
            self.write_waiting()?;
        }
        self.announce()?;
        self.bytes_written += data.len() as u64;
        self.disk.write_at(data, offset).map_err(|source| Error::disk("write", source))
    }

    /// Makes a range of bytes zeros.
    pub(crate) fn zero_data(&mut self, offset: u64, len: u64) -> Result<()> {
        if self.behind.overlaps(offset, len) {
            self.write_waiting()?;
        }
        self.announce()?;
        self.bytes_written += len;
        self.disk.zero_at(offset, len).map_err(|source| Error::disk("write", source))
    }

    /// How many bytes were written since this was last asked.
    pub(crate) fn take_bytes_written(&mut self) -> u64 {
        std::mem::take(&mut self.bytes_written)
    }
}
