//! Reading of a volume whose structures are not believed: blocks as they are, the journal's over their own.

use std::collections::HashMap;
use std::sync::Arc;

use vmwright_disk::Disk;

use crate::block_cache::{BlockCache, Redirect};
use crate::error::{Error, Place, Result};

/// What the first four bytes of an escaped block are.
const ESCAPED: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];

/// The blocks of a volume.
pub(crate) struct Reader {
    disk: Arc<dyn Disk>,
    block_size: u64,
    /// How many blocks can be read: those of the volume that are on the disk.
    blocks: u64,
    redirects: HashMap<u64, Redirect>,
}

impl Reader {
    /// Makes a reader of a volume that says it has `blocks` blocks.
    pub(crate) fn new(disk: Arc<dyn Disk>, block_size: u32, blocks: u64) -> Self {
        let block_size = u64::from(block_size);
        let blocks = blocks.min(disk.len() / block_size);
        Self { disk, block_size, blocks, redirects: HashMap::new() }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether the journal holds anything newer than what is in its place.
    pub(super) fn is_redirected(&self) -> bool {
        !self.redirects.is_empty()
    }

    /// A cache over the same blocks, for code that works on one.
    pub(super) fn cache(&self) -> BlockCache {
        let size = self.block_size as u32;
        let mut cache = BlockCache::new(self.disk.clone(), size, self.blocks, 1 << 20, false);
        if !self.redirects.is_empty() {
            cache.redirect(self.redirects.clone());
        }
        cache
    }

    /// Lets reads of some blocks be answered from the journal.
    pub(crate) fn redirect(&mut self, redirects: HashMap<u64, Redirect>) {
        self.redirects = redirects;
    }

    /// The size of a block, as memory is counted.
    pub(crate) fn block_size(&self) -> usize {
        self.block_size as usize
    }

    /// Reads neighbouring blocks; `buf` has the length of some whole blocks.
    pub(crate) fn read(&self, first: u64, buf: &mut [u8]) -> Result<()> {
        let count = buf.len() as u64 / self.block_size;
        let end = first.checked_add(count).filter(|end| *end <= self.blocks);
        if end.is_none() {
            return Err(Error::corrupt(Place::Block(first), "it lies beyond the end of the volume"));
        }
        self.fetch(buf, first)?;
        if self.redirects.is_empty() {
            return Ok(());
        }
        for (block, content) in (first..).zip(buf.chunks_exact_mut(self.block_size())) {
            let Some(redirect) = self.redirects.get(&block) else { continue };
            if redirect.block >= self.blocks {
                return Err(Error::corrupt(Place::Block(redirect.block), "the journal lies beyond the end"));
            }
            self.fetch(content, redirect.block)?;
            if redirect.escaped {
                content[..4].copy_from_slice(&ESCAPED);
            }
        }
        Ok(())
    }

    fn fetch(&self, buf: &mut [u8], block: u64) -> Result<()> {
        self.disk.read_at(buf, block * self.block_size).map_err(|source| Error::disk("read", source))
    }

    /// Reads one block.
    pub(crate) fn block(&self, block: u64) -> Result<Vec<u8>> {
        let mut content = vec![0; self.block_size()];
        self.read(block, &mut content)?;
        Ok(content)
    }
}
