//! Writing: in place where that is possible, else into new clusters.
//!
//! ```text
//! exclusive data cluster       write in place, in parallel
//! whole clusters, else         take new clusters ─ write, in parallel ─ link them
//! part of a cluster, else      read the old content, write all of it to a new cluster, link it
//! ```

use super::Qcow2;
use super::alloc::Clusters;
use super::layout::{COPIED, OFFSET_MASK};
use super::map::{L2Entry, RunKind};
use super::state::State;
use crate::cache::Table;
use crate::driver::Place;
use crate::error::Reason;
use crate::{Error, Result};

/// At most so many bytes of new clusters are written at a time.
const MAX_STEP: u64 = 4 << 20;

/// Whether a cluster that is written in part is zeros elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeros {
    No,
    /// They have to be written.
    Write,
    /// They are in the file.
    There,
}

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
        if let RunKind::Data { host, exclusive: true } = run.kind {
            self.check_not_metadata(&state, host, run.len)?;
            self.file.write_at(&data[..run.len as usize], host)?;
            return Ok(run.len as usize);
        }
        let kept = matches!(self.entry(&state, offset)?, L2Entry::Zero { host: Some(_), .. });
        drop(state);
        let ends_disk = offset + run.len == self.size();
        let whole = if ends_disk { run.len } else { run.len - run.len % cluster_size };
        if !offset.is_multiple_of(cluster_size) || whole == 0 || kept {
            let len = (cluster_size - offset % cluster_size).min(data.len() as u64) as usize;
            self.write_part(&data[..len], offset)?;
            return Ok(len);
        }
        let whole = whole.min(MAX_STEP.max(cluster_size));
        self.write_whole(&data[..whole as usize], offset)
    }

    /// Writes whole clusters to new places; answers how many bytes.
    fn write_whole(&self, data: &[u8], offset: u64) -> Result<usize> {
        let cluster_size = self.header.cluster_size();
        let wanted = (data.len() as u64).div_ceil(cluster_size);
        let clusters = {
            let mut state = self.write_state();
            self.relieve(&mut state)?;
            self.allocate(&mut state.writer, wanted)?
        };
        // Nobody else knows of these clusters, so they are written without keeping others waiting.
        let len = (data.len() as u64).min(clusters.count * cluster_size) as usize;
        let written = self.write_padded(&data[..len], clusters);
        let mut state = self.write_state();
        for index in 0..clusters.count {
            let host = clusters.host + index * cluster_size;
            if written.is_ok() {
                self.link(&mut state, offset + index * cluster_size, host | COPIED, false)?;
            } else {
                self.release(&mut state.writer, L2Entry::Data { host, copied: true }, false)?;
            }
        }
        written.map(|()| len)
    }

    /// Writes data and fills the rest of its last cluster, past the end of the disk, with zeros.
    fn write_padded(&self, data: &[u8], Clusters { host, fresh, .. }: Clusters) -> Result<()> {
        self.file.write_at(data, host)?;
        let rest = (data.len() as u64).next_multiple_of(self.header.cluster_size()) - data.len() as u64;
        if rest > 0 && !fresh {
            self.file.zero_at(host + data.len() as u64, rest)?;
        }
        Ok(())
    }

    /// Writes within one cluster, keeping what else it holds.
    fn write_part(&self, data: &[u8], offset: u64) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let skip = offset % cluster_size;
        let mut state = self.write_state();
        self.relieve(&mut state)?;
        // The new content: all of it, or what differs from zeros that are there already.
        let (host, zeros) = match self.entry(&state, offset)? {
            L2Entry::Data { host, copied: true } => {
                self.check_not_metadata(&state, host, cluster_size)?;
                return Ok(self.file.write_at(data, host + skip)?);
            }
            L2Entry::Zero { host: Some(host), copied: true } => {
                self.check_not_metadata(&state, host, cluster_size)?;
                (host, Zeros::Write)
            }
            old => {
                let zeros = self.reads_zeros(old, offset - skip)?;
                let new = self.allocate(&mut state.writer, 1)?;
                (
                    new.host,
                    if !zeros {
                        Zeros::No
                    } else if new.fresh {
                        Zeros::There
                    } else {
                        Zeros::Write
                    },
                )
            }
        };
        let filled = self.fill_cluster(&state, data, offset, host, zeros);
        if let Err(error) = filled {
            if self.entry(&state, offset)? != (L2Entry::Zero { host: Some(host), copied: true }) {
                self.release(&mut state.writer, L2Entry::Data { host, copied: true }, false)?;
            }
            return Err(error);
        }
        self.link(&mut state, offset - skip, host | COPIED, false)
    }

    /// Writes the cluster at `host` with what the disk holds there now, changed by `data`.
    fn fill_cluster(&self, state: &State, data: &[u8], offset: u64, host: u64, zeros: Zeros) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        let skip = offset % cluster_size;
        if zeros == Zeros::Write {
            self.file.zero_at(host, cluster_size)?;
        }
        if zeros != Zeros::No {
            return Ok(self.file.write_at(data, host + skip)?);
        }
        let mut cluster = vec![0; cluster_size as usize];
        let start = offset - skip;
        let old_len = cluster_size.min(self.size() - start) as usize;
        self.read(state, &mut cluster[..old_len], start)?;
        cluster[skip as usize..][..data.len()].copy_from_slice(data);
        Ok(self.file.write_at(&cluster, host)?)
    }

    /// Whether a cluster is known to read as zeros.
    pub(super) fn reads_zeros(&self, entry: L2Entry, start: u64) -> Result<bool> {
        Ok(match entry {
            L2Entry::Zero { .. } => true,
            L2Entry::Unallocated => !self.shows_backing(start)?,
            L2Entry::Data { .. } | L2Entry::Compressed(_) => false,
        })
    }

    /// Whether the backing file would show at `offset` if nothing were allocated here.
    pub(super) fn shows_backing(&self, offset: u64) -> Result<bool> {
        Ok(self.backing()?.is_some_and(|backing| offset < backing.len()))
    }

    /// Refuses to write data over tables, as a damaged image might ask for.
    pub(super) fn check_not_metadata(&self, state: &State, host: u64, len: u64) -> Result<()> {
        let bits = self.header.cluster_bits;
        let mut clusters = host >> bits..=(host + len - 1) >> bits;
        match clusters.find(|cluster| state.writer.metadata.contains(cluster)) {
            Some(cluster) => {
                let expected = "no data where tables are";
                Err(Error::corrupt("a data cluster", cluster << bits, expected, host))
            }
            None => Ok(()),
        }
    }

    /// Lets the disk at `offset` be what `raw`, an L2 entry, says, and releases what was there.
    pub(super) fn link(&self, state: &mut State, offset: u64, raw: u64, punch: bool) -> Result<()> {
        let old = self.entry(state, offset)?;
        let table = self.own_l2_table(state, offset)?;
        let at = self.l2_entry_at(table, offset);
        let slice_at = at - at % self.cache.slice_len();
        let index = (at - slice_at) as usize;
        if !self.keeps(old, raw) {
            self.release(&mut state.writer, old, punch)?;
        }
        self.cache.modify(&*self.file, Table::L2, slice_at, |bytes| {
            bytes[index..index + 8].copy_from_slice(&raw.to_be_bytes());
        })
    }

    /// Whether a new entry goes on using the cluster of the old one.
    fn keeps(&self, old: L2Entry, raw: u64) -> bool {
        match old {
            L2Entry::Data { host, .. } | L2Entry::Zero { host: Some(host), .. } => raw & OFFSET_MASK == host,
            _ => false,
        }
    }

    /// The L2 table that maps `offset`, made if there is none and copied if snapshots share it.
    fn own_l2_table(&self, state: &mut State, offset: u64) -> Result<u64> {
        let index = self.l1_index(offset);
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
        for entry in bytes.chunks_exact_mut(8) {
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
        let raw = super::map::Packed::encode(host, len, self.header.cluster_bits);
        self.link(&mut state, offset, raw, false)
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

    /// Gives every cluster of an empty disk a place, without writing it.
    pub(crate) fn preallocate(&self) -> Result<()> {
        self.place_clusters(0, self.header.size, |_| {})?;
        self.sync()
    }

    /// Gives the clusters of a range that holds nothing so far a place; they read as zeros until they are written.
    pub(super) fn place_clusters(&self, start: u64, len: u64, mut placed: impl FnMut(Place)) -> Result<()> {
        self.prepare()?;
        let cluster_size = self.header.cluster_size();
        let end = start + len;
        let mut offset = start - start % cluster_size;
        while offset < end {
            let mut state = self.write_state();
            self.relieve(&mut state)?;
            let wanted = (end - offset).div_ceil(cluster_size).min(1024);
            let clusters = self.allocate(&mut state.writer, wanted)?;
            if !clusters.fresh {
                self.file.zero_at(clusters.host, clusters.count * cluster_size)?;
            }
            for index in 0..clusters.count {
                let host = clusters.host + index * cluster_size;
                self.link(&mut state, offset + index * cluster_size, host | COPIED, false)?;
            }
            let covered = (clusters.count * cluster_size).min(end - offset);
            placed(Place { offset, host: clusters.host, len: covered });
            offset += clusters.count * cluster_size;
        }
        Ok(())
    }
}
