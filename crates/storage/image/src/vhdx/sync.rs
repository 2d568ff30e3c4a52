//! The order in which changes reach the file.
//!
//! ```text
//! before the first change    log replayed ─ flush ─ header without log ─ flush ─ new GUIDs in one header ─ flush ─
//!                            in the other ─ flush
//! tables                     data, log entry ─ flush ─ header with log ─ flush ─ tables in place ─ flush ─
//!                            header without log
//! ```
//!
//! The log entry holds every sector of the tables that changed, and counts from the moment when the header names it:
//! all changes since the last time happen at once or not at all. Its bytes are durable before that, and so is the
//! data that it points to. The next entry goes to the other half of the log, so that one which a lost header brings
//! back is still whole, and replaying it changes nothing.

use vmwright_disk::Disk;

use super::Vhdx;
use super::header::new_guid;
use super::layout::NO_GUID;
use super::log::{MAX_SECTORS, encode, replay};
use super::state::{State, Writer};
use crate::error::Reason;
use crate::{Error, Result};

/// How many sectors one change may touch: two of the table, two of the bitmaps' entries, a block's bits.
const MAX_CHANGE: usize = 24;

impl Vhdx {
    /// Makes everything written to the file so far durable. After a failure nothing is known any more about
    /// what the host kept, so nothing more is written.
    pub(super) fn barrier(&self, writer: &mut Writer) -> Result<()> {
        self.view.flush().map_err(|error| {
            writer.broken = true;
            error.into()
        })
    }

    /// Replays the log, and notes in the headers that the content changes.
    pub(super) fn prepare(&self) -> Result<()> {
        self.check_writable()?;
        if self.read_state().writer.ready {
            return Ok(());
        }
        let mut state = self.write_state();
        if state.writer.ready {
            return Ok(());
        }
        self.settle_log(&mut state)?;
        let (file_write, data_write) = (new_guid()?, new_guid()?);
        for _ in 0..2 {
            state.header.write(self.view.file(), |raw| {
                raw.file_write_guid = file_write;
                raw.data_write_guid = data_write;
            })?;
            self.barrier(&mut state.writer)?;
        }
        self.complete_last_block(&state)?;
        state.writer.free = self.find_free(&state)?;
        state.writer.ready = true;
        Ok(())
    }

    /// Replays the log if there is one, and empties it.
    pub(super) fn settle_log(&self, state: &mut State) -> Result<()> {
        if state.writer.broken {
            return Err(Reason::FlushFailed.into());
        }
        if state.header.log().1 == 0 {
            return Err(Error::unsupported("writing a VHDX image without room for a log"));
        }
        if let Some(pending) = self.view.pending() {
            replay(self.view.file(), &pending)?;
        }
        if state.header.log_guid().is_some() {
            let file_write = new_guid()?;
            state.header.write(self.view.file(), |raw| {
                raw.file_write_guid = file_write;
                raw.log_guid = NO_GUID;
            })?;
            self.barrier(&mut state.writer)?;
        }
        self.view.settle();
        Ok(())
    }

    /// Writes the tables if the log has no room for much more.
    pub(super) fn relieve(&self, state: &mut State) -> Result<()> {
        match self.pages.dirty_count() > MAX_SECTORS - MAX_CHANGE {
            true => self.write_tables(state),
            false => Ok(()),
        }
    }

    /// Writes everything that changed in the tables, at once, and everything they point to before.
    pub(super) fn write_tables(&self, state: &mut State) -> Result<()> {
        if state.writer.broken {
            return Err(Reason::FlushFailed.into());
        }
        let dirty = self.pages.dirty();
        if !dirty.is_empty() {
            if dirty.len() > MAX_SECTORS {
                return Err(Error::invalid(
                    "the tables of the image",
                    "more changed than the log has room for",
                ));
            }
            let file = self.view.file();
            let (offset, len) = state.header.log();
            let (at, guid) = (state.writer.half * (len / 2), new_guid()?);
            state.writer.sequence += 1;
            let sectors = dirty.iter().map(|(at, bytes)| (*at, bytes.as_slice()));
            let entry = encode(sectors, guid, state.writer.sequence, at, file.len());
            // If that fails it is tried again in the same half: until the next barrier, a header may come back that
            // counts on the other.
            file.write_at(&entry, offset + at)?;
            self.barrier(&mut state.writer)?;
            state.writer.half = 1 - state.writer.half;
            state.header.write(file, |raw| raw.log_guid = guid)?;
            self.barrier(&mut state.writer)?;
            for (at, bytes) in &dirty {
                file.write_at(bytes, *at)?;
            }
            self.barrier(&mut state.writer)?;
            self.pages.settle();
            state.header.write(file, |raw| raw.log_guid = NO_GUID)?;
        }
        for place in std::mem::take(&mut state.writer.freed) {
            self.release(state, place);
            let end = place.end().min(self.view.len());
            if let Some(len) = end.checked_sub(place.offset) {
                self.view.discard(place.offset, len)?;
            }
        }
        Ok(())
    }

    /// Makes every change durable.
    pub(super) fn sync(&self) -> Result<()> {
        let mut state = self.write_state();
        if state.writer.ready {
            self.write_tables(&mut state)?;
        }
        if state.writer.broken {
            return Err(Reason::FlushFailed.into());
        }
        self.barrier(&mut state.writer)
    }
}
