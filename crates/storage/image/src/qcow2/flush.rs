//! The order in which changes reach the file.
//!
//! ```text
//! refcount blocks ─ flush ─ refcount table ─ flush ─ L2 tables ─ flush ─ L1 table ─ flush ─ counts of freed
//!   and data                                                                                clusters go down
//! ```
//!
//! A step without changes is left out together with its flush. Whatever is pointed to is durable before the
//! pointer, and a cluster can be used again only after the last pointer to it is gone from the file: a crash at
//! any place leaves clusters that nobody uses, and nothing worse.

use super::Qcow2;
use super::state::{State, Writer};
use crate::Result;
use crate::cache::Table;
use crate::error::Reason;

/// So many freed clusters are noted at most before the tables are written.
const MAX_FREED: usize = 1 << 16;

impl Qcow2 {
    /// Makes everything written to the file so far durable. After a failure nothing is known any more about
    /// what the host kept, so nothing more is written.
    pub(super) fn barrier(&self, writer: &mut Writer) -> Result<()> {
        let flushed = self.flush_data().and_then(|()| Ok(self.file.flush()?));
        flushed.inspect_err(|_| writer.broken = true)
    }

    /// Writes the tables if much of the cache waits to be written.
    pub(super) fn relieve(&self, state: &mut State) -> Result<()> {
        if self.cache.is_crowded() || state.writer.freed.len() > MAX_FREED {
            self.write_back(state)?;
        }
        Ok(())
    }

    /// Writes all tables in order; they are durable after one more flush.
    pub(super) fn write_back(&self, state: &mut State) -> Result<()> {
        let (file, writer) = (&*self.file, &mut state.writer);
        if writer.broken {
            return Err(Reason::FlushFailed.into());
        }
        self.cache.write_back(file, Table::Refcount)?;
        if !writer.reftable_dirty.is_empty() {
            self.barrier(writer)?;
            for &index in &writer.reftable_dirty {
                let at = writer.reftable_offset + index as u64 * 8;
                file.write_at(&writer.reftable[index].to_be_bytes(), at)?;
            }
            writer.reftable_dirty.clear();
        }
        if self.cache.is_dirty(Table::L2) || !writer.l1_dirty.is_empty() {
            self.barrier(writer)?;
            self.cache.write_back(file, Table::L2)?;
        }
        if !writer.l1_dirty.is_empty() {
            self.barrier(writer)?;
            for &index in &writer.l1_dirty {
                let at = state.header.l1_offset + index as u64 * 8;
                file.write_at(&state.l1[index].to_be_bytes(), at)?;
            }
            writer.l1_dirty.clear();
        }
        if !writer.freed.is_empty() {
            self.barrier(writer)?;
            self.apply_freed(writer)?;
            self.cache.write_back(file, Table::Refcount)?;
        }
        // Bits of bitmaps that the file calls in use: in any order.
        self.cache.write_back(file, Table::Bitmap)?;
        Ok(())
    }

    /// Makes every change durable.
    pub(super) fn sync(&self) -> Result<()> {
        let mut state = self.write_state();
        if state.writer.ready {
            self.write_back(&mut state)?;
            self.store_tracked(&mut state)?;
            if state.writer.used_end < self.file.len() {
                self.file.set_len(state.writer.used_end)?;
            }
        }
        self.barrier(&mut state.writer)
    }
}
