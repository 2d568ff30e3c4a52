use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use vmwright_disk::Disk;

use super::phantom::Phantom;
use crate::{
    CreateOptions, Error, FormatChoice, Image, Layout, OpenOptions, PartMaker, Preallocation, Result, driver,
};

/// How large a file would be, as `qemu-img measure --output=json` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Measure {
    /// With what the disk holds now.
    pub required: u64,
    /// With every byte of the disk written.
    pub fully_allocated: u64,
}

/// Measures the file that a conversion of `source` to the format and layout of `target` needs at most; the size
/// in `target` does not matter.
///
/// For raw and qcow2 that is what `qemu-img measure` answers. For formats that it does not measure, it is the size of the
/// empty image and of every unit that holds data, all files together.
pub fn measure(source: &dyn Disk, target: &CreateOptions) -> Result<Measure> {
    let target = CreateOptions { size: source.len(), ..target.clone() };
    measured(&target, |unit| data_units(source, unit))
}

/// Measures the file of a disk of the size in `target` that holds nothing.
pub fn measure_empty(target: &CreateOptions) -> Result<Measure> {
    measured(target, |_| Ok(0))
}

fn measured(target: &CreateOptions, data: impl Fn(u64) -> Result<u64>) -> Result<Measure> {
    let size = target.size.checked_next_multiple_of(512);
    let size = size.ok_or_else(|| Error::invalid("the size of a disk", "it is too large"))?;
    match &target.layout {
        Layout::Raw(_) => Ok(Measure { required: size, fully_allocated: size }),
        Layout::Qcow2(qcow2) => {
            let unit = u64::from(qcow2.cluster_size);
            let entry = if qcow2.extended_l2 { 16 } else { 8 };
            let keys = match (&qcow2.encrypt, &target.secret) {
                (None, None) => 0,
                (luks, _) => luks.clone().unwrap_or_default().key_area_len()?.next_multiple_of(unit),
            };
            let metadata = keys + qcow2_metadata(size, unit, qcow2.refcount_bits.into(), entry);
            let whole = size.next_multiple_of(unit);
            let at_once = matches!(qcow2.preallocation, Preallocation::Falloc | Preallocation::Full);
            let required =
                if at_once { size.next_multiple_of(unit) } else { data(unit)?.saturating_mul(unit) };
            Ok(Measure { required: metadata + required, fully_allocated: metadata + whole })
        }
        Layout::Luks(luks) => {
            let header = luks.header_len()?;
            let whole = header + size.next_multiple_of(u64::from(luks.sector_size));
            Ok(Measure { required: whole, fully_allocated: whole })
        }
        _ => by_example(target, size, data),
    }
}

/// Makes the image without content, in memory, and adds what content takes.
fn by_example(target: &CreateOptions, size: u64, data: impl Fn(u64) -> Result<u64>) -> Result<Measure> {
    let files = Phantoms::default();
    let file: Arc<dyn Disk> = Arc::new(Phantom::default());
    driver::create(&file, &CreateOptions { backing: None, ..target.clone() }, &files)?;
    let parts = files.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    let empty = parts.iter().fold(file.len(), |sum, part| sum.saturating_add(part.len()));
    if empty >= size && size > 0 {
        // All of it has its place at once.
        return Ok(Measure { required: empty, fully_allocated: empty });
    }
    let how = OpenOptions { parts, ..OpenOptions::default() };
    let image = Image::open(file, FormatChoice::Exact(target.layout.format()), how)?;
    let unit = image.cluster_size().unwrap_or(1 << 20);
    let each = unit.saturating_add(overhead(&target.layout, unit));
    let take = |units: u64| empty.saturating_add(units.saturating_mul(each));
    Ok(Measure { required: take(data(unit)?), fully_allocated: take(size.div_ceil(unit)) })
}

/// What a unit takes beside its content, at most.
fn overhead(layout: &Layout, unit: u64) -> u64 {
    match layout {
        // A bit for each sector, in whole sectors.
        Layout::Vhd(_) => unit.div_ceil(512 * 8).next_multiple_of(512),
        // A stream has the length of each grain before it and its part of a table behind it, and deflate can make a
        // grain longer.
        Layout::Vmdk(_) => 2048,
        _ => 0,
    }
}

/// The further files of an image that is made to be measured.
#[derive(Default)]
struct Phantoms(Mutex<Vec<Arc<dyn Disk>>>);

impl PartMaker for Phantoms {
    fn image_name(&self) -> &str {
        "image"
    }

    fn make(&self, _name: &str) -> Result<Arc<dyn Disk>> {
        let part: Arc<dyn Disk> = Arc::new(Phantom::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(part.clone());
        Ok(part)
    }
}

/// In how many units a disk may hold something else than zeros.
fn data_units(source: &dyn Disk, unit: u64) -> Result<u64> {
    // The unit that was counted last may hold the beginning of the next extent too.
    let (mut at, mut counted, mut sum) = (0, 0, 0);
    while at < source.len() {
        let extent = source.extent_at(at)?;
        if !extent.is_zero() {
            let (first, end) = (counted.max(at / unit), extent.end().div_ceil(unit));
            sum += end.saturating_sub(first);
            counted = counted.max(end);
        }
        at = extent.end();
    }
    Ok(sum)
}

/// The bytes of header and tables with all clusters allocated.
fn qcow2_metadata(size: u64, cluster_size: u64, refcount_bits: u64, l2_entry: u64) -> u64 {
    let entries = cluster_size / 8;
    let l2_bytes = size.div_ceil(cluster_size).next_multiple_of(cluster_size / l2_entry) * l2_entry;
    let l1_entries = (l2_bytes / cluster_size).next_multiple_of(entries);
    let tables = cluster_size + l2_bytes + l1_entries * 8;
    let others = (tables + size.next_multiple_of(cluster_size)) / cluster_size;
    let per_block = cluster_size * 8 / refcount_bits;
    let (mut table, mut blocks) = (0, 0);
    loop {
        let next_blocks = (others + table + blocks).div_ceil(per_block);
        let next_table = next_blocks.div_ceil(entries);
        if (next_table, next_blocks) == (table, blocks) {
            return tables + (table + blocks) * cluster_size;
        }
        (table, blocks) = (next_table, next_blocks);
    }
}
