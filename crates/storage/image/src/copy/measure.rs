use serde::Serialize;
use vmwright_disk::Disk;

use crate::{CreateOptions, Error, Layout, Result};

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
pub fn measure(source: &dyn Disk, target: &CreateOptions) -> Result<Measure> {
    let size = source.len().next_multiple_of(512);
    match &target.layout {
        Layout::Raw(_) => Ok(Measure { required: size, fully_allocated: size }),
        Layout::Qcow2(qcow2) => {
            let cluster_size = u64::from(qcow2.cluster_size);
            let metadata = qcow2_metadata(size, cluster_size, qcow2.refcount_bits.into());
            let whole = size.next_multiple_of(cluster_size);
            Ok(Measure {
                required: metadata + data_clusters(source, cluster_size)?,
                fully_allocated: metadata + whole,
            })
        }
        _ => Err(Error::unsupported("measuring this format")),
    }
}

/// The bytes of the clusters in which a disk may hold something else than zeros.
fn data_clusters(source: &dyn Disk, cluster_size: u64) -> Result<u64> {
    let (mut at, mut sum) = (0, 0);
    while at < source.len() {
        let extent = source.extent_at(at)?;
        let mut end = extent.end();
        if !extent.is_zero() {
            end = end.next_multiple_of(cluster_size);
            sum += end - (at - at % cluster_size);
        }
        at = end;
    }
    Ok(sum)
}

/// The bytes of header and tables with all clusters allocated.
fn qcow2_metadata(size: u64, cluster_size: u64, refcount_bits: u64) -> u64 {
    let entries = cluster_size / 8;
    let l2_entries = size.div_ceil(cluster_size).next_multiple_of(entries);
    let l1_entries = (l2_entries / entries).next_multiple_of(entries);
    let tables = cluster_size + (l2_entries + l1_entries) * 8;
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
