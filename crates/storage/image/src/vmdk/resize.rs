//! Changing the length of the disk: of its last extent.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use vmwright_disk::Disk;

use super::descriptor::Descriptor;
use super::layout::{MAX_DIRECTORY, SECTOR};
use super::sparse::{Entry, Layout, Sparse, State};
use super::{Backing, Extent, Store, Vmdk};
use crate::{Error, Result};

/// The most bytes of an extent in images that are split.
const MAX_PART: u64 = 2 << 30;

impl Vmdk {
    pub(super) fn resize(&self, len: u64) -> Result<()> {
        let old = self.len();
        if !len.is_multiple_of(SECTOR) || len > i64::MAX as u64 {
            return Err(Error::invalid("the length of a VMDK", "it must be a multiple of 512 bytes"));
        }
        if len == old {
            return Ok(());
        }
        let last = self.extents.last().filter(|last| last.start < len);
        let last = last.ok_or_else(|| Error::unsupported("removing the last extent of a VMDK"))?;
        self.check_resizable(last, old, len)?;
        self.prepare()?;
        let (from, to) = (old - last.start, len - last.start);
        match &last.store {
            Store::Flat { file, offset } => {
                if to > from {
                    resize_flat(&**file, *offset, from, to)?;
                }
                self.write_size(to)?;
                if to < from && offset + from == file.len() {
                    file.set_len(offset + to)?;
                }
            }
            // The header of an extent never says less than its line: nobody would open that.
            Store::Sparse(sparse) if to > from => {
                sparse.lengthen(to)?;
                self.write_size(to)?;
            }
            Store::Sparse(sparse) => {
                sparse.let_go_from(to)?;
                self.write_size(to)?;
                sparse.shorten(to)?;
            }
            _ => {}
        }
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn check_resizable(&self, last: &Extent, old: u64, len: u64) -> Result<()> {
        self.check_extent(last)?;
        let kind = self.descriptor().create_type.clone().unwrap_or_default().to_ascii_lowercase();
        let is_split = kind.contains("2gbmax") || kind.contains("twogbmax");
        if is_split && len > old && len - last.start > MAX_PART {
            return Err(Error::unsupported("a further extent of 2 GiB for a VMDK that grows"));
        }
        match &self.backing {
            Backing::Open(parent) if len > old && parent.len() > old => {
                return Err(Error::unsupported(
                    "growing a VMDK whose longer parent would show in the new part",
                ));
            }
            Backing::NotOpened(_) if len > old => {
                return Err(Error::unsupported("growing a VMDK without its parent at hand"));
            }
            _ => {}
        }
        let users = |file| {
            let shares = |extent: &&Extent| extent.file().is_some_and(|own| shares(own, file));
            self.extents.iter().filter(shares).count()
        };
        match &last.store {
            Store::Flat { file, .. } if users(file) > 1 => {
                Err(Error::unsupported("changing the length of a VMDK that has several extents in one file"))
            }
            Store::Sparse(sparse) if !matches!(sparse.layout, Layout::Hosted) => {
                Err(Error::unsupported("changing the length of a VMFS sparse extent"))
            }
            _ => Ok(()),
        }
    }

    /// Writes the length of the last extent into its line.
    fn write_size(&self, len: u64) -> Result<()> {
        for file in self.extents.iter().filter_map(Extent::file) {
            file.flush()?;
        }
        let mut descriptor = self.descriptor.write().unwrap_or_else(PoisonError::into_inner);
        let index = descriptor.extents.len().checked_sub(1);
        let text = index.and_then(|index| descriptor.with_sectors(index, len / SECTOR));
        let (Some((at, room)), Some(mut text)) = (self.place, text) else { return Ok(()) };
        let parsed = Descriptor::parse(&text)?;
        match room {
            None => {
                if text.len() as u64 > self.file.len() {
                    self.file.set_len(text.len() as u64)?;
                }
                self.file.write_at(&text, at)?;
                self.file.set_len(text.len() as u64)?;
            }
            Some(room) if text.len() as u64 <= room => {
                text.resize(text.len().max(descriptor.text.len()), 0);
                self.file.write_at(&text, at)?;
            }
            Some(_) => return Err(Error::unsupported("a longer descriptor than the VMDK has room for")),
        }
        *descriptor = parsed;
        Ok(self.file.flush()?)
    }
}

fn shares(one: &std::sync::Arc<dyn Disk>, other: &std::sync::Arc<dyn Disk>) -> bool {
    let id = |disk: &std::sync::Arc<dyn Disk>| match disk.extent_at(0).map(|extent| extent.kind) {
        Ok(vmwright_disk::ExtentKind::Data { file, .. }) => Some(file),
        _ => None,
    };
    std::sync::Arc::ptr_eq(one, other) || id(one).is_some_and(|known| id(other) == Some(known))
}

fn resize_flat(file: &dyn Disk, offset: u64, from: u64, to: u64) -> Result<()> {
    let there = file.len().min(offset + to);
    if there > offset + from {
        file.zero_at(offset + from, there - offset - from)?;
    }
    if offset + to > file.len() {
        file.set_len(offset + to)?;
    }
    Ok(())
}

impl Sparse {
    fn lengthen(&self, to: u64) -> Result<()> {
        self.prepare()?;
        self.sync()?;
        let mut state = self.write_state();
        let from = state.len;
        self.clean_tail(&mut state, from)?;
        self.grow(&mut state, to)
    }

    /// What lies past a new end is let go, durably, before anything says so.
    fn let_go_from(&self, to: u64) -> Result<()> {
        self.prepare()?;
        let mut state = self.write_state();
        self.drop_from(&mut state, to.next_multiple_of(self.grain))?;
        // A grain of which only a part is left shows zeros there, should the disk grow again.
        self.clean_tail(&mut state, to)?;
        self.write_back(&mut state)?;
        self.barrier(&mut state)
    }

    /// Makes what the last grain holds past the end of the disk zeros.
    fn clean_tail(&self, state: &mut State, len: u64) -> Result<()> {
        let used = len % self.grain;
        if used == 0 {
            return Ok(());
        }
        if let Entry::At(host) = self.entry(state, len - used)? {
            state.writer.check_not_metadata(host, self.grain)?;
            self.reach(state, host + self.grain)?;
            self.file.zero_at(host + used, self.grain - used)?;
        }
        Ok(())
    }

    /// Grows: the directories are written anew behind all else, with their new tables, and then one sector, the
    /// header, changes to them.
    fn grow(&self, state: &mut State, to: u64) -> Result<()> {
        let Some(mut header) = state.header else { return Ok(()) };
        header.capacity = to / SECTOR;
        let (old, new) = (state.gd.len() as u64, header.directory_len());
        if new > MAX_DIRECTORY {
            return Err(Error::unsupported("a VMDK extent of this length"));
        }
        if new > old {
            let copies = if state.rgd.is_some() { 2 } else { 1 };
            let (gd_len, table_len) =
                ((new * 4).next_multiple_of(SECTOR), self.table_len().next_multiple_of(SECTOR));
            let one = gd_len + (new - old) * table_len;
            let place = self.take(state, (one * copies).next_multiple_of(self.grain))?;
            let copy = |from: &[u32], at: u64| {
                let tables = (0..new - old).map(|index| ((at + gd_len + index * table_len) / SECTOR) as u32);
                let mut entries = from.to_vec();
                entries.extend(tables);
                let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                self.file.write_at(&bytes, at)?;
                Ok::<_, Error>(entries)
            };
            let gd = copy(&state.gd, place)?;
            let rgd = match &state.rgd {
                Some((_, rgd)) => Some((place + one, copy(rgd, place + one)?)),
                None => None,
            };
            header.gd = place / SECTOR;
            header.rgd = rgd.as_ref().map_or(header.rgd, |(at, _)| at / SECTOR);
            (state.gd_at, state.gd, state.rgd) = (place, gd, rgd);
            state.writer.metadata.push((place, place + one * copies));
            state.writer.metadata.sort_unstable();
        }
        self.write_header(state, header)
    }

    /// Makes the header say a shorter length.
    fn shorten(&self, to: u64) -> Result<()> {
        let mut state = self.write_state();
        let Some(mut header) = state.header else { return Ok(()) };
        header.capacity = to / SECTOR;
        let new = header.directory_len() as usize;
        self.write_header(&mut state, header)?;
        state.gd.truncate(new);
        if let Some((_, rgd)) = &mut state.rgd {
            rgd.truncate(new);
        }
        Ok(())
    }

    /// Lets all grains from `at` on go.
    pub(super) fn drop_from(&self, state: &mut State, mut at: u64) -> Result<()> {
        while at < state.len {
            let run = self.run_at(state, at, state.len - at)?;
            if !matches!(run.kind, super::sparse::RunKind::Unallocated) {
                for grain in 0..run.len.div_ceil(self.grain) {
                    self.relieve(state)?;
                    self.link(state, at + grain * self.grain, Entry::Unallocated)?;
                }
            }
            at += run.len;
        }
        Ok(())
    }

    /// Writes the header after everything that it points to is durable.
    fn write_header(&self, state: &mut State, header: super::layout::SparseHeader) -> Result<()> {
        self.barrier(state)?;
        self.file.write_at(&header.encode(), 0)?;
        self.barrier(state)?;
        state.len = header.capacity * SECTOR;
        state.header = Some(header);
        Ok(())
    }
}
