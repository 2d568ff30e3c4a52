//! Sparse extents: which grain is where.
//!
//! ```text
//! offset in the extent ─ grain directory (in memory) ─ grain table (cached) ─ grain in the file
//!                                                                          └ or zeros, or what lies beneath
//! ```

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vmwright_disk::Disk;

use super::layout::{CowdHeader, SECTOR, SparseHeader, ZEROED};
use super::packed::Unpacked;
use super::stream::Stream;
use crate::cache::{Cache, Table};
use crate::{Error, Result};

/// A sparse extent of any of the three layouts.
pub(super) struct Sparse {
    pub(super) file: Arc<dyn Disk>,
    pub(super) layout: Layout,
    /// The length of a grain in bytes.
    pub(super) grain: u64,
    /// How many entries a grain table has.
    pub(super) entries: u64,
    /// Whether an entry of 1 stands for zeros.
    pub(super) zeroed: bool,
    /// Whether grains are compressed, and then whether a marker precedes each.
    pub(super) packed: Option<bool>,
    pub(super) cache: Cache,
    pub(super) unpacked: Unpacked,
    /// Read-locked while bytes are read or written where they are, write-locked while the mapping changes.
    pub(super) state: RwLock<State>,
}

/// Which layout the tables have.
#[derive(Debug, Clone)]
pub(super) enum Layout {
    Hosted,
    Cowd(CowdHeader),
    /// With the sector of the first grain.
    SeSparse(u64),
}

/// What changes while the image is open.
pub(super) struct State {
    /// The length of the extent in bytes.
    pub(super) len: u64,
    /// The header of a hosted extent, as in the file.
    pub(super) header: Option<SparseHeader>,
    /// Where the grain directory is, in bytes.
    pub(super) gd_at: u64,
    /// The sectors of the grain tables; zero for none.
    pub(super) gd: Vec<u32>,
    /// Where the redundant grain directory is, and its entries.
    pub(super) rgd: Option<(u64, Vec<u32>)>,
    pub(super) writer: Writer,
    /// What is being packed into a new stream.
    pub(super) stream: Option<Stream>,
}

/// What only writing needs.
#[derive(Default)]
pub(super) struct Writer {
    /// Whether the rest is filled in.
    pub(super) ready: bool,
    /// Where the next grain can go: past everything in use. The file is made longer than that ahead of need.
    pub(super) next: u64,
    /// Ranges that hold tables and headers, sorted, so that a damaged image never has data written over them.
    pub(super) metadata: Vec<(u64, u64)>,
    /// Tables that changed in memory only.
    pub(super) dirty: BTreeSet<usize>,
    /// Directory entries that changed in memory only.
    pub(super) gd_dirty: BTreeSet<usize>,
    /// Grains that no table in memory has any more.
    pub(super) freed: Vec<u64>,
    /// Grains that no table in the file has any more.
    pub(super) free: Vec<u64>,
    /// Whether every grain is known to have one user, so that it can be used again once that lets it go.
    pub(super) may_free: Option<bool>,
    /// The next free sector as a COWD header has it.
    pub(super) cowd_free: u32,
    /// Set when a flush failed: what the host kept is unknown from then on.
    pub(super) broken: bool,
}

/// A range of the extent whose bytes are all kept in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) kind: RunKind,
    pub(super) len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    Unallocated,
    Zero,
    /// In the file from here on.
    Data {
        host: u64,
    },
    /// Compressed in the grain at `host`; the range begins `skip` bytes into it.
    Packed {
        host: u64,
        skip: u64,
    },
}

/// What a table says of a grain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Unallocated,
    Zero,
    At(u64),
}

/// What the directory says of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableAt {
    None,
    Zero,
    At(u64),
}

impl RunKind {
    /// Whether `next` goes on where a run of this kind and length ends.
    fn continues(self, len: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Data { host }, Self::Data { host: next }) => host.checked_add(len) == Some(next),
            (Self::Unallocated, Self::Unallocated) | (Self::Zero, Self::Zero) => true,
            _ => false,
        }
    }
}

impl Sparse {
    pub(super) fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The length of an entry of a grain table in bytes.
    pub(super) fn entry_len(&self) -> u64 {
        if matches!(self.layout, Layout::SeSparse(_)) { 8 } else { 4 }
    }

    /// The length of a grain table in bytes.
    pub(super) fn table_len(&self) -> u64 {
        self.entries * self.entry_len()
    }

    /// How many bytes of the extent one table maps.
    pub(super) fn coverage(&self) -> u64 {
        self.entries * self.grain
    }

    /// Where the table of this index is, within the file.
    pub(super) fn table_at(&self, state: &State, index: usize) -> Result<TableAt> {
        let sector = state.gd.get(index).copied().unwrap_or(0);
        let at = u64::from(sector) * SECTOR;
        match sector {
            0 => Ok(TableAt::None),
            1 if self.zeroed => Ok(TableAt::Zero),
            _ if at + self.table_len() > self.file.len() => {
                let entry = state.gd_at + index as u64 * self.entry_len();
                Err(Error::corrupt("the grain directory", entry, "a grain table within the file", at))
            }
            _ => Ok(TableAt::At(at)),
        }
    }

    /// The bytes of a table.
    pub(super) fn table(&self, state: &State, index: usize, at: u64) -> Result<Arc<Vec<u8>>> {
        if let Some(open) = state.stream.as_ref().and_then(|stream| stream.table(index)) {
            return Ok(Arc::new(open));
        }
        self.cache.get(&*self.file, Table::L2, at)
    }

    /// What an entry means; `at` is where it is in the file.
    pub(super) fn parse_entry(&self, bytes: &[u8], number: usize, at: u64) -> Result<Entry> {
        let host = if let Layout::SeSparse(grains) = self.layout {
            let raw = word(bytes, number * 8, 8);
            match raw >> 60 {
                0 if raw == 0 => return Ok(Entry::Unallocated),
                1 | 2 => return Ok(Entry::Zero),
                3 => {
                    let index = raw >> 48 & 0xfff | (raw & 0xffff_ffff_ffff) << 12;
                    index.checked_mul(self.grain).and_then(|from| from.checked_add(grains * SECTOR))
                }
                _ => None,
            }
        } else {
            match word(bytes, number * 4, 4) {
                0 => return Ok(Entry::Unallocated),
                ZEROED if self.zeroed => return Ok(Entry::Zero),
                sector => Some(sector * SECTOR),
            }
        };
        match host.filter(|host| *host < self.file.len()) {
            Some(host) => Ok(Entry::At(host)),
            None => {
                let at = at + number as u64 * self.entry_len();
                let found = host.unwrap_or(u64::MAX);
                Err(Error::corrupt("an entry of a grain table", at, "a grain within the file", found))
            }
        }
    }

    /// What the tables say of the grain that holds `offset`.
    pub(super) fn entry(&self, state: &State, offset: u64) -> Result<Entry> {
        let index = (offset / self.coverage()) as usize;
        match self.table_at(state, index)? {
            TableAt::None if state.stream.as_ref().is_none_or(|stream| stream.table(index).is_none()) => {
                Ok(Entry::Unallocated)
            }
            TableAt::Zero => Ok(Entry::Zero),
            table => {
                let at = if let TableAt::At(at) = table { at } else { 0 };
                let bytes = self.table(state, index, at)?;
                self.parse_entry(&bytes, (offset % self.coverage() / self.grain) as usize, at)
            }
        }
    }

    /// Where the bytes from `offset` on are, for as long as one table says but at most `max` bytes, which do not
    /// reach past the end of the extent.
    pub(super) fn run_at(&self, state: &State, offset: u64, max: u64) -> Result<Run> {
        let coverage = self.coverage();
        let index = (offset / coverage) as usize;
        let in_table = max.min(coverage - offset % coverage);
        let open = state.stream.as_ref().is_some_and(|stream| stream.table(index).is_some());
        let at = match self.table_at(state, index)? {
            TableAt::None if !open => {
                return Ok(Run { kind: RunKind::Unallocated, len: self.unmapped(state, offset, max) });
            }
            TableAt::Zero => return Ok(Run { kind: RunKind::Zero, len: in_table }),
            TableAt::At(at) => at,
            TableAt::None => 0,
        };
        let bytes = self.table(state, index, at)?;
        let mut run = self.grain_run(&bytes, at, offset)?;
        while run.len < in_table {
            let next = self.grain_run(&bytes, at, offset + run.len)?;
            if !run.kind.continues(run.len, next.kind) {
                break;
            }
            run.len += next.len;
        }
        run.len = run.len.min(in_table);
        Ok(run)
    }

    /// The rest of the grain that holds `offset`.
    fn grain_run(&self, bytes: &[u8], at: u64, offset: u64) -> Result<Run> {
        let number = (offset % self.coverage() / self.grain) as usize;
        let skip = offset % self.grain;
        let kind = match self.parse_entry(bytes, number, at)? {
            Entry::Unallocated => RunKind::Unallocated,
            Entry::Zero => RunKind::Zero,
            Entry::At(host) if self.packed.is_some() => RunKind::Packed { host, skip },
            Entry::At(host) => RunKind::Data { host: host + skip },
        };
        Ok(Run { kind, len: self.grain - skip })
    }

    /// How far from `offset` on there are no tables.
    fn unmapped(&self, state: &State, offset: u64, max: u64) -> u64 {
        let coverage = self.coverage();
        let first = (offset / coverage) as usize;
        let rest = state.gd.get(first..).unwrap_or_default();
        let tables = rest.iter().take_while(|sector| **sector == 0).count().max(1) as u64;
        // A table of a stream that is not written yet ends the range.
        let tables = match state.stream.as_ref().and_then(Stream::open_index) {
            Some(open) if open > first => tables.min((open - first) as u64),
            _ => tables,
        };
        tables.saturating_mul(coverage).saturating_sub(offset % coverage).min(max)
    }
}

/// The little-endian number of `len` bytes at `index`, which the caller keeps within the slice.
pub(super) fn word(bytes: &[u8], index: usize, len: usize) -> u64 {
    bytes[index..index + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
