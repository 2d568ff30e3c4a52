//! Bitmaps of a disk that changes its size.
//!
//! ```text
//! bits stored ─ flag "in use" ─ flush ─ tables as long as the new size wants them ─ flush ─ the size changes ─ flag cleared ─ flush
//! ```
//!
//! A crash in between leaves bitmaps that say that they are out of date: with a table that is too long or too short for the
//! disk they could not be opened otherwise. What is new of a disk is not dirty.

use std::sync::PoisonError;

use super::Qcow2;
use super::bitmap_data::entries;
use super::bitmaps::MAX_BITS;
use super::layout::{MAX_L1_BYTES, OFFSET_MASK};
use super::state::{State, read_table};
use super::tables::{self, BITMAP_IN_USE, Bitmap};
use crate::{Error, Result};

impl Qcow2 {
    /// Changes the size of the disk to `len` bytes by what `resize` does, while nobody writes, and bitmaps with it.
    pub(super) fn with_bitmaps_for(&self, len: u64, resize: impl FnOnce() -> Result<()>) -> Result<()> {
        let _nobody_writes = self.tracking.write().unwrap_or_else(PoisonError::into_inner);
        let bitmaps = tables::bitmaps(&*self.file, &self.read_state().header)?;
        if bitmaps.is_empty() {
            return resize();
        }
        for bitmap in &bitmaps {
            check(bitmap, len)?;
        }
        let mut state = self.begin()?;
        let result = self.store_tracked(&mut state).and_then(|()| self.fit_tables(&mut state, len));
        self.settle(&mut state, result)?;
        drop(state);
        let resized = resize();
        let mut state = self.begin()?;
        let trusted = match &resized {
            Ok(()) => self.trust_bitmaps(&mut state, &bitmaps),
            Err(_) => Ok(()),
        };
        let followed = self.load_tracked(&mut state).and_then(|_| self.barrier(&mut state.writer));
        let followed = trusted.and(followed);
        state.writer.broken |= followed.is_err();
        resized.and(followed)
    }

    /// Marks all bitmaps as out of date and gives each a table for a disk of `len` bytes.
    fn fit_tables(&self, state: &mut State, len: u64) -> Result<()> {
        let (bitmaps, _) = self.raw_directory(state)?;
        let start = state.header.bitmaps.map_or(0, |directory| directory.offset);
        let wanted = |bitmap: &Bitmap| entries(&self.header, len.div_ceil(bitmap.info.granularity));
        if bitmaps.iter().all(|bitmap| u64::from(bitmap.table_len) == wanted(bitmap)) {
            return Ok(());
        }
        for bitmap in &bitmaps {
            self.write_flags(bitmap.entry_at, bitmap.flags | BITMAP_IN_USE)?;
        }
        self.barrier(&mut state.writer)?;
        let (_, mut directory) = self.raw_directory(state)?;
        let mut freed = Vec::new();
        for bitmap in &bitmaps {
            let what = "the table of a bitmap";
            let bytes = u64::from(bitmap.table_len) * 8;
            let mut table =
                read_table(&*self.file, &self.header, what, bitmap.table_offset, bytes, MAX_L1_BYTES)?;
            table.resize(wanted(bitmap) as usize, 0);
            let mut old = self.bitmap_clusters(state, bitmap)?;
            for host in table.iter().map(|entry| entry & OFFSET_MASK).filter(|host| *host != 0) {
                // What the new table goes on to name is not given back.
                let cluster = host >> self.header.cluster_bits;
                old.set(cluster, old.get(cluster).saturating_sub(1));
            }
            let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            let offset = self.write_new_table(state, &bytes)?;
            let at = (bitmap.entry_at - start) as usize;
            directory[at..at + 8].copy_from_slice(&offset.to_be_bytes());
            directory[at + 8..at + 12].copy_from_slice(&(table.len() as u32).to_be_bytes());
            freed.push(old);
        }
        self.switch_directory(state, &directory, bitmaps.len())?;
        freed.iter().try_for_each(|old| self.unshare(state, old))?;
        self.write_back(state)?;
        self.barrier(&mut state.writer)
    }

    /// Lets all bitmaps say again what they said before.
    fn trust_bitmaps(&self, state: &mut State, before: &[Bitmap]) -> Result<()> {
        let now = tables::bitmaps(&*self.file, &state.header)?;
        for (bitmap, before) in now.iter().zip(before) {
            if bitmap.flags != before.flags {
                self.write_flags(bitmap.entry_at, before.flags)?;
            }
        }
        self.barrier(&mut state.writer)
    }
}

/// Refuses what cannot follow.
fn check(bitmap: &Bitmap, len: u64) -> Result<()> {
    if bitmap.flags & BITMAP_IN_USE != 0 || !bitmap.is_understood() {
        let problem = "changing the size of an image with bitmaps that are out of date: remove them first";
        return Err(Error::unsupported(problem));
    }
    let bits = len.div_ceil(bitmap.info.granularity);
    if bits == 0 {
        return Err(Error::unsupported("changing the size of an image with bitmaps to nothing"));
    }
    if bits > MAX_BITS {
        return Err(Error::invalid("the granularity of a bitmap", "it is too fine for so large a disk"));
    }
    Ok(())
}
