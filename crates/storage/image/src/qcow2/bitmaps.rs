//! Persistent dirty bitmaps: which parts of the disk were written since some time.

use std::sync::PoisonError;

use serde::Serialize;
use zerocopy::IntoBytes;

use super::Qcow2;
use super::bitmap_data::{Bits, entries, set_range};
use super::counts::Counts;
use super::layout::{AUTOCLEAR_BITMAPS, BitmapDirectory, MAX_L1_BYTES, OFFSET_MASK, RawBitmapEntry, Version};
use super::state::{State, read_table};
use super::tables::{self, BITMAP_AUTO, BITMAP_IN_USE, Bitmap};
use crate::error::Reason;
use crate::{BitmapInfo, Error, Result};

/// The most bitmaps, as in QEMU.
const MAX_BITMAPS: usize = 65535;
/// The most bits of one bitmap, as in QEMU: 512 MiB of them.
pub(super) const MAX_BITS: u64 = 0x2000_0000 * 8;

/// A run of the disk by what a bitmap says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DirtyRun {
    /// Where it begins, in bytes of the disk.
    pub start: u64,
    /// How long it is in bytes, never zero.
    pub length: u64,
    /// Whether it was written.
    pub dirty: bool,
}

/// The persistent dirty bitmaps of an image.
///
/// An enabled bitmap notes every change of the disk from then on; a disabled one stays as it is. While an image is
/// being changed, its enabled bitmaps are marked as in use in the file, which says that they are out of date, until a
/// flush has stored them. Every call that changes a bitmap is durable when it returns.
pub struct Bitmaps<'a> {
    image: &'a Qcow2,
}

impl<'a> Bitmaps<'a> {
    pub(crate) fn new(image: &'a Qcow2) -> Self {
        Self { image }
    }

    /// All bitmaps, in the order of the image.
    pub fn list(&self) -> Result<Vec<BitmapInfo>> {
        let state = self.image.read_state();
        let bitmaps = tables::bitmaps(&*self.image.file, &state.header)?;
        let info = |bitmap: Bitmap| {
            let mut info = bitmap.info;
            if state.writer.tracked.iter().any(|one| one.name == info.name) {
                // It is this opening that uses it, and keeps it up to date.
                info.flags.retain(|flag| *flag != "in-use");
            }
            info
        };
        Ok(bitmaps.into_iter().map(info).collect())
    }

    /// Adds an enabled bitmap without a dirty part; one bit stands for `granularity` bytes, a power of two from 512
    /// to 2 GiB. Without it, the size of a cluster counts, but at least 4 KiB and at most 64 KiB.
    pub fn add(&self, name: &str, granularity: Option<u64>) -> Result<()> {
        let granularity = granularity.unwrap_or(self.image.header.cluster_size().clamp(4096, 65536));
        if !granularity.is_power_of_two() || !(512..=1 << 31).contains(&granularity) {
            return Err(Error::invalid(
                "the granularity of a bitmap",
                "a power of two from 512 to 2 GiB is needed",
            ));
        }
        if name.is_empty() || name.len() > 1023 {
            return Err(Error::invalid("the name of a bitmap", "it must have 1 to 1023 bytes"));
        }
        self.change(|image, state| image.add_bitmap(state, name, granularity.trailing_zeros()))
    }

    /// Removes a bitmap, also one that is out of date.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.change(|image, state| image.remove_bitmap(state, name))
    }

    /// Makes every part clean.
    pub fn clear(&self, name: &str) -> Result<()> {
        self.change(|image, state| image.replace_bits(state, name, |_, bits| Ok(vec![0; bits.table.len()])))
    }

    /// Makes a bitmap note changes from now on.
    pub fn enable(&self, name: &str) -> Result<()> {
        self.change(|image, state| image.set_auto(state, name, true))
    }

    /// Makes a bitmap stay as it is.
    pub fn disable(&self, name: &str) -> Result<()> {
        self.change(|image, state| image.set_auto(state, name, false))
    }

    /// Makes dirty in `target` what is dirty in `source`, a bitmap of the same image.
    pub fn merge(&self, target: &str, source: &str) -> Result<()> {
        self.change(|image, state| {
            let source = image.find_sound(state, source)?.1;
            image.replace_bits(state, target, |state, bits| image.merged(state, bits, &source))
        })
    }

    /// What a bitmap says of the disk from `offset` on, for as long as one answer holds but at most `max` bytes.
    ///
    /// Refused for a bitmap that is out of date.
    pub fn run_at(&self, name: &str, offset: u64, max: u64) -> Result<DirtyRun> {
        let state = self.image.read_state();
        let bits = self.image.bits_of(&state, name)?;
        vmwright_disk::check_range(offset, max.max(1), self.image.size())?;
        self.image.dirty_run(&bits, offset, max.max(1))
    }

    /// The dirty parts of the disk, front to back.
    ///
    /// Refused for a bitmap that is out of date.
    pub fn dirty(&self, name: &str) -> Result<Vec<DirtyRun>> {
        let state = self.image.read_state();
        let bits = self.image.bits_of(&state, name)?;
        let (mut at, mut runs) = (0, Vec::new());
        while at < self.image.size() {
            let run = self.image.dirty_run(&bits, at, self.image.size() - at)?;
            at += run.length;
            if run.dirty {
                runs.push(run);
            }
        }
        Ok(runs)
    }

    /// Changes bitmaps while nobody changes the disk, with all of them stored before.
    fn change(&self, change: impl FnOnce(&Qcow2, &mut State) -> Result<()>) -> Result<()> {
        if self.image.header.version == Version::V2 {
            return Err(Error::unsupported("a dirty bitmap in a qcow2 image of version 2"));
        }
        let _nobody_writes = self.image.tracking.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.image.begin()?;
        self.image.store_tracked(&mut state)?;
        let result = change(self.image, &mut state).and_then(|()| self.image.write_back(&mut state));
        // The directory may have moved, even where something failed after that.
        let reloaded =
            self.image.load_tracked(&mut state).and_then(|_| self.image.barrier(&mut state.writer));
        if reloaded.is_err() {
            state.writer.broken = true;
        }
        let result = result.and(reloaded);
        self.image.settle(&mut state, result)
    }
}

impl Qcow2 {
    fn find_bitmap(&self, state: &State, name: &str) -> Result<Bitmap> {
        let bitmaps = tables::bitmaps(&*self.file, &state.header)?;
        let missing = || Reason::NoSuch { what: "bitmap", name: name.to_owned() }.into();
        bitmaps.into_iter().find(|bitmap| bitmap.info.name == name).ok_or_else(missing)
    }

    /// A bitmap that is up to date, and its bits.
    fn find_sound(&self, state: &State, name: &str) -> Result<(Bitmap, Bits)> {
        let bitmap = self.find_bitmap(state, name)?;
        let refuse = |state| Err(Reason::BitmapState { name: name.to_owned(), state }.into());
        if bitmap.flags & BITMAP_IN_USE != 0 {
            return refuse("out of date: it was in use when the image was last changed");
        }
        if !bitmap.is_understood() {
            return Err(Error::unsupported("a bitmap of an unknown kind"));
        }
        let bits = Bits::read(self, &state.header, &bitmap, self.size())?;
        Ok((bitmap, bits))
    }

    /// The bits of a bitmap as they are now, which may not be stored yet.
    fn bits_of(&self, state: &State, name: &str) -> Result<Bits> {
        match state.writer.tracked.iter().find(|one| one.name == name) {
            Some(tracked) => Ok(tracked.bits.clone()),
            None => Ok(self.find_sound(state, name)?.1),
        }
    }

    fn dirty_run(&self, bits: &Bits, offset: u64, max: u64) -> Result<DirtyRun> {
        let shift = bits.granularity_bits;
        let count = (offset + max).div_ceil(1 << shift) - (offset >> shift);
        let (dirty, len) = self.bit_run(bits, offset >> shift, count)?;
        let end = ((offset >> shift) + len).saturating_mul(1 << shift);
        Ok(DirtyRun { start: offset, length: end.min(offset + max) - offset, dirty })
    }

    /// The entries of the directory as they stand in the file.
    pub(super) fn raw_directory(&self, state: &State) -> Result<(Vec<Bitmap>, Vec<u8>)> {
        let bitmaps = tables::bitmaps(&*self.file, &state.header)?;
        let Some(directory) = state.header.bitmaps.filter(|_| !bitmaps.is_empty()) else {
            return Ok((Vec::new(), Vec::new()));
        };
        let mut bytes = vec![0; directory.len as usize];
        self.file.read_at(&mut bytes, directory.offset)?;
        Ok((bitmaps, bytes))
    }

    fn add_bitmap(&self, state: &mut State, name: &str, granularity_bits: u32) -> Result<()> {
        let (bitmaps, mut directory) = self.raw_directory(state)?;
        if bitmaps.iter().any(|bitmap| bitmap.info.name == name) {
            return Err(Reason::Exists { what: "bitmap", name: name.to_owned() }.into());
        }
        if bitmaps.len() >= MAX_BITMAPS {
            return Err(Reason::Full.into());
        }
        let bits = self.size().div_ceil(1 << granularity_bits);
        if bits > MAX_BITS {
            return Err(Error::invalid("the granularity of a bitmap", "it is too fine for so large a disk"));
        }
        let table = vec![0; (entries(&state.header, bits) * 8) as usize];
        let table_offset = self.write_new_table(state, &table)?;
        let raw = RawBitmapEntry {
            bitmap_table_offset: table_offset.into(),
            bitmap_table_size: ((table.len() / 8) as u32).into(),
            flags: BITMAP_AUTO.into(),
            kind: 1,
            granularity_bits: granularity_bits as u8,
            name_size: (name.len() as u16).into(),
            extra_data_size: 0.into(),
        };
        directory.extend_from_slice(raw.as_bytes());
        directory.extend_from_slice(name.as_bytes());
        directory.resize(directory.len().next_multiple_of(8), 0);
        self.switch_directory(state, &directory, bitmaps.len() + 1)
    }

    fn remove_bitmap(&self, state: &mut State, name: &str) -> Result<()> {
        let bitmap = self.find_bitmap(state, name)?;
        let (bitmaps, mut directory) = self.raw_directory(state)?;
        let start = (bitmap.entry_at - state.header.bitmaps.map_or(0, |directory| directory.offset)) as usize;
        let end = bitmap.entry_end as usize - (bitmap.entry_at as usize - start);
        directory.drain(start..end.min(directory.len()));
        let old = self.bitmap_clusters(state, &bitmap)?;
        self.switch_directory(state, &directory, bitmaps.len() - 1)?;
        self.unshare(state, &old)
    }

    fn set_auto(&self, state: &mut State, name: &str, auto: bool) -> Result<()> {
        let (bitmap, _) = self.find_sound(state, name)?;
        let rest = bitmap.flags & !BITMAP_AUTO;
        self.write_flags(bitmap.entry_at, if auto { rest | BITMAP_AUTO } else { rest })
    }

    /// Gives a bitmap other bits: a table in a new place, and a directory that names it.
    fn replace_bits(
        &self,
        state: &mut State,
        name: &str,
        make: impl FnOnce(&mut State, &Bits) -> Result<Vec<u64>>,
    ) -> Result<()> {
        let (bitmap, bits) = self.find_sound(state, name)?;
        let old = self.bitmap_clusters(state, &bitmap)?;
        let (bitmaps, mut directory) = self.raw_directory(state)?;
        let table = make(state, &bits)?;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let table_offset = self.write_new_table(state, &bytes)?;
        let at = (bitmap.entry_at - state.header.bitmaps.map_or(0, |directory| directory.offset)) as usize;
        directory[at..at + 8].copy_from_slice(&table_offset.to_be_bytes());
        directory[at + 8..at + 12].copy_from_slice(&(table.len() as u32).to_be_bytes());
        self.switch_directory(state, &directory, bitmaps.len())?;
        self.unshare(state, &old)
    }

    /// Writes to new clusters what is set in either of two bitmaps; answers the table.
    fn merged(&self, state: &mut State, target: &Bits, source: &Bits) -> Result<Vec<u64>> {
        let per_cluster = self.header.cluster_size() * 8;
        let mut table = Vec::with_capacity(target.table.len());
        for index in 0..target.table.len() as u64 {
            let first = index * per_cluster;
            let last = (first + per_cluster).min(target.len);
            let mut bytes = vec![0; self.header.cluster_size() as usize];
            self.copy_bits(target, target.granularity_bits, first..last, &mut bytes)?;
            self.copy_bits(source, target.granularity_bits, first..last, &mut bytes)?;
            table.push(match bytes.iter().any(|byte| *byte != 0) {
                false => 0,
                true => {
                    let host = self.allocate_table(&mut state.writer)?;
                    self.file.write_at(&bytes, host)?;
                    host
                }
            });
        }
        Ok(table)
    }

    /// Sets those bits of a bitmap of another granularity for which any bit of `source` is set.
    fn copy_bits(
        &self,
        source: &Bits,
        shift: u32,
        bits: std::ops::Range<u64>,
        into: &mut [u8],
    ) -> Result<()> {
        let (mut at, end) = (bits.start << shift, (bits.end << shift).min(self.size()));
        while at < end {
            let run = self.dirty_run(source, at, end - at)?;
            if run.dirty {
                let (from, to) = (at >> shift, (at + run.length).div_ceil(1 << shift));
                set_range(into, from - bits.start, to.min(bits.end) - bits.start);
            }
            at += run.length;
        }
        Ok(())
    }

    /// The clusters of a bitmap, which may be damaged: what makes no sense is not counted.
    pub(super) fn bitmap_clusters(&self, state: &State, bitmap: &Bitmap) -> Result<Counts> {
        let mut counts = Counts::default();
        let (at, len) = (bitmap.table_offset, u64::from(bitmap.table_len) * 8);
        let what = "the table of a bitmap";
        let table = read_table(&*self.file, &self.header, what, at, len, MAX_L1_BYTES)?;
        self.add_table(&mut counts, at, len);
        for host in table.iter().map(|entry| entry & OFFSET_MASK).filter(|host| *host != 0) {
            counts.add(host >> self.header.cluster_bits, 1);
        }
        self.check_can_release(state, &counts)?;
        Ok(counts)
    }

    /// Writes a directory and lets the header name it; what the old one took is freed.
    pub(super) fn switch_directory(&self, state: &mut State, bytes: &[u8], count: usize) -> Result<()> {
        let mut old = Counts::default();
        if let Some(directory) = state.header.bitmaps
            && state.header.autoclear & AUTOCLEAR_BITMAPS != 0
        {
            self.add_table(&mut old, directory.offset, directory.len);
        }
        let offset = self.write_new_table(state, bytes)?;
        self.write_back(state)?;
        self.barrier(&mut state.writer)?;
        let new = BitmapDirectory { count: count as u32, offset, len: bytes.len() as u64 };
        self.switch_bitmap_extension(state, (count > 0).then_some(new))?;
        self.unshare(state, &old)
    }
}

impl std::fmt::Debug for Bitmaps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bitmaps").field(&self.list()).finish()
    }
}
