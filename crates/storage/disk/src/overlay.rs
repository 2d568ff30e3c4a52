use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::host::{Handle, RealHost};
use crate::runs::{Runs, Segment, Source};
use crate::store::{Scratch, Store};
use crate::{Disk, Error, Extent, ExtentKind, Result, check_range};

/// The granularity of changes: what a medium writes all of or nothing of.
pub(crate) const SECTOR: u64 = 512;

/// Copy-on-write over another disk, which is never written to.
///
/// Changes are kept by whole sectors of 512 bytes: up to 8 MiB in memory, what is more in a temporary file
/// without a name. Nothing is written anywhere else; whoever drops an overlay drops the changes.
pub struct Overlay {
    base: Arc<dyn Disk>,
    base_len: u64,
    state: RwLock<State>,
    /// Why changes are refused, if they are.
    sealed: AtomicBool,
    fixed_size: bool,
    scratch_dir: PathBuf,
}

struct State {
    runs: Runs,
    store: Store,
    len: u64,
}

/// A range that differs from the base, as [`Overlay::next_change`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) start: u64,
    /// Not past the end of the disk, hence not always at the end of a sector.
    pub(crate) end: u64,
    pub(crate) zero: bool,
}

impl Overlay {
    /// Makes an overlay without changes.
    pub fn new(base: Arc<dyn Disk>) -> Self {
        Self::with(base, Scratch::default(), false)
    }

    /// Makes an overlay whose changes past 8 MiB go to a temporary file in `dir`.
    pub fn with_scratch(base: Arc<dyn Disk>, dir: &Path) -> Self {
        Self::with(base, Scratch::beside(Arc::new(RealHost), Some(dir)), false)
    }

    pub(crate) fn with(base: Arc<dyn Disk>, scratch: Scratch, fixed_size: bool) -> Self {
        let scratch_dir = scratch.dirs.first().cloned().unwrap_or_default();
        let (len, store) = (base.len(), Store::new(scratch));
        let state = RwLock::new(State { runs: Runs::default(), store, len });
        Self { base, base_len: len, state, sealed: AtomicBool::new(false), fixed_size, scratch_dir }
    }

    /// An overlay that can only be read, whose changes are in a file already.
    pub(crate) fn view(base: Arc<dyn Disk>, len: u64, runs: Runs, file: Arc<dyn Handle>) -> Self {
        let base_len = base.len();
        let state = RwLock::new(State { runs, store: Store::of_file(file), len });
        let sealed = AtomicBool::new(true);
        Self { base, base_len, state, sealed, fixed_size: true, scratch_dir: PathBuf::new() }
    }

    /// Refuses every change from now on.
    pub(crate) fn seal(&self) {
        // Under the lock, so that no change is under way once this returns.
        let _state = self.write_state();
        self.sealed.store(true, Ordering::Release);
    }

    /// The first change that ends after `offset`, from there on; neighbours of one sort are one change.
    pub(crate) fn next_change(&self, offset: u64) -> Option<Change> {
        let state = self.read_state();
        let start = state.runs.next_changed(offset).filter(|start| *start < state.len)?;
        let is_zero = |segment: Segment| segment.source.map(|source| source == Source::Zero);
        let first = state.runs.at(start);
        let zero = is_zero(first)?;
        let mut end = first.end;
        while end < state.len {
            let next = state.runs.at(end);
            if is_zero(next) != Some(zero) {
                break;
            }
            end = next.end;
        }
        Some(Change { start, end: end.min(state.len), zero })
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn changeable(&self, offset: u64, len: u64) -> Result<RwLockWriteGuard<'_, State>> {
        let state = self.write_state();
        if self.is_read_only() {
            return Err(Error::read_only("a disk whose transaction has ended"));
        }
        check_range(offset, len, state.len)?;
        Ok(state)
    }

    fn fail(&self, action: &'static str) -> impl Fn(io::Error) -> Error + '_ {
        move |source| Error::host(action, &self.scratch_dir, source)
    }

    fn read_range(&self, state: &State, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while at < end {
            let segment = state.runs.at(at);
            let stop = segment.end.min(end);
            let part = &mut buf[(at - offset) as usize..(stop - offset) as usize];
            match segment.source {
                Some(Source::Zero) => part.fill(0),
                Some(Source::Stored(position)) => {
                    state.store.read(position, part).map_err(self.fail("read a temporary file in"))?;
                }
                None => self.read_base(part, at)?,
            }
            at = stop;
        }
        Ok(())
    }

    /// Reads from the base, with zeros after its end.
    fn read_base(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let there = self.base_len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (inside, outside) = buf.split_at_mut(there);
        outside.fill(0);
        if inside.is_empty() { Ok(()) } else { self.base.read_at(inside, offset) }
    }

    fn write_range(&self, state: &mut State, data: &[u8], offset: u64) -> Result<()> {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let segment = state.runs.at(at);
            let stop = segment.end.min(end);
            let part = &data[(at - offset) as usize..(stop - offset) as usize];
            match segment.source {
                Some(Source::Stored(position)) => {
                    state.store.write(position, part).map_err(self.fail("write a temporary file in"))?;
                }
                _ => self.write_new(state, part, at)?,
            }
            at = stop;
        }
        Ok(())
    }

    /// Writes where nothing is stored yet: makes room for whole sectors, completing the first and the last.
    fn write_new(&self, state: &mut State, data: &[u8], offset: u64) -> Result<()> {
        let end = offset + data.len() as u64;
        let (start, stop) = (sector_floor(offset), sector_ceil(end));
        let mut head = vec![0; (offset - start) as usize];
        self.read_range(state, &mut head, start)?;
        let mut tail = vec![0; (stop - end) as usize];
        self.read_range(state, &mut tail, end)?;

        let fail = self.fail("write a temporary file in");
        let position = state.store.allocate(stop - start).map_err(&fail)?;
        for (part, at) in [(&head[..], start), (data, offset), (&tail[..], end)] {
            state.store.write(position + (at - start), part).map_err(&fail)?;
        }
        state.runs.insert(start, stop, Source::Stored(position));
        Ok(())
    }

    /// The whole sectors within a range; the last sector of the disk counts as whole.
    fn whole_sectors(state: &State, offset: u64, len: u64) -> (u64, u64) {
        let end = offset + len;
        let stop = if end == state.len { sector_ceil(end) } else { sector_floor(end) };
        (sector_ceil(offset), stop)
    }

    /// Makes what the base holds past the present length read as zeros once the disk is longer.
    fn hide_base(&self, state: &mut State, new_len: u64) -> Result<()> {
        let old_len = state.len;
        let boundary = sector_ceil(old_len);
        if old_len < self.base_len.min(boundary) {
            let mut sector = vec![0; (old_len - sector_floor(old_len)) as usize];
            self.read_range(state, &mut sector, sector_floor(old_len))?;
            sector.resize(SECTOR as usize, 0);
            self.write_range(state, &sector, sector_floor(old_len))?;
        }
        state.runs.insert(boundary, sector_ceil(new_len.min(self.base_len)), Source::Zero);
        Ok(())
    }

    #[cfg(test)]
    fn memory_used(&self) -> usize {
        self.read_state().store.memory_used()
    }
}

/// The start of the sector that holds an offset.
pub(crate) fn sector_floor(offset: u64) -> u64 {
    offset - offset % SECTOR
}

/// The first start of a sector at or after an offset.
pub(crate) fn sector_ceil(offset: u64) -> u64 {
    sector_floor(offset.saturating_add(SECTOR - 1))
}

impl Disk for Overlay {
    fn len(&self) -> u64 {
        self.read_state().len
    }

    fn is_read_only(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let state = self.read_state();
        check_range(offset, buf.len() as u64, state.len)?;
        self.read_range(&state, buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut state = self.changeable(offset, data.len() as u64)?;
        self.write_range(&mut state, data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let mut state = self.changeable(offset, len)?;
        let end = offset + len;
        let (start, stop) = Self::whole_sectors(&state, offset, len);
        if start >= stop {
            return self.write_range(&mut state, &[0; 2 * SECTOR as usize][..len as usize], offset);
        }
        self.write_range(&mut state, &[0; SECTOR as usize][..(start - offset) as usize], offset)?;
        let rest = end.saturating_sub(stop) as usize;
        self.write_range(&mut state, &[0; SECTOR as usize][..rest], stop)?;
        state.runs.insert(start, stop, Source::Zero);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut state = self.changeable(offset, len)?;
        let (start, stop) = Self::whole_sectors(&state, offset, len);
        state.runs.insert(start, stop, Source::Zero);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.fixed_size {
            return Err(Error::fixed_size("the disk beneath the overlay"));
        }
        let mut state = self.changeable(0, 0)?;
        if len > i64::MAX as u64 - SECTOR {
            return Err(Error::out_of_range(0, len, i64::MAX as u64 - SECTOR));
        }
        if len > state.len {
            self.hide_base(&mut state, len)?;
        } else {
            state.runs.remove(sector_ceil(len), u64::MAX);
            if let Segment { source: Some(Source::Stored(position)), .. } = state.runs.at(len) {
                let tail = (sector_ceil(len) - len) as usize;
                let zeros = &[0; SECTOR as usize][..tail];
                state.store.write(position, zeros).map_err(self.fail("write a temporary file in"))?;
            }
        }
        state.len = len;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let state = self.read_state();
        check_range(offset, 1, state.len)?;
        let segment = state.runs.at(offset);
        let end = segment.end.min(state.len);
        let kind = match segment.source {
            Some(Source::Zero) => ExtentKind::Zero,
            Some(Source::Stored(_)) => ExtentKind::Opaque,
            None if offset >= self.base_len => ExtentKind::Unallocated,
            None => {
                let mut extent = self.base.extent_at(offset)?;
                extent.len = extent.end().min(end) - offset;
                return Ok(extent);
            }
        };
        Ok(Extent { start: offset, len: end - offset, kind, depth: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, MemDisk};
    use proptest::prelude::*;

    #[test]
    fn the_base_never_changes() {
        let base = Arc::new(MemDisk::from_bytes((0..=255).cycle().take(5000).collect()));
        let before = base.to_bytes();
        let overlay = Overlay::new(base.clone());
        overlay.write_at(&[9; 700], 300).unwrap();
        overlay.zero_at(2000, 1500).unwrap();
        overlay.set_len(100).unwrap();
        overlay.set_len(9000).unwrap();
        assert_eq!(base.to_bytes(), before);
    }

    #[test]
    fn memory_stays_bounded_for_a_large_edit() {
        let overlay = Overlay::new(Arc::new(MemDisk::new(0)));
        overlay.set_len(1 << 30).unwrap();
        let block = vec![0xa5; 1 << 20];
        for index in 0..64 {
            overlay.write_at(&block, index << 21).unwrap();
        }
        assert!(overlay.memory_used() <= 16 << 20, "{}", overlay.memory_used());
        let mut bytes = vec![0; 1 << 20];
        for index in 0..64 {
            overlay.read_at(&mut bytes, index << 21).unwrap();
            assert_eq!(bytes, block);
        }
    }

    #[test]
    fn changed_ranges_are_opaque_and_zeroed_ones_zero() {
        let overlay = Overlay::new(Arc::new(MemDisk::new(8192)));
        overlay.write_at(&[1; 512], 1024).unwrap();
        overlay.zero_at(4096, 1024).unwrap();
        let kinds: Vec<_> = [0, 1024, 4096].map(|at| overlay.extent_at(at).unwrap().kind).into();
        assert!(matches!(kinds[..], [ExtentKind::Data { .. }, ExtentKind::Opaque, ExtentKind::Zero]));
        assert_eq!(overlay.extent_at(0).unwrap().len, 1024);
    }

    #[test]
    fn a_sealed_overlay_refuses_changes() {
        let overlay = Overlay::new(Arc::new(MemDisk::new(8192)));
        overlay.seal();
        assert_eq!(overlay.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    }

    #[derive(Debug, Clone)]
    enum Edit {
        Write(u64, Vec<u8>),
        Zero(u64, u64),
        Resize(u64),
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            4 => (0u64..5000, prop::collection::vec(1u8.., 0..1600)).prop_map(|(at, data)| Edit::Write(at, data)),
            2 => (0u64..5000, 0u64..2500).prop_map(|(at, len)| Edit::Zero(at, len)),
            1 => (0u64..7000).prop_map(Edit::Resize),
        ]
    }

    proptest! {
        #[test]
        fn an_overlay_reads_as_a_flat_disk_would(
            base_len in 0usize..5000,
            edits in prop::collection::vec(edit(), 0..20),
        ) {
            let flat: Vec<u8> = (1..=251).cycle().take(base_len).collect();
            let overlay = Overlay::new(Arc::new(MemDisk::from_bytes(flat.clone())));
            let mut model = flat.clone();
            for edit in edits {
                let range = |at: u64, len: u64| (at as usize) .. (at + len) as usize;
                match edit {
                    Edit::Write(at, data) if range(at, data.len() as u64).end <= model.len() => {
                        overlay.write_at(&data, at).unwrap();
                        model[range(at, data.len() as u64)].copy_from_slice(&data);
                    }
                    Edit::Zero(at, len) if range(at, len).end <= model.len() => {
                        overlay.zero_at(at, len).unwrap();
                        model[range(at, len)].fill(0);
                    }
                    Edit::Resize(len) => {
                        overlay.set_len(len).unwrap();
                        model.resize(len as usize, 0);
                    }
                    Edit::Write(..) | Edit::Zero(..) => continue,
                }
                let mut bytes = vec![0; model.len()];
                overlay.read_at(&mut bytes, 0).unwrap();
                prop_assert_eq!(&bytes, &model);
            }
            // The changes alone, laid over the base, give the same disk.
            let mut rebuilt = flat;
            rebuilt.resize(model.len(), 0);
            let mut at = 0;
            while let Some(change) = overlay.next_change(at) {
                let range = change.start as usize..change.end as usize;
                if change.zero {
                    rebuilt[range].fill(0);
                } else {
                    overlay.read_at(&mut rebuilt[range], change.start).unwrap();
                }
                at = change.end;
            }
            prop_assert_eq!(&rebuilt, &model);
        }
    }
}
