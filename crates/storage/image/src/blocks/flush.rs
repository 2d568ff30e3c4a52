//! The order in which changes reach the file.
//!
//! ```text
//! data, end ─ flush ─ table, sector bitmaps ─ flush ─ last blocks are copied to free places ─ flush
//!                                                     ─ table ─ flush ─ end ─ flush ─ the file is cut
//! ```
//!
//! A step without changes is left out together with its flush.

use super::bitmaps::Bitmaps;
use super::{Blocks, Frame, SECTOR, State};
use crate::Result;
use crate::error::Reason;

/// Blocks are moved in pieces of so many bytes.
const PIECE: u64 = 256 << 10;

impl<F: Frame> Blocks<F> {
    /// Makes everything written to the file so far durable. After a failure nothing is known any more about what the
    /// host kept, so nothing more is written.
    pub(crate) fn barrier(&self, state: &mut State) -> Result<()> {
        self.file.flush().map_err(|error| {
            state.broken = true;
            error.into()
        })
    }

    /// Writes what is in memory if that is much.
    pub(super) fn relieve(&self) -> Result<()> {
        if self.bitmaps.as_ref().is_some_and(|bitmaps| bitmaps.is_crowded()) {
            self.write_back(&mut self.write_state())?;
        }
        Ok(())
    }

    /// Makes every change durable.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.read_only {
            return Ok(self.file.flush()?);
        }
        let mut state = self.write_state();
        self.write_back(&mut state)?;
        self.barrier(&mut state)
    }

    /// Writes table and bitmaps in order, and cuts the file; durable after one more flush.
    pub(crate) fn write_back(&self, state: &mut State) -> Result<()> {
        if state.broken {
            return Err(Reason::FlushFailed.into());
        }
        let bitmaps = self.bitmaps.as_ref();
        if state.dirty.is_empty() && state.freed.is_empty() && !bitmaps.is_some_and(Bitmaps::is_dirty) {
            return self.cut(state);
        }
        self.barrier(state)?;
        self.write_table(state)?;
        if let Some(bitmaps) = bitmaps {
            let (map, shape) = (&state.map, &self.shape);
            bitmaps.write_back(&*self.file, |block| {
                let raw = *map.table.get(block)?;
                shape.is_place(raw).then(|| map.place(shape.unit, raw))
            })?;
        }
        if !state.freed.is_empty() {
            self.barrier(state)?;
            self.close_gaps(state)?;
        }
        self.cut(state)
    }

    /// Fills every place between the blocks, also those that others left, and makes it durable.
    pub(crate) fn close_all_gaps(&self) -> Result<()> {
        self.prepare()?;
        {
            let mut state = self.write_state();
            state.changed = true;
            self.say_end(&state, state.map.end)?;
            self.write_back(&mut state)?;
        }
        self.sync()
    }

    /// Writes the pieces of the table that changed.
    fn write_table(&self, state: &mut State) -> Result<()> {
        const PER_PIECE: usize = SECTOR as usize / 4;
        while let Some(&piece) = state.dirty.first() {
            let start = piece * PER_PIECE;
            let end = (start + PER_PIECE).min(state.map.table.len());
            let bytes: Vec<u8> =
                state.map.table[start..end].iter().flat_map(|raw| self.shape.encode(*raw)).collect();
            self.file.write_at(&bytes, state.map.table_at + start as u64 * 4)?;
            state.dirty.remove(&piece);
        }
        Ok(())
    }

    /// Moves the last blocks to where others were given up; no table in the file names those places any more.
    fn close_gaps(&self, state: &mut State) -> Result<()> {
        let (unit, stride) = (self.shape.unit, self.shape.stride());
        let gone = (state.freed.len() as u64).saturating_mul(stride);
        let keep = state.map.end.saturating_sub(gone).max(state.map.floor());
        let is_last = |raw: u32, state: &State| state.map.place(unit, raw) >= keep;

        let mut gaps: Vec<u32> = state.freed.iter().copied().filter(|raw| !is_last(*raw, state)).collect();
        gaps.sort_unstable();
        let table = state.map.table.iter().enumerate();
        let mut movers: Vec<(u32, usize)> = table
            .filter(|(_, raw)| self.shape.is_place(**raw) && is_last(**raw, state))
            .map(|(block, raw)| (*raw, block))
            .collect();
        movers.sort_unstable();
        let moves: Vec<_> = movers.into_iter().zip(gaps.iter().copied()).collect();
        for ((raw, _), gap) in &moves {
            self.copy_block(state.map.place(unit, *raw), state.map.place(unit, *gap))?;
        }
        if !moves.is_empty() {
            self.barrier(state)?;
            // From here on the gaps are filled, and the places of those that filled them are free.
            let left = gaps[moves.len()..].iter().copied();
            state.freed = moves.iter().map(|((raw, _), _)| *raw).chain(left).collect();
            for ((_, block), gap) in &moves {
                state.link(*block, *gap);
            }
            self.write_table(state)?;
            self.barrier(state)?;
        }
        let end = state.map.last_end(&self.shape);
        self.say_end(state, end)?;
        state.map.end = end;
        state.freed.clear();
        // In images of others blocks may lie crooked, and places be left.
        for raw in gaps.into_iter().skip(moves.len()) {
            let at = state.map.place(unit, raw);
            if at.saturating_add(stride) <= end {
                self.file.discard(at, stride)?;
            }
        }
        Ok(())
    }

    /// Copies a block with its bitmap.
    pub(crate) fn copy_block(&self, from: u64, to: u64) -> Result<()> {
        let stride = self.shape.stride();
        let mut buffer = Vec::new();
        let mut done = 0;
        while done < stride {
            let len = PIECE.min(stride - done);
            buffer.resize(len as usize, 0);
            self.file.read_at(&mut buffer, from + done)?;
            match buffer.iter().all(|byte| *byte == 0) {
                true => self.file.zero_at(to + done, len)?,
                false => self.file.write_at(&buffer, to + done)?,
            }
            done += len;
        }
        Ok(())
    }

    /// Makes the file end where its last block and the footer end.
    fn cut(&self, state: &mut State) -> Result<()> {
        let end = state.map.end + self.shape.tail;
        if state.changed && self.file.len() > end {
            self.say_end(state, state.map.end)?;
            self.barrier(state)?;
            match self.file.set_len(end) {
                // A device keeps its length.
                Err(error) if error.kind() == vmwright_disk::ErrorKind::Unsupported => {}
                result => result?,
            }
        }
        state.changed = false;
        Ok(())
    }
}
