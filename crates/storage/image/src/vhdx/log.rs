//! The log: changes of metadata that were made durable before they were made.
//!
//! ```text
//! log ring    …│ entry 5 │ entry 6 │ entry 7 │ entry 8 (torn) │ older entries …
//!                        └ tail of 7 ┘  head
//! ```
//!
//! An entry counts if its marker is that of the header and every byte of it is there. Entries that follow one another
//! with rising numbers are a sequence; it can be replayed if the tail of its last entry lies in it, and of several
//! such the newest is the active one. What is replayed are its entries from that tail on.

use std::collections::BTreeMap;

use vmwright_disk::Disk;
use zerocopy::{FromBytes, IntoBytes};

use super::header::Header;
use super::layout::{Guid, MIB, RawDataSector, RawDescriptor, RawLogEntry, SECTOR};
use super::region::Place;
use super::view::{Pending, What};
use crate::error::Reason;
use crate::{Error, Result};

/// The most pieces of a log that is not replayed yet, which are kept in memory.
const MAX_PIECES: usize = 1 << 18;
/// A file that is to become longer than this is none that a disk of 64 TiB needs.
const MAX_FILE: u64 = 1 << 48;
/// Each byte of the log is looked at this often at most; sound logs need twice.
const MAX_PASSES: u64 = 16;

/// An entry that counts.
#[derive(Debug, Clone, Copy)]
struct Entry {
    len: u64,
    sequence: u64,
    tail: u64,
    descriptors: u32,
    flushed: u64,
    last: u64,
}

/// What the log says.
pub(super) enum Log {
    /// Nothing is to be replayed.
    Empty,
    /// The header counts on a log, but no entry of it was ever written.
    Unused,
    /// The file becomes this.
    Pending(Pending),
}

/// Reads the log; `lenient` takes one without any whole entry for unused.
pub(super) fn read(file: &dyn Disk, header: &Header, lenient: bool) -> Result<Log> {
    let (offset, len) = header.log();
    if len > 0 && offset.checked_add(len).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt("the log", offset, "a place within the file", len));
    }
    let Some(guid) = header.log_guid() else { return Ok(Log::Empty) };
    let ring = Ring { file, offset, len };
    let (entries, traces) = ring.entries(&guid)?;
    match active(&entries, len) {
        Some(sequence) => Ok(Log::Pending(ring.pending(&sequence)?)),
        None if traces == 0 || lenient => Ok(Log::Unused),
        None => Err(Error::corrupt("the log", offset, "entries that can be replayed", traces)),
    }
}

/// The entries to replay, in their order, by where they are in the log.
fn active(entries: &BTreeMap<u64, Entry>, len: u64) -> Option<Vec<(u64, Entry)>> {
    let next_of = |at: u64, entry: &Entry| {
        let at = (at + entry.len) % len;
        let next = entries.get(&at)?;
        (entry.sequence.checked_add(1) == Some(next.sequence)).then_some((at, *next))
    };
    let followers: std::collections::HashSet<u64> =
        entries.iter().filter_map(|(at, entry)| Some(next_of(*at, entry)?.0)).collect();
    let mut best: Option<Vec<(u64, Entry)>> = None;
    for (&start, &first) in entries.iter().filter(|(at, _)| !followers.contains(at)) {
        let mut sequence = vec![(start, first)];
        let mut last = (start, first);
        while let Some(next) = next_of(last.0, &last.1) {
            sequence.push(next);
            last = next;
        }
        let newer = best
            .as_ref()
            .and_then(|best| best.last())
            .is_none_or(|(_, head)| last.1.sequence > head.sequence);
        let tail = sequence.iter().position(|(at, _)| *at == last.1.tail);
        if let Some(tail) = tail.filter(|_| newer) {
            best = Some(sequence.split_off(tail));
        }
    }
    best
}

struct Ring<'a> {
    file: &'a dyn Disk,
    offset: u64,
    len: u64,
}

impl Ring<'_> {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = (at + done as u64) % self.len;
            let len = (buf.len() - done).min((self.len - at) as usize);
            self.file.read_at(&mut buf[done..done + len], self.offset + at)?;
            done += len;
        }
        Ok(())
    }

    /// Every entry that counts, by where it is, and how many there are that look like one.
    fn entries(&self, guid: &Guid) -> Result<(BTreeMap<u64, Entry>, u64)> {
        let mut entries = BTreeMap::new();
        let (mut traces, mut looked_at) = (0, 0u64);
        let mut first = [0; size_of::<RawLogEntry>()];
        for at in (0..self.len).step_by(SECTOR as usize) {
            self.read(&mut first, at)?;
            let Ok(raw) = RawLogEntry::read_from_bytes(&first) else { continue };
            if raw.signature != *b"loge" || raw.log_guid != *guid {
                continue;
            }
            traces += 1;
            looked_at += u64::from(raw.entry_length.get());
            if looked_at > self.len * MAX_PASSES {
                let expected = "entries that do not overlap";
                return Err(Error::corrupt("the log", self.offset + at, expected, looked_at));
            }
            if self.is_whole(&raw, at)? {
                entries.insert(
                    at,
                    Entry {
                        len: raw.entry_length.get().into(),
                        sequence: raw.sequence_number.get(),
                        tail: raw.tail.get().into(),
                        descriptors: raw.descriptor_count.get(),
                        flushed: raw.flushed_file_offset.get(),
                        last: raw.last_file_offset.get(),
                    },
                );
            }
        }
        Ok((entries, traces))
    }

    /// Whether every byte of an entry is there.
    fn is_whole(&self, raw: &RawLogEntry, at: u64) -> Result<bool> {
        let (len, count) = (u64::from(raw.entry_length.get()), u64::from(raw.descriptor_count.get()));
        let tail = u64::from(raw.tail.get());
        let heads = head_len(count);
        if len < heads || !len.is_multiple_of(SECTOR) || len > self.len {
            return Ok(false);
        }
        if raw.sequence_number.get() == 0 || !tail.is_multiple_of(SECTOR) || tail >= self.len {
            return Ok(false);
        }
        let mut sum = 0;
        let (mut data_left, mut seen) = (0, 0);
        let mut sector = [0; SECTOR as usize];
        for offset in (0..len).step_by(SECTOR as usize) {
            self.read(&mut sector, at + offset)?;
            let sequence = raw.sequence_number.get();
            if offset < heads {
                let skip = if offset == 0 { size_of::<RawLogEntry>() } else { 0 };
                for bytes in sector[skip..].chunks_exact(32).take((count - seen) as usize) {
                    match descriptor(bytes, sequence) {
                        Some(is_data) => data_left += u64::from(is_data),
                        None => return Ok(false),
                    }
                    seen += 1;
                }
            } else if data_left > 0 {
                if !is_data_of(&sector, sequence) {
                    return Ok(false);
                }
                data_left -= 1;
            }
            if offset == 0 {
                sector[4..8].fill(0);
            }
            sum = crc32c::crc32c_append(sum, &sector);
        }
        Ok(data_left == 0 && sum == raw.checksum.get())
    }

    /// What replaying these entries makes of the file.
    fn pending(&self, sequence: &[(u64, Entry)]) -> Result<Pending> {
        let mut pending = Pending::default();
        let Some((head_at, head)) = sequence.last() else { return Ok(pending) };
        let at = self.offset + head_at;
        if head.flushed > self.file.len() {
            let what = "the length of the file, by the log";
            return Err(Error::corrupt(what, at + 48, "what the file has: it was cut", head.flushed));
        }
        if head.last > MAX_FILE {
            return Err(Error::corrupt(
                "the length of the file, by the log",
                at + 56,
                "at most 2^48",
                head.last,
            ));
        }
        pending.len = head.last.max(self.file.len());
        for (at, entry) in sequence {
            self.collect(&mut pending, *at, entry)?;
        }
        Ok(pending)
    }

    fn collect(&self, pending: &mut Pending, at: u64, entry: &Entry) -> Result<()> {
        let mut data_at = at + head_len(entry.descriptors.into());
        let mut bytes = [0; 32];
        for index in 0..u64::from(entry.descriptors) {
            let descriptor_at = at + size_of::<RawLogEntry>() as u64 + index * 32;
            self.read(&mut bytes, descriptor_at)?;
            let Ok(raw) = RawDescriptor::read_from_bytes(&bytes) else { continue };
            let is_data = raw.signature == *b"desc";
            let len = if is_data { SECTOR } else { raw.leading_bytes.get() };
            let start = raw.file_offset.get();
            let place = Place { offset: start, len };
            let log = Place { offset: self.offset, len: self.len };
            // The first 192 KiB say which log counts: a log cannot change that.
            let forbidden = start < super::layout::REGION_TABLES[0] || place.overlaps(&log);
            if forbidden || start.checked_add(len).is_none_or(|end| end > pending.len) {
                let at = self.offset + descriptor_at % self.len;
                return Err(Error::corrupt("the target of a log entry", at, "a place in the file", start));
            }
            if pending.count() >= MAX_PIECES {
                return Err(Error::unsupported("a log of more than 262144 changes"));
            }
            if is_data {
                let what = What::Data {
                    at: self.offset + data_at % self.len,
                    leading: raw.leading_bytes.get().to_le_bytes(),
                    trailing: raw.trailing_bytes,
                };
                pending.put(start, SECTOR, what);
                data_at += SECTOR;
            } else if len > 0 {
                pending.put(start, len, What::Zeros);
            }
        }
        Ok(())
    }
}

/// How many bytes the header and the descriptors of an entry take.
fn head_len(descriptors: u64) -> u64 {
    (size_of::<RawLogEntry>() as u64 + descriptors * 32).next_multiple_of(SECTOR)
}

/// Whether a descriptor has data; `None` if it does not belong to the entry.
fn descriptor(bytes: &[u8], sequence: u64) -> Option<bool> {
    let raw = RawDescriptor::read_from_bytes(bytes).ok()?;
    let is_data = raw.signature == *b"desc";
    let aligned = raw.file_offset.get().is_multiple_of(SECTOR)
        && (is_data || raw.signature == *b"zero" && raw.leading_bytes.get().is_multiple_of(SECTOR));
    (aligned && raw.sequence_number.get() == sequence).then_some(is_data)
}

fn is_data_of(sector: &[u8], sequence: u64) -> bool {
    RawDataSector::ref_from_bytes(sector).is_ok_and(|raw| {
        let number = u64::from(raw.sequence_high.get()) << 32 | u64::from(raw.sequence_low.get());
        raw.signature == *b"data" && number == sequence
    })
}

/// How many sectors one entry that we write can hold; so many that two such entries fit into the smallest log.
pub(super) const MAX_SECTORS: usize = 126;

/// An entry that writes these sectors, at most [`MAX_SECTORS`]; it is its own tail.
pub(super) fn encode<'a>(
    sectors: impl ExactSizeIterator<Item = (u64, &'a [u8])>,
    guid: Guid,
    sequence: u64,
    at: u64,
    file_len: u64,
) -> Vec<u8> {
    let count = sectors.len();
    let head = head_len(count as u64) as usize;
    let mut bytes = vec![0; head + count * SECTOR as usize];
    let mut raw = RawLogEntry {
        signature: *b"loge",
        checksum: 0.into(),
        entry_length: (bytes.len() as u32).into(),
        tail: (at as u32).into(),
        sequence_number: sequence.into(),
        descriptor_count: (count as u32).into(),
        reserved: 0.into(),
        log_guid: guid,
        flushed_file_offset: (file_len - file_len % MIB).into(),
        last_file_offset: file_len.next_multiple_of(MIB).into(),
    };
    bytes[..64].copy_from_slice(raw.as_bytes());
    for (index, (file_offset, sector)) in sectors.enumerate() {
        let mut data = RawDataSector {
            signature: *b"data",
            sequence_high: ((sequence >> 32) as u32).into(),
            data: [0; 4084],
            sequence_low: (sequence as u32).into(),
        };
        data.data.copy_from_slice(&sector[8..4092]);
        let (mut leading, mut trailing) = ([0; 8], [0; 4]);
        leading.copy_from_slice(&sector[..8]);
        trailing.copy_from_slice(&sector[4092..]);
        let descriptor = RawDescriptor {
            signature: *b"desc",
            trailing_bytes: trailing,
            leading_bytes: u64::from_le_bytes(leading).into(),
            file_offset: file_offset.into(),
            sequence_number: sequence.into(),
        };
        bytes[64 + index * 32..][..32].copy_from_slice(descriptor.as_bytes());
        bytes[head + index * SECTOR as usize..][..SECTOR as usize].copy_from_slice(data.as_bytes());
    }
    raw.checksum = crc32c::crc32c(&bytes).into();
    bytes[..64].copy_from_slice(raw.as_bytes());
    bytes
}

/// Writes what the log holds to where it belongs, and makes it durable.
pub(super) fn replay(file: &dyn Disk, pending: &Pending) -> Result<()> {
    if pending.len > file.len() {
        file.set_len(pending.len).map_err(Reason::Disk)?;
    }
    for (at, piece) in pending.pieces() {
        match piece.what {
            What::Zeros => file.zero_at(at, piece.len)?,
            What::Data { at: log, leading, trailing } => {
                file.write_at(&super::view::sector(file, log, leading, trailing)?, at)?;
            }
        }
    }
    Ok(file.flush()?)
}
