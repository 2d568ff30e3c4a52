//! Writing: in place where that is possible, else into new blocks.
//!
//! ```text
//! sectors that are here           write in place, in parallel
//! a block of zeros or nothing     take a new block of zeros and link it in memory, then as above
//! sectors that the parent has     complete the first and the last one, write them, set their bits
//! ```
//!
//! A link in memory reaches the file only after the bytes it points to are durable.

use vmwright_disk::{Disk, check_range};

use super::Vhdx;
use super::layout::{MIB, SECTOR, state as bat};
use super::map::{Block, RunKind};
use super::region::Place;
use super::state::State;
use crate::Result;
use crate::driver::Placing;
use crate::error::Reason;

/// At most so many bytes of a differencing image are written at a time.
const MAX_STEP: u64 = 4 << 20;

impl Vhdx {
    /// Writes `data`.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.prepare()?;
        let mut done = 0;
        while done < data.len() {
            done += self.write_some(&data[done..], offset + done as u64)?;
        }
        Ok(())
    }

    /// Writes as much as one step can; answers how much that was.
    fn write_some(&self, data: &[u8], offset: u64) -> Result<usize> {
        let state = self.read_state();
        if state.writer.broken {
            return Err(Reason::FlushFailed.into());
        }
        check_range(offset, data.len() as u64, state.params.size)?;
        let run = self.run_at(&state, offset, data.len() as u64)?;
        if let RunKind::Data { host } = run.kind {
            self.view.write_at(&data[..run.len as usize], host)?;
            return Ok(run.len as usize);
        }
        drop(state);
        let mut state = self.write_state();
        check_range(offset, data.len() as u64, state.params.size)?;
        self.relieve(&mut state)?;
        let block_size = state.params.block_size;
        let (block, skip) = (offset / block_size, offset % block_size);
        let len = (data.len() as u64).min(block_size - skip);
        match self.block(&state, block)? {
            Block::Full(_) => Ok(0),
            Block::Absent if state.params.parent.is_some() => {
                let whole = skip == 0 && len >= state.params.used_in(block);
                let len = if whole { len } else { len.min(MAX_STEP) } as usize;
                match whole {
                    true => self.write_whole(&mut state, block, &data[..len])?,
                    false => self.write_sectors(&mut state, block, skip, &data[..len])?,
                }
                Ok(len)
            }
            Block::Partial(_) => {
                let len = len.min(MAX_STEP) as usize;
                self.write_sectors(&mut state, block, skip, &data[..len])?;
                Ok(len)
            }
            Block::Absent | Block::Zero => {
                // It is zeros as before until its bytes are written, which others need not wait for.
                let index = state.params.entry_of(block);
                self.link_new(&mut state, index, block_size, bat::FULLY_PRESENT)?;
                Ok(0)
            }
        }
    }

    /// Takes places for the blocks of a range, where the caller writes it; in order if a parent has to be kept.
    pub(super) fn place_blocks(
        &self,
        offset: u64,
        len: u64,
        places: &mut Vec<crate::driver::Place>,
    ) -> Result<Placing> {
        self.prepare()?;
        let mut state = self.write_state();
        if state.params.parent.is_some() {
            return Ok(Placing::InOrder);
        }
        check_range(offset, len, state.params.size)?;
        let block_size = state.params.block_size;
        let mut done = 0;
        while done < len {
            self.relieve(&mut state)?;
            let at = offset + done;
            let (block, skip) = (at / block_size, at % block_size);
            let host = match self.block(&state, block)? {
                Block::Full(host) | Block::Partial(host) => host,
                Block::Absent | Block::Zero => {
                    let index = state.params.entry_of(block);
                    self.link_new(&mut state, index, block_size, bat::FULLY_PRESENT)?
                }
            };
            let len = (len - done).min(block_size - skip);
            places.push(crate::driver::Place { offset: at, host: host + skip, len });
            done += len;
        }
        Ok(Placing::Parts)
    }

    /// Writes a block that was the parent's, all that the disk has of it.
    fn write_whole(&self, state: &mut State, block: u64, data: &[u8]) -> Result<()> {
        let place = self.allocate(state, state.params.block_size)?;
        let index = state.params.entry_of(block);
        let written = self.view.write_at(data, place.offset).map_err(crate::Error::from);
        let linked = written.and_then(|()| self.set_entry(state, index, place.offset, bat::FULLY_PRESENT));
        if linked.is_err() {
            self.release(state, place);
        }
        linked
    }

    /// Writes within a block that is the parent's in whole or in part.
    pub(super) fn write_sectors(&self, state: &mut State, block: u64, skip: u64, data: &[u8]) -> Result<()> {
        let (sector, block_size) = (state.params.sector, state.params.block_size);
        let (start, end) = (skip - skip % sector, (skip + data.len() as u64).next_multiple_of(sector));
        let mut bytes = vec![0; (end - start) as usize];
        let edge = |bytes: &mut [u8], at: u64| self.read(state, bytes, block * block_size + at);
        if start < skip {
            edge(&mut bytes[..sector as usize], start)?;
        }
        if end > skip + data.len() as u64 {
            let last = (end - start - sector) as usize;
            edge(&mut bytes[last..], end - sector)?;
        }
        bytes[(skip - start) as usize..][..data.len()].copy_from_slice(data);

        let old = self.block(state, block)?;
        let bitmap = match self.bitmap(state, block)? {
            Some(bitmap) => bitmap,
            None => self.link_new(state, state.params.bitmap_entry_of(block), MIB, bat::FULLY_PRESENT)?,
        };
        let bits = bitmap + self.bits_skip(state, block);
        let host = match old {
            Block::Partial(host) => host,
            _ => self.allocate(state, block_size)?.offset,
        };
        let mut written = self.view.write_at(&bytes, host + start).map_err(crate::Error::from);
        if written.is_ok() {
            written = self.mark_present(state, block, old, bits, [start / sector, end / sector], host);
        }
        if written.is_err() && !matches!(old, Block::Partial(_)) {
            self.release(state, Place { offset: host, len: block_size });
        }
        written
    }

    /// Notes that the sectors of a range of the block are in the file now.
    fn mark_present(
        &self,
        state: &State,
        block: u64,
        old: Block,
        bits: u64,
        range: [u64; 2],
        host: u64,
    ) -> Result<()> {
        let [first, last] = range;
        if !matches!(old, Block::Partial(_)) {
            // Of another time in the life of the block.
            let len = state.params.block_size / state.params.sector / 8;
            self.pages.put(&self.view, &vec![0; len as usize], bits)?;
        }
        let mut bytes = vec![0; (last.div_ceil(8) - first / 8) as usize];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let at = bits + first / 8 + index as u64;
            let page = self.pages.get(&self.view, at - at % SECTOR)?;
            *byte = page[(at % SECTOR) as usize];
        }
        for sector in first..last {
            bytes[(sector / 8 - first / 8) as usize] |= 1 << (sector % 8);
        }
        self.pages.put(&self.view, &bytes, bits + first / 8)?;
        match old {
            Block::Partial(_) => Ok(()),
            _ => self.set_entry(state, state.params.entry_of(block), host, bat::PARTIALLY_PRESENT),
        }
    }
}
