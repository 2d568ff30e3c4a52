//! Changing the size of the disk.

use super::Vdi;
use super::layout::Header;
use crate::blocks::{FREE, MAX_TABLE, SECTOR, State};
use crate::{Error, Result};

impl Vdi {
    pub(super) fn resize(&self, len: u64) -> Result<()> {
        let blocks = &self.blocks;
        blocks.check_writable()?;
        if !len.is_multiple_of(SECTOR) {
            return Err(Error::invalid("the size of a VDI", "it must be a multiple of 512 bytes"));
        }
        let (old, block_size) = (blocks.size(), blocks.shape.block_size);
        let count =
            u32::try_from(len.div_ceil(block_size)).ok().filter(|count| u64::from(*count) * 4 <= MAX_TABLE);
        let Some(count) = count else {
            return Err(Error::invalid("the size of a VDI", "its block table would be longer than 128 MiB"));
        };
        blocks.prepare()?;
        if len < old {
            blocks.give_up(count.into(), old.div_ceil(block_size))?;
        }
        let mut state = blocks.write_state();
        blocks.clear_end(&state, len.min(old))?;
        blocks.write_back(&mut state)?;
        blocks.barrier(&mut state)?;
        let mut header = blocks.frame.header().clone();
        let room = (header.data_at() - header.table_at()) / 4;
        if u64::from(count) > room {
            self.move_first_blocks(&mut state, &mut header, count)?;
        } else if count as usize > state.map.table.len() {
            let new = vec![0xff; (count as usize - state.map.table.len()) * 4];
            blocks.file.write_at(&new, header.table_at() + state.map.table.len() as u64 * 4)?;
            blocks.barrier(&mut state)?;
        }
        header.set_size(len, count);
        // All of it in one sector: a crash leaves the old disk or the new one.
        blocks.file.write_at(&header.encode(), 0)?;
        blocks.barrier(&mut state)?;
        let base = header.data_at();
        (state.map.base, state.map.table_at) = (base, header.table_at());
        state.map.reserved = std::iter::once(0..base).collect();
        state.map.size = len;
        state.set_blocks(count as usize);
        *blocks.frame.header() = header;
        drop(state);
        if blocks.shape.preallocated && len > old {
            let first = old.next_multiple_of(block_size);
            blocks.place(first, len.saturating_sub(first), &mut Vec::new())?;
            blocks.sync()?;
        }
        Ok(())
    }

    /// Makes room for a longer table: the first blocks go to the end, and the new table to where they were. The header
    /// is the caller's affair; the old table stays as it is until that is written.
    fn move_first_blocks(&self, state: &mut State, header: &mut Header, count: u32) -> Result<()> {
        let (blocks, block_size) = (&self.blocks, self.blocks.shape.block_size);
        let bytes = (u64::from(count) * 4).next_multiple_of(SECTOR);
        let moved = u32::try_from(bytes.div_ceil(block_size)).unwrap_or(u32::MAX);
        let used = ((state.map.end - state.map.base) / block_size) as u32;
        let first_new = used.max(moved);
        let end = state.map.base + u64::from(first_new + moved) * block_size;
        if end > blocks.file.len() {
            blocks.file.set_len(end)?;
        }
        let table = state.map.table.iter().enumerate();
        let movers: Vec<(usize, u32)> =
            table.filter(|(_, raw)| **raw < moved).map(|(block, raw)| (block, *raw)).collect();
        for (_, raw) in &movers {
            let place = |raw: u32| state.map.place(block_size, raw);
            blocks.copy_block(place(*raw), place(first_new + raw))?;
        }
        blocks.say_end(state, end)?;
        blocks.barrier(state)?;
        for (block, raw) in movers {
            state.link(block, first_new + raw);
        }
        state.map.end = end;
        blocks.write_back(state)?;
        blocks.barrier(state)?;

        // Nothing is where the first blocks were: the new table goes there, with the numbers of the new count.
        let shift = |raw: u32| if blocks.shape.is_place(raw) { raw - moved } else { raw };
        let table: Vec<u32> = state.map.table.iter().map(|raw| shift(*raw)).collect();
        let mut new: Vec<u8> = table.iter().flat_map(|raw| blocks.shape.encode(*raw)).collect();
        new.resize(bytes as usize, 0xff);
        let at = state.map.base;
        blocks.file.write_at(&new, at)?;
        blocks.barrier(state)?;
        header.set_places(at, at + u64::from(moved) * block_size)?;
        header.set_allocated(used.into());
        state.map.table = table;
        state.map.end = header.data_at() + u64::from(used) * block_size;
        debug_assert!(
            state.map.table.iter().all(|raw| *raw == FREE || *raw < used || !blocks.shape.is_place(*raw))
        );
        Ok(())
    }
}
