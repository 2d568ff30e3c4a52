//! Writing: in place where there is a grain, else into a new one.
//!
//! ```text
//! grain there                write in place, in parallel
//! whole grains, else         take new grains ─ write, in parallel ─ link them
//! part of a grain, else      write what shows there now and the data to a new grain, link it
//! ```

use super::layout::SECTOR;
use super::read::Below;
use super::sparse::{Entry, Layout, RunKind, Sparse, State, TableAt};
use super::{Access, Extent, Store, Vmdk, open};
use crate::cache::Table;
use crate::error::Reason;
use crate::{Error, Result};

/// At most so many bytes of new grains are written at a time.
const MAX_STEP: u64 = 4 << 20;
/// Bytes beneath a grain are copied in pieces of this length.
const PIECE: u64 = 1 << 20;
/// The file is made longer by so much ahead of need.
const AHEAD: u64 = if cfg!(test) { 128 << 10 } else { 8 << 20 };

/// New grains, one behind the other.
#[derive(Clone, Copy)]
struct Grains {
    host: u64,
    count: u64,
    /// Whether they are zeros.
    fresh: bool,
}

impl Vmdk {
    /// Writes `data`, which lies within the disk.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.each_extent(offset, data.len() as u64, |extent, inside, part| {
            self.check_extent(extent)?;
            self.prepare()?;
            let data = &data[part.start as usize..part.end as usize];
            match &extent.store {
                Store::Flat { file, offset } => Ok(file.write_at(data, offset + inside)?),
                Store::Sparse(sparse) => sparse.write(data, inside, self.below(extent)),
                _ => Ok(()),
            }
        })
    }

    /// Refuses a change of an extent that cannot be changed.
    pub(super) fn check_extent(&self, extent: &Extent) -> Result<()> {
        match (&extent.store, extent.access) {
            (Store::NotOpened, _) => Err(open::not_opened(extent)),
            (Store::Zero, _) => Err(Reason::ReadOnly { what: "an extent that is nothing but zeros" }.into()),
            (Store::NoAccess, _) => Err(Reason::ReadOnly { what: "an extent marked as NOACCESS" }.into()),
            (_, Access::ReadWrite) => Ok(()),
            _ => Err(Reason::ReadOnly { what: "an extent of the image" }.into()),
        }
    }
}

impl Sparse {
    fn write(&self, data: &[u8], offset: u64, below: Below<'_>) -> Result<()> {
        self.prepare()?;
        let mut done = 0;
        while done < data.len() {
            done += self.write_some(&data[done..], offset + done as u64, below)?;
        }
        Ok(())
    }

    /// Writes as much as one step can; answers how much that was.
    fn write_some(&self, data: &[u8], offset: u64, below: Below<'_>) -> Result<usize> {
        let state = self.read_state();
        state.check_sound()?;
        let len = data.len() as u64;
        let run = self.run_at(&state, offset, len)?;
        if let RunKind::Data { host } = run.kind
            && host + run.len <= self.file.len()
        {
            state.writer.check_not_metadata(host, run.len)?;
            self.file.write_at(&data[..run.len as usize], host)?;
            return Ok(run.len as usize);
        }
        let ends_extent = offset + run.len == state.len;
        drop(state);
        let whole = if ends_extent { run.len } else { run.len - run.len % self.grain };
        if !offset.is_multiple_of(self.grain) || whole == 0 || matches!(run.kind, RunKind::Data { .. }) {
            let len = (self.grain - offset % self.grain).min(len);
            self.write_part(&mut self.write_state(), &data[..len as usize], offset, below)?;
            return Ok(len as usize);
        }
        self.write_whole(&data[..whole.min(MAX_STEP.max(self.grain)) as usize], offset)
    }

    /// Writes whole grains to new places; answers how many bytes.
    fn write_whole(&self, data: &[u8], offset: u64) -> Result<usize> {
        let grains = {
            let mut state = self.write_state();
            self.relieve(&mut state)?;
            self.allocate(&mut state, (data.len() as u64).div_ceil(self.grain))?
        };
        // Nobody else knows of these grains, so they are written without keeping others waiting.
        let len = (data.len() as u64).min(grains.count * self.grain);
        let written = self.write_padded(&data[..len as usize], grains);
        let mut state = self.write_state();
        for index in 0..grains.count {
            let host = grains.host + index * self.grain;
            match written {
                Ok(()) => self.link(&mut state, offset + index * self.grain, Entry::At(host))?,
                // No table ever had it.
                Err(_) => state.writer.free.push(host),
            }
        }
        written.map(|()| len as usize)
    }

    /// Writes data and fills the rest of its last grain, past the end of the disk, with zeros.
    fn write_padded(&self, data: &[u8], Grains { host, fresh, .. }: Grains) -> Result<()> {
        self.file.write_at(data, host)?;
        let len = data.len() as u64;
        let rest = len.next_multiple_of(self.grain) - len;
        if rest > 0 && !fresh {
            self.file.zero_at(host + len, rest)?;
        }
        Ok(())
    }

    /// Writes within one grain, keeping what else shows there.
    pub(super) fn write_part(
        &self,
        state: &mut State,
        data: &[u8],
        offset: u64,
        below: Below<'_>,
    ) -> Result<()> {
        self.relieve(state)?;
        let skip = offset % self.grain;
        let start = offset - skip;
        let shows = match self.entry(state, start)? {
            Entry::At(host) => {
                state.writer.check_not_metadata(host, self.grain)?;
                self.reach(state, host + self.grain)?;
                return Ok(self.file.write_at(data, host + skip)?);
            }
            Entry::Zero => None,
            Entry::Unallocated => {
                let len = self.grain.min(state.len - start);
                (below.zeros(start, len)? < len).then_some(below)
            }
        };
        let grains = self.allocate(state, 1)?;
        if let Err(error) = self.fill(grains, data, offset, shows) {
            state.writer.free.push(grains.host);
            return Err(error);
        }
        self.link(state, start, Entry::At(grains.host))
    }

    /// Writes a new grain with what shows there, changed by `data`.
    fn fill(&self, grains: Grains, data: &[u8], offset: u64, shows: Option<Below<'_>>) -> Result<()> {
        let (start, skip) = (offset - offset % self.grain, offset % self.grain);
        let end = skip + data.len() as u64;
        for (from, to) in [(0, skip), (end, self.grain)] {
            match shows {
                None if grains.fresh || from == to => {}
                None => self.file.zero_at(grains.host + from, to - from)?,
                Some(below) => {
                    let mut from = from;
                    while from < to {
                        let mut piece = vec![0; PIECE.min(to - from) as usize];
                        below.read(&mut piece, start + from)?;
                        self.file.write_at(&piece, grains.host + from)?;
                        from += piece.len() as u64;
                    }
                }
            }
        }
        Ok(self.file.write_at(data, grains.host + skip)?)
    }

    /// Takes up to `wanted` grains that nothing uses.
    fn allocate(&self, state: &mut State, wanted: u64) -> Result<Grains> {
        let writer = &mut state.writer;
        if let Some(host) = writer.free.pop() {
            let mut grains = Grains { host, count: 1, fresh: false };
            while grains.count < wanted && writer.free.last() == Some(&(host + grains.count * self.grain)) {
                writer.free.pop();
                grains.count += 1;
            }
            return Ok(grains);
        }
        let host = self.take(state, wanted * self.grain)?;
        Ok(Grains { host, count: wanted, fresh: true })
    }

    /// Takes bytes past everything in use, which are zeros.
    pub(super) fn take(&self, state: &mut State, len: u64) -> Result<u64> {
        let host = state.writer.next;
        let end = host.checked_add(len).filter(|end| *end <= u64::from(u32::MAX) * SECTOR);
        let end = end.ok_or_else(|| Error::from(Reason::Full))?;
        self.reach(state, end)?;
        state.writer.next = end;
        Ok(host)
    }

    /// Makes the file reach `end`.
    pub(super) fn reach(&self, state: &mut State, end: u64) -> Result<()> {
        if end <= self.file.len() {
            return Ok(());
        }
        // Ahead of need where the host allows it; a flush cuts what was not used.
        self.file.set_len(end + AHEAD).or_else(|_| self.file.set_len(end))?;
        state.writer.next = state.writer.next.max(end.next_multiple_of(SECTOR));
        Ok(())
    }

    /// Sets the entry of the grain at `offset`, in memory; what it was before is free once the tables are written.
    pub(super) fn link(&self, state: &mut State, offset: u64, entry: Entry) -> Result<()> {
        let index = (offset / self.coverage()) as usize;
        let at = match self.table_at(state, index)? {
            TableAt::At(at) => at,
            table => self.new_table(state, index, table == TableAt::Zero)?,
        };
        let number = (offset % self.coverage() / self.grain) as usize;
        let bytes = self.cache.get(&*self.file, Table::L2, at)?;
        let old = self.parse_entry(&bytes, number, at)?;
        if old == entry {
            return Ok(());
        }
        let raw = match entry {
            Entry::Unallocated => 0,
            Entry::Zero => super::layout::ZEROED as u32,
            Entry::At(host) => (host / SECTOR) as u32,
        };
        self.cache.modify(&*self.file, Table::L2, at, |bytes| {
            bytes[number * 4..number * 4 + 4].copy_from_slice(&raw.to_le_bytes());
        })?;
        state.writer.dirty.insert(index);
        if let Entry::At(host) = old {
            state.writer.freed.push(host);
        }
        Ok(())
    }

    /// Makes a table where the directory has none, in both copies; `zeros` where all of its grains read as zeros.
    fn new_table(&self, state: &mut State, index: usize, zeros: bool) -> Result<u64> {
        let len = self.table_len().next_multiple_of(SECTOR);
        let copies = if state.rgd.is_some() { 2 } else { 1 };
        let at = self.take(state, (len * copies).next_multiple_of(self.grain))?;
        state.writer.metadata.push((at, at + len * copies));
        state.writer.metadata.sort_unstable();
        let sector = |at: u64| (at / SECTOR) as u32;
        let missing = || Error::invalid("a grain directory", "it has no entry for this grain");
        *state.gd.get_mut(index).ok_or_else(missing)? = sector(at);
        if let Some((_, rgd)) = &mut state.rgd {
            *rgd.get_mut(index).ok_or_else(missing)? = sector(at + len);
        }
        if zeros {
            self.cache.modify(&*self.file, Table::L2, at, |bytes| {
                bytes.chunks_exact_mut(4).for_each(|entry| entry.copy_from_slice(&1u32.to_le_bytes()));
            })?;
        }
        state.writer.dirty.insert(index);
        state.writer.gd_dirty.insert(index);
        Ok(at)
    }

    /// Reads what only writing needs, at the first change.
    pub(super) fn prepare(&self) -> Result<()> {
        if self.read_state().writer.ready {
            return Ok(());
        }
        let mut state = self.write_state();
        if state.writer.ready {
            return Ok(());
        }
        let metadata = self.metadata(&state)?;
        let mut next = self.file.len();
        if !next.is_multiple_of(self.grain) {
            // Of the last grain the file may lack the end, which is its own wherever it begins.
            next = next.checked_add(self.grain - SECTOR).ok_or_else(|| Error::from(Reason::Full))?;
        }
        next = next.max(metadata.last().map_or(0, |(_, end)| *end));
        if let Layout::Cowd(header) = &self.layout {
            next = next.max(u64::from(header.free) * SECTOR);
            state.writer.cowd_free = header.free;
        }
        // As QEMU does: grains begin at multiples of their length from here on.
        state.writer.next =
            next.checked_next_multiple_of(self.grain).ok_or_else(|| Error::from(Reason::Full))?;
        state.writer.metadata = metadata;
        state.writer.ready = true;
        Ok(())
    }

    /// The ranges of all tables and headers, sorted and merged; an error where two share bytes.
    fn metadata(&self, state: &State) -> Result<Vec<(u64, u64)>> {
        let table_len = self.table_len();
        let mut ranges = match (&self.layout, &state.header) {
            (Layout::Cowd(_), _) => vec![(0, super::layout::COWD_HEADER)],
            (_, Some(header)) if header.descriptor_at > 0 => {
                let at = header.descriptor_at * SECTOR;
                vec![(0, SECTOR), (at, at + header.descriptor_len * SECTOR)]
            }
            _ => vec![(0, SECTOR)],
        };
        ranges.push((state.gd_at, state.gd_at + state.gd.len() as u64 * 4));
        for index in 0..state.gd.len() {
            if let TableAt::At(at) = self.table_at(state, index)? {
                ranges.push((at, at + table_len));
            }
        }
        if let Some((at, rgd)) = &state.rgd {
            let what = "the redundant grain directory";
            if rgd.len() != state.gd.len() {
                return Err(Error::corrupt(what, *at, "a directory within the file", *at));
            }
            ranges.push((*at, at + rgd.len() as u64 * 4));
            for (index, (copy, sector)) in rgd.iter().zip(&state.gd).enumerate() {
                let copy_at = u64::from(*copy) * SECTOR;
                if (*copy <= 1) != (*sector <= 1) || copy_at + table_len > self.file.len() {
                    let found = copy_at;
                    return Err(Error::corrupt(what, at + index as u64 * 4, "a copy of each table", found));
                }
                if *copy > 1 {
                    ranges.push((copy_at, copy_at + table_len));
                }
            }
        }
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if start < last.1 => {
                    return Err(Error::corrupt(
                        "the tables of a VMDK",
                        start,
                        "a place of its own for each",
                        start,
                    ));
                }
                Some(last) if start == last.1 => last.1 = end,
                _ => merged.push((start, end)),
            }
        }
        Ok(merged)
    }
}

impl State {
    pub(super) fn check_sound(&self) -> Result<()> {
        match self.writer.broken {
            true => Err(Reason::FlushFailed.into()),
            false => Ok(()),
        }
    }
}

impl super::sparse::Writer {
    /// Refuses to write data over a table or a header.
    pub(super) fn check_not_metadata(&self, host: u64, len: u64) -> Result<()> {
        let after = self.metadata.partition_point(|(start, _)| *start < host + len);
        match after.checked_sub(1).and_then(|index| self.metadata.get(index)) {
            Some((_, end)) if *end > host => Err(Error::corrupt(
                "an entry of a grain table",
                host,
                "a grain that is not also a table",
                host,
            )),
            _ => Ok(()),
        }
    }
}
