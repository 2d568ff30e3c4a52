//! Every checksum of a volume computed again: for another seed, or for checksums where there were none.
//!
//! Each structure is read as the old superblock has it, checksum included, and sealed as the new one does.

use std::collections::HashSet;

use crate::bitmap;
use crate::checksum::crc32c;
use crate::dir_block::{DirFormat, get_u16, get_u32};
use crate::error::{Error, Place, Result};
use crate::extents;
use crate::features::compat;
use crate::group::{BLOCK_UNINIT, INODE_UNINIT};
use crate::htree;
use crate::inode::{self, Inode, flags};
use crate::mapping::RunPlace;
use crate::maps;
use crate::superblock::Superblock;
use crate::volume::Ext4;
use crate::xattr;

/// Where the root of an index says how many levels are between it and the leaves.
const INDIRECT_LEVELS: usize = 30;

/// The numbers of the inodes of a group that are in use, in order.
pub(crate) fn used_inodes(volume: &Ext4, group: u32) -> Result<Vec<u32>> {
    let descriptor = volume.groups.get(group)?;
    if descriptor.flags & INODE_UNINIT != 0 {
        return Ok(Vec::new());
    }
    let per_group = volume.superblock.inodes_per_group;
    let bits = volume.cache.read(descriptor.inode_bitmap)?;
    let first = group * per_group;
    let mut used = Vec::new();
    let mut at = bitmap::find(&bits, 0, per_group, true);
    while at < per_group {
        used.push(first + at + 1);
        at = bitmap::find(&bits, at + 1, per_group, true);
    }
    Ok(used)
}

/// The bytes of an inode's record.
pub(crate) fn record(volume: &Ext4, number: u32) -> Result<Vec<u8>> {
    let (block, at) = volume.inode_location(number)?;
    let bytes = volume.cache.read(block)?;
    Ok(bytes[at..at + usize::from(volume.superblock.inode_size)].to_vec())
}

/// Replaces the bytes of an inode's record.
pub(crate) fn put_record(volume: &mut Ext4, number: u32, record: &[u8]) -> Result<()> {
    let (block, at) = volume.inode_location(number)?;
    volume.cache.modify(block)?[at..at + record.len()].copy_from_slice(record);
    volume.changed = true;
    Ok(())
}

/// The inode of a record, or nothing where it was never made.
pub(crate) fn made(volume: &Ext4, number: u32, record: &[u8]) -> Result<Option<Inode>> {
    // The mode stands first.
    if get_u16(record, 0) == 0 {
        return Ok(None);
    }
    Inode::parse(&volume.superblock, number, record).map(Some)
}

/// Takes over a superblock whose seed or checksums differ, and brings everything in line with it. The features
/// may differ in `metadata_csum`, where directories have been made ready for it.
pub(crate) fn reseal(volume: &mut Ext4, new: Superblock) -> Result<()> {
    let mut shared = HashSet::new();
    for group in 0..volume.groups.count() {
        for number in used_inodes(volume, group)? {
            let bytes = record(volume, number)?;
            if let Some(inode) = made(volume, number, &bytes)? {
                reseal_content(volume, &new, &inode, &mut shared)?;
            }
        }
        seal_records(volume, &new, group)?;
        reseal_bitmaps(volume, &new, group)?;
    }
    volume.superblock = new;
    volume.changed = true;
    Ok(())
}

/// Seals the records of a group's inodes, of removed ones too.
pub(crate) fn seal_records(volume: &mut Ext4, new: &Superblock, group: u32) -> Result<()> {
    let descriptor = volume.groups.get(group)?;
    if descriptor.flags & INODE_UNINIT != 0 {
        return Ok(());
    }
    let per_group = volume.superblock.inodes_per_group;
    let first = group * per_group + 1;
    for number in first..first + (per_group - descriptor.itable_unused) {
        let mut bytes = record(volume, number)?;
        if bytes.iter().any(|byte| *byte != 0) {
            inode::seal(new, number, &mut bytes);
            put_record(volume, number, &bytes)?;
        }
    }
    Ok(())
}

fn reseal_bitmaps(volume: &mut Ext4, new: &Superblock, group: u32) -> Result<()> {
    let descriptor = volume.groups.get(group)?.clone();
    let sum =
        |bits: &[u8], count: u32| crc32c(new.checksum_seed, &bits[..(count as usize / 8).min(bits.len())]);
    if descriptor.flags & BLOCK_UNINIT == 0 {
        let bits = volume.cache.read(descriptor.block_bitmap)?;
        let checksum = sum(&bits, new.blocks_per_group / new.cluster_blocks);
        volume.groups.modify(group)?.block_bitmap_csum = checksum;
    }
    if descriptor.flags & INODE_UNINIT == 0 {
        let bits = volume.cache.read(descriptor.inode_bitmap)?;
        volume.groups.modify(group)?.inode_bitmap_csum = sum(&bits, new.inodes_per_group);
    }
    Ok(())
}

fn reseal_content(
    volume: &mut Ext4,
    new: &Superblock,
    inode: &Inode,
    shared: &mut HashSet<u64>,
) -> Result<()> {
    if inode.has_blocks(&volume.superblock) {
        if inode.is_directory() {
            reseal_directory(volume, new, inode)?;
        }
        let orphans = volume.superblock.features.has_compat(compat::ORPHAN_FILE);
        if orphans && inode.number == volume.superblock.orphan_file_inode() {
            reseal_orphans(volume, inode, inode.checksum_seed(new))?;
        }
        // Last, because what comes before still follows the map.
        if inode.has_flag(flags::EXTENTS) {
            for block in maps::load(volume, inode)?.nodes {
                extents::seal_block(volume.cache.modify(block)?, inode.checksum_seed(new));
            }
        }
    }
    if inode.xattr_block != 0 && shared.insert(inode.xattr_block) {
        let old = volume.superblock.features.metadata_csum().then_some(volume.superblock.checksum_seed);
        let seed = new.features.metadata_csum().then_some(new.checksum_seed);
        let block = volume.cache.read(inode.xattr_block)?;
        xattr::verify_block(&block, inode.xattr_block, old)?;
        if xattr::block_references(Place::Block(inode.xattr_block), &block)? == 1 {
            // Nobody will ask for it again.
            shared.remove(&inode.xattr_block);
        }
        xattr::seal_block(volume.cache.modify(inode.xattr_block)?, inode.xattr_block, seed);
    }
    Ok(())
}

/// Seals the blocks of a directory for another superblock.
fn reseal_directory(volume: &mut Ext4, new: &Superblock, inode: &Inode) -> Result<()> {
    let old = volume.directory_format(inode);
    let format = DirFormat { seed: inode.checksum_seed(new), ..old };
    let nodes = index_nodes(volume, inode, &old)?;
    for logical in 0..volume.directory_blocks(inode) {
        let RunPlace::Written(block) = volume.run_at(inode, logical.into())?.place else { continue };
        let mut bytes = volume.cache.read(block)?.to_vec();
        seal_directory_block(&old, &format, nodes.contains(&logical), logical, &mut bytes)?;
        volume.cache.put(block, bytes)?;
    }
    Ok(())
}

/// Whether a directory's first block is the root of an index.
pub(crate) fn indexed(superblock: &Superblock, inode: &Inode) -> bool {
    superblock.features.has_compat(compat::DIR_INDEX) && inode.has_flag(flags::INDEX)
}

/// The blocks of a directory that make its index. An empty leaf without a checksum looks like one of them.
pub(crate) fn index_nodes(volume: &Ext4, inode: &Inode, format: &DirFormat) -> Result<HashSet<u32>> {
    let mut nodes = HashSet::new();
    if !indexed(&volume.superblock, inode) {
        return Ok(nodes);
    }
    let corrupt = |problem| Error::corrupt(Place::Inode(inode.number.into()), problem);
    let read = |logical: u32| Ok(volume.cache.read(volume.directory_block(inode, logical)?)?.to_vec());
    nodes.insert(0);
    let root = htree::Node::root(format, read(0)?)?;
    let levels = root.block[INDIRECT_LEVELS];
    let mut level: Vec<u32> = (0..root.count()).map(|index| root.child(index)).collect();
    for depth in 1..=levels {
        let mut below = Vec::new();
        for logical in level {
            if !nodes.insert(logical) {
                return Err(corrupt("the index of a directory leads to one block twice"));
            }
            let node = htree::Node::inner(format, logical, read(logical)?)?;
            if depth < levels {
                below.extend((0..node.count()).map(|index| node.child(index)));
            }
        }
        level = below;
    }
    Ok(nodes)
}

/// Checks one block of a directory, of the index or not, and seals it in another way.
pub(crate) fn seal_directory_block(
    old: &DirFormat,
    new: &DirFormat,
    node: bool,
    logical: u32,
    block: &mut Vec<u8>,
) -> Result<()> {
    if !node {
        old.verify(block)?;
        if new.seed.is_some() && !new.has_tail(block) {
            let place = Place::Inode(new.inode.into());
            return Err(Error::corrupt(place, "a directory block has no room for its checksum"));
        }
        new.seal(block);
        return Ok(());
    }
    let bytes = std::mem::take(block);
    let mut node = match logical {
        0 => htree::Node::root(old, bytes)?,
        _ => htree::Node::inner(old, logical, bytes)?,
    };
    if !node.convert(new) {
        let place = Place::Inode(new.inode.into());
        return Err(Error::corrupt(place, "an index node has no room for its checksum"));
    }
    *block = node.block;
    Ok(())
}

/// Seals a sound block of a directory whose inode numbers were changed.
pub(crate) fn seal_again(format: &DirFormat, node: bool, logical: u32, block: &mut Vec<u8>) {
    match (node, logical) {
        (true, 0) => *block = htree::seal_root(format, std::mem::take(block)),
        // Nodes but the root hold no inode numbers.
        (true, _) => {}
        (false, _) => format.seal(block),
    }
}

/// Seals the blocks of the orphan file where they stand.
pub(crate) fn reseal_orphans(volume: &mut Ext4, inode: &Inode, seed: Option<u32>) -> Result<()> {
    for logical in 0..inode.size.div_ceil(volume.block_size()).min(1 << 16) {
        let RunPlace::Written(block) = volume.run_at(inode, logical)?.place else { continue };
        seal_orphan_block(volume.cache.modify(block)?, block, seed);
    }
    Ok(())
}

/// Seals a block of the orphan file that stands at `number`.
fn seal_orphan_block(bytes: &mut [u8], number: u64, seed: Option<u32>) {
    let at = bytes.len() - 8;
    let checksum = seed.map_or(0, |seed| crc32c(crc32c(seed, &number.to_le_bytes()), &bytes[..at]));
    if get_u32(bytes, at + 4) != checksum {
        bytes[at + 4..].copy_from_slice(&checksum.to_le_bytes());
    }
}
