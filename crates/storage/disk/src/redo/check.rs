use super::layout::DIGEST_LEN;
use super::read::Item;
use super::{CUT_GRANULE, Entry, MAX_WRITE, RecordKind, Redo, digest};
use crate::overlay::{SECTOR, sector_ceil, sector_floor};
use crate::{Disk, HostFile, Result};

/// Where a file is neither as it was before the change nor as it is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// Another file now has the name.
    Identity,
    /// The length is none that applying passes through.
    Length,
    /// The sector at this offset holds something else.
    Sector(u64),
}

/// Compares file number `index` of the redo with what is there: all that was touched must be old or new.
pub(crate) fn check(redo: &Redo, index: usize, file: &HostFile) -> Result<Option<Mismatch>> {
    let entry = &redo.entries[index];
    // A device number may be another after the host was started anew, which is just when this is needed.
    if file.is_block_device() != entry.block_device || (!entry.block_device && file.id().inode != entry.inode)
    {
        return Ok(Some(Mismatch::Identity));
    }
    if !entry.lengths().contains(&file.len()) {
        return Ok(Some(Mismatch::Length));
    }
    let mut mismatch = None;
    redo.for_each_chunk(&mut |chunk| {
        if chunk.file == index && mismatch.is_none() {
            for item in chunk.items() {
                let found = match item.record.kind {
                    RecordKind::Cut => check_cut(&item, file)?,
                    _ => check_sectors(&item, entry, file)?,
                };
                mismatch = mismatch.or(found);
            }
        }
        Ok(())
    })?;
    Ok(mismatch)
}

/// Checks a written or zeroed range, sector by sector.
fn check_sectors(item: &Item<'_>, entry: &Entry, file: &HostFile) -> Result<Option<Mismatch>> {
    let record = item.record;
    let readable = file.len().min(entry.new_len);
    let mut start = record.start;
    while start < record.end() {
        if record.kind == RecordKind::Zero {
            let zeros_end = zeros_end(file, start, readable)?;
            if zeros_end > start {
                start = zeros_end.min(record.end());
                continue;
            }
        }
        let end = record.end().min(start + MAX_WRITE);
        let mut current = vec![0; sector_ceil(end - start) as usize];
        let there = readable.saturating_sub(start).min(end - start) as usize;
        if there > 0 {
            file.read_at(&mut current[..there], start)?;
        }
        for (index, sector) in current.chunks_exact(SECTOR as usize).enumerate() {
            let offset = start - record.start + index as u64 * SECTOR;
            if !is_new(item, offset, sector) && !is_old(item, offset, sector) {
                return Ok(Some(Mismatch::Sector(record.start + offset)));
            }
        }
        start = end;
    }
    Ok(None)
}

/// How far, by whole sectors, a file is known to hold zeros without being read; past its end it does.
fn zeros_end(file: &HostFile, start: u64, readable: u64) -> Result<u64> {
    if start >= readable {
        return Ok(u64::MAX);
    }
    let extent = file.extent_at(start)?;
    Ok(match extent.is_zero() {
        true if extent.end() >= readable => u64::MAX,
        true => sector_floor(extent.end()),
        false => start,
    })
}

fn is_new(item: &Item<'_>, offset: u64, sector: &[u8]) -> bool {
    if item.record.kind == RecordKind::Zero {
        return is_zero(sector);
    }
    let data = &item.data[offset as usize..];
    let (data, rest) = (&data[..data.len().min(sector.len())], &sector[data.len().min(sector.len())..]);
    sector.starts_with(data) && is_zero(rest)
}

fn is_old(item: &Item<'_>, offset: u64, sector: &[u8]) -> bool {
    match item.record.old_zero {
        true => is_zero(sector),
        false => {
            let at = (offset / SECTOR) as usize * DIGEST_LEN;
            item.digests[at..at + DIGEST_LEN] == digest(sector)
        }
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Checks what is still there of a tail that the change cuts off.
fn check_cut(item: &Item<'_>, file: &HostFile) -> Result<Option<Mismatch>> {
    let record = item.record;
    let mut buf = vec![0; CUT_GRANULE as usize];
    let mut start = record.start;
    if record.old_zero && zeros_end(file, start, file.len())? >= record.end() {
        return Ok(None);
    }
    while start < record.end() {
        let end = record.end().min(start + CUT_GRANULE);
        // Of a granule that is partly gone already there is no digest.
        if end <= file.len() {
            let bytes = &mut buf[..(end - start) as usize];
            file.read_at(bytes, start)?;
            let at = ((start - record.start) / CUT_GRANULE) as usize * DIGEST_LEN;
            let same = match record.old_zero {
                true => is_zero(bytes),
                false => item.digests[at..at + DIGEST_LEN] == digest(bytes),
            };
            if !same {
                return Ok(Some(Mismatch::Sector(start)));
            }
        }
        start = end;
    }
    Ok(None)
}
