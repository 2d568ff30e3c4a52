use crate::overlay::{Overlay, SECTOR, sector_ceil, sector_floor};
use crate::redo::{CUT_GRANULE, Digest, MAX_RANGE, MAX_SPARSE, MAX_WRITE, Record, RecordKind, digest};
use crate::{Disk, HostFile, Result};

/// Sectors that did not change are left out where there are at least this many together.
const WORTH_SKIPPING: usize = 8;

/// One record of a redo to be, with the digests of what is there now and the data to come.
pub(super) struct Piece<'a> {
    pub(super) record: Record,
    pub(super) digests: &'a [u8],
    pub(super) data: &'a [u8],
}

/// Finds out how an overlay differs from its file, holding little of it at a time.
///
/// Sectors that were written but hold the same as before are no change.
pub(super) struct Changes<'a> {
    file: &'a HostFile,
    overlay: &'a Overlay,
    old_len: u64,
    new_len: u64,
    /// The part of the file around the present position that is known to be a hole, or not.
    region: (u64, u64, bool),
    old: Vec<u8>,
    new: Vec<u8>,
    digests: Vec<u8>,
}

type Sink<'s> = &'s mut dyn FnMut(Piece<'_>) -> Result<()>;

impl<'a> Changes<'a> {
    pub(super) fn new(file: &'a HostFile, overlay: &'a Overlay) -> Self {
        let (old_len, new_len) = (file.len(), overlay.len());
        let (old, new, digests) = Default::default();
        Self { file, overlay, old_len, new_len, region: (0, 0, false), old, new, digests }
    }

    /// Calls `sink` with every change, in rising order.
    pub(super) fn walk(&mut self, sink: Sink<'_>) -> Result<()> {
        // Whatever lies past the old end is zeros unless written, and is recorded as that.
        let grown = sector_ceil(self.old_len);
        let mut edge = self.edge();
        let old_end = edge.unwrap_or(grown);
        let mut at = 0;
        while let Some(change) = self.overlay.next_change(at) {
            if change.start >= old_end {
                self.write_edge(edge.take(), sink)?;
            }
            self.zero_new(at.max(grown), change.start, sink)?;
            let border = change.end.min(old_end);
            match change.zero {
                true => self.zero(change.start, border, sink)?,
                false => self.write(change.start, border, sink)?,
            }
            if change.end > old_end {
                self.write_edge(edge.take(), sink)?;
            }
            let border = change.start.max(grown);
            match change.zero {
                true => self.zero_new(border, change.end, sink)?,
                false => self.write_new(border, change.end, true, sink)?,
            }
            at = change.end;
        }
        self.write_edge(edge, sink)?;
        self.zero_new(at.max(grown), self.new_len, sink)?;
        self.cut(sink)
    }

    /// The sector within which a growing file ended, if it did.
    ///
    /// It changes even where none of its bytes do: what someone else appends to it must be noticed.
    fn edge(&self) -> Option<u64> {
        let start = sector_floor(self.old_len);
        (self.new_len > self.old_len && start < self.old_len).then_some(start)
    }

    fn write_edge(&mut self, start: Option<u64>, sink: Sink<'_>) -> Result<()> {
        let Some(start) = start else { return Ok(()) };
        let end = self.new_len.min(start + SECTOR);
        let mut old = std::mem::take(&mut self.old);
        self.read_old(&mut old, start, SECTOR as usize)?;
        let mut new = vec![0; (end - start) as usize];
        self.overlay.read_at(&mut new, start)?;
        let kind = match new.iter().all(|byte| *byte == 0) {
            true => RecordKind::Zero,
            false => RecordKind::Write,
        };
        let record = Record { kind, start, len: end - start, old_zero: false };
        let data = if kind == RecordKind::Write { &new[..] } else { &[] };
        sink(Piece { record, digests: &digest(&old), data })?;
        self.old = old;
        Ok(())
    }

    /// Splits a range within the old length into holes and data; answers the end of the first and which it is.
    fn region(&mut self, at: u64, end: u64) -> Result<(u64, bool)> {
        if !(self.region.0..self.region.1).contains(&at) {
            let extent = self.file.extent_at(at)?;
            let hole = extent.is_zero();
            let stop = match extent.end() {
                stop if stop >= self.old_len => sector_ceil(self.old_len),
                stop if hole => sector_floor(stop),
                stop => sector_ceil(stop),
            };
            self.region = match stop > at {
                true => (at, stop, hole),
                // A hole that ends within this sector.
                false => (at, at + SECTOR, false),
            };
        }
        Ok((self.region.1.min(end), self.region.2))
    }

    fn write(&mut self, start: u64, end: u64, sink: Sink<'_>) -> Result<()> {
        let mut at = start;
        while at < end {
            let (stop, hole) = self.region(at, end)?;
            match hole {
                true => self.write_new(at, stop, false, sink)?,
                false => self.write_over(at, stop, sink)?,
            }
            at = stop;
        }
        Ok(())
    }

    /// Data where there were zeros before.
    fn write_new(&mut self, start: u64, end: u64, past_end: bool, sink: Sink<'_>) -> Result<()> {
        for (start, end) in pieces(start, end, MAX_WRITE) {
            let mut new = std::mem::take(&mut self.new);
            new.resize((end - start) as usize, 0);
            self.overlay.read_at(&mut new, start)?;
            let is_zero = new.iter().all(|byte| *byte == 0);
            if !is_zero {
                let record = Record { kind: RecordKind::Write, start, len: end - start, old_zero: true };
                sink(Piece { record, digests: &[], data: &new })?;
            } else if past_end {
                self.zero_new(start, end, sink)?;
            }
            self.new = new;
        }
        Ok(())
    }

    /// Data where there was data before.
    fn write_over(&mut self, start: u64, end: u64, sink: Sink<'_>) -> Result<()> {
        for (start, end) in pieces(start, end, MAX_WRITE) {
            let padded = sector_ceil(end - start) as usize;
            let (mut old, mut new) = (std::mem::take(&mut self.old), std::mem::take(&mut self.new));
            new.clear();
            new.resize(padded, 0);
            self.overlay.read_at(&mut new[..(end - start) as usize], start)?;
            self.read_old(&mut old, start, padded)?;
            for (first, last) in differing(&old, &new) {
                let (from, to) = (first * SECTOR as usize, last * SECTOR as usize);
                self.digests.clear();
                let sectors = old[from..to].chunks_exact(SECTOR as usize);
                self.digests.extend(sectors.flat_map(digest));
                let (start, end) = (start + from as u64, end.min(start + to as u64));
                let record = Record { kind: RecordKind::Write, start, len: end - start, old_zero: false };
                let data = &new[from..from + (end - start) as usize];
                sink(Piece { record, digests: &self.digests, data })?;
            }
            (self.old, self.new) = (old, new);
        }
        Ok(())
    }

    /// Reads what the file holds, with zeros from its end on or from where it will be cut off.
    fn read_old(&self, buf: &mut Vec<u8>, start: u64, len: usize) -> Result<()> {
        buf.clear();
        buf.resize(len, 0);
        let there = self.old_len.min(self.new_len).saturating_sub(start).min(len as u64) as usize;
        if there == 0 { Ok(()) } else { self.file.read_at(&mut buf[..there], start) }
    }

    fn zero(&mut self, start: u64, end: u64, sink: Sink<'_>) -> Result<()> {
        let mut at = start;
        while at < end {
            let (stop, hole) = self.region(at, end)?;
            // Zeros in a hole are no change.
            if !hole {
                self.zero_over(at, stop, sink)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn zero_over(&mut self, start: u64, end: u64, sink: Sink<'_>) -> Result<()> {
        let mut old = std::mem::take(&mut self.old);
        for (start, end) in pieces(start, end, MAX_RANGE) {
            self.digests.clear();
            for (start, end) in pieces(start, end, MAX_WRITE) {
                self.read_old(&mut old, start, sector_ceil(end - start) as usize)?;
                self.digests.extend(old.chunks_exact(SECTOR as usize).flat_map(digest));
            }
            let record = Record { kind: RecordKind::Zero, start, len: end - start, old_zero: false };
            sink(Piece { record, digests: &self.digests, data: &[] })?;
        }
        self.old = old;
        Ok(())
    }

    /// Zeros past the old end.
    fn zero_new(&self, start: u64, end: u64, sink: Sink<'_>) -> Result<()> {
        for (start, end) in pieces(start, end, MAX_SPARSE) {
            let record = Record { kind: RecordKind::Zero, start, len: end - start, old_zero: true };
            sink(Piece { record, digests: &[], data: &[] })?;
        }
        Ok(())
    }

    /// The tail that a shorter file loses.
    fn cut(&mut self, sink: Sink<'_>) -> Result<()> {
        let zero_granule = digest(&[0; CUT_GRANULE as usize]);
        for (start, end) in pieces(self.new_len, self.old_len, MAX_RANGE) {
            let old_zero = self.is_hole(start, end)?;
            self.digests.clear();
            for (start, end) in pieces(start, end, CUT_GRANULE).filter(|_| !old_zero) {
                let digest: Digest = match end - start == CUT_GRANULE && self.is_hole(start, end)? {
                    true => zero_granule,
                    false => {
                        self.old.resize((end - start) as usize, 0);
                        self.file.read_at(&mut self.old, start)?;
                        digest(&self.old)
                    }
                };
                self.digests.extend(digest);
            }
            let record = Record { kind: RecordKind::Cut, start, len: end - start, old_zero };
            sink(Piece { record, digests: &self.digests, data: &[] })?;
        }
        Ok(())
    }

    fn is_hole(&self, start: u64, end: u64) -> Result<bool> {
        let extent = self.file.extent_at(start)?;
        Ok(extent.is_zero() && extent.end() >= end)
    }

    /// Calls `sink` with every range that will need space that is not allocated yet.
    pub(super) fn unallocated(&mut self, sink: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let grown = sector_ceil(self.old_len);
        let mut at = 0;
        while let Some(change) = self.overlay.next_change(at) {
            at = change.start;
            while at < change.end && !change.zero {
                let (stop, hole) = match at < grown {
                    true => self.region(at, change.end)?,
                    false => (change.end, true),
                };
                if hole {
                    sink(at, stop)?;
                }
                at = stop;
            }
            at = change.end;
        }
        Ok(())
    }
}

/// Splits a range into parts of at most `max` bytes.
fn pieces(start: u64, end: u64, max: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let piece = (at, end.min(at.saturating_add(max)));
        at = piece.1;
        (piece.0 < piece.1).then_some(piece)
    })
}

/// The ranges of sectors, as first and one past the last, in which two equally long buffers differ.
fn differing(old: &[u8], new: &[u8]) -> Vec<(usize, usize)> {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    let sectors = old.chunks_exact(SECTOR as usize).zip(new.chunks_exact(SECTOR as usize));
    for (index, _) in sectors.enumerate().filter(|(_, (old, new))| old != new) {
        match ranges.last_mut() {
            Some((_, last)) if index - *last < WORTH_SKIPPING => *last = index + 1,
            _ => ranges.push((index, index + 1)),
        }
    }
    ranges
}
