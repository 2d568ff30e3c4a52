//! Making reference counts and flags say what the tables say.
//!
//! ```text
//! hopeless entries ─ counts go up, or a new refcount table ─ flush ─ flags ─ flush ─ counts go down ─ flush
//! ```
//!
//! A crash in between leaves less to repair than there was: no count is ever too low that was not before.

use std::sync::Arc;

use vmwright_disk::{Disk, ErrorKind};

use super::check::each_wrong_flag;
use super::inspect::Inspection;
use super::layout::{
    AT_AUTOCLEAR, AT_INCOMPATIBLE, AT_REFTABLE, AUTOCLEAR_BITMAPS, Header, INCOMPATIBLE_CORRUPT,
    INCOMPATIBLE_DIRTY, MAX_REFTABLE_BYTES, OFFSET_MASK,
};
use crate::cache::Table;
use crate::error::Reason;
use crate::{Repair, Result};

/// Which counts are corrected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Repairs what was found, as far as `repair` allows.
pub(super) fn repair(file: &Arc<dyn Disk>, mut inspection: Inspection, repair: Repair) -> Result<()> {
    if inspection.incomplete {
        // What could not be read may hold references to anything.
        return Ok(());
    }
    if repair == Repair::Leaks {
        return leaks(&**file, &inspection);
    }
    for (at, entry) in &inspection.hopeless {
        file.write_at(entry, *at)?;
    }
    if inspection.bad_bitmaps {
        // All of them are out of date then, says this bit; their space is free.
        inspection.header.autoclear &= !AUTOCLEAR_BITMAPS;
        file.write_at(&inspection.header.autoclear.to_be_bytes(), AT_AUTOCLEAR)?;
    }
    if inspection.bad_bitmaps || !inspection.hopeless.is_empty() {
        file.flush()?;
        inspection = Inspection::of(file, inspection.header)?;
    }
    if inspection.rebuild {
        rebuild(&**file, &mut inspection)?;
    } else {
        adjust(&**file, &inspection, Direction::Up)?;
    }
    fix_flags(&**file, &inspection)?;
    if !inspection.rebuild {
        adjust(&**file, &inspection, Direction::Down)?;
    }
    Ok(())
}

/// Lowers counts that are too high; flags only where nothing else is wrong.
fn leaks(file: &dyn Disk, inspection: &Inspection) -> Result<()> {
    if inspection.rebuild {
        return Ok(());
    }
    let mut damaged = false;
    inspection.each_counted(|_, recorded, used| damaged |= recorded < used)?;
    if !damaged {
        fix_flags(file, inspection)?;
    }
    adjust(file, inspection, Direction::Down)
}

/// Writes counts into the refcount blocks, which all exist.
fn adjust(file: &dyn Disk, inspection: &Inspection, direction: Direction) -> Result<()> {
    let width = inspection.width();
    let mut wrong = Vec::new();
    let per_block = width.per_block(inspection.header.cluster_bits);
    let end = inspection.end();
    let mut changed = false;
    for start in (0..end).step_by(usize::try_from(per_block).unwrap_or(usize::MAX)) {
        let stop = start.saturating_add(per_block).min(end);
        inspection.each_counted_in(start, stop, |cluster, recorded, used| {
            let applies = match direction {
                Direction::Up => recorded < used,
                Direction::Down => recorded > used,
            };
            if applies {
                wrong.push((cluster, used));
            }
        })?;
        if !wrong.is_empty() {
            complete(file, inspection.header.cluster_size())?;
        }
        for (cluster, count) in wrong.drain(..) {
            if let Some((slice_at, index)) = inspection.place(cluster) {
                let set = |bytes: &mut [u8]| width.set(bytes, index, count);
                inspection.cache.modify(&inspection.file, Table::Refcount, slice_at, set)?;
                changed = true;
            }
        }
        if inspection.cache.is_crowded() {
            inspection.cache.write_back(file, Table::Refcount)?;
        }
    }
    inspection.cache.write_back(file, Table::Refcount)?;
    if changed { Ok(file.flush()?) } else { Ok(()) }
}

/// Makes the last cluster whole: a table in it that the end of the file cuts short is zeros from there on.
fn complete(file: &dyn Disk, cluster_size: u64) -> Result<()> {
    let whole = file.len().checked_next_multiple_of(cluster_size).ok_or(Reason::Full)?;
    match file.set_len(whole) {
        Err(error) if error.kind() == ErrorKind::Unsupported && whole > file.len() => {
            Err(Reason::DeviceFull { end: whole }.into())
        }
        Err(error) if error.kind() != ErrorKind::Unsupported => Err(error.into()),
        _ => Ok(()),
    }
}

/// Sets every flag to what the real counts say.
fn fix_flags(file: &dyn Disk, inspection: &Inspection) -> Result<()> {
    let mut changed = false;
    each_wrong_flag(inspection, Inspection::repaired, |at, _, right| {
        changed = true;
        Ok(file.write_at(&right.to_be_bytes(), at)?)
    })?;
    if changed { Ok(file.flush()?) } else { Ok(()) }
}

/// Makes a refcount table with all its blocks anew, behind everything else, and switches to it.
///
/// ```text
/// start: table │ blocks, one for each range with a cluster in use
/// ```
fn rebuild(file: &dyn Disk, inspection: &mut Inspection) -> Result<()> {
    let (cluster_size, bits) = (inspection.header.cluster_size(), inspection.header.cluster_bits);
    // What is replaced has no references any more.
    // A table of no clusters takes up nothing.
    for (at, len) in std::mem::take(&mut inspection.refcount_ranges).into_iter().filter(|range| range.1 > 0) {
        for cluster in at >> bits..=(at + len - 1) >> bits {
            let count = inspection.counts.get(cluster);
            inspection.counts.set(cluster, count.saturating_sub(1));
        }
    }
    let start = inspection.end();
    let (table, blocks) = plan(inspection, start)?;
    let total = table + blocks.len() as u64;
    let end = start.checked_add(total).and_then(|end| end.checked_mul(cluster_size));
    let end = end.filter(|end| *end <= OFFSET_MASK).ok_or(Reason::Full)?;
    match file.set_len(end.max(file.len())) {
        Err(error) if error.kind() == ErrorKind::Unsupported && end > file.len() => {
            return Err(Reason::DeviceFull { end }.into());
        }
        Err(error) if error.kind() != ErrorKind::Unsupported => return Err(error.into()),
        _ => {}
    }
    for cluster in start..start + total {
        inspection.counts.set(cluster, 1);
    }
    let width = inspection.width();
    let per_block = width.per_block(bits);
    let mut entries = vec![0; (table * cluster_size) as usize];
    for (number, block) in blocks.iter().enumerate() {
        let at = (start + table + number as u64) << bits;
        let mut bytes = vec![0; cluster_size as usize];
        for index in 0..per_block {
            match inspection.counts.get(block * per_block + index) {
                0 => {}
                count => width.set(&mut bytes, index, count.min(width.max())),
            }
        }
        file.write_at(&bytes, at)?;
        entries[*block as usize * 8..][..8].copy_from_slice(&at.to_be_bytes());
    }
    file.write_at(&entries, start << bits)?;
    file.flush()?;
    let mut fields = [0; 12];
    fields[..8].copy_from_slice(&(start << bits).to_be_bytes());
    fields[8..].copy_from_slice(&(table as u32).to_be_bytes());
    file.write_at(&fields, AT_REFTABLE)?;
    Ok(file.flush()?)
}

/// How many clusters the new refcount table has, and which blocks, if both are placed from `start` on.
fn plan(inspection: &Inspection, start: u64) -> Result<(u64, Vec<u64>)> {
    let cluster_size = inspection.header.cluster_size();
    let per_block = inspection.width().per_block(inspection.header.cluster_bits);
    let max = MAX_REFTABLE_BYTES / 8;
    let used = start.div_ceil(per_block);
    if used > max {
        return Err(Reason::Full.into());
    }
    let old: Vec<u64> = (0..used)
        .filter(|block| inspection.counts.any(block * per_block, ((block + 1) * per_block).min(start)))
        .collect();
    let (mut table, mut count) = (1, 1);
    loop {
        let last = (start + table + count - 1) / per_block;
        let mut blocks = old.clone();
        blocks.extend((start / per_block..=last).filter(|block| old.binary_search(block).is_err()));
        let needed = ((last + 1) * 8).div_ceil(cluster_size);
        if last >= max {
            return Err(Reason::Full.into());
        }
        if needed <= table && blocks.len() as u64 <= count {
            return Ok((table, blocks));
        }
        (table, count) = (needed.max(table), (blocks.len() as u64).max(count));
    }
}

/// Says in the header that the image is sound.
pub(super) fn clear_bits(file: &Arc<dyn Disk>, header: &Header) -> Result<()> {
    let sound = header.incompatible & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT);
    if sound == header.incompatible {
        return Ok(());
    }
    file.flush()?;
    file.write_at(&sound.to_be_bytes(), AT_INCOMPATIBLE)?;
    Ok(file.flush()?)
}
