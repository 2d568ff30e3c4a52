//! Changing the size of the disk, and dropping what it holds.
//!
//! ```text
//! growing     longer L1 table ─ zeros where something old would show ─ flush ─ size in the header
//! shrinking   flush ─ size in the header ─ clusters and L2 tables go ─ flush ─ shorter L1 table ─ shorter file
//! ```
//!
//! A crash in between leaves the old size with all of its data, or the new one. What is recorded past the end of the
//! disk, as a crash leaves it, is made zeros when the disk grows over it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use vmwright_disk::ErrorKind;

use super::Qcow2;
use super::layout::{AT_L1, AT_SIZE, MAX_L1_BYTES, OFFSET_MASK, Version};
use super::map::read_u64;
use super::options::Preallocation;
use super::state::{Freed, State};
use super::zero::Wish;
use crate::cache::Table;
use crate::{Error, Result};

impl Qcow2 {
    /// Changes the size of the disk.
    pub(super) fn resize(&self, len: u64) -> Result<()> {
        self.check_writable()?;
        let what = "the new size of a qcow2 image";
        if !len.is_multiple_of(512) {
            return Err(Error::invalid(what, "it must be a multiple of 512 bytes"));
        }
        let l1_len = len.div_ceil(self.header.l2_coverage());
        if len > i64::MAX as u64 || l1_len > MAX_L1_BYTES / 8 {
            return Err(Error::invalid(what, "it needs larger clusters"));
        }
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        if len == self.size() {
            return Ok(());
        }
        self.check_resizable()?;
        self.prepare()?;
        self.with_bitmaps_for(len, || match len > self.size() {
            true => self.grow(len, l1_len as usize),
            false => self.shrink(len, l1_len as usize),
        })
    }

    /// Refuses what QEMU refuses, too, before anything is changed.
    fn check_resizable(&self) -> Result<()> {
        let state = self.read_state();
        if self.header.version == Version::V2 && state.header.snapshot_count > 0 {
            // They do not say how large the disk was.
            return Err(Error::unsupported("changing the size of a version 2 image that has snapshots"));
        }
        Ok(())
    }

    fn grow(&self, len: u64, l1_len: usize) -> Result<()> {
        let old = self.size();
        if self.is_raw_data() {
            let there = self.data_file()?.len().min(len);
            self.zero_data(old, there.saturating_sub(old))?;
        }
        self.extend_data_file(len)?;
        {
            let mut state = self.write_state();
            if l1_len > state.l1.len() {
                self.move_l1(&mut state, l1_len)?;
            }
        }
        self.size.store(len, Ordering::Release);
        let published = self.hide_old(old, len).and_then(|()| self.publish_size(len));
        published.inspect_err(|_| self.size.store(old, Ordering::Release))
    }

    /// Makes everything in a range zeros that was past the end of the disk so far, and shows something.
    fn hide_old(&self, old: u64, len: u64) -> Result<()> {
        let last_table = self.read_state().l1.iter().rposition(|entry| entry & OFFSET_MASK != 0);
        let mapped =
            last_table.map_or(0, |index| (index as u64 + 1).saturating_mul(self.header.l2_coverage()));
        let beneath = self.backing()?.map_or(0, |backing| backing.len());
        let shows_until = mapped.max(beneath).min(len);
        if shows_until > old {
            self.zero(old, shows_until - old)?;
        }
        if self.is_raw_data() {
            // All that is recorded of such a file is that everything is there.
            self.preallocate_from(old.next_multiple_of(self.header.cluster_size()), Preallocation::Metadata)?;
        }
        Ok(())
    }

    /// Makes all changes durable, and then the new size.
    fn publish_size(&self, len: u64) -> Result<()> {
        let mut state = self.write_state();
        self.write_back(&mut state)?;
        self.barrier(&mut state.writer)?;
        self.file.write_at(&len.to_be_bytes(), AT_SIZE)?;
        self.barrier(&mut state.writer)?;
        state.header.size = len;
        Ok(())
    }

    fn shrink(&self, len: u64, l1_len: usize) -> Result<()> {
        let old = self.size.swap(len, Ordering::AcqRel);
        self.publish_size(len).inspect_err(|_| self.size.store(old, Ordering::Release))?;
        self.drop_from(len.next_multiple_of(self.header.cluster_size()))?;
        {
            let mut state = self.write_state();
            self.write_back(&mut state)?;
            self.barrier(&mut state.writer)?;
            self.cut_l1(&mut state, l1_len)?;
            self.write_back(&mut state)?;
            self.barrier(&mut state.writer)?;
            self.cut_file(&mut state)?;
        }
        if self.has_data_file() && self.data_file()?.len() > len {
            match self.data_file()?.set_len(len) {
                Err(error) if error.kind() != ErrorKind::Unsupported => return Err(error.into()),
                _ => self.data_changed.store(true, Ordering::Release),
            }
        }
        self.sync()
    }

    /// Drops everything that the image holds, so that it shows its backing file.
    pub(crate) fn drop_all(&self) -> Result<()> {
        self.prepare()?;
        if self.is_raw_data() {
            self.zero(0, self.size())?;
            return self.sync();
        }
        self.drop_from(0)?;
        // What is dropped must be so durably before its bytes go: else a crash shows holes in their place.
        self.sync()?;
        if self.has_data_file() {
            let file = self.data_file()?;
            self.data_changed.store(true, Ordering::Release);
            file.discard(0, file.len())?;
            self.sync()?;
        }
        self.cut_file(&mut self.write_state())
    }

    /// Forgets what is recorded from `start` on, a multiple of the cluster size, past the end of the disk, too.
    fn drop_from(&self, start: u64) -> Result<()> {
        let coverage = self.header.l2_coverage();
        let tables = self.read_state().l1.len();
        let first = start.div_ceil(coverage);
        let border = first.saturating_mul(coverage).min((tables as u64).saturating_mul(coverage));
        self.each_cluster(start, border, Wish::Drop)?;
        for index in first as usize..tables {
            let mut state = self.write_state();
            self.relieve(&mut state)?;
            self.drop_table(&mut state, index)?;
        }
        Ok(())
    }

    /// Forgets an L2 table and everything it names.
    fn drop_table(&self, state: &mut State, index: usize) -> Result<()> {
        let table = state.l1[index] & OFFSET_MASK;
        if table == 0 {
            return Ok(());
        }
        self.check_table(table, state.header.l1_offset + index as u64 * 8)?;
        let cluster = table >> self.header.cluster_bits;
        let mut freed = vec![Freed { cluster, punch: true }];
        for slice_at in (table..table + self.header.cluster_size()).step_by(self.cache.slice_len() as usize) {
            let slice = self.cache.get(&*self.file, Table::L2, slice_at)?;
            for at in (0..slice.len()).step_by(self.l2_entry_size() as usize) {
                let entry = self.parse_l2(read_u64(&slice, at), slice_at + at as u64)?;
                self.list_released(&state.writer, entry, true, &mut freed)?;
            }
        }
        let references = self.check_in_use(&state.writer, cluster)?;
        state.l1[index] = 0;
        state.writer.l1_dirty.insert(index);
        state.writer.freed.extend(freed);
        if references == 1 {
            // Nothing takes its place before the count goes down, and that is after the L1 table is durable.
            state.writer.metadata.remove(&cluster);
        }
        Ok(())
    }

    /// Moves the L1 table to where it has room for so many entries.
    fn move_l1(&self, state: &mut State, entries: usize) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let clusters = (entries as u64 * 8).div_ceil(cluster_size);
        let first = self.allocate_run(&mut state.writer, clusters)?;
        let at = first << self.header.cluster_bits;
        let moved = self.switch_l1(state, entries, at);
        let (lost, count) = match &moved {
            Ok(old) => *old,
            Err(_) => (at, clusters),
        };
        if moved.is_ok() {
            state.writer.metadata.extend(first..first + clusters);
        }
        for cluster in (lost >> self.header.cluster_bits..).take(count as usize) {
            if moved.is_ok() {
                state.writer.metadata.remove(&cluster);
            }
            state.writer.freed.push(Freed { cluster, punch: true });
        }
        moved.map(|_| ())
    }

    /// Makes a longer L1 table durable, then lets the header point to it; answers where the old one was, and how many
    /// clusters it had.
    fn switch_l1(&self, state: &mut State, entries: usize, at: u64) -> Result<(u64, u64)> {
        let cluster_size = self.header.cluster_size();
        self.write_back(state)?;
        let mut bytes: Vec<u8> = state.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize((entries * 8).next_multiple_of(cluster_size as usize), 0);
        self.file.write_at(&bytes, at)?;
        self.barrier(&mut state.writer)?;
        self.point_l1(state, entries as u32, at)?;
        let old = (state.header.l1_offset, (state.l1.len() as u64 * 8).div_ceil(cluster_size));
        state.l1.resize(entries, 0);
        (state.header.l1_len, state.header.l1_offset) = (entries as u32, at);
        Ok(old)
    }

    /// Writes where the L1 table is and how long, in one sector.
    fn point_l1(&self, state: &mut State, entries: u32, at: u64) -> Result<()> {
        let mut fields = [0; 12];
        fields[..4].copy_from_slice(&entries.to_be_bytes());
        fields[4..].copy_from_slice(&at.to_be_bytes());
        self.file.write_at(&fields, AT_L1)?;
        self.barrier(&mut state.writer)
    }

    /// Takes entries that are zero, and durably so, off the end of the L1 table.
    fn cut_l1(&self, state: &mut State, entries: usize) -> Result<()> {
        if entries >= state.l1.len() {
            return Ok(());
        }
        let at = state.header.l1_offset;
        self.point_l1(state, entries as u32, at)?;
        let clusters = |entries: usize| (entries as u64 * 8).div_ceil(self.header.cluster_size());
        let (kept, had) = (clusters(entries), clusters(state.l1.len()));
        let first = at >> self.header.cluster_bits;
        for cluster in first + kept..first + had {
            state.writer.metadata.remove(&cluster);
            state.writer.freed.push(Freed { cluster, punch: true });
        }
        state.l1.truncate(entries);
        state.header.l1_len = entries as u32;
        Ok(())
    }

    /// Cuts what is not in use off the end of the file.
    fn cut_file(&self, state: &mut State) -> Result<()> {
        let writer = &mut state.writer;
        let bits = self.header.cluster_bits;
        let mut end = writer.used_end >> bits;
        while end > 0 && self.refcount(writer, end - 1)? == 0 {
            end -= 1;
        }
        if end << bits >= writer.used_end {
            return Ok(());
        }
        match self.file.set_len(end << bits) {
            Ok(()) => writer.used_end = end << bits,
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
