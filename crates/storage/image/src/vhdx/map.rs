//! Where the bytes of the disk are: the block allocation table and the sector bitmaps.
//!
//! ```text
//! block 0 │ block 1 │ … │ block r-1 │ bitmap of blocks 0 to r-1 │ block r │ …      r: the chunk ratio
//! ```

use vmwright_disk::Disk;

use super::Vhdx;
use super::layout::{MIB, SECTOR, read_u64, state as bat};
use super::region::Place;
use super::state::State;
use crate::{Error, Result};

/// So many blocks are looked at for one run at most.
const MAX_BLOCKS: u64 = 4096;

/// What a payload block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// Nothing: the parent shows, or zeros.
    Absent,
    /// Zeros, whatever the parent has.
    Zero,
    /// All of it, at this offset.
    Full(u64),
    /// What the sector bitmap says, at this offset.
    Partial(u64),
}

/// What some bytes of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    /// Never written, and there is no parent.
    Unallocated,
    /// What the parent has.
    Parent,
    /// Zeros.
    Zero,
    /// Bytes of the file from here on.
    Data { host: u64 },
}

/// Bytes of the disk that are all of one kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) kind: RunKind,
    pub(super) len: u64,
}

/// The offset in an entry of the table.
pub(super) fn host_of(entry: u64) -> u64 {
    entry & !(MIB - 1)
}

impl Vhdx {
    /// Where an entry of the table is in the file.
    pub(super) fn entry_at(&self, state: &State, index: u64) -> Result<u64> {
        let at = index * 8;
        if at + 8 > state.regions.bat.len {
            let what = "the block allocation table";
            return Err(Error::corrupt(what, state.regions.bat.offset, "an entry for each block", index));
        }
        Ok(state.regions.bat.offset + at)
    }

    /// An entry of the table as it stands there.
    pub(super) fn raw_entry(&self, state: &State, index: u64) -> Result<u64> {
        let at = self.entry_at(state, index)?;
        let page = self.pages.get(&self.view, at - at % SECTOR)?;
        Ok(read_u64(&page, (at % SECTOR) as usize))
    }

    /// What a payload block holds.
    pub(super) fn block(&self, state: &State, block: u64) -> Result<Block> {
        let index = state.params.entry_of(block);
        let entry = self.raw_entry(state, index)?;
        let at = state.regions.bat.offset + index * 8;
        let what = match entry & bat::MASK {
            bat::NOT_PRESENT => Block::Absent,
            bat::UNDEFINED | bat::ZERO | bat::UNMAPPED | bat::UNMAPPED_095 => Block::Zero,
            bat::FULLY_PRESENT => Block::Full(host_of(entry)),
            bat::PARTIALLY_PRESENT if state.params.parent.is_some() => Block::Partial(host_of(entry)),
            other => {
                let expected = "the state of a block that this image can have";
                return Err(Error::corrupt("an entry of the block allocation table", at, expected, other));
            }
        };
        if let Block::Full(offset) | Block::Partial(offset) = what {
            self.check_place(
                state,
                Place { offset, len: state.params.block_size },
                state.params.used_in(block),
                at,
            )?;
        }
        Ok(what)
    }

    /// A block must be in the file as far as it is used, and where nothing else is.
    fn check_place(&self, state: &State, place: Place, used: u64, at: u64) -> Result<()> {
        let what = "an entry of the block allocation table";
        if !state.regions.leaves(&place) {
            return Err(Error::corrupt(what, at, "a place that nothing else has", place.offset));
        }
        if place.offset.checked_add(used).is_none_or(|end| end > self.view.len()) {
            return Err(Error::corrupt(what, at, "a place within the file", place.offset));
        }
        Ok(())
    }

    /// Where the sector bitmap block of a payload block is, if there is one.
    pub(super) fn bitmap(&self, state: &State, block: u64) -> Result<Option<u64>> {
        let index = state.params.bitmap_entry_of(block);
        let entry = self.raw_entry(state, index)?;
        let at = state.regions.bat.offset + index * 8;
        match entry & bat::MASK {
            bat::NOT_PRESENT => Ok(None),
            bat::FULLY_PRESENT => {
                self.check_place(state, Place { offset: host_of(entry), len: MIB }, MIB, at)?;
                Ok(Some(host_of(entry)))
            }
            other => {
                let what = "the entry of a sector bitmap block";
                Err(Error::corrupt(what, at, "present or not present", other))
            }
        }
    }

    /// Where the bits of a block begin in the file; they follow each other, the lowest bit of a byte first.
    pub(super) fn bits_at(&self, state: &State, block: u64) -> Result<u64> {
        let Some(bitmap) = self.bitmap(state, block)? else {
            let at = state.regions.bat.offset + state.params.bitmap_entry_of(block) * 8;
            return Err(Error::corrupt("the entry of a sector bitmap block", at, "present", 0));
        };
        Ok(bitmap + self.bits_skip(state, block))
    }

    /// Where the bits of a block begin in its sector bitmap block.
    pub(super) fn bits_skip(&self, state: &State, block: u64) -> u64 {
        let params = &state.params;
        block % params.chunk_ratio() * (params.block_size / params.sector / 8)
    }

    /// What the bytes from `offset` on are, for as long as one answer holds, at most `max` bytes.
    pub(super) fn run_at(&self, state: &State, offset: u64, max: u64) -> Result<Run> {
        let mut run = self.run_in_block(state, offset, max)?;
        for _ in 0..MAX_BLOCKS {
            let next = offset + run.len;
            if run.len >= max || !next.is_multiple_of(state.params.block_size) {
                break;
            }
            let more = self.run_in_block(state, next, max - run.len)?;
            let expected = match run.kind {
                RunKind::Data { host } => RunKind::Data { host: host + run.len },
                kind => kind,
            };
            if more.kind != expected {
                break;
            }
            run.len += more.len;
        }
        Ok(run)
    }

    /// As [`Vhdx::run_at`], within one block.
    fn run_in_block(&self, state: &State, offset: u64, max: u64) -> Result<Run> {
        let block_size = state.params.block_size;
        let (block, skip) = (offset / block_size, offset % block_size);
        let len = max.min(block_size - skip);
        let kind = match self.block(state, block)? {
            Block::Absent if state.params.parent.is_some() => RunKind::Parent,
            Block::Absent => RunKind::Unallocated,
            Block::Zero => RunKind::Zero,
            Block::Full(host) => RunKind::Data { host: host + skip },
            Block::Partial(host) => return self.run_of_sectors(state, block, host, skip, len),
        };
        Ok(Run { kind, len })
    }

    fn run_of_sectors(&self, state: &State, block: u64, host: u64, skip: u64, max: u64) -> Result<Run> {
        let sector = state.params.sector;
        let bits = self.bits_at(state, block)?;
        let first = skip / sector;
        let last = (skip + max).div_ceil(sector);
        let here = self.bit(bits, first)?;
        let mut index = first + 1;
        while index < last {
            let at = bits + index / 8;
            let page = self.pages.get(&self.view, at - at % SECTOR)?;
            let byte = page[(at % SECTOR) as usize];
            if index.is_multiple_of(8) && byte == if here { 0xff } else { 0 } {
                index += 8;
            } else if (byte >> (index % 8) & 1 == 1) == here {
                index += 1;
            } else {
                break;
            }
        }
        let len = (index * sector - skip).min(max);
        let kind = if here { RunKind::Data { host: host + skip } } else { RunKind::Parent };
        Ok(Run { kind, len })
    }

    fn bit(&self, bits: u64, index: u64) -> Result<bool> {
        let at = bits + index / 8;
        let page = self.pages.get(&self.view, at - at % SECTOR)?;
        Ok(page[(at % SECTOR) as usize] >> (index % 8) & 1 == 1)
    }
}
