//! Making an empty image.

use std::sync::Arc;

use vmwright_crypt::luks1;
use vmwright_disk::Disk;

use super::Qcow2;
use super::layout::{
    AUTOCLEAR_RAW_DATA_FILE, BackingName, COMPATIBLE_LAZY_REFCOUNTS, Compression, ENCRYPTION_LUKS, Header,
    INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2, MAX_REFTABLE_BYTES, Version,
};
use super::options::{Compat, Preallocation, Qcow2Options};
use super::refcount::Width;
use crate::create::{CreateOptions, PartMaker};
use crate::error::Reason;
use crate::{BackingFile, Error, OpenOptions, Result};

/// Makes an empty image.
pub(crate) fn create_image(
    file: &Arc<dyn Disk>,
    options: &CreateOptions,
    layout: &Qcow2Options,
    parts: &dyn PartMaker,
) -> Result<()> {
    // A disk consists of whole sectors.
    let size = options.size.checked_next_multiple_of(512).unwrap_or(u64::MAX);
    layout.check(options, size)?;
    let luks = make_luks(options, layout)?;
    let backing = options.backing.clone();
    let mut header = laid_out_header(size, layout, luks.as_ref().map_or(0, |luks| luks.len() as u64));
    header.backing = backing.map(|BackingFile { name, format }| BackingName { name, format });
    let first = first_cluster(&mut header)?;
    write_tables(&**file, &header, &first)?;
    if let (Some(luks), Some((at, _))) = (&luks, header.encryption_header) {
        file.write_at(luks, at)?;
    }

    let mut how = OpenOptions { secret: options.secret.clone(), ..OpenOptions::default() };
    if let Some(name) = &layout.data_file {
        let data = parts.make(name)?;
        data.set_len(size)?;
        how.parts.push(data);
    }
    match layout.preallocation {
        // Or else the data file would not be the whole truth.
        Preallocation::Off if layout.data_file_raw => {
            Qcow2::open(file.clone(), how)?.preallocate(Preallocation::Metadata)
        }
        Preallocation::Off => Ok(()),
        other => Qcow2::open(file.clone(), how)?.preallocate(other),
    }
}

/// Makes the LUKS header with its key material, for an image that is to be encrypted.
fn make_luks(
    options: &CreateOptions,
    layout: &Qcow2Options,
) -> Result<Option<impl std::ops::Deref<Target = Vec<u8>> + use<>>> {
    let how = match (&layout.encrypt, &options.secret) {
        (None, None) => return Ok(None),
        (how, _) => how.clone().unwrap_or_default().luks1()?,
    };
    let secret = options.secret.as_ref().ok_or(Reason::NeedsPassphrase)?;
    // Sectors are numbered by where they are in the file, so the payload begins nowhere; QEMU says it is behind.
    let how = luks1::FormatOptions { payload_offset: Some(how.least_payload_offset()), ..how };
    Ok(Some(luks1::format(&how, secret)?.0))
}

/// The header of an image of `size` bytes without a backing file, its tables placed one after the other.
#[cfg(test)]
pub(crate) fn empty_header(size: u64, options: &Qcow2Options) -> Header {
    laid_out_header(size, options, 0)
}

/// The same, with a LUKS header of so many bytes behind the tables.
fn laid_out_header(size: u64, options: &Qcow2Options, luks_len: u64) -> Header {
    let cluster_bits = options.cluster_size.trailing_zeros();
    let v3 = options.compat == Compat::V1_1;
    let cluster_size = 1u64 << cluster_bits;
    let l1_len = size.div_ceil(options.l2_coverage());
    let l1_clusters = (l1_len * 8).div_ceil(cluster_size);
    let (reftable_clusters, refblocks) =
        count_refcount_clusters(1 + l1_clusters + luks_len.div_ceil(cluster_size), options);
    let l1_offset = (1 + reftable_clusters + refblocks) * cluster_size;
    Header {
        version: if v3 { Version::V3 } else { Version::V2 },
        cluster_bits,
        size,
        encryption: if luks_len > 0 { ENCRYPTION_LUKS } else { 0 },
        l1_len: l1_len as u32,
        l1_offset,
        reftable_offset: cluster_size,
        reftable_clusters: reftable_clusters as u32,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: incompatible(options),
        compatible: if options.lazy_refcounts { COMPATIBLE_LAZY_REFCOUNTS } else { 0 },
        autoclear: if options.data_file_raw { AUTOCLEAR_RAW_DATA_FILE } else { 0 },
        refcount_order: options.refcount_bits.trailing_zeros(),
        compression: options.compression_type,
        backing: None,
        bitmaps: None,
        data_file: options.data_file.clone(),
        encryption_header: (luks_len > 0).then_some((l1_offset + l1_clusters * cluster_size, luks_len)),
        more_extensions: Vec::new(),
        more_fields: Vec::new(),
        name_at: 0,
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

fn incompatible(options: &Qcow2Options) -> u64 {
    let bit = |set: bool, bit: u64| if set { bit } else { 0 };
    bit(options.extended_l2, INCOMPATIBLE_EXTENDED_L2)
        | bit(options.data_file.is_some(), INCOMPATIBLE_DATA_FILE)
        | bit(options.compression_type != Compression::Deflate, INCOMPATIBLE_COMPRESSION)
}

/// The header as the beginning of the first cluster.
fn first_cluster(header: &mut Header) -> Result<Vec<u8>> {
    let mut first = header.encode();
    if first.len() as u64 > header.cluster_size() {
        // Small clusters have no room for the names of features, which only serve error messages.
        header.feature_names.clear();
        first = header.encode();
    }
    if first.len() as u64 > header.cluster_size() {
        let why = "the names of the backing file and of the data file need larger clusters";
        return Err(Error::invalid("the options of a new qcow2 image", why));
    }
    Ok(first)
}

fn write_tables(file: &dyn Disk, header: &Header, first: &[u8]) -> Result<()> {
    let cluster_size = header.cluster_size();
    let l1_clusters = (u64::from(header.l1_len) * 8).div_ceil(cluster_size);
    let luks_clusters = header.encryption_header.map_or(0, |(_, len)| len.div_ceil(cluster_size));
    let used = header.l1_offset / cluster_size + l1_clusters + luks_clusters;
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
