//! The header extension that says where the directory of bitmaps is.
//!
//! The extension is ignored as long as its autoclear bit is clear. A change that cannot be made in one sector is made
//! under a clear bit: a crash in its midst leaves an image without bitmaps, never one with wrong ones.

use super::Qcow2;
use super::layout::{
    AT_AUTOCLEAR, AT_BACKING_NAME, AUTOCLEAR_BITMAPS, BitmapDirectory, EXTENSION_BITMAPS, Header,
    encode_bitmaps,
};
use super::state::State;
use crate::error::Reason;
use crate::{Error, Result};
use vmwright_disk::Disk;
use zerocopy::IntoBytes;

/// The data of the extension, and with its head and the end marker behind it.
const DATA: u64 = 24;
const HEAD: u64 = 8;
const SECTOR: u64 = 512;

impl Qcow2 {
    /// Lets the header name another directory, or none, durably.
    pub(super) fn switch_bitmap_extension(
        &self,
        state: &mut State,
        directory: Option<BitmapDirectory>,
    ) -> Result<()> {
        let mut first = vec![0; self.header.cluster_size() as usize];
        super::inspect::Padded(self.file.clone()).read_at(&mut first, 0)?;
        let place = Header::extensions(&first).ok_or_else(|| {
            Error::corrupt("the header extensions", 0, "an end within the first cluster", first.len() as u64)
        })?;
        let found = place.list.iter().find(|(kind, ..)| *kind == EXTENSION_BITMAPS).copied();
        match (directory, found) {
            (Some(directory), Some((_, at, len))) if len as u64 >= DATA => {
                let at = at as u64 + HEAD;
                let whole = at / SECTOR == (at + DATA - 1) / SECTOR;
                if !whole {
                    self.set_bitmaps_valid(state, false)?;
                }
                self.file.write_at(encode_bitmaps(&directory).as_bytes(), at)?;
                self.barrier(&mut state.writer)?;
                self.set_bitmaps_valid(state, true)?;
            }
            (Some(_), Some((_, at, len))) => {
                return Err(Error::corrupt("the bitmaps extension", at as u64, "24 bytes", len as u64));
            }
            (Some(directory), None) => {
                self.set_bitmaps_valid(state, false)?;
                self.append_extension(state, &first, place.end as u64, &directory)?;
                self.set_bitmaps_valid(state, true)?;
            }
            (None, found) => {
                self.set_bitmaps_valid(state, false)?;
                if let Some((_, at, len)) = found
                    && at + HEAD as usize + len.next_multiple_of(8) == place.end
                {
                    // It is the last one: the end marker takes its place.
                    self.file.write_at(&[0; 8], at as u64)?;
                    self.barrier(&mut state.writer)?;
                }
            }
        }
        state.header.bitmaps = directory;
        Ok(())
    }

    fn set_bitmaps_valid(&self, state: &mut State, valid: bool) -> Result<()> {
        let rest = state.header.autoclear & !AUTOCLEAR_BITMAPS;
        let bits = if valid { rest | AUTOCLEAR_BITMAPS } else { rest };
        if bits != state.header.autoclear {
            self.file.write_at(&bits.to_be_bytes(), AT_AUTOCLEAR)?;
            self.barrier(&mut state.writer)?;
            state.header.autoclear = bits;
        }
        Ok(())
    }

    /// Puts the extension where the end marker is. Every step leaves a header that reads as before, until the last.
    fn append_extension(
        &self,
        state: &mut State,
        first: &[u8],
        end: u64,
        directory: &BitmapDirectory,
    ) -> Result<()> {
        let stop = end + HEAD + DATA + HEAD;
        let room = self.header.cluster_size();
        if stop > room && !state.header.feature_names.is_empty() {
            // Nobody needs the names of features as much.
            self.drop_feature_names(state)?;
            return self.switch_bitmap_extension(state, Some(*directory));
        }
        if stop > room {
            return Err(Reason::Full.into());
        }
        let name_at = super::map::read_u64(first, AT_BACKING_NAME as usize);
        if let Some(name) = state.header.backing.as_ref().map(|backing| backing.name.as_bytes())
            && name_at < stop
        {
            // The name lies in the way: a copy of it goes behind both places.
            let new = (name_at + name.len() as u64).max(stop).next_multiple_of(8);
            if new + name.len() as u64 > room {
                return Err(Reason::Full.into());
            }
            self.file.write_at(name, new)?;
            self.barrier(&mut state.writer)?;
            self.file.write_at(&new.to_be_bytes(), AT_BACKING_NAME)?;
            self.barrier(&mut state.writer)?;
            state.header.name_at = new;
        }
        self.file.write_at(encode_bitmaps(directory).as_bytes(), end + HEAD)?;
        self.file.write_at(&[0; 8], end + HEAD + DATA)?;
        self.barrier(&mut state.writer)?;
        let mut head = [0; 8];
        head[..4].copy_from_slice(&EXTENSION_BITMAPS.to_be_bytes());
        head[4..].copy_from_slice(&(DATA as u32).to_be_bytes());
        self.file.write_at(&head, end)?;
        self.barrier(&mut state.writer)
    }
}
