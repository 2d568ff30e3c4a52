//! Walking every table of an image and counting the references to each cluster, however damaged the image is.
//!
//! Nothing here trusts anything: a reference that cannot be followed is a finding, and the walk goes on. Tables that
//! are shared are read once and count as often as they are named, so that the work is bounded by the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use vmwright_disk::Disk;

use super::counts::Counts;
use super::layout::{
    AUTOCLEAR_BITMAPS, COMPRESSED, COPIED, Header, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2,
    MAX_L1_BYTES, MAX_REFTABLE_BYTES, OFFSET_MASK, Version, ZERO,
};
use super::map::{Packed, read_u64};
use super::refcount::Width;
use super::tables::{self, Bitmap};
use crate::cache::{Cache, Table};
use crate::{CheckReport, Error, Result};

/// Bits that must be clear in an L1 entry, and in an L2 entry of a plain cluster.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Bits that must be clear in an entry of the refcount table, and in one of a bitmap's table.
const REFTABLE_RESERVED: u64 = 0x1ff;
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// The parts of an extended L2 entry that are allocated.
const ALLOCATED_PARTS: u64 = 0xffff_ffff;
/// So many findings are told at most.
const MAX_FINDINGS: usize = 100;
/// How many bytes of refcount blocks and L2 tables are kept in memory.
const CACHE: usize = 8 << 20;

/// What an image's tables say, and what is wrong with them.
pub(super) struct Inspection {
    pub(super) file: Padded,
    pub(super) header: Header,
    pub(super) l1: Vec<u64>,
    pub(super) reftable: Vec<u64>,
    /// How often each cluster is referenced.
    pub(super) counts: Counts,
    /// The refcount table and its blocks, among the references.
    pub(super) refcount_ranges: Vec<(u64, u64)>,
    pub(super) report: CheckReport,
    /// Whether there are tables that could not be read.
    pub(super) incomplete: bool,
    /// How many snapshots do not say how large their disk is, as they must.
    pub(super) sizeless_snapshots: u64,
    /// Whether a bitmap is damaged.
    pub(super) bad_bitmaps: bool,
    /// Whether the refcount blocks cannot be corrected where they are.
    pub(super) rebuild: bool,
    /// Entries of L2 tables that can only be made zeros: where they are, and what they become.
    pub(super) hopeless: Vec<(u64, Vec<u8>)>,
    pub(super) cache: Cache,
    /// How many clusters the file has, counting one of which it has only the beginning.
    pub(super) clusters: u64,
}

/// How often a table is named: by anything, and by the active L1 table.
#[derive(Default, Clone, Copy)]
struct Times {
    all: u64,
    active: u64,
}

/// Where L2 tables are. Snapshots share them: each is read once, however many name it.
type L2Tables = BTreeMap<u64, Times>;

/// A file that reads as zeros behind its end.
pub(super) struct Padded(pub(super) Arc<dyn Disk>);

impl Disk for Padded {
    fn len(&self) -> u64 {
        u64::MAX
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        let there = self.0.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (present, missing) = buf.split_at_mut(there);
        missing.fill(0);
        if present.is_empty() { Ok(()) } else { self.0.read_at(present, offset) }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.0.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.0.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.0.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.0.set_len(len)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        self.0.flush()
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<vmwright_disk::Extent> {
        self.0.extent_at(offset)
    }
}

impl Inspection {
    /// Walks all tables.
    pub(super) fn of(file: &Arc<dyn Disk>, header: Header) -> Result<Self> {
        let cluster_size = header.cluster_size();
        let padded = Padded(file.clone());
        let l1_bytes = u64::from(header.l1_len) * 8;
        let l1 = read_numbers(&padded, "the L1 table", header.l1_offset, l1_bytes, MAX_L1_BYTES)?;
        let reftable_bytes = u64::from(header.reftable_clusters) << header.cluster_bits;
        let what = "the refcount table";
        let reftable = match header.reftable_clusters {
            0 => Vec::new(),
            _ => read_numbers(&padded, what, header.reftable_offset, reftable_bytes, MAX_REFTABLE_BYTES)?,
        };
        let mut this = Self {
            cache: Cache::new(cluster_size.min(4096) as usize, CACHE),
            clusters: file.len().div_ceil(cluster_size),
            file: padded,
            l1,
            reftable,
            counts: Counts::default(),
            refcount_ranges: Vec::new(),
            report: CheckReport::default(),
            incomplete: false,
            sizeless_snapshots: 0,
            bad_bitmaps: false,
            rebuild: false,
            hopeless: Vec::new(),
            header,
        };
        this.report.total_clusters = some(this.header.size.div_ceil(cluster_size));
        this.walk()?;
        this.compare()?;
        Ok(this)
    }

    fn walk(&mut self) -> Result<()> {
        self.add(0, self.header.cluster_size(), 1);
        let mut tables = L2Tables::new();
        let (l1, at) = (std::mem::take(&mut self.l1), self.header.l1_offset);
        self.l1_table(&mut tables, &l1, at, true);
        self.l1 = l1;
        self.snapshots(&mut tables)?;
        for (table, times) in tables {
            self.l2_table(table, times)?;
        }
        if let Some((offset, len)) = self.encryption_header()? {
            self.add(offset, len, 1);
        }
        let before = self.report.corruptions;
        self.bitmaps()?;
        self.bad_bitmaps = self.report.corruptions > before;
        self.refcount_tables();
        Ok(())
    }

    /// Notes a damage that was met `times` times.
    pub(super) fn damage(&mut self, times: u64, text: impl FnOnce() -> String) {
        self.report.corruptions = self.report.corruptions.saturating_add(times);
        self.note(text);
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(text());
        }
    }

    /// Notes something that could not be looked at.
    fn unreadable(&mut self, error: &Error) {
        self.incomplete = true;
        self.report.check_errors += 1;
        self.note(|| error.to_string());
    }

    /// Counts `times` references to every cluster of a range; answers whether the range may be referenced.
    fn add(&mut self, start: u64, len: u64, times: u64) -> bool {
        if len == 0 {
            return true;
        }
        let (bits, max) = (self.header.cluster_bits, self.width().max());
        // A file may lack the end of its last cluster.
        let bound = self.file.0.len().saturating_add(self.header.cluster_size() - 1);
        let Some(end) = start.checked_add(len).filter(|end| *end <= bound) else {
            self.damage(times, || {
                format!("{len} bytes at {start:#x} are referenced, past the end of the file")
            });
            return false;
        };
        for cluster in start >> bits..=(end - 1) >> bits {
            let count = self.counts.get(cluster);
            let new = count.saturating_add(times).min(max);
            if count.saturating_add(times) > max {
                let over = times - (new - count);
                self.damage(over, || {
                    format!("cluster {cluster:#x} has more references than its count holds")
                });
            }
            self.counts.set(cluster, new);
        }
        true
    }

    pub(super) fn width(&self) -> Width {
        Width::new(self.header.refcount_order)
    }

    fn l1_table(&mut self, tables: &mut L2Tables, l1: &[u64], at: u64, active: bool) {
        if l1.is_empty() {
            return;
        }
        self.add(at, l1.len() as u64 * 8, 1);
        for (index, entry) in l1.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            let entry_at = at + index as u64 * 8;
            if entry & L1_RESERVED != 0 {
                self.damage(1, || format!("the L1 entry {entry:#x} at {entry_at:#x} has reserved bits set"));
            }
            let table = entry & OFFSET_MASK;
            self.add(table, self.header.cluster_size(), 1);
            if !table.is_multiple_of(self.header.cluster_size()) {
                self.damage(1, || format!("the L1 entry at {entry_at:#x} is not aligned: {table:#x}"));
            }
            let times = tables.entry(table).or_default();
            times.all += 1;
            times.active += u64::from(active);
        }
    }

    fn snapshots(&mut self, tables: &mut L2Tables) -> Result<()> {
        if self.header.snapshot_count == 0 {
            return Ok(());
        }
        let read = tables::snapshots(&self.file, &self.header);
        let snapshots =
            match read.and_then(|found| Ok((found, tables::snapshots_end(&self.file, &self.header)?))) {
                Err(error) if error.kind() == vmwright_disk::ErrorKind::Corrupt => {
                    self.unreadable(&error);
                    return Ok(());
                }
                result => result?,
            };
        let (snapshots, end) = snapshots;
        let count = snapshots.len();
        if self.header.has(INCOMPATIBLE_DATA_FILE) {
            self.damage(1, || format!("{count} snapshots in an image with an external data file"));
        }
        let mut sum = 0u64;
        for snapshot in snapshots {
            let (id, at, len) = (&snapshot.info.id, snapshot.l1_offset, u64::from(snapshot.l1_len) * 8);
            if self.header.version == Version::V3 && snapshot.disk_size.is_none() {
                self.sizeless_snapshots += 1;
                self.damage(1, || format!("snapshot {id} does not say how large its disk is"));
            }
            if !at.is_multiple_of(self.header.cluster_size()) {
                self.damage(1, || format!("the L1 table of snapshot {id} at {at:#x} is not aligned"));
                continue;
            }
            if len > MAX_L1_BYTES {
                self.damage(1, || format!("the L1 table of snapshot {id} is too large: {len} bytes"));
                continue;
            }
            // Tables that lie over one another would be read again and again.
            sum = sum.saturating_add(len);
            if sum > self.file.0.len().saturating_add(MAX_L1_BYTES) {
                return Err(Error::corrupt(
                    "the L1 tables of snapshots",
                    at,
                    "tables that fit into the file",
                    sum,
                ));
            }
            match read_numbers(&self.file, "the L1 table of a snapshot", at, len, MAX_L1_BYTES) {
                Ok(l1) => self.l1_table(tables, &l1, at, false),
                Err(error) => self.unreadable(&error),
            }
        }
        self.add(self.header.snapshots_offset, end - self.header.snapshots_offset, 1);
        Ok(())
    }

    fn l2_table(&mut self, table: u64, times: Times) -> Result<()> {
        if table >= self.file.0.len() {
            return Ok(());
        }
        let mut bytes = vec![0; self.header.cluster_size() as usize];
        self.file.read_at(&mut bytes, table)?;
        let extended = self.header.has(INCOMPATIBLE_EXTENDED_L2);
        let step = if extended { 16 } else { 8 };
        let mut follows = None;
        for index in (0..bytes.len()).step_by(step) {
            let raw = read_u64(&bytes, index);
            let parts = if extended { read_u64(&bytes, index + 8) } else { 0 };
            if raw == 0 && parts == 0 {
                continue;
            }
            let at = table.saturating_add(index as u64);
            match raw & COMPRESSED {
                0 => self.plain_entry(at, raw, parts, times, &mut follows),
                _ => self.compressed_entry(at, raw, parts, times),
            }
        }
        Ok(())
    }

    fn compressed_entry(&mut self, at: u64, raw: u64, parts: u64, times: Times) {
        if raw & COPIED != 0 {
            self.damage(times.all, || format!("the compressed L2 entry at {at:#x} claims to be exclusive"));
        }
        if self.header.has(INCOMPATIBLE_DATA_FILE) {
            self.damage(times.all, || format!("the L2 entry at {at:#x} is compressed, with a data file"));
            return;
        }
        if parts != 0 {
            self.damage(times.all, || format!("the compressed L2 entry at {at:#x} has parts: {parts:#x}"));
            return;
        }
        let packed = Packed::parse(raw & !COPIED, self.header.cluster_bits);
        self.add(packed.host, packed.len, times.all);
        self.count(times.active, true, true);
    }

    fn count(&mut self, times: u64, fragmented: bool, compressed: bool) {
        if times == 0 {
            return;
        }
        let report = &mut self.report;
        *report.allocated_clusters.get_or_insert(0) += times;
        if fragmented {
            *report.fragmented_clusters.get_or_insert(0) += times;
        }
        if compressed {
            *report.compressed_clusters.get_or_insert(0) += times;
        }
    }

    /// An entry that is not compressed; `follows` is where a cluster would be that follows the one before.
    fn plain_entry(&mut self, at: u64, raw: u64, parts: u64, times: Times, follows: &mut Option<u64>) {
        let extended = self.header.has(INCOMPATIBLE_EXTENDED_L2);
        let data_file = self.header.has(INCOMPATIBLE_DATA_FILE);
        if raw & L2_RESERVED != 0 {
            self.damage(times.all, || format!("the L2 entry {raw:#x} at {at:#x} has reserved bits set"));
        }
        let host = raw & OFFSET_MASK;
        let zero = raw & ZERO != 0 && !extended;
        if host == 0 && !(data_file && raw & COPIED != 0 && !zero) {
            if parts & ALLOCATED_PARTS != 0 && !zero {
                self.damage(times.all, || {
                    format!("the L2 entry at {at:#x} has allocated parts and no cluster: {parts:#x}")
                });
            }
            return;
        }
        if parts >> 32 & parts != 0 {
            self.damage(times.all, || {
                format!("the L2 entry at {at:#x} has parts both allocated and zero: {parts:#x}")
            });
        }
        if times.active > 0 {
            self.count(times.active, follows.is_some_and(|follows| follows != host), false);
            *follows = host.checked_add(self.header.cluster_size());
        }
        if !host.is_multiple_of(self.header.cluster_size()) {
            self.damage(times.all, || format!("the L2 entry at {at:#x} is not aligned: {host:#x}"));
            let holds_data = if extended { parts & ALLOCATED_PARTS != 0 } else { !zero };
            if !holds_data {
                self.hopeless.push((at, zero_entry(extended)));
            }
        }
        if !data_file {
            self.add(host, self.header.cluster_size(), times.all);
        }
    }

    fn encryption_header(&self) -> Result<Option<(u64, u64)>> {
        let mut first = vec![0; self.header.cluster_size() as usize];
        self.file.read_at(&mut first, 0)?;
        let range = Header::find_extension(&first, super::layout::EXTENSION_ENCRYPTION);
        Ok(range.filter(|data| data.len() >= 16).map(|data| (read_u64(data, 0), read_u64(data, 8))))
    }

    fn bitmaps(&mut self) -> Result<()> {
        let Some(directory) = self.header.bitmaps else { return Ok(()) };
        if self.header.autoclear & AUTOCLEAR_BITMAPS == 0 || directory.count == 0 {
            return Ok(());
        }
        self.add(directory.offset, directory.len, 1);
        let bitmaps = match tables::bitmaps(&*self.file.0, &self.header) {
            Err(error) if error.kind() == vmwright_disk::ErrorKind::Corrupt => {
                self.damage(1, || error.to_string());
                return Ok(());
            }
            result => result?,
        };
        let mut sum = 0u64;
        for bitmap in bitmaps {
            // Tables that lie over one another would be read again and again.
            sum = sum.saturating_add(u64::from(bitmap.table_len) * 8);
            if sum > self.file.0.len() {
                let at = bitmap.table_offset;
                let expected = "tables that all fit into the file";
                return Err(Error::corrupt("the table of a bitmap", at, expected, sum));
            }
            self.bitmap(&bitmap);
        }
        Ok(())
    }

    fn bitmap(&mut self, bitmap: &Bitmap) {
        let (at, len) = (bitmap.table_offset, u64::from(bitmap.table_len) * 8);
        self.add(at, len, 1);
        let table = match read_numbers(&self.file, "the table of a bitmap", at, len, MAX_L1_BYTES) {
            Ok(table) => table,
            Err(error) => return self.damage(1, || error.to_string()),
        };
        for (index, entry) in table.iter().enumerate() {
            let entry_at = at.saturating_add(index as u64 * 8);
            let host = entry & OFFSET_MASK;
            let aligned = host.is_multiple_of(self.header.cluster_size());
            if entry & BITMAP_RESERVED != 0 || !aligned || host != 0 && entry & 1 != 0 {
                self.damage(1, || {
                    format!("the entry {entry:#x} at {entry_at:#x} of a bitmap makes no sense")
                });
            } else if host != 0 {
                self.add(host, self.header.cluster_size(), 1);
            }
        }
    }

    /// Counts the refcount table and its blocks last: nothing else may be where they are.
    fn refcount_tables(&mut self) {
        let cluster_size = self.header.cluster_size();
        let (at, len) = (self.header.reftable_offset, self.reftable.len() as u64 * 8);
        if self.add(at, len, 1) {
            self.refcount_ranges.push((at, len));
        }
        for index in 0..self.reftable.len() {
            let (entry, entry_at) = (self.reftable[index], at + index as u64 * 8);
            let block = entry & !REFTABLE_RESERVED;
            if entry & REFTABLE_RESERVED != 0 {
                self.damage(1, || {
                    format!("the refcount table entry {entry:#x} at {entry_at:#x} has reserved bits set")
                });
                self.rebuild = true;
            } else if !block.is_multiple_of(cluster_size) {
                self.damage(1, || {
                    format!("the refcount table entry at {entry_at:#x} is not aligned: {block:#x}")
                });
                self.rebuild = true;
            } else if block >> self.header.cluster_bits >= self.clusters {
                self.damage(1, || {
                    format!("the refcount table entry at {entry_at:#x} is past the end: {block:#x}")
                });
                self.rebuild = true;
            } else if block != 0 {
                if self.add(block, cluster_size, 1) {
                    self.refcount_ranges.push((block, cluster_size));
                }
                let references = self.counts.get(block >> self.header.cluster_bits);
                if references != 1 {
                    self.damage(1, || {
                        format!("the refcount block at {block:#x} has {references} references")
                    });
                    self.rebuild = true;
                }
            }
        }
    }

    fn block_entry(&self, cluster: u64) -> u64 {
        let index = usize::try_from(cluster / self.width().per_block(self.header.cluster_bits)).ok();
        index.and_then(|index| self.reftable.get(index)).map_or(0, |entry| entry & !REFTABLE_RESERVED)
    }

    /// The refcount block that covers a cluster, if there is one.
    fn block_of(&self, cluster: u64) -> Option<u64> {
        let entry = self.block_entry(cluster);
        (entry != 0 && self.has_counts(cluster) && entry < self.file.0.len()).then_some(entry)
    }

    /// Whether the place where the count of a cluster is recorded makes sense.
    fn has_counts(&self, cluster: u64) -> bool {
        let entry = self.block_entry(cluster);
        entry.is_multiple_of(self.header.cluster_size()) && entry <= i64::MAX as u64
    }

    /// Where the count of a cluster is: the offset of its slice, and the index within.
    pub(super) fn place(&self, cluster: u64) -> Option<(u64, u64)> {
        let block = self.block_of(cluster)?;
        let per_slice = self.cache.slice_len() * 8 / u64::from(self.width().bits());
        let index = cluster % self.width().per_block(self.header.cluster_bits);
        Some((block + index / per_slice * self.cache.slice_len(), index % per_slice))
    }

    /// The count of a cluster as it is recorded, zero where none is; `None` where it cannot be looked at.
    pub(super) fn recorded(&self, cluster: u64) -> Result<Option<u64>> {
        let Some((slice_at, index)) = self.place(cluster) else {
            return Ok(self.has_counts(cluster).then_some(0));
        };
        let slice = self.cache.get(&self.file, Table::Refcount, slice_at)?;
        Ok(Some(self.width().get(&slice, index)))
    }

    /// The count that a cluster has after a repair.
    pub(super) fn repaired(&self, cluster: u64) -> Result<Option<u64>> {
        // What is recorded of clusters past the end of the file stays, unless everything is made anew.
        if cluster < self.end() || self.rebuild {
            Ok(Some(self.counts.get(cluster)))
        } else {
            self.recorded(cluster)
        }
    }

    /// Where clusters end that are compared.
    pub(super) fn end(&self) -> u64 {
        self.clusters.max(self.counts.last().map_or(0, |last| last + 1))
    }

    /// Calls `each` with every cluster whose recorded or real count is not zero, and both.
    pub(super) fn each_counted(&self, mut each: impl FnMut(u64, u64, u64)) -> Result<()> {
        let per_block = self.width().per_block(self.header.cluster_bits);
        let end = self.end();
        for start in (0..end).step_by(usize::try_from(per_block).unwrap_or(usize::MAX)) {
            self.each_counted_in(start, start.saturating_add(per_block).min(end), &mut each)?;
        }
        Ok(())
    }

    /// The same for a range of clusters that one refcount block covers.
    pub(super) fn each_counted_in(
        &self,
        start: u64,
        stop: u64,
        mut each: impl FnMut(u64, u64, u64),
    ) -> Result<()> {
        if self.block_of(start).is_none() && !self.counts.any(start, stop) || !self.has_counts(start) {
            return Ok(());
        }
        for cluster in start..stop {
            let (recorded, used) = (self.recorded(cluster)?.unwrap_or(0), self.counts.get(cluster));
            if recorded > 0 || used > 0 {
                each(cluster, recorded, used);
            }
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<()> {
        let mut wrong = Vec::new();
        let (mut last, mut leaks, mut damages, mut rebuild) = (None, 0, 0, false);
        self.each_counted(|cluster, recorded, used| {
            last = Some(cluster);
            if recorded != used && wrong.len() < MAX_FINDINGS {
                wrong.push((cluster, recorded, used));
            }
            leaks += u64::from(recorded > used);
            damages += u64::from(recorded < used);
            rebuild |= recorded == 0 && used > 0;
        })?;
        let per_block = self.width().per_block(self.header.cluster_bits);
        for start in (0..self.end()).step_by(usize::try_from(per_block).unwrap_or(usize::MAX)) {
            if !self.has_counts(start) {
                self.report.check_errors += per_block.min(self.end() - start);
            }
        }
        self.report.leaks += leaks;
        self.report.corruptions += damages;
        self.rebuild |= rebuild;
        for (cluster, recorded, used) in wrong {
            let what = if recorded > used { "is leaked" } else { "is in danger" };
            self.note(|| format!("cluster {cluster:#x} {what}: count {recorded}, references {used}"));
        }
        self.report.image_end_offset = Some((last.unwrap_or(0) + 1) << self.header.cluster_bits);
        Ok(())
    }
}

/// The entry of a cluster that reads as zeros.
fn zero_entry(extended: bool) -> Vec<u8> {
    if !extended {
        return ZERO.to_be_bytes().to_vec();
    }
    let mut entry = vec![0; 16];
    entry[8..12].fill(0xff);
    entry
}

/// A number for a report that leaves zeros out.
fn some(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

/// Reads a table that must be aligned to 8 bytes and not be too long; zeros behind the end of the file.
fn read_numbers(file: &Padded, what: &'static str, at: u64, len: u64, max: u64) -> Result<Vec<u64>> {
    if len > max {
        return Err(Error::corrupt(what, at, "a table of a size that QEMU accepts", len));
    }
    if len > 0 && at.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
        return Err(Error::corrupt(what, at, "a place that a file can have", len));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, at)?;
    Ok(bytes.chunks_exact(8).map(|chunk| read_u64(chunk, 0)).collect())
}
