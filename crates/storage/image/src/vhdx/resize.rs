//! Changing the size of the disk.
//!
//! ```text
//! grow     zeros behind the old end, entries of the new blocks ─ flush ─ size (and place of the table) by the log
//! shrink   size by the log ─ entries behind the new end cleared, their blocks free
//! ```
//!
//! The table behind its last entry means nothing, so it is written before the size says otherwise. Where the table has
//! no room, a longer copy of it is made at the end of the file, and both region tables name it in the same log entry
//! as the size.

use vmwright_disk::Disk;

use super::Vhdx;
use super::layout::{MAX_SIZE, MIB, REGION_TABLES, SECTOR, state as bat};
use super::map::Block;
use super::region::Place;
use super::state::State;
use crate::error::Reason;
use crate::{Error, Result};

/// The table is copied in steps of this many bytes.
const COPY_STEP: u64 = MIB;
/// Only this much of a region table changes.
const TABLE_HEAD: usize = SECTOR as usize;

impl Vhdx {
    /// Changes the size of the disk.
    pub(super) fn resize(&self, size: u64) -> Result<()> {
        self.check_writable()?;
        let sector = self.read_state().params.sector;
        if size > MAX_SIZE || !size.is_multiple_of(sector) {
            let why = "it must be a multiple of the sector size of at most 64 TiB";
            return Err(Error::invalid("the new size of a VHDX image", why));
        }
        self.check_resizable(&self.read_state(), size)?;
        self.prepare()?;
        let mut state = self.write_state();
        let old = state.params.size;
        if size == old {
            return Ok(());
        }
        self.check_resizable(&state, size)?;
        self.write_tables(&mut state)?;
        let done = if size > old { self.grow(&mut state, size) } else { self.shrink(&mut state, size) };
        if done.is_err() {
            // Half of it may be in memory, where nothing more must be built on it.
            state.writer.broken = true;
        }
        done
    }

    /// Refuses what cannot be done before anything is changed.
    fn check_resizable(&self, state: &State, size: u64) -> Result<()> {
        let (params, old) = (&state.params, state.params.size);
        if size < old && params.parent.is_some() {
            return Err(Error::unsupported("shrinking a differencing image"));
        }
        if size > old && params.parent.is_some() && self.parent()?.len() > old {
            return Err(Error::unsupported("growing a differencing image over more of its parent"));
        }
        let len = params.entries_for(size) * 8;
        if size > old && len > state.regions.bat.len {
            if len.next_multiple_of(MIB) > u64::from(u32::MAX) {
                return Err(Reason::Full.into());
            }
            if !state.regions.names_bat_within(TABLE_HEAD) {
                return Err(Error::unsupported("a longer block allocation table beside so many regions"));
            }
        }
        Ok(())
    }

    fn grow(&self, state: &mut State, size: u64) -> Result<()> {
        let old = state.params.size;
        self.clear_last_block(state)?;
        let (first, needed) = (state.params.entries_for(old), state.params.entries_for(size));
        let mut regions = state.regions.clone();
        if needed * 8 > regions.bat.len {
            let place = self.allocate(state, (needed * 8).next_multiple_of(MIB))?;
            // Something else may have been there, and is known from then.
            self.pages.forget(place.offset, place.len);
            self.copy_table(state.regions.bat, place, first * 8)?;
            regions = regions.with_bat(place);
        }
        let moved = regions.bat != state.regions.bat;
        let (start, len) = (regions.bat.offset + first * 8, (needed - first) * 8);
        self.view.zero_at(start, len)?;
        self.pages.forget(start, len);
        if state.params.fixed {
            self.append_blocks(state, regions.bat, size)?;
        }
        self.barrier(&mut state.writer)?;

        self.pages.put(&self.view, &size.to_le_bytes(), state.params.size_at)?;
        if moved {
            for at in REGION_TABLES {
                self.pages.put(&self.view, &regions.table()[..TABLE_HEAD], at)?;
            }
        }
        self.write_tables(state)?;
        if moved {
            let old = state.regions.bat;
            self.pages.forget(old.offset, old.len);
            state.regions = regions;
            self.release(state, old);
        }
        state.params.size = size;
        Ok(())
    }

    /// The last block may have bytes behind the end of the disk, which become part of it.
    fn clear_last_block(&self, state: &State) -> Result<()> {
        let (size, block_size) = (state.params.size, state.params.block_size);
        let used = size % block_size;
        if used == 0 {
            return Ok(());
        }
        if let Block::Full(host) | Block::Partial(host) = self.block(state, size / block_size)? {
            if self.view.len() < host + block_size {
                self.view.set_len(host + block_size)?;
            }
            self.view.zero_at(host + used, block_size - used)?;
        }
        Ok(())
    }

    fn copy_table(&self, from: Place, to: Place, len: u64) -> Result<()> {
        let mut bytes = vec![0; COPY_STEP as usize];
        for at in (0..len).step_by(COPY_STEP as usize) {
            let part = &mut bytes[..(len - at).min(COPY_STEP) as usize];
            self.view.read_at(part, from.offset + at)?;
            self.view.write_at(part, to.offset + at)?;
        }
        Ok(())
    }

    /// Allocates the blocks that a fixed image gets by growing, in a table that does not count them yet.
    fn append_blocks(&self, state: &mut State, table: Place, size: u64) -> Result<()> {
        for block in state.params.blocks()..state.params.blocks_for(size) {
            let place = self.allocate(state, state.params.block_size)?;
            let entry = (place.offset | bat::FULLY_PRESENT).to_le_bytes();
            self.view.write_at(&entry, table.offset + state.params.entry_of(block) * 8)?;
        }
        Ok(())
    }

    fn shrink(&self, state: &mut State, size: u64) -> Result<()> {
        let mut dropped = Vec::new();
        for block in state.params.blocks_for(size)..state.params.blocks() {
            if let Block::Full(offset) = self.block(state, block)? {
                dropped.push(Place { offset, len: state.params.block_size });
            }
        }
        self.pages.put(&self.view, &size.to_le_bytes(), state.params.size_at)?;
        state.writer.freed.extend(dropped);
        self.write_tables(state)?;
        let (first, end) = (state.params.entries_for(size), state.params.entries_for(state.params.size));
        let (start, len) = (state.regions.bat.offset + first * 8, (end - first) * 8);
        state.params.size = size;
        self.view.zero_at(start, len)?;
        self.pages.forget(start, len);
        Ok(())
    }
}
