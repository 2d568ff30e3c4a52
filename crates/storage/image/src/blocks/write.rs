//! Writing data and zeros, and giving space back.

use std::sync::atomic::Ordering;

use vmwright_disk::check_range;

use super::read::Place;
use super::{Blocks, FREE, Frame, SECTOR, State};
use crate::Result;
use crate::error::Reason;

/// What is written to a range.
#[derive(Clone, Copy)]
enum What<'a> {
    Data(&'a [u8]),
    Zeros,
    /// Zeros whose space the host may have back.
    Holes,
}

impl<'a> What<'a> {
    fn part(self, from: u64, len: u64) -> Self {
        match self {
            Self::Data(data) => Self::Data(&data[from as usize..(from + len) as usize]),
            other => other,
        }
    }
}

impl<F: Frame> Blocks<F> {
    /// Writes data to the disk.
    pub(crate) fn write(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, data.len() as u64, self.size())?;
        self.check_writable()?;
        if data.is_empty() {
            return Ok(());
        }
        self.prepare()?;
        self.relieve()?;
        let len = data.len() as u64;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let piece = self.within_block(at, len - done);
            if self.write_piece(What::Data(data).part(done, piece), at, piece)? {
                done += piece;
                continue;
            }
            // The block gets a place where it reads as before; then it is written like any other.
            let mut state = self.write_state();
            let (block, raw) = self.entry(&state.map, at)?;
            if !self.shape.is_place(raw) {
                self.allocate(&mut state, block)?;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeros.
    pub(crate) fn zero(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        check_range(offset, len, self.size())?;
        self.check_writable()?;
        if len > 0 {
            self.prepare()?;
            self.relieve()?;
            self.zero_range(offset, len)?;
        }
        Ok(())
    }

    fn zero_range(&self, offset: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let same = self.zeros_at(&self.read_state(), at, len - done)?;
            if same > 0 {
                done += same;
                continue;
            }
            let piece = self.within_block(at, len - done);
            if self.write_piece(What::Zeros, at, piece)? {
                done += piece;
                continue;
            }
            let mut state = self.write_state();
            let (block, raw) = self.entry(&state.map, at)?;
            if !self.shape.is_place(raw) {
                self.allocate(&mut state, block)?;
            }
        }
        Ok(())
    }

    /// For how many bytes from `offset` on nothing is stored, and the disk is known to read as zeros.
    fn zeros_at(&self, state: &State, offset: u64, len: u64) -> Result<u64> {
        let (place, run) = self.run(state, offset, len)?;
        match place {
            Place::File(_) => Ok(0),
            Place::Zero => Ok(run),
            Place::Nowhere => {
                let Some(backing) = self.backing()? else { return Ok(run) };
                let there = backing.len().saturating_sub(offset);
                if there == 0 {
                    return Ok(run);
                }
                let beneath = backing.extent_at(offset)?;
                Ok(if beneath.is_zero() { run.min(beneath.len) } else { 0 })
            }
        }
    }

    /// Writes within one block, if it has a place; answers whether it does.
    fn write_piece(&self, what: What<'_>, offset: u64, len: u64) -> Result<bool> {
        let whole_sectors = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        if self.bitmaps.is_none() || whole_sectors {
            return self.write_in(&self.read_state(), what, offset, len);
        }
        // A part of a sector that is not here needs the rest of it, which nobody may change meanwhile.
        let state = self.write_state();
        let (_, raw) = self.entry(&state.map, offset)?;
        if !self.shape.is_place(raw) {
            return Ok(false);
        }
        let start = offset - offset % SECTOR;
        let mut bytes = vec![0; ((offset + len).next_multiple_of(SECTOR) - start) as usize];
        self.read_in(&state, &mut bytes, start)?;
        let part = &mut bytes[(offset - start) as usize..][..len as usize];
        match what {
            What::Data(data) => part.copy_from_slice(data),
            What::Zeros | What::Holes => part.fill(0),
        }
        self.write_in(&state, What::Data(&bytes), start, bytes.len() as u64)
    }

    /// Writes within one block, whole sectors if there is a parent, while nobody changes the mapping.
    fn write_in(&self, state: &State, what: What<'_>, offset: u64, len: u64) -> Result<bool> {
        if state.broken {
            return Err(Reason::FlushFailed.into());
        }
        let (block, raw) = self.entry(&state.map, offset)?;
        if !self.shape.is_place(raw) {
            return Ok(false);
        }
        let (data_at, skip) = (self.data_at(&state.map, raw), offset % self.shape.block_size);
        if self.bitmaps.is_none() && self.shape.prefix > 0 {
            self.fill_bitmap(state, block, data_at - self.shape.prefix)?;
        }
        match what {
            What::Data(data) => self.file.write_at(data, data_at + skip)?,
            What::Zeros => self.file.zero_at(data_at + skip, len)?,
            What::Holes => {
                self.file.zero_at(data_at + skip, len)?;
                self.file.discard(data_at + skip, len)?;
            }
        }
        if let Some(bitmaps) = &self.bitmaps {
            let sectors = skip / SECTOR..(skip + len) / SECTOR;
            bitmaps.set(&*self.file, block, data_at - self.shape.prefix, sectors)?;
        }
        Ok(true)
    }

    /// Without a parent, everything in a block counts; programs that look at its bitmap shall find the same.
    fn fill_bitmap(&self, state: &State, block: usize, at: u64) -> Result<()> {
        if state.full.get(block).is_none_or(|full| full.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let mut bits = vec![0; (self.shape.block_size / SECTOR / 8).max(1) as usize];
        self.file.read_at(&mut bits, at)?;
        if bits.iter().any(|bits| *bits != 0xff) {
            bits.fill(0xff);
            self.file.write_at(&bits, at)?;
        }
        Self::mark_full(state, block, true);
        Ok(())
    }

    /// Gives the space of the whole blocks in a range back.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        let size = self.size();
        check_range(offset, len, size)?;
        self.check_writable()?;
        let end = offset + len;
        let block_size = self.shape.block_size;
        let whole_end = if end == size { end } else { end - end % block_size };
        let start = offset.next_multiple_of(block_size);
        if self.shape.preallocated || self.bitmaps.is_some() {
            return Ok(self.punch(offset, len)?);
        }
        if start < whole_end {
            self.prepare()?;
            self.give_up(start / block_size, whole_end.div_ceil(block_size))?;
        }
        Ok(())
    }

    /// Makes blocks keep their places but lose their space on the host.
    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let (offset, end) = (offset.next_multiple_of(SECTOR), (offset + len) / SECTOR * SECTOR);
        if offset >= end {
            return Ok(());
        }
        self.prepare()?;
        self.relieve()?;
        let mut at = offset;
        while at < end {
            let piece = self.within_block(at, end - at);
            self.write_piece(What::Holes, at, piece)?;
            at += piece;
        }
        Ok(())
    }

    /// Lets blocks be nowhere.
    pub(crate) fn give_up(&self, from: u64, to: u64) -> Result<()> {
        let mut state = self.write_state();
        if state.broken {
            return Err(Reason::FlushFailed.into());
        }
        for block in from as usize..(to as usize).min(state.map.table.len()) {
            let raw = state.map.table[block];
            if raw == FREE {
                continue;
            }
            if self.shape.is_place(raw) {
                state.freed.push(raw);
            }
            if let Some(bitmaps) = &self.bitmaps {
                bitmaps.forget(block);
            }
            state.link(block, FREE);
        }
        Ok(())
    }

    /// Drops everything that the image holds.
    pub(crate) fn make_empty(&self) -> Result<()> {
        self.prepare()?;
        let blocks = self.read_state().map.table.len() as u64;
        self.give_up(0, blocks)
    }
}

impl<F: Frame> Blocks<F> {
    /// Fills what the last block of a disk of `size` bytes holds past its end with zeros, so that they show when the
    /// disk grows.
    pub(crate) fn clear_end(&self, state: &State, size: u64) -> Result<()> {
        let skip = size % self.shape.block_size;
        if skip == 0 {
            return Ok(());
        }
        let (_, raw) = self.entry(&state.map, size)?;
        if self.shape.is_place(raw) {
            self.file.zero_at(self.data_at(&state.map, raw) + skip, self.shape.block_size - skip)?;
        }
        Ok(())
    }
}
