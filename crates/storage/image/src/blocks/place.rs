//! Giving blocks a place.

use vmwright_disk::ErrorKind;

use super::{Blocks, FREE, Frame, SECTOR, State};
use crate::Result;
use crate::driver::{Place, Placing};
use crate::error::Reason;

impl<F: Frame> Blocks<F> {
    /// Gives a block that has no place one at the end of the file, where it reads as it did before.
    pub(super) fn allocate(&self, state: &mut State, block: usize) -> Result<()> {
        if state.broken {
            return Err(Reason::FlushFailed.into());
        }
        let dense = self.shape.unit == self.shape.block_size;
        if dense && self.next_place(state)? as usize >= state.map.table.len() {
            // Places were given up: filling them makes room.
            self.write_back(state)?;
        }
        let raw = self.next_place(state)?;
        if dense && raw as usize >= state.map.table.len() {
            return Err(Reason::Full.into());
        }
        let (at, end) = (state.map.end, state.map.end + self.shape.stride());
        self.make_room(at, end)?;
        if self.shape.prefix > 0 {
            // Without a parent every sector is here; with one, none yet.
            let bit = if self.bitmaps.is_some() { 0 } else { 0xff };
            let mut prefix = vec![0; self.shape.prefix as usize];
            let used = (self.shape.block_size / SECTOR / 8).max(1) as usize;
            prefix[..used].fill(bit);
            self.file.write_at(&prefix, at)?;
        }
        self.say_end(state, end)?;
        state.map.end = end;
        match &self.bitmaps {
            Some(bitmaps) => bitmaps.begin(block),
            None => Self::mark_full(state, block, true),
        }
        state.link(block, raw);
        Ok(())
    }

    /// The number in the table of a block at the end.
    fn next_place(&self, state: &State) -> Result<u32> {
        let raw = (state.map.end - state.map.base) / self.shape.unit;
        // The highest numbers have meanings of their own.
        u32::try_from(raw).ok().filter(|raw| *raw < FREE - 1).ok_or_else(|| Reason::Full.into())
    }

    /// Makes the file long enough for a block at `at..end`, which holds zeros except for what its prefix will cover.
    fn make_room(&self, at: u64, end: u64) -> Result<()> {
        let (len, needed) = (self.file.len(), end + self.shape.tail);
        if len < needed {
            match self.file.set_len(needed) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    return Err(Reason::DeviceFull { end: needed }.into());
                }
                result => result?,
            }
        }
        // What the file had there before is an old footer, or the rest of something that never was finished.
        let stale = len.min(needed).saturating_sub(at);
        if stale > self.shape.prefix {
            self.file.zero_at(at, stale)?;
        }
        Ok(())
    }

    /// Notes in the file where the last block ends.
    pub(crate) fn say_end(&self, state: &State, end: u64) -> Result<()> {
        let blocks = (end - state.map.base.min(end)) / self.shape.stride();
        self.frame.say_end(&*self.file, end, blocks)
    }

    /// Gives every block of a range its place, in order, and says where that is.
    pub(crate) fn place(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> Result<Placing> {
        if self.bitmaps.is_some() {
            // What is written must be noted sector by sector.
            return Ok(Placing::InOrder);
        }
        self.prepare()?;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let mut state = self.write_state();
            let (block, raw) = self.entry(&state.map, at)?;
            if !self.shape.is_place(raw) {
                self.allocate(&mut state, block)?;
            }
            let raw = self.entry(&state.map, at)?.1;
            let host = self.data_at(&state.map, raw) + at % self.shape.block_size;
            let len = self.within_block(at, len - done);
            places.push(Place { offset: at, host, len });
            done += len;
        }
        Ok(Placing::Parts)
    }
}
