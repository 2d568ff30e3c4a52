//! Disks in blocks of one size, found through one flat table of 32-bit numbers: what dynamic VHD and VDI have in common.
//!
//! ```text
//! offset in the disk ─ table (in memory) ─ [sector bitmap] block of data in the file
//!                                        └ or nothing: zeros, or what the parent shows
//! ```
//!
//! # Order
//!
//! Giving a block a place changes nothing that a guest sees: the new place reads as what was there before, zeros or the
//! parent. So a block is placed first and written after that, like any other. A flush makes everything durable, then
//! writes the table and the sector bitmaps, and makes these durable: whatever is pointed to is durable before its
//! pointer. Places that were given up are filled with the last blocks of the file once no table in the file names
//! them any more, and the file is cut: blocks are always dense.

mod bitmaps;
mod extent;
mod flush;
mod place;
mod read;
mod scan;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vmwright_disk::Disk;

use crate::error::Reason;
use crate::{Error, Result};
use bitmaps::Bitmaps;
pub(crate) use scan::scan;

/// A block that is nowhere.
pub(crate) const FREE: u32 = u32::MAX;
/// The length of a sector in bytes.
pub(crate) const SECTOR: u64 = 512;
/// The longest table that is read, in bytes.
pub(crate) const MAX_TABLE: u64 = 128 << 20;

/// How the blocks of a format are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// The bytes of the disk in a block.
    pub(crate) block_size: u64,
    /// The bytes before its data: the sector bitmap, if there is one.
    pub(crate) prefix: u64,
    /// How many bytes of the file a number in the table counts.
    pub(crate) unit: u64,
    /// The number of blocks that are known to be zeros without being stored.
    pub(crate) zero_mark: Option<u32>,
    pub(crate) big_endian: bool,
    /// The bytes behind the last block: the footer, if there is one.
    pub(crate) tail: u64,
    /// Whether every block has its place forever.
    pub(crate) preallocated: bool,
}

impl Shape {
    /// The bytes that a block takes in the file.
    pub(crate) fn stride(&self) -> u64 {
        self.prefix + self.block_size
    }

    /// The bytes of one number in the table.
    pub(crate) fn encode(&self, raw: u32) -> [u8; 4] {
        if self.big_endian { raw.to_be_bytes() } else { raw.to_le_bytes() }
    }

    fn decode(&self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// Whether a number stands for a place in the file.
    pub(crate) fn is_place(&self, raw: u32) -> bool {
        raw != FREE && Some(raw) != self.zero_mark
    }
}

/// What a format keeps about where its blocks end.
pub(crate) trait Frame: Send + Sync {
    /// Notes in the file that the last block ends at `end`, of which `blocks` strides lie behind the base.
    fn say_end(&self, file: &dyn Disk, end: u64, blocks: u64) -> Result<()>;
}

/// What shows where the image holds nothing.
pub(crate) enum Backing {
    None,
    Open(Arc<dyn Disk>),
    NotOpened { name: String },
}

/// A table that was read, and where things are.
#[derive(Debug)]
pub(crate) struct Map {
    /// The size of the disk in bytes.
    pub(crate) size: u64,
    /// Where the table is.
    pub(crate) table_at: u64,
    /// A number in the table for each block of the disk, or more.
    pub(crate) table: Vec<u32>,
    /// Where the number zero stands for.
    pub(crate) base: u64,
    /// Where other things are than blocks.
    pub(crate) reserved: Vec<std::ops::Range<u64>>,
    /// Where the last block ends.
    pub(crate) end: u64,
}

/// What changes while an image is open.
pub(crate) struct State {
    pub(crate) map: Map,
    /// Pieces of the table, a sector each, that changed in memory only.
    dirty: std::collections::BTreeSet<usize>,
    /// Places that no block has any more.
    freed: Vec<u32>,
    /// Blocks whose sector bitmap is known to be full, in images without a parent.
    full: Vec<AtomicBool>,
    /// Whether anything was placed or given up since the last flush.
    changed: bool,
    /// Set when a flush failed: what the host kept is unknown from then on.
    broken: bool,
    ready: bool,
}

/// An open image.
pub(crate) struct Blocks<F> {
    pub(crate) file: Arc<dyn Disk>,
    pub(crate) frame: F,
    pub(crate) shape: Shape,
    backing: Backing,
    read_only: bool,
    /// Sectors that are here and not in the parent; only with a parent.
    bitmaps: Option<Bitmaps>,
    /// Read-locked while bytes are read or written where they are, write-locked while the mapping changes.
    state: RwLock<State>,
}

impl<F: Frame> Blocks<F> {
    /// An image over its file; `cache_bytes` bounds the sector bitmaps in memory.
    pub(crate) fn new(
        file: Arc<dyn Disk>,
        frame: F,
        shape: Shape,
        map: Map,
        backing: Backing,
        options: &crate::OpenOptions,
    ) -> Self {
        let full = std::iter::repeat_with(AtomicBool::default).take(map.table.len()).collect();
        let bitmaps = match backing {
            Backing::None => None,
            _ => Some(Bitmaps::new(shape, options.cache_bytes)),
        };
        Self {
            read_only: options.read_only || file.is_read_only(),
            file,
            frame,
            shape,
            backing,
            bitmaps,
            state: RwLock::new(State {
                map,
                dirty: Default::default(),
                freed: Vec::new(),
                full,
                changed: false,
                broken: false,
                ready: false,
            }),
        }
    }

    pub(crate) fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size of the disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.read_state().map.size
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.read_only {
            true => Err(Reason::ReadOnly { what: "the image" }.into()),
            false => Ok(()),
        }
    }

    /// The disk beneath, if the image has one; an error if it has one that was not opened.
    fn backing(&self) -> Result<Option<&Arc<dyn Disk>>> {
        match &self.backing {
            Backing::None => Ok(None),
            Backing::Open(disk) => Ok(Some(disk)),
            Backing::NotOpened { name } => Err(Reason::BackingNotOpened { name: name.clone() }.into()),
        }
    }

    /// Where the data of a block begins in the file.
    fn data_at(&self, map: &Map, raw: u32) -> u64 {
        map.place(self.shape.unit, raw).saturating_add(self.shape.prefix)
    }

    /// The number of the block that holds `offset`, and what the table says of it.
    fn entry(&self, map: &Map, offset: u64) -> Result<(usize, u32)> {
        let block = (offset / self.shape.block_size) as usize;
        match map.table.get(block) {
            Some(raw) => Ok((block, *raw)),
            None => Err(Error::corrupt("the block table", map.table_at, "an entry for every block", offset)),
        }
    }

    /// How many bytes from `offset` on, but at most `len`, are in the same block.
    fn within_block(&self, offset: u64, len: u64) -> u64 {
        (self.shape.block_size - offset % self.shape.block_size).min(len)
    }

    /// Makes the image ready to be changed, once: what is damaged must be found before.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.check_writable()?;
        if self.read_state().ready {
            return Ok(());
        }
        let mut state = self.write_state();
        if !state.ready {
            let found = scan(&*self.file, &self.shape, &state.map);
            if let Some(damage) = found.damage {
                return Err(damage);
            }
            if self.shape.unit == self.shape.block_size {
                // Others take the next number for free: there must be no gaps.
                state.changed = !found.gaps.is_empty();
                state.freed = found.gaps;
            }
            state.ready = true;
        }
        Ok(())
    }

    fn mark_full(state: &State, block: usize, full: bool) {
        if let Some(flag) = state.full.get(block) {
            flag.store(full, Ordering::Relaxed);
        }
    }
}

impl Map {
    /// Where everything ends that is no block.
    pub(crate) fn floor(&self) -> u64 {
        self.reserved.iter().map(|range| range.end).max().unwrap_or(0)
    }

    /// Where everything ends.
    pub(crate) fn last_end(&self, shape: &Shape) -> u64 {
        let used = self.table.iter().filter(|raw| shape.is_place(**raw));
        let ends = used.map(|raw| self.place(shape.unit, *raw).saturating_add(shape.stride()));
        ends.max().unwrap_or(0).max(self.floor())
    }

    /// Where a place begins in the file.
    pub(crate) fn place(&self, unit: u64, raw: u32) -> u64 {
        self.base.saturating_add(u64::from(raw).saturating_mul(unit))
    }
}

impl State {
    /// Lets a block be where `raw` says; in memory, until a flush.
    pub(crate) fn link(&mut self, block: usize, raw: u32) {
        if let Some(entry) = self.map.table.get_mut(block) {
            *entry = raw;
            self.dirty.insert(block / (SECTOR as usize / 4));
            self.changed = true;
        }
    }

    /// Changes the number of blocks; new ones are nowhere. The table in the file is as it should be.
    pub(crate) fn set_blocks(&mut self, blocks: usize) {
        self.map.table.resize(blocks, FREE);
        self.full.resize_with(blocks, AtomicBool::default);
    }
}

/// Reads a table of `entries` numbers.
pub(crate) fn read_table(file: &dyn Disk, shape: &Shape, at: u64, entries: u64) -> Result<Vec<u32>> {
    let len = entries.saturating_mul(4);
    if len > MAX_TABLE {
        return Err(Error::unsupported("a block table of more than 128 MiB"));
    }
    if at.checked_add(len).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt("the block table", at, "a table within the file", len));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, at)?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|word| shape.decode(*word)).collect())
}
