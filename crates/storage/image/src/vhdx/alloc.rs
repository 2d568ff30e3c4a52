//! Room for new blocks, and entries that point to them.

use vmwright_disk::Disk;

use super::Vhdx;
use super::layout::{Guid, MIB, state as bat};
use super::locator::linkage_text;
use super::map::{Block, host_of};
use super::region::Place;
use super::state::{Free, State};
use crate::{Error, Result};

/// Tables of more entries than this are not searched for gaps: new blocks go to the end of the file.
const MAX_SEARCHED: u64 = 1 << 18;

impl Vhdx {
    /// Takes `len` bytes of the file, a multiple of 1 MiB; they read as zeros.
    pub(super) fn allocate(&self, state: &mut State, len: u64) -> Result<Place> {
        if let Some(offset) = state.writer.free.take(len) {
            let place = Place { offset, len };
            if let Err(error) = self.view.zero_at(offset, len) {
                state.writer.free.add(place);
                return Err(error.into());
            }
            return Ok(place);
        }
        let offset = self.view.len().max(state.regions.end()).next_multiple_of(MIB);
        self.view.set_len(offset + len)?;
        Ok(Place { offset, len })
    }

    /// Gives a place back that nothing in the file points to.
    pub(super) fn release(&self, state: &mut State, place: Place) {
        // The last block of a file may be cut short.
        let end = place.end().min(self.view.len() - self.view.len() % MIB);
        if let Some(len) = end.checked_sub(place.offset) {
            state.writer.free.add(Place { offset: place.offset, len });
        }
    }

    /// Changes an entry of the table in memory.
    pub(super) fn set_entry(&self, state: &State, index: u64, host: u64, what: u64) -> Result<()> {
        let at = self.entry_at(state, index)?;
        self.pages.put(&self.view, &(host | what).to_le_bytes(), at)
    }

    /// Points an entry at a new place of zeros; answers where.
    pub(super) fn link_new(&self, state: &mut State, index: u64, len: u64, what: u64) -> Result<u64> {
        let place = self.allocate(state, len)?;
        match self.set_entry(state, index, place.offset, what) {
            Ok(()) => Ok(place.offset),
            Err(error) => {
                self.release(state, place);
                Err(error)
            }
        }
    }

    /// Makes the file hold all of the last block, of which some programs leave out what is behind the end of the disk:
    /// a new block would begin there.
    pub(super) fn complete_last_block(&self, state: &State) -> Result<()> {
        let Some(last) = state.params.blocks().checked_sub(1) else { return Ok(()) };
        // What is damaged is refused where it is used.
        if let Ok(Block::Full(host) | Block::Partial(host)) = self.block(state, last) {
            let end = host + state.params.block_size;
            if end > self.view.len() {
                self.view.set_len(end)?;
            }
        }
        Ok(())
    }

    /// Finds the gaps that no block and no region is in; before anything is changed.
    pub(super) fn find_free(&self, state: &State) -> Result<Free> {
        let mut free = Free::default();
        let entries = state.params.entries_for(state.params.size);
        if entries > MAX_SEARCHED {
            return Ok(free);
        }
        let mut taken = state.regions.taken.clone();
        for block in 0..state.params.blocks() {
            // What cannot be followed is refused where it is used; until then its place is nobody else's.
            let entry = self.raw_entry(state, state.params.entry_of(block))?;
            if matches!(entry & bat::MASK, bat::FULLY_PRESENT | bat::PARTIALLY_PRESENT | 4) {
                taken.push(Place { offset: host_of(entry), len: state.params.block_size });
            }
        }
        let ratio = state.params.chunk_ratio();
        for chunk in (0..state.params.blocks()).step_by(ratio as usize) {
            let index = state.params.bitmap_entry_of(chunk);
            if index < entries {
                let entry = self.raw_entry(state, index)?;
                if entry & bat::MASK != bat::NOT_PRESENT {
                    taken.push(Place { offset: host_of(entry), len: MIB });
                }
            }
        }
        taken.sort_by_key(|place| place.offset);
        let mut at = MIB;
        let end = self.view.len() - self.view.len() % MIB;
        for place in taken {
            if place.offset.min(end) > at {
                free.add(Place { offset: at, len: place.offset.min(end) - at });
            }
            at = at.max(place.end());
        }
        if end > at {
            free.add(Place { offset: at, len: end - at });
        }
        Ok(free)
    }

    /// Takes a block out of the table, which says `what` of it from now on.
    pub(super) fn unlink(&self, state: &mut State, block: u64, old: Block, what: u64) -> Result<()> {
        self.set_entry(state, state.params.entry_of(block), 0, what)?;
        if let Block::Full(offset) | Block::Partial(offset) = old {
            state.writer.freed.push(Place { offset, len: state.params.block_size });
        }
        Ok(())
    }

    /// Notes the data write GUID that the parent has now.
    pub(super) fn relink(&self, guid: Guid) -> Result<()> {
        self.prepare()?;
        let mut state = self.write_state();
        self.relieve(&mut state)?;
        let text = linkage_text(guid);
        let parent = state.params.parent.as_mut();
        let Some(locator) = parent.filter(|locator| locator.linkage_at.1 == text.len()) else {
            return Err(Error::unsupported("noting another parent in this VHDX image"));
        };
        locator.linkage = guid;
        let at = locator.linkage_at.0;
        self.pages.put(&self.view, &text, at)
    }
}
