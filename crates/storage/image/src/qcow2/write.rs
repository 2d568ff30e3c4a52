//! Writing: in place where that is possible, else into new clusters.
//!
//! ```text
//! exclusive data cluster       write in place, in parallel
//! whole clusters, else         take new clusters ─ write, in parallel ─ link them
//! part of a cluster, else      read the old content, write all of it to a new cluster, link it
//! ```

use std::ops::Range;
use std::sync::PoisonError;

use vmwright_disk::check_range;

use super::Qcow2;
use super::alloc::Clusters;
use super::layout::COPIED;
use super::map::{Cluster, L2Entry, Parts, RawEntry, RunKind};
use super::state::State;
use crate::Result;
use crate::cache::Table;
use crate::error::Reason;

/// What the host writes wholly or not at all.
const SECTOR: u64 = 512;
/// At most so many bytes of new clusters are written at a time.
const MAX_STEP: u64 = 4 << 20;

impl Qcow2 {
    /// Writes `data`, which lies within the disk.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.prepare()?;
        let mut done = 0;
        while done < data.len() {
            done += self.write_some(&data[done..], offset + done as u64)?;
        }
        Ok(())
    }

    /// Writes as much as one step can; answers how much that was.
    fn write_some(&self, data: &[u8], offset: u64) -> Result<usize> {
        let cluster_size = self.header.cluster_size();
        let state = self.read_state();
        if state.writer.broken {
            return Err(Reason::FlushFailed.into());
        }
        let run = self.run_at(&state, offset, data.len() as u64)?;
        let aligned = (offset | run.len).is_multiple_of(super::crypt::SECTOR);
        if let RunKind::Data { host, exclusive: true } = run.kind
            && (aligned || !self.is_encrypted())
        {
            self.check_not_metadata(&state, host, run.len)?;
            self.write_data(&data[..run.len as usize], host)?;
            return Ok(run.len as usize);
        }
        let kept = match self.cluster_at(&state, offset)? {
            Cluster::Plain(parts) => parts.own_host().is_some(),
            Cluster::Compressed(_) => false,
        };
        drop(state);
        let ends_disk = offset + run.len == self.size();
        let whole = if ends_disk { run.len } else { run.len - run.len % cluster_size };
        // What is read to be written again must not change meanwhile.
        if !offset.is_multiple_of(cluster_size) || whole == 0 || kept {
            let len = (cluster_size - offset % cluster_size).min(data.len() as u64) as usize;
            return self.write_part(&data[..len], offset);
        }
        let whole = whole.min(MAX_STEP.max(cluster_size));
        self.write_whole(&data[..whole as usize], offset)
    }

    /// Writes whole clusters to new places; answers how many bytes.
    fn write_whole(&self, data: &[u8], offset: u64) -> Result<usize> {
        let cluster_size = self.header.cluster_size();
        let wanted = (data.len() as u64).div_ceil(cluster_size);
        let _unlinked = self.unlinked.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.write_state();
        self.relieve(&mut state)?;
        let clusters = self.allocate_data(&mut state.writer, offset, wanted)?;
        if self.has_data_file() {
            // Its clusters have one place each, which a smaller write may be about to fill, too.
            self.write_padded(data, offset, clusters)?;
            self.link_data(&mut state, offset, clusters)?;
            return Ok(data.len());
        }
        drop(state);
        // Nobody else knows of these clusters, so they are written without keeping others waiting.
        let len = (data.len() as u64).min(clusters.count * cluster_size) as usize;
        let written = self.write_padded(&data[..len], offset, clusters);
        let mut state = self.write_state();
        // The size may be another by now. Where the disk ended, more may have been written behind.
        let end = offset + len as u64;
        let fits = end == self.size() || end < self.size() && end.is_multiple_of(cluster_size);
        let written = written.and_then(|()| self.check_reaches(end));
        match written {
            Ok(()) if fits => self.link_data(&mut state, offset, clusters)?,
            Ok(()) => {
                self.release_new(&mut state, clusters)?;
                return Ok(0);
            }
            Err(error) => {
                self.release_new(&mut state, clusters)?;
                return Err(error);
            }
        }
        Ok(len)
    }

    /// Refuses a change past the end of a disk that has become smaller since the change began.
    fn check_reaches(&self, end: u64) -> Result<()> {
        let start = self.size().min(end);
        Ok(check_range(start, end - start, self.size())?)
    }

    /// Gives clusters back that were allocated and then not used.
    fn release_new(&self, state: &mut State, Clusters { host, count, .. }: Clusters) -> Result<()> {
        for index in 0..count {
            let host = host + index * self.header.cluster_size();
            self.release(&mut state.writer, L2Entry::Data { host, copied: true }, false)?;
        }
        Ok(())
    }

    /// Writes data and fills the rest of its last cluster, past the end of the disk, with zeros.
    fn write_padded(&self, data: &[u8], offset: u64, Clusters { host, fresh, .. }: Clusters) -> Result<()> {
        self.write_data(data, host)?;
        let len = data.len() as u64;
        let in_last = len % self.header.cluster_size();
        if in_last == 0 || fresh {
            return Ok(());
        }
        self.zero_data(host + len, self.room(offset + len - in_last) - in_last)
    }

    /// Writes within one cluster, keeping what else it holds; answers how many bytes.
    fn write_part(&self, data: &[u8], offset: u64) -> Result<usize> {
        let skip = offset % self.header.cluster_size();
        let mut state = self.write_state();
        self.relieve(&mut state)?;
        let cluster = self.cluster_at(&state, offset)?;
        if let Cluster::Plain(parts) = cluster
            && let Some(host) = parts.own_host()
        {
            self.check_not_metadata(&state, host, self.header.cluster_size())?;
            return self.write_own(&mut state, data, offset, host, parts);
        }
        let start = offset - skip;
        let new = self.allocate_data(&mut state.writer, start, 1)?;
        if let Err(error) = self.fill_new(&mut state, data, offset, new, cluster) {
            // The error may come from linking, too: what is linked must not be given back.
            let linked = matches!(self.cluster_at(&state, start)?,
                Cluster::Plain(parts) if parts.host == Some(new.host));
            if !linked {
                self.release_new(&mut state, new)?;
            }
            return Err(error);
        }
        Ok(data.len())
    }

    /// Writes parts of a cluster that has its own place; answers how many bytes.
    fn write_own(
        &self,
        state: &mut State,
        data: &[u8],
        offset: u64,
        host: u64,
        parts: Parts,
    ) -> Result<usize> {
        let skip = offset % self.header.cluster_size();
        let first = (skip / self.part_size()) as u32;
        let there = parts.allocated >> first & 1 != 0;
        let alike = if there { parts.allocated } else { !parts.allocated & self.all_parts() };
        let end = u64::from(first + (alike >> first).trailing_ones()) * self.part_size();
        let data = &data[..(end - skip).min(data.len() as u64) as usize];
        if there {
            self.write_data(data, host + skip)?;
            return Ok(data.len());
        }
        let touched = self.touched_parts(skip, data.len() as u64);
        self.write_touched(state, data, offset, host, false)?;
        let (allocated, zero) = (parts.allocated | touched, parts.zero & !touched);
        let entry = self.encode(Parts { host: Some(host), copied: true, allocated, zero });
        self.link(state, offset - skip, entry, false)?;
        Ok(data.len())
    }

    /// Lets a new cluster take the place of an old one, changed by `data`.
    fn fill_new(
        &self,
        state: &mut State,
        data: &[u8],
        offset: u64,
        new: Clusters,
        old: Cluster,
    ) -> Result<()> {
        let skip = offset % self.header.cluster_size();
        let start = offset - skip;
        let touched = self.touched_parts(skip, data.len() as u64);
        let (allocated, zero) = match old {
            Cluster::Plain(parts) => (parts.allocated, parts.zero),
            Cluster::Compressed(_) => (self.all_parts(), 0),
        };
        self.write_touched(state, data, offset, new.host, new.fresh)?;
        for part in runs(allocated & !touched) {
            let (from, to) = (part.start * self.part_size(), part.end * self.part_size());
            let bytes = self.old_bytes(state, start + from..start + to)?;
            self.write_data(&bytes, new.host + from)?;
        }
        let (allocated, zero) = (allocated | touched, zero & !touched);
        let entry = self.encode(Parts { host: Some(new.host), copied: true, allocated, zero });
        self.link(state, start, entry, false)
    }

    /// Writes `data` into the cluster at `host`, and around it the rest of the parts it touches as the disk shows
    /// them now; `fresh` where the cluster is zeros so far.
    fn write_touched(&self, state: &State, data: &[u8], offset: u64, host: u64, fresh: bool) -> Result<()> {
        let skip = offset % self.header.cluster_size();
        let (start, end) = (offset - skip, skip + data.len() as u64);
        let head = skip - skip % self.part_size()..skip;
        let tail = end..end.next_multiple_of(self.part_size()).min(self.room(start));
        let zeros = [&head, &tail].map(|edge| self.shows_zeros(state, start + edge.start..start + edge.end));
        let [head_zeros, tail_zeros] = zeros;
        let (head_zeros, tail_zeros) = (head_zeros?, tail_zeros?);
        if head_zeros && tail_zeros {
            // Sectors are either as they were, or zeros, or written: the zeros beside the data are written with it.
            let (from, to) = (skip - skip % SECTOR, end.next_multiple_of(SECTOR).min(tail.end));
            if fresh {
                return self.write_data(data, host + skip);
            }
            self.zero_data(host + head.start, from - head.start)?;
            self.zero_data(host + to, tail.end - to)?;
            let mut bytes = vec![0; (to - from) as usize];
            bytes[(skip - from) as usize..][..data.len()].copy_from_slice(data);
            return self.write_data(&bytes, host + from);
        }
        let mut bytes = self.old_bytes(state, start + head.start..start + head.end)?;
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(&self.old_bytes(state, start + tail.start..start + tail.end)?);
        self.write_data(&bytes, host + head.start)
    }

    /// What the disk shows in a range, with zeros past its end.
    fn old_bytes(&self, state: &State, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let there = self.size().saturating_sub(range.start).min(bytes.len() as u64) as usize;
        self.read(state, &mut bytes[..there], range.start)?;
        Ok(bytes)
    }

    /// Whether a range within one cluster is known to read as zeros; what is past the end of the disk is.
    fn shows_zeros(&self, state: &State, range: Range<u64>) -> Result<bool> {
        let (mut at, end) = (range.start, range.end.min(self.size()));
        while at < end {
            let run = self.run_at(state, at, end - at)?;
            match run.kind {
                RunKind::Zero => {}
                RunKind::Unallocated if !self.shows_backing(at)? => {}
                _ => return Ok(false),
            }
            at += run.len;
        }
        Ok(true)
    }

    /// Whether the backing file would show at `offset` if nothing were allocated here.
    pub(super) fn shows_backing(&self, offset: u64) -> Result<bool> {
        Ok(self.backing()?.is_some_and(|backing| offset < backing.len()))
    }

    /// Lets the cluster at `offset` of the disk be what `entry` says, and releases what was there.
    pub(super) fn link(&self, state: &mut State, offset: u64, entry: RawEntry, punch: bool) -> Result<()> {
        self.link_run(state, offset, 1, &|_| entry, punch).map(|_| ())
    }

    /// Lets clusters of the disk from `offset` on be the new ones in a row.
    pub(super) fn link_data(&self, state: &mut State, offset: u64, new: Clusters) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let mut done = 0;
        while done < new.count {
            let entry = |index: u64| self.encode_data(new.host + (done + index) * cluster_size);
            done += self.link_run(state, offset + done * cluster_size, new.count - done, &entry, false)?;
        }
        Ok(())
    }

    /// Changes 1 to `count` entries from the one of `offset` on, as many as are in one slice of a table; answers how
    /// many.
    pub(super) fn link_run(
        &self,
        state: &mut State,
        offset: u64,
        count: u64,
        entry: &dyn Fn(u64) -> RawEntry,
        punch: bool,
    ) -> Result<u64> {
        let table = self.own_l2_table(state, offset)?;
        let at = self.l2_entry_at(table, offset);
        let slice_at = at - at % self.cache.slice_len();
        let (first, size) = ((at - slice_at) as usize, self.l2_entry_size() as usize);
        let count = count.min((self.cache.slice_len() - first as u64) / size as u64);
        let slice = self.cache.get(&*self.file, Table::L2, slice_at)?;
        let mut freed = Vec::new();
        for index in 0..count {
            let place = first + index as usize * size;
            let old = self.parse_l2(super::map::read_u64(&slice, place), slice_at + place as u64)?;
            if !self.keeps(old, entry(index).word) {
                self.list_released(&state.writer, old, punch, &mut freed)?;
            }
        }
        drop(slice);
        self.cache.modify(&*self.file, Table::L2, slice_at, |bytes| {
            for index in 0..count {
                let RawEntry { word, bitmap } = entry(index);
                let place = &mut bytes[first + index as usize * size..][..size];
                place[..8].copy_from_slice(&word.to_be_bytes());
                if let Some(second) = place.get_mut(8..16) {
                    second.copy_from_slice(&bitmap.to_be_bytes());
                }
            }
        })?;
        state.writer.freed.extend(freed);
        Ok(count)
    }

    /// Whether a new entry goes on using the cluster of the old one.
    fn keeps(&self, old: L2Entry, word: u64) -> bool {
        match old {
            L2Entry::Data { host, .. } | L2Entry::Zero { host: Some(host), .. } => {
                word & super::layout::COMPRESSED == 0 && word & super::layout::OFFSET_MASK == host
            }
            _ => false,
        }
    }

    /// The L2 table that maps `offset`, made if there is none and copied if snapshots share it.
    fn own_l2_table(&self, state: &mut State, offset: u64) -> Result<u64> {
        let index = self.l1_index(offset);
        if index >= state.l1.len() {
            self.check_reaches(offset + 1)?;
        }
        let old = self.l2_table(state, offset)?;
        if let Some(table) = old
            && state.l1[index] & COPIED != 0
        {
            return Ok(table);
        }
        let new = match old {
            None => self.allocate_table(&mut state.writer)?,
            Some(table) => self.unshare_l2(state, table)?,
        };
        state.l1[index] = new | COPIED;
        state.writer.l1_dirty.insert(index);
        Ok(new)
    }

    /// Copies an L2 table that snapshots share, unless it turns out that none does any more.
    fn unshare_l2(&self, state: &mut State, table: u64) -> Result<u64> {
        let references = self.refcount(&state.writer, table >> self.header.cluster_bits)?;
        if references == 1 {
            return Ok(table);
        }
        let mut bytes = vec![0; self.header.cluster_size() as usize];
        self.file.read_at(&mut bytes, table)?;
        // What a shared table points to is shared as well, whatever the flags say.
        for entry in bytes.chunks_exact_mut(self.l2_entry_size() as usize) {
            entry[0] &= !(COPIED >> 56) as u8;
        }
        let new = self.allocate_table(&mut state.writer)?;
        self.file.write_at(&bytes, new)?;
        self.release_table(&mut state.writer, table)?;
        Ok(new)
    }

    /// Writes one whole cluster, compressed before.
    pub(super) fn store_packed(&self, packed: &[u8], offset: u64) -> Result<()> {
        self.prepare()?;
        let mut state = self.write_state();
        self.relieve(&mut state)?;
        let len = packed.len() as u64;
        let host = self.place_packed(&mut state, len)?;
        self.file.write_at(packed, host)?;
        let word = super::map::Packed::encode(host, len, self.header.cluster_bits);
        self.link(&mut state, offset, RawEntry { word, bitmap: 0 }, false)
    }

    /// Finds room for `len` bytes, less than a cluster: behind the last compressed cluster, or in a new one.
    fn place_packed(&self, state: &mut State, len: u64) -> Result<u64> {
        let (bits, cluster_size) = (self.header.cluster_bits, self.header.cluster_size());
        let writer = &mut state.writer;
        let begun = writer.pack_at;
        let room = begun.next_multiple_of(cluster_size) - begun;
        let references = if room > 0 { self.refcount(writer, begun >> bits)? } else { 0 };
        let joins = room > 0 && references < self.width().max();
        if joins && room >= len {
            self.set_refcount(writer, begun >> bits, references + 1)?;
            writer.pack_at = begun + len;
            return Ok(begun);
        }
        let new = self.allocate(writer, 1)?.host;
        let host = if joins && new == begun + room {
            self.set_refcount(writer, begun >> bits, references + 1)?;
            begun
        } else {
            new
        };
        writer.pack_at = host + len;
        Ok(host)
    }
}

/// The runs of set bits.
fn runs(bits: u32) -> impl Iterator<Item = Range<u64>> {
    let set = move |bit: &u64| bits >> bit & 1 != 0;
    let begins = move |bit: &u64| set(bit) && (*bit == 0 || !set(&(bit - 1)));
    (0..32).filter(begins).map(move |start| start..start + u64::from((bits >> start).trailing_ones()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "runs are compared with runs")]
    fn runs_of_set_bits_are_found() {
        assert_eq!(runs(0b1011_0001).collect::<Vec<_>>(), [0..1, 4..6, 7..8]);
        assert_eq!(runs(u32::MAX).collect::<Vec<_>>(), [0..32]);
        assert_eq!(runs(1 << 31).collect::<Vec<_>>(), [31..32]);
        assert_eq!(runs(0).count(), 0);
    }
}
