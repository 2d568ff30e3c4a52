//! The order in which changes reach the files.
//!
//! ```text
//! CID ─ flush ─ data ─ flush ─ redundant tables, tables ─ flush ─ directories ─ flush ─ freed grains
//!               and new tables                            (only where a table is new)   can be used again
//! ```
//!
//! A step without changes is left out together with its flush. Whatever is pointed to is durable before the
//! pointer, and a grain can be used again only after the last pointer to it is gone from the file.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::layout::{COWD_AT_FREE, SECTOR};
use super::sparse::{Layout, Sparse, State, TableAt};
use super::{Extent, Store, Vmdk};
use crate::cache::Table;
use crate::error::Reason;
use crate::{Error, Result};

/// So many freed grains are noted at most before the tables are written.
const MAX_FREED: usize = 1 << 16;

impl Vmdk {
    /// Gives the image a new CID before its first change, so that children of what it was know of it.
    pub(super) fn prepare(&self) -> Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Reason::FlushFailed.into());
        }
        if self.changed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut done = self.cid.lock().unwrap_or_else(PoisonError::into_inner);
        if !*done {
            self.write_cid(super::create::random()?)?;
            self.flush_file(&*self.file)?;
            *done = true;
            self.changed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Writes another CID over the one there is, about `cid`.
    pub(super) fn write_cid(&self, cid: u32) -> Result<()> {
        let mut descriptor = self.descriptor.write().unwrap_or_else(PoisonError::into_inner);
        let (Some((place, _)), Some((cid, at, digits))) = (self.place, descriptor.new_cid(cid)) else {
            return Err(Error::corrupt("the descriptor", 0, "a CID", 0));
        };
        self.file.write_at(&digits, place + at as u64)?;
        descriptor.text[at..at + digits.len()].copy_from_slice(&digits);
        if let Some((known, _)) = &mut descriptor.cid {
            *known = cid;
        }
        Ok(())
    }

    /// Writes another CID of the parent over the one there is, durably.
    pub(super) fn write_parent_cid(&self, cid: u32) -> Result<()> {
        let mut descriptor = self.descriptor.write().unwrap_or_else(PoisonError::into_inner);
        let (Some((place, _)), Some((_, digits))) = (self.place, descriptor.parent_cid.clone()) else {
            return Err(Error::corrupt("the descriptor", 0, "the CID of the parent", 0));
        };
        let text = format!("{cid:0width$x}", width = digits.len());
        if text.len() != digits.len() {
            return Err(Error::unsupported("a longer CID of the parent than stands in the descriptor"));
        }
        self.file.write_at(text.as_bytes(), place + digits.start as u64)?;
        self.flush_file(&*self.file)?;
        descriptor.text[digits.clone()].copy_from_slice(text.as_bytes());
        descriptor.parent_cid = Some((cid, digits));
        Ok(())
    }

    /// Makes every change durable.
    pub(super) fn sync(&self) -> Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Reason::FlushFailed.into());
        }
        if let Some(sparse) = self.stream() {
            if sparse.finish_stream()? {
                self.name_stream(sparse)?;
            }
            return Ok(self.file.flush()?);
        }
        for extent in &self.extents {
            match &extent.store {
                Store::Flat { file, .. } => self.flush_file(&**file)?,
                Store::Sparse(sparse) => sparse.sync()?,
                _ => {}
            }
        }
        if !self.extents.iter().filter_map(Extent::file).any(|file| std::sync::Arc::ptr_eq(file, &self.file))
        {
            self.flush_file(&*self.file)?;
        }
        Ok(())
    }

    /// Makes everything written to a file so far durable. After a failure nothing is known any more about what the
    /// host kept, so nothing more is written.
    fn flush_file(&self, file: &dyn vmwright_disk::Disk) -> Result<()> {
        Ok(file.flush().inspect_err(|_| self.broken.store(true, Ordering::Release))?)
    }

    /// Gives a stream a CID that its content decides, unless it was made with one of its own.
    fn name_stream(&self, sparse: &Sparse) -> Result<()> {
        let state = sparse.read_state();
        let Some(sum) = state.stream.as_ref().map(super::stream::Stream::sum) else { return Ok(()) };
        let mut named = self.cid.lock().unwrap_or_else(PoisonError::into_inner);
        if *named || self.descriptor().cid() == Some(super::create::empty_stream_cid(state.len)) {
            self.write_cid(sum)?;
            *named = true;
        }
        Ok(())
    }
}

impl Sparse {
    /// Makes everything written to the file so far durable. After a failure nothing is known any more about what the
    /// host kept, so nothing more is written.
    pub(super) fn barrier(&self, state: &mut State) -> Result<()> {
        self.file.flush().map_err(|error| {
            state.writer.broken = true;
            error.into()
        })
    }

    /// Writes the tables if much of the cache waits to be written.
    pub(super) fn relieve(&self, state: &mut State) -> Result<()> {
        state.check_sound()?;
        if self.cache.is_crowded() || state.writer.freed.len() > MAX_FREED {
            self.write_back(state)?;
        }
        Ok(())
    }

    /// Writes all tables in order; they are durable after one more flush.
    pub(super) fn write_back(&self, state: &mut State) -> Result<()> {
        state.check_sound()?;
        self.write_cowd_free(state)?;
        if !state.writer.dirty.is_empty() {
            self.barrier(state)?;
            self.write_tables(state)?;
        }
        if !state.writer.gd_dirty.is_empty() {
            self.barrier(state)?;
            self.write_directories(state)?;
        }
        if !state.writer.freed.is_empty() {
            self.barrier(state)?;
            self.give_back(state)?;
        }
        Ok(())
    }

    /// A COWD header says where the next grain may go; it must never be behind.
    fn write_cowd_free(&self, state: &mut State) -> Result<()> {
        let free = u32::try_from(state.writer.next / SECTOR).unwrap_or(u32::MAX);
        if state.writer.ready && matches!(self.layout, Layout::Cowd(_)) && free != state.writer.cowd_free {
            self.file.write_at(&free.to_le_bytes(), COWD_AT_FREE)?;
            state.writer.cowd_free = free;
        }
        Ok(())
    }

    fn write_tables(&self, state: &mut State) -> Result<()> {
        if let Some((_, rgd)) = &state.rgd {
            for &index in &state.writer.dirty {
                let copy = rgd.get(index).map_or(0, |sector| u64::from(*sector) * SECTOR);
                if let (TableAt::At(at), true) = (self.table_at(state, index)?, copy > SECTOR) {
                    let bytes = self.cache.get(&*self.file, Table::L2, at)?;
                    self.file.write_at(&bytes, copy)?;
                }
            }
        }
        self.cache.write_back(&*self.file, Table::L2)?;
        state.writer.dirty.clear();
        Ok(())
    }

    fn write_directories(&self, state: &mut State) -> Result<()> {
        for &index in &state.writer.gd_dirty {
            let at = index as u64 * 4;
            if let Some((rgd_at, rgd)) = &state.rgd {
                self.file.write_at(&rgd[index].to_le_bytes(), rgd_at + at)?;
            }
            self.file.write_at(&state.gd[index].to_le_bytes(), state.gd_at + at)?;
        }
        state.writer.gd_dirty.clear();
        Ok(())
    }

    /// Lets grains be used again that no table in the file has any more.
    fn give_back(&self, state: &mut State) -> Result<()> {
        let mut freed = std::mem::take(&mut state.writer.freed);
        freed.retain(|host| state.writer.check_not_metadata(*host, self.grain).is_ok());
        if state.writer.may_free.is_none() {
            // Nothing counts the users of a grain, so all tables are read once: a grain that a damaged image uses
            // twice must not be used for something else.
            state.writer.may_free = Some(self.has_single_users(state, &freed)?);
        }
        if state.writer.may_free != Some(true) {
            return Ok(());
        }
        for &host in &freed {
            let end = (host + self.grain).min(self.file.len());
            if host < end {
                self.file.discard(host, end - host)?;
            }
        }
        // The lowest is taken first.
        state.writer.free.extend(freed.iter().filter(|host| **host + self.grain <= self.file.len()));
        state.writer.free.sort_unstable_by(|a, b| b.cmp(a));
        Ok(())
    }

    /// Makes every change durable.
    pub(super) fn sync(&self) -> Result<()> {
        let mut state = self.write_state();
        if state.writer.ready {
            self.write_back(&mut state)?;
            if state.writer.next < self.file.len() {
                self.file.set_len(state.writer.next)?;
            }
        }
        self.barrier(&mut state)
    }
}
