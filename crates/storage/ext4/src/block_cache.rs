//! Blocks of metadata: a bounded cache of clean ones, and the changed ones until they are written.
//!
//! Every block of metadata is read through here, so that a block whose newest content is still in the
//! journal, or only in memory, is never read from its place. The content of files is not kept; it goes
//! through [`BlockCache::read_data`], which follows the journal too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use vmwright_disk::Disk;

use crate::error::{Error, Place, Result};

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

/// See the module.
pub(crate) struct BlockCache {
    disk: Arc<dyn Disk>,
    block_size: usize,
    blocks: u64,
    clean: Mutex<Clean>,
    dirty: HashMap<u64, Block>,
    redirects: HashMap<u64, Redirect>,
    /// How many clean blocks are kept, and how many dirty ones before they are written early.
    capacity: usize,
    /// Whether dirty blocks may reach the disk.
    writable: bool,
    bytes_written: u64,
}

#[derive(Default)]
struct Clean {
    blocks: HashMap<u64, (Block, u64)>,
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
            let mut ages: Vec<u64> = self.blocks.values().map(|(_, used)| *used).collect();
            let middle = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(middle);
            let median = *median;
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
            dirty: HashMap::new(),
            redirects: HashMap::new(),
            capacity: (bytes / block_size).max(16),
            writable,
            bytes_written: 0,
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

    /// Lets reads of some blocks be answered from elsewhere.
    pub(crate) fn redirect(&mut self, redirects: HashMap<u64, Redirect>) {
        self.redirects = redirects;
        *self.clean.get_mut().unwrap_or_else(PoisonError::into_inner) = Clean::default();
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
        if let Some(content) = self.dirty.get(&block) {
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
        let own = Redirect { block, escaped: false };
        let source = self.redirects.get(&block).copied().unwrap_or(own);
        let offset = self.offset(source.block)?;
        self.disk.read_at(&mut content, offset).map_err(|source| Error::disk("read", source))?;
        if source.escaped {
            content[..4].copy_from_slice(&ESCAPED);
        }
        Ok(content)
    }

    /// Gives access to a block in order to change it.
    pub(crate) fn modify(&mut self, block: u64) -> Result<&mut Vec<u8>> {
        if !self.dirty.contains_key(&block) {
            self.make_room()?;
            let clean = self.clean.get_mut().unwrap_or_else(PoisonError::into_inner);
            let content = match clean.blocks.remove(&block) {
                Some((content, _)) => content,
                None => Arc::new(self.fetch(block)?),
            };
            self.dirty.insert(block, content);
        }
        let content = self.dirty.get_mut(&block).expect("it was inserted above");
        Ok(Arc::make_mut(content))
    }

    /// Replaces a block without reading it.
    pub(crate) fn put(&mut self, block: u64, content: Vec<u8>) -> Result<()> {
        self.offset(block)?;
        self.make_room()?;
        self.forget(block, 1);
        self.dirty.insert(block, Arc::new(content));
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

    /// Writes all dirty blocks early where too many have gathered.
    fn make_room(&mut self) -> Result<()> {
        if self.writable && self.dirty.len() >= self.capacity { self.flush() } else { Ok(()) }
    }

    /// Writes every dirty block, neighbours together.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let mut numbers: Vec<u64> = self.dirty.keys().copied().collect();
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
        for (block, content) in self.dirty.drain() {
            clean.put(block, content, self.capacity);
        }
        Ok(())
    }

    fn write_run(&mut self, first: u64, blocks: &[u64]) -> Result<()> {
        let offset = self.offset(first)?;
        let contents: Vec<Block> = blocks.iter().filter_map(|block| self.dirty.get(block).cloned()).collect();
        match contents.as_slice() {
            [single] => self.write_data(single, offset),
            several => {
                let bytes = several.iter().flat_map(|content| content.iter().copied());
                self.write_data(&bytes.collect::<Vec<u8>>(), offset)
            }
        }
    }

    /// Reads bytes that are not metadata, at a byte offset of the volume, within whole mapped blocks.
    pub(crate) fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let direct = |buf: &mut [u8], offset| {
            self.disk.read_at(buf, offset).map_err(|source| Error::disk("read", source))
        };
        if self.redirects.is_empty() {
            return direct(buf, offset);
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
        Ok(())
    }

    /// Writes bytes at a byte offset of the volume.
    pub(crate) fn write_data(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.bytes_written += data.len() as u64;
        self.disk.write_at(data, offset).map_err(|source| Error::disk("write", source))
    }

    /// Makes a range of bytes zeros.
    pub(crate) fn zero_data(&mut self, offset: u64, len: u64) -> Result<()> {
        self.bytes_written += len;
        self.disk.zero_at(offset, len).map_err(|source| Error::disk("write", source))
    }

    /// How many bytes were written since this was last asked.
    pub(crate) fn take_bytes_written(&mut self) -> u64 {
        std::mem::take(&mut self.bytes_written)
    }
}
