//! The bits of a dirty bitmap, and keeping them up to date while the disk is written.
//!
//! ```text
//! first change of a bit     flag "in use" ─ flush ─ bits change in the cache
//! flush                     … tables ─ bits ─ flush ─ entries of the bitmap's table ─ flush ─ flag cleared ─ flush
//! ```
//!
//! A bit is set before the bytes change that it stands for, and the file says "in use" before it misses a bit. So a
//! crash leaves a bitmap that is right, or one that says that it is not.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, RwLockReadGuard};

use super::Qcow2;
use super::layout::{Header, MAX_L1_BYTES, OFFSET_MASK};
use super::state::{State, Writer, read_table};
use super::tables::{self, BITMAP_AUTO, BITMAP_FLAGS_AT, BITMAP_IN_USE, Bitmap};
use crate::cache::Table;
use crate::{Error, Result};

/// An entry of a bitmap's table: all bits are set, and no cluster is needed for them.
const ALL_ONES: u64 = 1;
/// The most bytes of a bitmap's table that are kept in memory, as many as of the L1 table.
const MAX_TABLE: u64 = MAX_L1_BYTES;

/// The bits of a bitmap: where they are, by the entries of its table.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    pub(super) table: Vec<u64>,
    pub(super) granularity_bits: u32,
    /// How many bits count.
    pub(super) len: u64,
}

/// An enabled bitmap while the image is being changed.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) name: String,
    /// Where its entry in the directory is.
    entry_at: u64,
    flags: u32,
    table_offset: u64,
    pub(super) bits: Bits,
    /// Entries of the table that changed in memory only.
    dirty: BTreeSet<usize>,
    /// Whether the file says that it is in use.
    in_use: bool,
}

impl Bits {
    /// Reads the table of a bitmap, which must be as the size of the disk wants it.
    pub(super) fn read(image: &Qcow2, header: &Header, bitmap: &Bitmap, size: u64) -> Result<Self> {
        let granularity_bits = bitmap.info.granularity.trailing_zeros();
        let len = size.div_ceil(bitmap.info.granularity);
        let at = bitmap.table_offset;
        let needed = entries(header, len);
        if u64::from(bitmap.table_len) < needed {
            return Err(Error::corrupt(
                "the table of a bitmap",
                at,
                "enough entries",
                bitmap.table_len.into(),
            ));
        }
        let what = "the table of a bitmap";
        let mut table = read_table(&*image.file, header, what, at, needed * 8, MAX_TABLE)?;
        for (index, entry) in table.iter_mut().enumerate() {
            let (host, rest) = (*entry & OFFSET_MASK, *entry & !OFFSET_MASK);
            let inside = host.checked_add(header.cluster_size()).is_some_and(|end| end <= image.file.len());
            if rest > 1 || host != 0 && (rest != 0 || !inside || host % header.cluster_size() != 0) {
                let at = at + index as u64 * 8;
                return Err(Error::corrupt(
                    "an entry of a bitmap's table",
                    at,
                    "a cluster within the file",
                    *entry,
                ));
            }
        }
        Ok(Self { table, granularity_bits, len })
    }

    /// The bits that stand for a range of the disk.
    fn of(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        let end = offset.saturating_add(len).div_ceil(1 << self.granularity_bits).min(self.len);
        (offset >> self.granularity_bits).min(end)..end
    }
}

/// How many entries the table of a bitmap of `bits` bits has.
pub(super) fn entries(header: &Header, bits: u64) -> u64 {
    bits.div_ceil(header.cluster_size() * 8)
}

impl Qcow2 {
    /// Whether a bit is set, and for how many bits from it on the answer is the same, at most `max`.
    pub(super) fn bit_run(&self, bits: &Bits, first: u64, max: u64) -> Result<(bool, u64)> {
        let per_cluster = self.header.cluster_size() * 8;
        let per_slice = self.cache.slice_len() * 8;
        let max = max.min(bits.len - first);
        let (mut is_set, mut len) = (None, 0);
        while len < max {
            let bit = first + len;
            let entry = bits.table.get((bit / per_cluster) as usize).copied().unwrap_or(0);
            let (value, count) = if entry & OFFSET_MASK == 0 {
                (entry == ALL_ONES, per_cluster - bit % per_cluster)
            } else {
                let slice_at = entry + bit % per_cluster / per_slice * self.cache.slice_len();
                let slice = self.cache.get(&*self.file, Table::Bitmap, slice_at)?;
                run_in(&slice, bit % per_slice)
            };
            if *is_set.get_or_insert(value) != value {
                break;
            }
            len += count;
        }
        Ok((is_set.unwrap_or(false), len.min(max)))
    }

    /// Reads the enabled bitmaps, which are kept up to date from now on. What cannot be kept up to date is marked as
    /// in use; answers whether anything was written.
    pub(super) fn load_tracked(&self, state: &mut State) -> Result<bool> {
        let mut written = false;
        state.writer.tracked.clear();
        for bitmap in tables::bitmaps(&*self.file, &state.header)? {
            if bitmap.flags & BITMAP_IN_USE != 0 || bitmap.flags & BITMAP_AUTO == 0 {
                continue;
            }
            match Bits::read(self, &state.header, &bitmap, self.size()) {
                Ok(bits) if bitmap.is_understood() => state.writer.tracked.push(Tracked {
                    name: bitmap.info.name,
                    entry_at: bitmap.entry_at,
                    flags: bitmap.flags,
                    table_offset: bitmap.table_offset,
                    bits,
                    dirty: BTreeSet::new(),
                    in_use: false,
                }),
                _ => {
                    self.write_flags(bitmap.entry_at, bitmap.flags | BITMAP_IN_USE)?;
                    written = true;
                }
            }
        }
        self.tracks.store(!state.writer.tracked.is_empty(), Ordering::Release);
        Ok(written)
    }

    pub(super) fn write_flags(&self, entry_at: u64, flags: u32) -> Result<()> {
        Ok(self.file.write_at(&flags.to_be_bytes(), entry_at + BITMAP_FLAGS_AT)?)
    }

    /// Notes in every enabled bitmap that a range of the disk is about to change. As long as what this answers lives,
    /// no bitmap is cleared or replaced.
    pub(super) fn track(&self, offset: u64, len: u64) -> Result<Option<RwLockReadGuard<'_, ()>>> {
        self.prepare()?;
        if !self.tracks.load(Ordering::Acquire) || len == 0 {
            return Ok(None);
        }
        let guard = self.tracking.read().unwrap_or_else(PoisonError::into_inner);
        if self.is_tracked(&self.read_state(), offset, len)? {
            return Ok(Some(guard));
        }
        let mut state = self.write_state();
        if state.writer.broken {
            return Err(crate::error::Reason::FlushFailed.into());
        }
        self.relieve(&mut state)?;
        let mut tracked = std::mem::take(&mut state.writer.tracked);
        let marked = self.mark_in_use(&mut state.writer, &mut tracked);
        if let Err(error) = marked {
            state.writer.tracked = tracked;
            return Err(error);
        }
        // One that fails stays marked as in use and is not looked after any more.
        tracked.retain_mut(|one| self.set_bits(&mut state, one, offset, len).is_ok());
        self.tracks.store(!tracked.is_empty(), Ordering::Release);
        state.writer.tracked = tracked;
        Ok(Some(guard))
    }

    /// Whether all bits of a range are set already, everywhere.
    fn is_tracked(&self, state: &State, offset: u64, len: u64) -> Result<bool> {
        for one in &state.writer.tracked {
            let range = one.bits.of(offset, len);
            if range.is_empty() {
                continue;
            }
            // What cannot be read is found by what comes next.
            let run = self.bit_run(&one.bits, range.start, range.end - range.start);
            if !run.is_ok_and(|(is_set, len)| is_set && len == range.end - range.start) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn mark_in_use(&self, writer: &mut Writer, tracked: &mut [Tracked]) -> Result<()> {
        let mut new = tracked.iter_mut().filter(|one| !one.in_use).peekable();
        if new.peek().is_none() {
            return Ok(());
        }
        for one in new {
            self.write_flags(one.entry_at, one.flags | BITMAP_IN_USE)?;
            one.in_use = true;
        }
        self.barrier(writer)
    }

    fn set_bits(&self, state: &mut State, one: &mut Tracked, offset: u64, len: u64) -> Result<()> {
        let (bits, dirty) = (&mut one.bits, &mut one.dirty);
        let range = bits.of(offset, len);
        let per_cluster = self.header.cluster_size() * 8;
        let per_slice = self.cache.slice_len() * 8;
        let mut bit = range.start;
        while bit < range.end {
            let index = (bit / per_cluster) as usize;
            let end = ((index as u64 + 1) * per_cluster).min(range.end);
            if bits.table[index] == 0 && end - bit == per_cluster {
                bits.table[index] = ALL_ONES;
                dirty.insert(index);
            }
            if bits.table[index] == 0 {
                bits.table[index] = self.allocate_table(&mut state.writer)?;
                dirty.insert(index);
            }
            let host = bits.table[index];
            while bit < end && host != ALL_ONES {
                let slice_at = host + bit % per_cluster / per_slice * self.cache.slice_len();
                let stop = (bit / per_slice + 1).saturating_mul(per_slice).min(end);
                let (from, to) = (bit % per_slice, bit % per_slice + (stop - bit));
                self.cache
                    .modify(&*self.file, Table::Bitmap, slice_at, |bytes| set_range(bytes, from, to))?;
                bit = stop;
            }
            bit = end;
        }
        Ok(())
    }

    /// Stores the enabled bitmaps, after which the file says that they are up to date. All tables are written.
    pub(super) fn store_tracked(&self, state: &mut State) -> Result<()> {
        if !state.writer.tracked.iter().any(|one| one.in_use) {
            return Ok(());
        }
        let file = &*self.file;
        self.cache.write_back(file, Table::Bitmap)?;
        self.barrier(&mut state.writer)?;
        let mut tracked = std::mem::take(&mut state.writer.tracked);
        let stored = self.store_entries(&mut state.writer, &mut tracked);
        state.writer.tracked = tracked;
        stored
    }

    fn store_entries(&self, writer: &mut Writer, tracked: &mut [Tracked]) -> Result<()> {
        let mut written = false;
        for one in &mut *tracked {
            // None is forgotten before all are written: a later flush must know of those that are not.
            for &index in &one.dirty {
                let at = one.table_offset + index as u64 * 8;
                self.file.write_at(&one.bits.table[index].to_be_bytes(), at)?;
                written = true;
            }
            one.dirty.clear();
        }
        if written {
            self.barrier(writer)?;
        }
        for one in tracked.iter_mut().filter(|one| one.in_use) {
            self.write_flags(one.entry_at, one.flags)?;
            one.in_use = false;
        }
        self.barrier(writer)
    }
}

/// Whether a bit of a slice is set, and how many from it on are the same within the slice.
fn run_in(slice: &[u8], first: u64) -> (bool, u64) {
    let bit = |index: u64| slice[(index / 8) as usize] >> (index % 8) & 1 != 0;
    let (value, end) = (bit(first), slice.len() as u64 * 8);
    let same = if value { 0xff } else { 0 };
    let mut at = first + 1;
    while at < end {
        if at.is_multiple_of(8) && slice[(at / 8) as usize] == same {
            at += 8;
        } else if bit(at) == value {
            at += 1;
        } else {
            break;
        }
    }
    (value, at - first)
}

/// Sets the bits `from..to`.
pub(super) fn set_range(bytes: &mut [u8], from: u64, to: u64) {
    let mut bit = from;
    while bit < to {
        if bit.is_multiple_of(8) && to - bit >= 8 {
            bytes[(bit / 8) as usize] = 0xff;
            bit += 8;
        } else {
            bytes[(bit / 8) as usize] |= 1 << (bit % 8);
            bit += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_that_are_set_are_found_as_runs(
            ranges in proptest::collection::vec((0u64..512, 0u64..90), 0..6), at in 0u64..512,
        ) {
            let (mut bytes, mut plain) = (vec![0; 64], vec![false; 512]);
            for (from, len) in ranges {
                let to = (from + len).min(512);
                set_range(&mut bytes, from, to);
                plain[from as usize..to as usize].fill(true);
            }
            let value = plain[at as usize];
            let len = plain[at as usize..].iter().take_while(|bit| **bit == value).count() as u64;
            prop_assert_eq!(run_in(&bytes, at), (value, len));
        }
    }
}
