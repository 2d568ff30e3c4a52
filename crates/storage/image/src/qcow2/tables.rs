//! The tables beside the mapping: internal snapshots and persistent bitmaps.

use vmwright_disk::Disk;
use zerocopy::FromBytes;

use super::layout::{AUTOCLEAR_BITMAPS, Header, MAX_L1_BYTES, RawBitmapEntry, RawSnapshot};
use crate::error::Reason;
use crate::info::{BitmapInfo, SnapshotInfo};
use crate::{Error, Result};

/// The most internal snapshots, as in QEMU.
pub(super) const MAX_SNAPSHOTS: u32 = 65536;
/// The most bytes of a table of snapshots or bitmaps, as in QEMU.
pub(super) const MAX_TABLE: u64 = 64 << 20;
const MAX_BITMAPS: u32 = 65535;
/// Longer names are nobody's.
const MAX_NAME: u64 = 1023;

/// The bitmap may be out of date.
pub(super) const BITMAP_IN_USE: u32 = 1;
/// Where the flags are in an entry of the directory.
pub(super) const BITMAP_FLAGS_AT: u64 = 12;
const _: () = assert!(std::mem::offset_of!(RawBitmapEntry, flags) as u64 == BITMAP_FLAGS_AT);
/// The bitmap notes every change.
pub(super) const BITMAP_AUTO: u32 = 2;
/// Whoever does not know the extra data may use the bitmap all the same.
const BITMAP_EXTRA_COMPATIBLE: u32 = 4;

/// One internal snapshot.
pub(super) struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_len: u32,
    /// Where its entry begins and ends, counted from the beginning of the table.
    pub(super) entry: std::ops::Range<usize>,
    /// The size of its disk; images of version 2 may not say.
    pub(super) disk_size: Option<u64>,
    pub(super) info: SnapshotInfo,
}

impl Snapshot {
    /// The length of its L1 table, which QEMU bounds like the active one.
    pub(super) fn l1_bytes(&self) -> Result<u64> {
        let len = u64::from(self.l1_len) * 8;
        if len > MAX_L1_BYTES {
            let expected = "a size that QEMU accepts";
            return Err(Error::corrupt("the L1 table of a snapshot", self.l1_offset, expected, len));
        }
        Ok(len)
    }
}

/// One persistent bitmap.
pub(super) struct Bitmap {
    /// Where its entry in the directory is.
    pub(super) entry_at: u64,
    /// Where its entry ends.
    pub(super) entry_end: u64,
    kind: u8,
    extra_len: u32,
    pub(super) table_offset: u64,
    pub(super) table_len: u32,
    pub(super) flags: u32,
    pub(super) info: BitmapInfo,
}

impl Bitmap {
    /// Whether nothing about it is unknown.
    pub(super) fn is_understood(&self) -> bool {
        let known = BITMAP_IN_USE | BITMAP_AUTO | BITMAP_EXTRA_COMPATIBLE;
        let extra = self.extra_len == 0 || self.flags & BITMAP_EXTRA_COMPATIBLE != 0;
        self.kind == 1 && self.flags & !known == 0 && extra
    }
}

/// Reads bytes front to back, within the file and within the bound of a table.
struct Cursor<'a> {
    file: &'a dyn Disk,
    what: &'static str,
    start: u64,
    at: u64,
    limit: u64,
    cluster_size: u64,
}

impl Cursor<'_> {
    fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        // The file may lack the end of its last cluster, which is zeros.
        let whole = self.file.len().checked_next_multiple_of(self.cluster_size).unwrap_or(u64::MAX);
        let end = self.at.checked_add(len).filter(|end| *end <= self.limit && *end <= whole);
        let Some(end) = end else {
            return Err(Error::corrupt(self.what, self.at, "an entry within its table and the file", len));
        };
        let mut bytes = vec![0; len as usize];
        let there = self.file.len().saturating_sub(self.at).min(len) as usize;
        if there > 0 {
            self.file.read_at(&mut bytes[..there], self.at)?;
        }
        self.at = end;
        Ok(bytes)
    }

    fn text(&mut self, len: u64) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.take(len)?).into_owned())
    }

    fn skip(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
    }

    fn align(&mut self) {
        self.at = self.start + (self.at - self.start).next_multiple_of(8);
    }
}

/// Reads the table of internal snapshots.
pub(super) fn snapshots(file: &dyn Disk, header: &Header) -> Result<Vec<Snapshot>> {
    if header.snapshot_count > MAX_SNAPSHOTS {
        let count = header.snapshot_count.into();
        return Err(Error::corrupt("the number of snapshots", 60, "at most 65536", count));
    }
    let start = header.snapshots_offset;
    if header.snapshot_count > 0 && !start.is_multiple_of(header.cluster_size()) {
        return Err(Error::corrupt(
            "the offset of the snapshots",
            64,
            "a multiple of the cluster size",
            start,
        ));
    }
    let limit = start.saturating_add(MAX_TABLE);
    let mut cursor = Cursor {
        file,
        what: "the snapshot table",
        start,
        at: start,
        limit,
        cluster_size: header.cluster_size(),
    };
    (0..header.snapshot_count).map(|_| snapshot(&mut cursor)).collect()
}

fn snapshot(cursor: &mut Cursor<'_>) -> Result<Snapshot> {
    let at = cursor.at;
    let bytes = cursor.take(size_of::<RawSnapshot>() as u64)?;
    let raw = RawSnapshot::ref_from_bytes(&bytes)
        .map_err(|_| Error::corrupt("a snapshot", at, "40 bytes", bytes.len() as u64))?;
    let extra_len = u64::from(raw.extra_data_size.get());
    let known = cursor.take(extra_len.min(24))?;
    cursor.skip(extra_len - extra_len.min(24));
    let extra = |index: usize| known.get(index..index + 8).map(|bytes| super::map::read_u64(bytes, 0));
    let id = cursor.text(raw.id_str_size.get().into())?;
    let name = cursor.text(raw.name_size.get().into())?;
    cursor.align();
    let entry = (at - cursor.start) as usize..(cursor.at - cursor.start) as usize;
    let clock = raw.vm_clock_nsec.get();
    Ok(Snapshot {
        l1_offset: raw.l1_table_offset.get(),
        l1_len: raw.l1_size.get(),
        entry,
        disk_size: extra(8),
        info: SnapshotInfo {
            id,
            name,
            vm_state_size: extra(0).unwrap_or(raw.vm_state_size.get().into()),
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_sec: clock / 1_000_000_000,
            vm_clock_nsec: (clock % 1_000_000_000) as u32,
            icount: extra(16).filter(|count| *count != u64::MAX),
        },
    })
}

/// The snapshot with this id, or else the first with this name.
pub(super) fn find_snapshot(snapshots: &[Snapshot], id_or_name: &str) -> Result<usize> {
    let by_id = snapshots.iter().position(|snapshot| snapshot.info.id == id_or_name);
    let found = by_id.or_else(|| snapshots.iter().position(|snapshot| snapshot.info.name == id_or_name));
    found.ok_or_else(|| Reason::NoSuch { what: "snapshot", name: id_or_name.to_owned() }.into())
}

/// Where the table of snapshots ends.
pub(super) fn snapshots_end(file: &dyn Disk, header: &Header) -> Result<u64> {
    let start = header.snapshots_offset;
    let limit = start.saturating_add(MAX_TABLE);
    let mut cursor = Cursor {
        file,
        what: "the snapshot table",
        start,
        at: start,
        limit,
        cluster_size: header.cluster_size(),
    };
    for _ in 0..header.snapshot_count {
        snapshot(&mut cursor)?;
    }
    Ok(cursor.at)
}

/// Reads the directory of persistent bitmaps; empty where the image says that it is out of date as a whole.
pub(super) fn bitmaps(file: &dyn Disk, header: &Header) -> Result<Vec<Bitmap>> {
    let Some(directory) = header.bitmaps else { return Ok(Vec::new()) };
    if header.autoclear & AUTOCLEAR_BITMAPS == 0 {
        return Ok(Vec::new());
    }
    let (start, len) = (directory.offset, directory.len);
    if directory.count > MAX_BITMAPS || len > MAX_TABLE {
        let what = "the size of the bitmap directory";
        return Err(Error::corrupt(what, start, "a size that QEMU accepts", len));
    }
    if start % header.cluster_size() != 0 || start.checked_add(len).is_none_or(|end| end > file.len()) {
        let expected = "an aligned directory within the file";
        return Err(Error::corrupt("the bitmap directory", start, expected, len));
    }
    let mut cursor = Cursor {
        file,
        what: "the bitmap directory",
        start,
        at: start,
        limit: start + len,
        cluster_size: header.cluster_size(),
    };
    (0..directory.count).map(|_| bitmap(&mut cursor)).collect()
}

fn bitmap(cursor: &mut Cursor<'_>) -> Result<Bitmap> {
    let entry_at = cursor.at;
    let bytes = cursor.take(size_of::<RawBitmapEntry>() as u64)?;
    let raw = RawBitmapEntry::ref_from_bytes(&bytes)
        .map_err(|_| Error::corrupt("a bitmap", entry_at, "24 bytes", bytes.len() as u64))?;
    if raw.granularity_bits > 63 {
        let bits = raw.granularity_bits.into();
        return Err(Error::corrupt("the granularity of a bitmap", entry_at + 17, "at most 63", bits));
    }
    let name_len = u64::from(raw.name_size.get());
    if name_len > MAX_NAME {
        return Err(Error::corrupt("the name of a bitmap", entry_at + 18, "at most 1023 bytes", name_len));
    }
    cursor.skip(raw.extra_data_size.get().into());
    let name = cursor.text(name_len)?;
    cursor.align();
    let flags = raw.flags.get();
    let names = [(BITMAP_IN_USE, "in-use"), (BITMAP_AUTO, "auto")];
    let set = names.into_iter().filter(|(flag, _)| flags & flag != 0);
    Ok(Bitmap {
        entry_at,
        entry_end: cursor.at,
        kind: raw.kind,
        extra_len: raw.extra_data_size.get(),
        table_offset: raw.bitmap_table_offset.get(),
        table_len: raw.bitmap_table_size.get(),
        flags,
        info: BitmapInfo {
            name,
            granularity: 1 << raw.granularity_bits,
            flags: set.map(|(_, name)| name).collect(),
        },
    })
}
