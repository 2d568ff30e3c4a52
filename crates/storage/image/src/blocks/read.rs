//! Reading: runs of bytes out of blocks, the parent, or nothing.

use super::{Blocks, FREE, Frame, SECTOR, State};
use crate::{Error, Result};

/// Where a run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Not here: in the parent, or nowhere.
    Nowhere,
    /// Recorded as zeros.
    Zero,
    /// In the file, at this offset.
    File(u64),
}

impl<F: Frame> Blocks<F> {
    /// Where the bytes from `offset` on are, and for how many of the `len` within the block that holds.
    pub(super) fn run(&self, state: &State, offset: u64, len: u64) -> Result<(Place, u64)> {
        let len = self.within_block(offset, len);
        let (block, raw) = self.entry(&state.map, offset)?;
        if raw == FREE {
            return Ok((Place::Nowhere, len));
        }
        if !self.shape.is_place(raw) {
            return Ok((Place::Zero, len));
        }
        let skip = offset % self.shape.block_size;
        let data_at = self.data_at(&state.map, raw);
        if data_at.checked_add(skip + len).is_none_or(|end| end > self.file.len()) {
            let at = state.map.table_at + block as u64 * 4;
            return Err(Error::corrupt(
                "an entry of the block table",
                at,
                "a block within the file",
                raw.into(),
            ));
        }
        let Some(bitmaps) = &self.bitmaps else {
            return Ok((Place::File(data_at + skip), len));
        };
        let sectors = skip / SECTOR..(skip + len).div_ceil(SECTOR);
        let at = data_at - self.shape.prefix;
        let (here, count) = bitmaps.run(&*self.file, block, at, sectors)?;
        let len = ((skip / SECTOR + count) * SECTOR - skip).min(len);
        Ok((if here { Place::File(data_at + skip) } else { Place::Nowhere }, len))
    }

    /// Fills `buf` from `offset` on; the range lies within the disk.
    pub(super) fn read_in(&self, state: &State, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (place, len) = self.run(state, at, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + len as usize];
            match place {
                Place::Nowhere => self.read_backing(part, at)?,
                Place::Zero => part.fill(0),
                Place::File(host) => self.file.read_at(part, host)?,
            }
            done += len as usize;
        }
        Ok(())
    }

    /// Fills `buf` from `offset` on.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        let state = self.read_state();
        vmwright_disk::check_range(offset, buf.len() as u64, state.map.size)?;
        Ok(self.read_in(&state, buf, offset)?)
    }

    /// Reads what this image does not hold out of the parent, which may be shorter.
    fn read_backing(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some(backing) = self.backing()? else {
            buf.fill(0);
            return Ok(());
        };
        let there = backing.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (present, missing) = buf.split_at_mut(there);
        missing.fill(0);
        if !present.is_empty() {
            backing.read_at(present, offset)?;
        }
        Ok(())
    }
}
