//! The file as it will be once its log is replayed.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use vmwright_disk::{Disk, Extent, ExtentKind, Result, check_range};

use super::layout::SECTOR;

/// What the log will write, by offset in the file; pieces do not overlap.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pieces: BTreeMap<u64, Piece>,
    /// How long the file must be at least.
    pub(super) len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) len: u64,
    pub(super) what: What,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Zeros.
    Zeros,
    /// A sector whose middle stands in the log at `at`.
    Data { at: u64, leading: [u8; 8], trailing: [u8; 4] },
}

impl Pending {
    /// Adds what is written after all that was added before.
    pub(super) fn put(&mut self, start: u64, len: u64, what: What) {
        let end = start + len;
        // Only zeros are ever longer than a sector, so what is cut stays whole sectors.
        let before = self.pieces.range(..start).next_back().map(|(at, piece)| (*at, *piece));
        if let Some((at, piece)) = before.filter(|(at, piece)| at + piece.len > start) {
            self.pieces.insert(at, Piece { len: start - at, ..piece });
            if at + piece.len > end {
                self.pieces.insert(end, Piece { len: at + piece.len - end, ..piece });
            }
        }
        while let Some((&at, &piece)) = self.pieces.range(start..end).next() {
            self.pieces.remove(&at);
            if at + piece.len > end {
                self.pieces.insert(end, Piece { len: at + piece.len - end, ..piece });
            }
        }
        self.pieces.insert(start, Piece { len, what });
    }

    /// The pieces in the order of the file.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, Piece)> + '_ {
        self.pieces.iter().map(|(at, piece)| (*at, *piece))
    }

    /// How many pieces there are.
    pub(super) fn count(&self) -> usize {
        self.pieces.len()
    }

    /// What `offset` lies in, and for how many bytes on; at most `max`.
    fn at(&self, offset: u64, max: u64) -> (Option<(u64, What)>, u64) {
        let before = self.pieces.range(..=offset).next_back();
        if let Some((at, piece)) = before.filter(|(at, piece)| **at + piece.len > offset) {
            return (Some((*at, piece.what)), max.min(at + piece.len - offset));
        }
        let next = self.pieces.range(offset..).next().map_or(u64::MAX, |(at, _)| *at);
        (None, max.min(next - offset))
    }
}

/// The bytes of a sector that the log at `at` holds.
pub(super) fn sector(file: &dyn Disk, at: u64, leading: [u8; 8], trailing: [u8; 4]) -> Result<[u8; 4096]> {
    let mut bytes = [0; SECTOR as usize];
    file.read_at(&mut bytes, at)?;
    bytes[..8].copy_from_slice(&leading);
    bytes[4092..].copy_from_slice(&trailing);
    Ok(bytes)
}

/// A file that is kept open, or only looked at.
pub(super) enum Held<'a> {
    Shared(Arc<dyn Disk>),
    Lent(&'a dyn Disk),
}

impl Held<'_> {
    pub(super) fn get(&self) -> &dyn Disk {
        match self {
            Self::Shared(file) => &**file,
            Self::Lent(file) => *file,
        }
    }
}

/// A file seen through what its log will write to it.
pub(super) struct View<'a> {
    file: Held<'a>,
    pending: RwLock<Option<Arc<Pending>>>,
}

impl<'a> View<'a> {
    pub(super) fn new(file: Held<'a>, pending: Option<Pending>) -> Self {
        Self { file, pending: RwLock::new(pending.map(Arc::new)) }
    }

    /// What the log will write, if it was not replayed yet.
    pub(super) fn pending(&self) -> Option<Arc<Pending>> {
        self.pending.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file as it is.
    pub(super) fn file(&self) -> &dyn Disk {
        self.file.get()
    }

    /// Notes that the file itself has it all now.
    pub(super) fn settle(&self) {
        *self.pending.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn read_file(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let there = self.file().len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (present, missing) = buf.split_at_mut(there);
        missing.fill(0);
        if present.is_empty() { Ok(()) } else { self.file().read_at(present, offset) }
    }
}

impl Disk for View<'_> {
    fn len(&self) -> u64 {
        self.file().len().max(self.pending().map_or(0, |pending| pending.len))
    }

    fn is_read_only(&self) -> bool {
        self.file().is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Some(pending) = self.pending() else { return self.file().read_at(buf, offset) };
        check_range(offset, buf.len() as u64, self.len())?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (piece, len) = pending.at(at, (buf.len() - done) as u64);
            let part = &mut buf[done..done + len as usize];
            match piece {
                None => self.read_file(part, at)?,
                Some((_, What::Zeros)) => part.fill(0),
                Some((start, What::Data { at: log, leading, trailing })) => {
                    let bytes = sector(self.file(), log, leading, trailing)?;
                    part.copy_from_slice(&bytes[(at - start) as usize..][..len as usize]);
                }
            }
            done += len as usize;
        }
        Ok(())
    }

    // Whoever writes has replayed the log before.

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.file().write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.file().zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file().discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file().set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.file().flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let Some(pending) = self.pending() else { return self.file().extent_at(offset) };
        check_range(offset, 1, self.len())?;
        let (piece, len) = pending.at(offset, self.len() - offset);
        let kind = match piece {
            Some((_, What::Zeros)) => ExtentKind::Zero,
            Some(_) => ExtentKind::Opaque,
            None if offset >= self.file().len() => ExtentKind::Zero,
            None => {
                let extent = self.file().extent_at(offset)?;
                return Ok(Extent { len: extent.len.min(len), ..extent });
            }
        };
        Ok(Extent { start: offset, len, kind, depth: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    #[test]
    fn later_pieces_hide_earlier_ones() {
        let mut log = vec![7; 8192];
        log.extend(vec![9; 4096]);
        let file = Arc::new(MemDisk::from_bytes(log));
        let data = What::Data { at: 8192, leading: [1; 8], trailing: [2; 4] };
        let mut pending = Pending { len: 40_960, ..Pending::default() };
        pending.put(4096, 4096, data);
        pending.put(0, 32_768, What::Zeros);
        pending.put(8192, 4096, data);
        pending.put(12_288, 4096, What::Zeros);
        pending.put(36_864, 4096, data);
        let view = View::new(Held::Shared(file), Some(pending));
        assert_eq!(view.len(), 40_960);
        let mut expected = vec![0; 40_960];
        for at in [8192, 36_864] {
            expected[at..at + 4096].fill(9);
            expected[at..at + 8].fill(1);
            expected[at + 4092..at + 4096].fill(2);
        }
        let mut all = vec![5; 40_960];
        view.read_at(&mut all, 0).unwrap();
        assert!(all == expected);
        let mut at = 0;
        while at < view.len() {
            let extent = view.extent_at(at).unwrap();
            let mut part = vec![1; extent.len as usize];
            view.read_at(&mut part, at).unwrap();
            assert!(part == expected[at as usize..extent.end() as usize]);
            assert!(!extent.is_zero() || part.iter().all(|byte| *byte == 0), "{extent:?}");
            at = extent.end();
        }
    }
}
