//! Making an empty image.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::Qcow2;
use super::layout::{
    BackingName, COMPATIBLE_LAZY_REFCOUNTS, Compression, Header, MAX_BACKING_NAME, MAX_L1_BYTES,
    MAX_REFTABLE_BYTES, Version,
};
use super::refcount::Width;
use crate::create::{CreateOptions, PartMaker, bad_value, no_option, parse_bytes, parse_switch};
use crate::{BackingFile, Error, Format, OpenOptions, Result};

/// How a new qcow2 image is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Options {
    /// The unit of allocation: a power of two from 512 bytes to 2 MiB; 64 KiB by default.
    pub cluster_size: u32,
    /// The version; 1.1 by default.
    pub compat: Compat,
    /// The width of a reference count: a power of two from 1 to 64 bits; 16 by default.
    pub refcount_bits: u32,
    /// Whether other programs may write reference counts late, under the dirty flag.
    pub lazy_refcounts: bool,
    /// What is allocated at once.
    pub preallocation: Preallocation,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            cluster_size: 65536,
            compat: Compat::V1_1,
            refcount_bits: 16,
            lazy_refcounts: false,
            preallocation: Preallocation::Off,
        }
    }
}

impl Qcow2Options {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("cluster_size", "512 to 2M"),
        ("compat", "0.10 or 1.1"),
        ("lazy_refcounts", "on or off"),
        ("preallocation", "off or metadata"),
        ("refcount_bits", "1 to 64"),
    ];

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "cluster_size" => {
                let bytes = parse_bytes("cluster_size", value)?;
                self.cluster_size =
                    u32::try_from(bytes).map_err(|_| bad_value("cluster_size", value, "512 to 2M"))?;
            }
            "refcount_bits" => {
                self.refcount_bits = value
                    .parse()
                    .map_err(|_| bad_value("refcount_bits", value, "1, 2, 4, 8, 16, 32 or 64"))?;
            }
            "compat" => {
                self.compat = match value {
                    "0.10" | "v2" => Compat::V0_10,
                    "1.1" | "v3" => Compat::V1_1,
                    _ => return Err(bad_value("compat", value, "0.10 or 1.1")),
                }
            }
            "lazy_refcounts" => self.lazy_refcounts = parse_switch("lazy_refcounts", value)?,
            "preallocation" => {
                self.preallocation = match value {
                    "off" => Preallocation::Off,
                    "metadata" => Preallocation::Metadata,
                    _ => return Err(bad_value("preallocation", value, "off or metadata")),
                }
            }
            _ => return Err(no_option(Format::Qcow2, key)),
        }
        Ok(())
    }
}

/// Makes an empty image.
pub(crate) fn create_image(
    file: &Arc<dyn Disk>,
    options: &CreateOptions,
    layout: &Qcow2Options,
    _parts: &dyn PartMaker,
) -> Result<()> {
    let backing = options.backing.clone();
    let backing = backing.map(|BackingFile { name, format }| BackingName { name, format });
    create(&**file, options.size, layout, backing)?;
    match layout.preallocation {
        Preallocation::Off => Ok(()),
        Preallocation::Metadata => Qcow2::open(file.clone(), OpenOptions::default())?.preallocate(),
    }
}

/// The options that make another image like the one with this header.
pub(super) fn options_of(header: &Header) -> Qcow2Options {
    Qcow2Options {
        cluster_size: 1 << header.cluster_bits,
        compat: if header.version == Version::V3 { Compat::V1_1 } else { Compat::V0_10 },
        refcount_bits: 1 << header.refcount_order,
        lazy_refcounts: header.compatible & COMPATIBLE_LAZY_REFCOUNTS != 0,
        ..Qcow2Options::default()
    }
}

/// The version of qcow2, by the first QEMU release that understood it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// Version 2: no zero clusters, 16-bit reference counts.
    V0_10,
    /// Version 3.
    V1_1,
}

/// What a new image allocates at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    Off,
    /// A place for every cluster, without writing the clusters.
    Metadata,
}

/// The header of an image of `size` bytes without a backing file, its tables placed one after the other.
pub(crate) fn empty_header(size: u64, options: &Qcow2Options) -> Header {
    let cluster_bits = options.cluster_size.trailing_zeros();
    let v3 = options.compat == Compat::V1_1;
    let coverage = 1u64 << (2 * cluster_bits - 3);
    let cluster_size = 1u64 << cluster_bits;
    let l1_len = size.div_ceil(coverage);
    let l1_clusters = (l1_len * 8).div_ceil(cluster_size);
    let (reftable_clusters, refblocks) = count_refcount_clusters(1 + l1_clusters, options);
    Header {
        version: if v3 { Version::V3 } else { Version::V2 },
        cluster_bits,
        size,
        encryption: 0,
        l1_len: l1_len as u32,
        l1_offset: (1 + reftable_clusters + refblocks) * cluster_size,
        reftable_offset: cluster_size,
        reftable_clusters: reftable_clusters as u32,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: if options.lazy_refcounts { COMPATIBLE_LAZY_REFCOUNTS } else { 0 },
        autoclear: 0,
        refcount_order: options.refcount_bits.trailing_zeros(),
        compression: Compression::Deflate,
        backing: None,
        bitmaps: None,
        data_file: None,
        feature_names: if v3 { Header::default_feature_names() } else { Vec::new() },
    }
}

/// How many clusters of refcount table and of refcount blocks cover `others` clusters and themselves.
fn count_refcount_clusters(others: u64, options: &Qcow2Options) -> (u64, u64) {
    let cluster_size = u64::from(options.cluster_size);
    let per_block = cluster_size * 8 / u64::from(options.refcount_bits);
    let (mut table, mut blocks) = (1, 1);
    loop {
        let needed = (others + table + blocks).div_ceil(per_block);
        let needed_table = (needed * 8).div_ceil(cluster_size);
        if needed <= blocks && needed_table <= table {
            return (table, blocks);
        }
        (table, blocks) = (needed_table.max(table), needed.max(blocks));
    }
}

fn check(size: u64, options: &Qcow2Options, backing: Option<&BackingName>) -> Result<()> {
    let what = "the options of a new qcow2 image";
    let (cluster_size, bits) = (options.cluster_size, options.refcount_bits);
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return Err(Error::invalid(what, "the cluster size must be a power of two from 512 to 2 MiB"));
    }
    if !bits.is_power_of_two() || bits > 64 {
        return Err(Error::invalid(what, "refcount bits must be a power of two from 1 to 64"));
    }
    if options.compat == Compat::V0_10 && (bits != 16 || options.lazy_refcounts) {
        return Err(Error::invalid(what, "compat 0.10 has 16 refcount bits and no lazy refcounts"));
    }
    let coverage = u64::from(cluster_size) * u64::from(cluster_size / 8);
    if size > i64::MAX as u64 || size.div_ceil(coverage) > MAX_L1_BYTES / 8 {
        return Err(Error::invalid(what, "the size needs larger clusters"));
    }
    if backing.is_some_and(|backing| backing.name.is_empty() || backing.name.len() > MAX_BACKING_NAME) {
        return Err(Error::invalid(what, "the name of the backing file must have 1 to 1023 bytes"));
    }
    if backing.is_some() && options.preallocation != Preallocation::Off {
        return Err(Error::invalid(what, "preallocated clusters would hide the backing file"));
    }
    Ok(())
}

/// Writes an empty image onto `file`, whose former content is lost; the caller flushes.
pub(crate) fn create(
    file: &dyn Disk,
    size: u64,
    options: &Qcow2Options,
    backing: Option<BackingName>,
) -> Result<()> {
    // A disk consists of whole sectors.
    let size = size.checked_next_multiple_of(512).unwrap_or(u64::MAX);
    check(size, options, backing.as_ref())?;
    let mut header = empty_header(size, options);
    header.backing = backing;
    let mut first = header.encode();
    if first.len() as u64 > header.cluster_size() {
        // Small clusters have no room for the names of features, which only serve error messages.
        header.feature_names.clear();
        first = header.encode();
    }
    if first.len() as u64 > header.cluster_size() {
        let why = "the name of the backing file needs larger clusters";
        return Err(Error::invalid("the options of a new qcow2 image", why));
    }
    write_tables(file, &header, &first)
}

fn write_tables(file: &dyn Disk, header: &Header, first: &[u8]) -> Result<()> {
    let cluster_size = header.cluster_size();
    let l1_clusters = (u64::from(header.l1_len) * 8).div_ceil(cluster_size);
    let used = header.l1_offset / cluster_size + l1_clusters;
    if u64::from(header.reftable_clusters) * cluster_size > MAX_REFTABLE_BYTES {
        return Err(Error::invalid("the options of a new qcow2 image", "the size needs larger clusters"));
    }
    file.set_len(0)?;
    file.set_len(used * cluster_size)?;

    let width = Width::new(header.refcount_order);
    let per_block = width.per_block(header.cluster_bits);
    let blocks_at = header.reftable_offset + u64::from(header.reftable_clusters) * cluster_size;
    let mut reftable = Vec::new();
    for block in 0..used.div_ceil(per_block) {
        let at = blocks_at + block * cluster_size;
        reftable.extend_from_slice(&at.to_be_bytes());
        let mut refcounts = vec![0; cluster_size as usize];
        for index in 0..per_block.min(used - block * per_block) {
            width.set(&mut refcounts, index, 1);
        }
        file.write_at(&refcounts, at)?;
    }
    file.write_at(&reftable, header.reftable_offset)?;
    file.write_at(first, 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_cover_themselves_for_every_geometry() {
        for cluster_bits in 9..=21 {
            for order in 0..=6 {
                let options = Qcow2Options {
                    cluster_size: 1 << cluster_bits,
                    refcount_bits: 1 << order,
                    ..Default::default()
                };
                for others in [1, 2, 63, 64, 65, 4096, 100_000] {
                    let (table, blocks) = count_refcount_clusters(others, &options);
                    let per_block = ((1u64 << cluster_bits) * 8) >> order;
                    assert!(blocks * per_block >= others + table + blocks);
                    assert!(table << cluster_bits >= blocks * 8);
                }
            }
        }
    }
}
